"""Graders that misbehave, for the tests of the pool."""

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nemo_skills.core.hydra import opt
from nemo_skills.evaluation.graders import NoOptions
from nemo_skills.evaluation.verdicts import Grade, Verdict


class Obedient:
    """Does what the row says: text is echoed, anything else is a way to die."""

    Options = NoOptions
    measure = "obeyed"
    version = 1
    timeout_s = 1.0
    soft_timeout_s = None
    keys = ("do",)

    def __init__(self, options: NoOptions) -> None:
        pass

    def warm_up(self) -> None:
        """Nothing to import."""

    def grade(self, row: Mapping[str, Any]) -> Grade:
        match row["do"]:
            case "spin":  # in one call of C code, which no signal handler interrupts
                pow(7, 10**9)
            case "sleep":
                time.sleep(3600)
            case "segfault":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "exit":
                os._exit(0)
            case "raise":
                raise RuntimeError("no idea")
            case "eat":
                bytearray(1 << 45)
            case "unwritable":
                return Grade(verdict=Verdict.correct, details={"what": object()})
            case {"burn": seconds}:
                end = time.process_time() + seconds
                while time.process_time() < end:
                    pass
            case {"sleep": seconds}:
                time.sleep(seconds)
        return Grade(verdict=Verdict.correct, predicted_answer=str(row["do"]), details={"pid": os.getpid()})


@dataclass(frozen=True, kw_only=True)
class PickyOptions:
    """Settings of `Picky`."""

    strict: bool = opt(True, "whether to be strict")


class Picky(Obedient):
    """Has settings."""

    Options = PickyOptions


class Unprepared(Obedient):
    """Misses a library."""

    def warm_up(self) -> None:
        from nemo_skills.core.errors import UserError

        raise UserError("install the library")
