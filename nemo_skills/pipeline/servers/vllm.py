"""vLLM; `--server_args` takes everything that `vllm serve` takes."""

from nemo_skills.pipeline.servers.base import Flag, ServerRequest, ServerSpec


def _flags(request: ServerRequest) -> tuple[Flag, ...]:
    flags = [Flag(name="--model", value=request.model)]
    if request.gpus:
        flags.append(Flag(name="--tensor-parallel-size", value=str(request.gpus), aliases=("-tp",)))
    return tuple(flags)


SPEC = ServerSpec(
    name="vllm",
    role="vllm",
    program=("python", "-m", "vllm.entrypoints.openai.api_server"),
    flags=_flags,
)
