"""TensorRT-LLM's `trtllm-serve`, from a Hugging Face folder or from an engine; the job sees which."""

from collections.abc import Sequence

from nemo_skills.pipeline.servers.base import Flag, MultiNode, ServerRequest, ServerSpec

_SERVE = "trtllm-serve"
_WITH_ENGINE = ("python", "-m", "nemo_skills.inference.server.serve_trtllm")
_SPLITTING = frozenset(" \t\n*?[")


def _flags(request: ServerRequest) -> tuple[Flag, ...]:
    size = str(request.gpus * request.nodes)
    return (Flag(name="--tp_size", value=size, aliases=("--tensor_parallel_size", "--tp")),)


def _problems(request: ServerRequest) -> tuple[str, ...]:
    if not request.gpus:
        return ("server_type trtllm needs --server_gpus: it does not run on a CPU",)
    return launcher_problems((request.model or "", *request.args)) if request.nodes > 1 else ()


def launcher_problems(words: Sequence[str]) -> tuple[str, ...]:
    """Return what `trtllm-llmapi-launch`, which hands its command to a shell without quotes, would break."""
    return tuple(
        f"TensorRT-LLM's launcher for several nodes would split or expand '{word}': no blanks, * ? ["
        for word in words
        if _SPLITTING & set(word)
    )


def _multi_node(request: ServerRequest) -> MultiNode:
    """One MPI process per GPU; the first one's `trtllm-serve` hands its work to all of them."""
    return MultiNode(
        program=(*_WITH_ENGINE, "trtllm-llmapi-launch", _SERVE, request.model or ""),
        tasks_per_node=request.gpus,
        mpi="pmix",
    )


SPEC = ServerSpec(
    name="trtllm",
    role="trtllm",
    program=(*_WITH_ENGINE, _SERVE),
    positional_model=True,
    flags=_flags,
    problems=_problems,
    multi_node=_multi_node,
)
