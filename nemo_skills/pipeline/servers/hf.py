"""`transformers serve` with continuous batching: needs no GPU; the extra `serve` of this package suffices."""

from nemo_skills.pipeline.servers.base import Flag, ServerRequest, ServerSpec

# Without a bound the cache takes half of the machine's memory. A block holds 256 tokens: 32k tokens in all.
_CPU_CACHE_BLOCKS = "128"
_CPU_BATCH_TOKENS = "1024"


def _flags(request: ServerRequest) -> tuple[Flag, ...]:
    batching = Flag(name="--continuous-batching", aliases=("--no-continuous-batching",))
    if request.gpus:
        return (batching, Flag(name="--device", value="auto"))
    return (
        batching,
        Flag(name="--device", value="cpu"),
        Flag(name="--cb-num-blocks", value=_CPU_CACHE_BLOCKS, aliases=("--cb-max-memory-percent",)),
        Flag(name="--cb-max-batch-tokens", value=_CPU_BATCH_TOKENS),
    )


SPEC = ServerSpec(
    name="hf",
    role="nemo-skills",
    program=("python", "-m", "transformers.cli.transformers", "serve"),
    positional_model=True,
    flags=_flags,
    # the program asks a package index for a newer version of itself at every start
    env={"HF_HUB_DISABLE_UPDATE_CHECK": "1"},
)
