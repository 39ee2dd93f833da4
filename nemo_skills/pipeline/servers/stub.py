"""Our stub: no model, invented answers; rehearses a pipeline in seconds."""

from nemo_skills.pipeline.servers.base import Flag, MultiNode, ServerRequest, ServerSpec


def _flags(request: ServerRequest) -> tuple[Flag, ...]:
    return (Flag(name="--model", value=request.model),)


SPEC = ServerSpec(
    name="stub",
    role="nemo-skills",
    program=("python", "-m", "nemo_skills.inference.server.stub"),
    flags=_flags,
    # a rehearsal: the nodes after the first run stubs too, which nobody asks anything
    multi_node=lambda _request: MultiNode(),
)
