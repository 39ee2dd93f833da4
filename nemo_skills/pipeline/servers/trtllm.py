"""TensorRT-LLM's `trtllm-serve`, from a Hugging Face checkpoint or a built engine."""

from nemo_skills.pipeline.servers.base import Flag, ServerRequest, ServerSpec


def _flags(request: ServerRequest) -> tuple[Flag, ...]:
    return (Flag(name="--tp_size", value=str(request.gpus), aliases=("--tensor_parallel_size", "--tp")),)


def _problems(request: ServerRequest) -> tuple[str, ...]:
    return () if request.gpus else ("server_type trtllm needs --server_gpus: it does not run on a CPU",)


SPEC = ServerSpec(
    name="trtllm",
    role="trtllm",
    program=("trtllm-serve",),
    positional_model=True,
    flags=_flags,
    problems=_problems,
)
