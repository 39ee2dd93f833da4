"""Plans to scripts. Pure: the same plan always gives the same text; quoting happens here and nowhere else."""

import shlex
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NamedTuple

from nemo_skills.pipeline.launch.plan import Argv, CodePath, Component, Interpreter


@dataclass(frozen=True, kw_only=True)
class Site:
    """How a component finds its tools where it runs."""

    interpreter: str
    """Python interpreter of the component's role."""
    code_dir: str
    """Folder that holds the `nemo_skills` package."""
    path_dirs: tuple[str, ...] = ()
    """Put before `PATH`: the programs of a virtual environment."""
    python_path: str | None = None
    """Put before `PYTHONPATH`."""
    work_dir: str | None = None
    """Where commands start; None keeps the folder that the job was started in."""
    env: tuple[tuple[str, str], ...] = ()
    """Variables of every component; never secrets."""
    secrets_file: str | None = None
    """File that exports secret variables, read if it is there."""
    secrets_once: bool = False
    """Whether that file is the component's own, to be removed as soon as it is read."""
    up_file: str | None = None
    """Created first of all: whoever sees it knows that the component has started."""


class RenderedFile(NamedTuple):
    """A script, and what it is called."""

    name: str
    text: str


class RenderedJob(NamedTuple):
    """All scripts of one job."""

    name: str
    files: tuple[RenderedFile, ...]


def render_argv(argv: Argv, site: Site) -> str:
    """Return one command line that a shell splits back into exactly `argv`."""

    def text(word: str | Interpreter | CodePath) -> str:
        if isinstance(word, Interpreter):
            return site.interpreter
        if isinstance(word, CodePath):
            return str(PurePosixPath(site.code_dir) / word.relative)
        return word

    return " ".join(shlex.quote(text(word)) for word in argv)


def render_component(component: Component, site: Site) -> str:
    """Return the bash script of one component."""
    lines = ["#!/usr/bin/env bash", "set -e"]
    if site.up_file:
        lines.append(f": > {shlex.quote(site.up_file)}")
    if site.secrets_file:
        quoted = shlex.quote(site.secrets_file)
        remove = f" rm -f {quoted};" if site.secrets_once else ""
        lines.append(f"if [ -e {quoted} ]; then . {quoted};{remove} fi")
    # before the paths: a PATH or PYTHONPATH of the user's is extended, not a replacement
    lines += [f"export {name}={shlex.quote(value)}" for name, value in (*site.env, *component.env)]
    if site.python_path:
        lines.append(f'export PYTHONPATH={shlex.quote(site.python_path)}"${{PYTHONPATH:+:$PYTHONPATH}}"')
    if site.path_dirs:
        lines.append(f'export PATH={shlex.quote(":".join(site.path_dirs))}:"$PATH"')
    if site.work_dir:
        lines.append(f"cd {shlex.quote(site.work_dir)}")
    return "\n".join([*lines, *_command_lines(component, site)]) + "\n"


def _command_lines(component: Component, site: Site) -> list[str]:
    before, commands, after = (
        [render_argv(argv, site) for argv in part]
        for part in (component.before, component.commands, component.after)
    )
    lines = []
    if component.independent and commands[1:]:
        lines += [f"run {command}" for command in before]
        lines += [f"run {command} || failed=${{failed:-$?}}" for command in commands]
        lines.append('[ -z "$failed" ] || exit "$failed"')
        lines += [f"run {command}" for command in after]
        return [_RUN, *lines]
    *first, last = (*before, *commands, *after)
    # exec: signals and the exit code reach and leave the last command without a shell in between
    return [*([_RUN] if first else []), *(f"run {command}" for command in first), f"exec {last}"]


# A shell that waits for a command in the foreground can neither hand a signal on nor end before the command
_RUN = """\
run() {
  "$@" &
  child=$!
  trap 'stopped=1; kill -TERM "$child" 2>/dev/null' TERM
  wait "$child" && code=0 || code=$?
  while kill -0 "$child" 2>/dev/null; do wait "$child" && code=0 || code=$?; done
  [ -z "$stopped" ] || exit "$code"
  return "$code"
}"""
