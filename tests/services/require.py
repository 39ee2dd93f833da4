"""What a test does when its service is absent: skip, or fail where `NS_TEST_REQUIRE` lists the service."""

from __future__ import annotations

import os

import pytest


def required(service: str) -> bool:
    """Whether `NS_TEST_REQUIRE` (split at commas and blanks; `all` means every one) lists the service."""
    names = os.environ.get("NS_TEST_REQUIRE", "").replace(",", " ").split()
    return service in names or "all" in names


def require(service: str, ok: bool, reason: str) -> None:
    """Go on when `ok`; otherwise skip the test, or fail it where the service is required."""
    if ok:
        return
    message = f"service {service!r} is not available: {reason}"
    if required(service):
        pytest.fail(f"{message} (NS_TEST_REQUIRE lists it)", pytrace=False)
    pytest.skip(message)
