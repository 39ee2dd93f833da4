"""NeMo checkpoints: a converted copy, served by vLLM or, where that is missing, by `transformers serve`."""

import importlib.util
from dataclasses import dataclass, replace

from nemo_skills.pipeline.cluster.config import ClusterConfig
from nemo_skills.pipeline.cluster.roles import role_with_torch
from nemo_skills.pipeline.servers import hf, vllm
from nemo_skills.pipeline.servers.base import ServerRequest, ServerSpec, given_value, is_given
from nemo_skills.pipeline.servers.place import MAINS_ROLE, Place, engine_place

NAME = "nemo"
_MODEL = "{model}"
_SERVE = ("python", "-m", "nemo_skills.inference.server.serve_nemo")
_HF_MODEL = "--hf-model-name"
_SERVED_NAME = "--served-model-name"


@dataclass(frozen=True, kw_only=True)
class NemoSpec(ServerSpec):
    """A server of another type behind a conversion, with which each of its processes begins."""

    engine_python: str | None = None
    """The interpreter that has the engine, where it is not that of the role."""

    def argv(self, request: ServerRequest) -> tuple[str, ...]:
        """Return the command that converts and then becomes the engine's."""
        return self._converting(request, super().argv(self._inner(request)))

    def worker_argv(self, request: ServerRequest) -> tuple[str, ...]:
        """Return that of the other processes; empty when it is the first one's."""
        inner = self._inner(request)
        spread = self.spread(inner)
        if spread.worker_words:
            return self._converting(request, (*super().argv(inner), *spread.worker_words))
        return spread.worker

    def _inner(self, request: ServerRequest) -> ServerRequest:
        """Return what is asked of the engine."""
        args = _without(request.args, _HF_MODEL)
        if self.client_type == "vllm" and request.model and not is_given(args, _SERVED_NAME):
            args = (_SERVED_NAME, request.model, *args)
        return replace(request, model=request.model and _MODEL, args=args)

    def _converting(self, request: ServerRequest, command: tuple[str, ...]) -> tuple[str, ...]:
        options = {"--model": request.model, _HF_MODEL: given_value(request.args, _HF_MODEL)}
        if self.engine_python:
            options["--python"] = self.engine_python
            command = tuple(self.engine_python if word == "{python}" else word for word in command)
        words = [word for name, value in options.items() if value for word in (name, value)]
        # transformers serve answers to the folder's name only
        told = ["--publish"] if self.client_type == "hf" else []
        return (*_SERVE, *words, *told, "--", *command)


def on_cluster(cluster: ClusterConfig) -> NemoSpec:
    """Return the type as this cluster serves it."""
    if has_vllm(cluster):
        return _behind(vllm.SPEC, engine_place("vllm", cluster, role=role_with_torch(cluster)))
    return _behind(hf.SPEC, Place(MAINS_ROLE))


def has_vllm(cluster: ClusterConfig) -> bool:
    """Whether there is vLLM: the cluster config names where, or it is in the interpreter of this process."""
    if "vllm" in cluster.containers:
        return True
    ours = cluster.executor == "none" and cluster.container(MAINS_ROLE).kind == "python"
    return ours and importlib.util.find_spec("vllm") is not None


def _behind(engine: ServerSpec, place: Place) -> NemoSpec:
    fields = {name: getattr(engine, name) for name in _OF_THE_ENGINE}
    return NemoSpec(
        name=NAME, client_type=engine.name, role=place.role, engine_python=place.engine_python, **fields
    )


_OF_THE_ENGINE = ("ready_path", "program", "flags", "problems", "positional_model", "env", "multi_node")


def _without(args: tuple[str, ...], name: str) -> tuple[str, ...]:
    """Return arguments without a flag and its value."""
    kept: list[str] = []
    words = iter(args)
    for word in words:
        if not is_given((word,), name):
            kept.append(word)
        elif "=" not in word:
            next(words, None)
    return tuple(kept)


SPEC = replace(_behind(vllm.SPEC, Place("vllm")), on_cluster=on_cluster)
