"""Settles by which name a server knows the model that the user asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from nemo_skills.core.errors import UserError, did_you_mean

_SHOWN = 10


@dataclass(frozen=True)
class ServedModel:
    """One entry of a server's model list."""

    id: str
    root: str | None
    """Where the server loaded it from, if it says so."""


def parse_models(body: Any) -> list[ServedModel] | None:
    """Read the answer of `/v1/models`; None when it is not a model list."""
    entries = body.get("data") if isinstance(body, dict) else None
    if not isinstance(entries, list):
        return None
    return [
        ServedModel(str(entry["id"]), entry.get("root"))
        for entry in entries
        if isinstance(entry, dict) and "id" in entry
    ]


def choose_model(wanted: str | None, served: Sequence[ServedModel], where: str, *, our_own: bool) -> str:
    """Return the server's name for `wanted`.

    Paths are compared without a trailing slash, and with the place that the server loaded a model from. A
    server with one model is also taken at its word when the job started it for this model (`our_own`), or
    when its name is the last part of the path given.

    Raises:
        UserError: the server lacks the model, or none was named and it has several.
    """
    ids = [model.id for model in served]
    if wanted is None:
        if len(ids) == 1:
            return ids[0]
        raise UserError(f"server.model is missing; {where} has {_listing(ids)}")
    if wanted in ids:
        return wanted
    plain = wanted.rstrip("/")
    for model in served:
        if plain in (model.id.rstrip("/"), (model.root or "").rstrip("/")):
            return model.id
    if len(ids) == 1 and (our_own or _same_name(plain, ids[0])):
        return ids[0]
    raise UserError(f"{where} has no model '{wanted}'.{did_you_mean(wanted, ids)} It has {_listing(ids)}")


def _same_name(wanted: str, served: str) -> bool:
    one_is_a_path = PurePath(wanted).is_absolute() or PurePath(served).is_absolute()
    return one_is_a_path and PurePath(wanted).name == PurePath(served).name


def _listing(ids: Sequence[str]) -> str:
    if not ids:
        return "no model at all"
    more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
    return ", ".join(sorted(ids)[:_SHOWN]) + more
