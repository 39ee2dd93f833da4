"""Environment variables of a job: which ones travel, and which of them are secrets."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from nemo_skills.core.errors import UserError
from nemo_skills.core.log import SECRET_NAME

KNOWN_KEYS = (
    "ANTHROPIC_API_KEY",
    "AZURE_OPENAI_API_KEY",
    "COHERE_API_KEY",
    "DEEPSEEK_API_KEY",
    "FIREWORKS_API_KEY",
    "GEMINI_API_KEY",
    "GOOGLE_API_KEY",
    "GROQ_API_KEY",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "MISTRAL_API_KEY",
    "NGC_API_KEY",
    "NVIDIA_API_KEY",
    "OPENAI_API_KEY",
    "OPENROUTER_API_KEY",
    "TOGETHER_API_KEY",
    "WANDB_API_KEY",
    "XAI_API_KEY",
)
"""Keys that are carried into every job whenever the launching environment has them."""

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
# Assigning to these ends or confuses a shell
_RESERVED = frozenset({"_", "BASHOPTS", "BASH_VERSINFO", "EUID", "PPID", "SHELLOPTS", "UID"})
# Wider than what the log filter looks for: a harmless value in the secrets file costs nothing
_ALSO_SECRET = re.compile(r"SECRET|PASSW|PRIVATE|_KEY$|_PAT$|_AUTH$", re.IGNORECASE)
SECRET_NAMES_ERE = f"{SECRET_NAME.pattern}|{_ALSO_SECRET.pattern}"
"""The same for shells: an extended regular expression for names in capitals."""
# Shorter values (`1`, `true`, `INFO`) are ordinary words; blanking them would only garble a log
_SHORTEST_REDACTED = 6
_MASK = "***"
# How Python shows environment values that are not UTF-8, and gets their bytes back
_ENCODING = ("utf-8", "surrogateescape")

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True, repr=False)
class JobEnv:
    """The variables of a job, sorted by name; `repr` and `str` show names only."""

    plain: Pairs = ()
    """Values written out in the cluster config; they may appear in scripts."""
    secrets: Pairs = ()
    """Values that may appear in the secrets file only."""

    def __post_init__(self) -> None:
        for name, value in (*self.plain, *self.secrets):
            _check_name(name)
            if "\0" in value or not _encodable(value):
                raise UserError(f"the value of {name} holds a zero byte or is not text.")

    def __repr__(self) -> str:
        plain, secrets = (", ".join(name for name, _ in pairs) for pairs in (self.plain, self.secrets))
        return f"JobEnv(plain=[{plain}], secrets=[{secrets}])"


def resolve_env(env_vars: Iterable[str], required: Iterable[str], environ: Mapping[str, str]) -> JobEnv:
    """Collect the variables of a job.

    Args:
        env_vars: `NAME` (taken from `environ` where it is set) or `NAME=value`.
        required: the same, but a `NAME` that is unset or empty is an error.
        environ: the launching environment.
    """
    optional_names, given = _split(env_vars)
    required_names, more_given = _split(required)
    for name, value in more_given.items():
        _add(given, name, value)
    missing = [name for name in required_names if name not in given and not environ.get(name)]
    if missing:
        plural = "s" if len(missing) > 1 else ""
        raise UserError(
            f"required environment variable{plural} not set: {', '.join(missing)}. "
            "Export them before launching, or change required_env_vars in the cluster config."
        )
    wanted = (*KNOWN_KEYS, *optional_names, *required_names)
    secrets = {name: environ[name] for name in wanted if name in environ and name not in given}
    secrets |= {name: value for name, value in given.items() if is_secret_name(name)}
    plain = {name: value for name, value in given.items() if not is_secret_name(name)}
    return JobEnv(tuple(sorted(plain.items())), tuple(sorted(secrets.items())))


def is_secret_name(name: str) -> bool:
    """Whether a variable of this name is treated as a secret even when its value is in the config."""
    return name in KNOWN_KEYS or bool(SECRET_NAME.search(name) or _ALSO_SECRET.search(name))


def render_secrets_file(env: JobEnv) -> bytes:
    """Return a file that exports the secrets when a POSIX shell sources it.

    Tracing (`set -x`, `set -v`) is off while the values are read and as before afterwards, so that a
    traced job does not print them.
    """
    lines = [f"export {name}={_single_quoted(value)}" for name, value in env.secrets]
    text = "\n".join(
        [
            "_ns_flags=$-",
            "set +vx",
            *lines,
            "case $_ns_flags in *v*) set -v ;; esac",
            "case $_ns_flags in *x*) set -x ;; esac",
            "unset _ns_flags",
            "",
        ]
    )
    return text.encode(*_ENCODING)


def redact(text: str, env: JobEnv) -> str:
    """Replace every secret value in `text` by `***`; lines of a multi-line value also one by one."""
    values = {value for _, value in env.secrets}
    values |= {line for value in values for line in value.splitlines()}
    long_enough = sorted((v for v in values if len(v) >= _SHORTEST_REDACTED), key=len, reverse=True)
    if not long_enough:
        return text
    return re.sub("|".join(map(re.escape, long_enough)), _MASK, text)


def _split(entries: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """Separate `NAME` entries from `NAME=value` entries."""
    names: list[str] = []
    given: dict[str, str] = {}
    for entry in entries:
        name, equals, value = entry.partition("=")
        _check_name(name)
        if equals:
            _add(given, name, value)
        elif name not in names:
            names.append(name)
    return names, given


def _add(given: dict[str, str], name: str, value: str) -> None:
    if given.setdefault(name, value) != value:
        raise UserError(f"the environment variable {name} is given twice with different values.")


def _check_name(name: str) -> None:
    # The message never repeats what follows the name: it may be a pasted key
    if not _IDENTIFIER.fullmatch(name):
        shown = name if len(name) <= 40 else name[:8] + "…"
        raise UserError(f"{shown!r} is not the name of an environment variable; write NAME or NAME=value.")
    if name in _RESERVED:
        raise UserError(f"the shell's own variable {name} cannot be set for a job.")


def _single_quoted(value: str) -> str:
    return "'" + value.replace("'", "'\\''") + "'"


def _encodable(value: str) -> bool:
    try:
        value.encode(*_ENCODING)
    except UnicodeEncodeError:
        return False
    return True
