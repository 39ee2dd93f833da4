"""Runs Python programs that nobody vouches for: a server that contains them, and its client."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nemo_skills.code_execution.client import Sandbox
    from nemo_skills.code_execution.result import ExecutionResult, Status

__all__ = ["ExecutionResult", "Sandbox", "Status"]


def __getattr__(name: str) -> Any:
    # the box's processes import this package too, and every one of them would carry the client
    import importlib

    if name in __all__:
        module = "client" if name == "Sandbox" else "result"
        return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
