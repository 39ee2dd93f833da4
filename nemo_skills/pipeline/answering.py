"""What wrappers have in common that let a model answer the rows of files with the generation main."""

import glob
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nemo_skills.core.errors import UserError
from nemo_skills.pipeline.cluster.config import ClusterConfig
from nemo_skills.pipeline.launch.layout import host_path
from nemo_skills.pipeline.launch.plan import Argv, Component, Job, shell
from nemo_skills.pipeline.launch.submit import survey
from nemo_skills.pipeline.launch.survey import Queued, Survey
from nemo_skills.pipeline.main_args import encode_override
from nemo_skills.pipeline.options import HookOptions, ServerOptions
from nemo_skills.pipeline.servers.component import server_components
from nemo_skills.pipeline.servers.sandbox import sandbox_component

MAIN = "nemo_skills.inference.generate"
SCHEMA = "nemo_skills.inference.generate:GenerateConfig"
ROLE = "nemo-skills"
SAMPLING_TEMPERATURE = 0.7
_ON = re.compile(r"=\s*(true|yes|on)\s*$", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far earlier calls have come, by the paths of files."""

    done: frozenset[str] = frozenset()
    """Those that are complete."""
    queued: Mapping[str, Queued] = field(default_factory=dict)
    """Those that a job in the queue writes."""
    found: Survey | None = None


def encoded(values: Mapping[str, object]) -> list[str]:
    """Return arguments of a main."""
    return [encode_override(key, value) for key, value in values.items()]


def argument_key(arg: str) -> str:
    """Return the key that an argument of a main sets."""
    return arg.lstrip("+~").partition("=")[0]


def refuse_owned(args: Iterable[str], owned: Mapping[str, str]) -> None:
    """Refuse arguments that are the wrapper's to give; `owned` maps them to its options.

    Raises:
        UserError: there is one.
    """
    for arg in args:
        if (key := argument_key(arg)) in owned:
            raise UserError(f"{arg}: this argument is given by the wrapper; use {owned[key]} instead")


def seed_values(seed: int | None) -> dict[str, object]:
    """Return the main's arguments that make one of several different samples."""
    if seed is None:
        return {}
    # greedy decoding would give the same answers for every seed; a temperature of the user's comes later
    return {"inference.random_seed": seed, "inference.temperature": SAMPLING_TEMPERATURE}


def answering_job(
    name: str, commands: Sequence[Argv], *, server: ServerOptions, hooks: HookOptions, cluster: ClusterConfig
) -> Job:
    """Return a job whose commands ask its server, or one that runs elsewhere, one after the other."""
    servers = server_components(server, cluster)
    sandboxes = (sandbox_component(),) if server.with_sandbox or _run_code(commands) else ()
    main = Component(
        name="main",
        role=ROLE,
        before=tuple(shell(hooks.preprocess_cmd)),
        commands=tuple(commands),
        after=tuple(shell(hooks.postprocess_cmd)),
        independent=True,
    )
    return Job(name=name, components=(*servers, *sandboxes, main))


def _run_code(commands: Iterable[Argv]) -> bool:
    """Tell whether mains run the model's code, in a sandbox that nobody has named."""
    words = [word for command in commands for word in command if isinstance(word, str)]
    switched_on = any(argument_key(word) == "code_execution" and _ON.search(word) for word in words)
    return switched_on and not any(argument_key(word) == "sandbox_address" for word in words)


def find_progress(
    cluster: ClusterConfig, inputs: Mapping[str, str], run_after: Sequence[str], others: Sequence[str] = ()
) -> Progress:
    """Look for results, and for jobs in the queue that write them.

    Args:
        cluster: Where they lie.
        inputs: Result files of the generation main, each with the input that it answers.
        run_after: What `launch` will wait for.
        others: More files, of which `Progress.found` and `queued` tell.
    """
    marks = [f"{path}.done" for path in inputs]
    found = survey(cluster, [*inputs, *marks, *others], [*inputs, *others], run_after)
    complete = (path for path in inputs if {path, f"{path}.done"} <= found.exists)
    done = frozenset(p for p in complete if not _is_outdated(cluster, inputs[p], f"{p}.done"))
    return Progress(done=done, queued=found.queued, found=found)


def _is_outdated(cluster: ClusterConfig, input_file: str, mark: str) -> bool:
    """Whether an input on this machine is newer than a mark; the main finds out which rows have changed."""
    if cluster.executor == "slurm":
        return False
    names = [input_file, *input_file.split(",")]
    try:
        patterns = [host_path(cluster, name.strip()) for name in names]
    except UserError:  # jobs will say that they cannot see it
        return False
    found = {match for pattern in patterns for match in (pattern, *glob.iglob(pattern))}  # noqa: PTH207
    written = Path(host_path(cluster, mark)).stat().st_mtime_ns
    return any(path.stat().st_mtime_ns > written for path in map(Path, found) if path.exists())
