"""Things that are known by an import path: functions, classes, members of enums, dtypes."""

import enum
import inspect
import pkgutil
from typing import Any

from nemo_skills.core.errors import UserError, did_you_mean


def locate(path: str) -> Any:
    """Return what lies at an import path, such as `torch.float32` or `pkg.module.Class.method`.

    Raises:
        UserError: there is nothing; names the nearest that is.
    """
    try:
        return pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{path} cannot be imported: {error}.{_nearest(path)}") from None


def import_path(value: Any) -> str | None:
    """Return the import path of something, or None where it has none that leads back to it."""
    for path in _candidates(value):
        try:
            found = pkgutil.resolve_name(path)
        except (ImportError, AttributeError, ValueError):
            continue
        # a method is another object each time it is asked for
        if found is value or (inspect.ismethod(value) and found == value):
            return path
    return None


def _candidates(value: Any) -> list[str]:
    if isinstance(value, enum.Enum):
        kind = type(value)
        return [f"{kind.__module__}.{kind.__qualname__}.{value.name}"]
    if inspect.ismethod(value) and inspect.isclass(value.__self__):
        owner = value.__self__
        return [f"{owner.__module__}.{owner.__qualname__}.{value.__name__}"]
    if callable(value):
        name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
        module = getattr(value, "__module__", None)
        return [f"{module}.{name}"] if module and name else []
    # what is printed as its path, as dtypes are
    text = str(value)
    return [text] if all(part.isidentifier() for part in text.split(".")) and "." in text else []


def _nearest(path: str) -> str:
    parent, _, name = path.rpartition(".")
    try:
        names = dir(pkgutil.resolve_name(parent))
    except (ImportError, AttributeError, ValueError):
        return ""
    return did_you_mean(name, names)
