"""SGLang; `--server_args` takes everything that its `launch_server` takes."""

from nemo_skills.pipeline.servers.base import MEETING, Flag, MultiNode, ServerRequest, ServerSpec


def _flags(request: ServerRequest) -> tuple[Flag, ...]:
    flags = [Flag(name="--model-path", value=request.model, aliases=("--model",))]
    if not request.gpus:
        flags.append(Flag(name="--device", value="cpu"))
    if (size := max(request.gpus, 1) * request.nodes) > 1 or request.gpus:
        flags.append(Flag(name="--tp-size", value=str(size), aliases=("--tp", "--tensor-parallel-size")))
    if request.nodes > 1:
        flags += [
            Flag(name="--nnodes", value=str(request.nodes), reserved=MEETING),
            Flag(name="--node-rank", value="{node_rank}", reserved=MEETING),
            Flag(name="--dist-init-addr", value="{head}:{head_port}", reserved=MEETING),
        ]
    return tuple(flags)


SPEC = ServerSpec(
    name="sglang",
    role="sglang",
    program=("python", "-m", "sglang.launch_server"),
    flags=_flags,
    multi_node=lambda _request: MultiNode(),
)
