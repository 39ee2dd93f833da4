"""Waits until the servers of a job answer, and settles which model name they know."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class ServerTarget:
    """What the caller asked for."""

    server_type: str
    """`vllm`, `hf`, `openai`, …"""
    model: str | None
    """Model name or path; None takes the only model that the server has."""
    addresses: tuple[str, ...] = ()
    """Addresses of running servers; empty: read those that the job's launchers publish in its run folder."""
    ready_timeout_s: float = 1800.0
    """How long a server of this job may take to load its model."""
    connect_timeout_s: float = 30.0
    """How long an explicitly given address may refuse connections."""
    api_key: str | None = None
    """Sent as a bearer token when set."""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A server that answers."""

    base_url: str
    """Ends in `/v1`, without a trailing slash: `{base_url}/chat/completions` is where requests go."""
    model: str
    """The name by which this server knows the model."""


async def wait_until_ready(server: ServerTarget, *, run_dir: Path | None) -> list[Endpoint]:
    """Wait until every server answers and has the model.

    Raises:
        UserError: no address, a server that ended, refuses connections or stays unready, an unknown model.
    """
    raise NotImplementedError
