"""What `ns` shows: its commands and options are frozen, its help is complete, and it starts fast."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_skills.pipeline import cli
from nemo_skills.pipeline.declare import Option

GOLDEN = Path(__file__).parents[1] / "golden" / "cli_surface.txt"
HEAVY = ("nemo_run", "hydra", "omegaconf", "torch", "transformers", "openai", "aiohttp", "vllm", "pydantic")
COMMANDS = sorted(cli.COMMANDS)


def surface() -> str:
    """Return every command and option, one a line."""
    lines = []
    for name in COMMANDS:
        command = cli.load_command(name)
        lines.append(f"ns {name} -> {command.main or command.rest.name.lower()}")
        panel = ""
        for option in command.options.values():
            if option.panel != panel:
                panel = option.panel
                lines.append(f"  {panel}")
            lines.append(f"    --{option.name}: {describe(option)}")
    return "\n".join(lines) + "\n"


def describe(option: Option) -> str:
    kind = option.kind.__name__ if option.annotation in {str, int, bool} else str(option.annotation)
    least = "" if option.minimum is None else f", at least {option.minimum}"
    choices = f", one of {', '.join(option.choices)}" if option.choices else ""
    place = f", place {option.place}" if option.place else ""
    value = "required" if option.required else f"default {option.default!r}"
    return f"{kind}{least}{choices}{place}, {value}"


def run_ns(*words: str) -> subprocess.CompletedProcess[str]:
    """Run `ns` in a fresh interpreter that ends by naming the heavy modules it imported."""
    code = (
        "import sys; from nemo_skills.pipeline.cli import main; code = main(sys.argv[1:]);"
        f"print('imported', *sorted(set({HEAVY}) & set(sys.modules)), file=sys.stderr); sys.exit(code)"
    )
    env = {**os.environ, "COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1"}
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, env=env)


def test_surface_is_frozen() -> None:
    """Rewrite the golden file with NS_UPDATE_GOLDEN=1 after a wanted change."""
    if os.environ.get("NS_UPDATE_GOLDEN") == "1":
        GOLDEN.write_text(surface())
    assert GOLDEN.exists(), "no golden file: run once with NS_UPDATE_GOLDEN=1 and commit it"
    assert surface() == GOLDEN.read_text()


@pytest.mark.parametrize("words", [["--help"], [], *([name, "--help"] for name in COMMANDS)])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    result = run_ns(*words)
    assert result.returncode == 0, result.stderr
    assert result.stderr.split() == ["imported"]


def test_ns_help_lists_every_command() -> None:
    text = run_ns("--help").stdout
    for name, entry in cli.COMMANDS.items():
        assert f" {name} " in text
        assert entry.help in text
        assert len(entry.help) <= 75


@pytest.mark.parametrize("name", COMMANDS)
def test_command_help_is_grouped_and_names_the_main(name: str) -> None:
    command = cli.load_command(name)
    text = run_ns(name, "-h").stdout
    assert (f"python -m {command.main} --help" in text) == bool(command.main)
    for option in command.options.values():
        assert f"─ {option.panel} ─" in text
        assert f"--{option.name} " in text
        assert option.help.split()[0] in text
    assert "--no-" not in text


def test_version() -> None:
    from importlib.metadata import version

    assert run_ns("--version").stdout.strip() == version("nemo-skills")


def test_public_names_are_importable() -> None:
    for name in cli.__all__:
        assert getattr(cli, name) is not None
    assert set(cli.COMMANDS) <= set(cli.__all__)
    with pytest.raises(AttributeError):
        cli.no_such_command  # noqa: B018


def test_a_typo_ends_with_exit_code_2_before_anything_heavy() -> None:
    result = run_ns("generate", "--server_typ=vllm")
    assert result.returncode == 2
    message, imported = result.stderr.splitlines()
    assert "'--server_type'" in message
    assert imported == "imported"
