"""SGLang; `--server_args` takes everything that its `launch_server` takes."""

from nemo_skills.pipeline.servers.base import Flag, ServerRequest, ServerSpec


def _flags(request: ServerRequest) -> tuple[Flag, ...]:
    model = Flag(name="--model-path", value=request.model, aliases=("--model",))
    if not request.gpus:
        return (model, Flag(name="--device", value="cpu"))
    return (
        model,
        Flag(name="--tp-size", value=str(request.gpus), aliases=("--tp", "--tensor-parallel-size")),
    )


SPEC = ServerSpec(
    name="sglang",
    role="sglang",
    program=("python", "-m", "sglang.launch_server"),
    flags=_flags,
)
