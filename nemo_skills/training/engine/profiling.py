"""Records a few steps of a training with torch's profiler, or marks them for Nsight Systems.

Variables of the environment say which, as the plugins of `nemo_skills.training.recipes.plugins` set them:
`NS_PROFILE_STEPS=10-12`, `NS_PROFILE_RANKS=0,8` (0), `NS_PROFILE_TOOL=nsys` (torch), `NS_PROFILE_DIR`.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_skills.core.errors import UserError
from nemo_skills.core.jsonl import disk_errors
from nemo_skills.core.log import get_logger

LOG = get_logger(__name__)

STEPS, RANKS, TOOL, FOLDER = "NS_PROFILE_STEPS", "NS_PROFILE_RANKS", "NS_PROFILE_TOOL", "NS_PROFILE_DIR"


@dataclass
class Profiler:
    """Records from the beginning of one step to the end of another; steps count from 1, so 0 is none."""

    first: int
    last: int
    rank: int
    folder: Path
    nsys: bool = False
    _running: Any = None

    @classmethod
    def of_environment(cls, rank: int, folder: Path, environ: Mapping[str, str] = os.environ) -> "Profiler":
        """Return one that records what the environment asks of this rank, or nothing.

        Raises:
            UserError: a variable cannot be understood.
        """
        if not (given := environ.get(STEPS)):
            return cls(0, 0, rank, folder)
        try:
            first, last = map(int, given.split("-"))
            ranks = [int(number) for number in environ.get(RANKS, "0").split(",")]
        except ValueError:
            raise UserError(
                f"{STEPS}={given}, {RANKS}={environ.get(RANKS, '0')}: expected such as 10-12 and 0,8."
            ) from None
        if not 0 < first <= last:
            raise UserError(f"{STEPS}={given}: expected two steps, the first of which is 1 or more.")
        tool = environ.get(TOOL, "torch")
        if tool not in ("torch", "nsys"):
            raise UserError(f"{TOOL}={tool}: expected torch or nsys.")
        if rank not in ranks:
            return cls(0, 0, rank, folder)
        return cls(first, last, rank, Path(environ.get(FOLDER) or folder / "profile"), nsys=tool == "nsys")

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Record what happens inside, if this step is one of those."""
        if number == self.first:
            self._start()
        yield
        if number == self.last:
            self.stop()

    def _start(self) -> None:
        import torch

        if self.nsys:
            # the range that `nsys profile --capture-range=cudaProfilerApi` waits for
            torch.cuda.cudart().cudaProfilerStart()
            self._running = torch.autograd.profiler.emit_nvtx()
            self._running.__enter__()
            return
        activities = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._running = torch.profiler.profile(activities=activities, record_shapes=True)
        self._running.__enter__()

    def stop(self) -> None:
        """Write what was recorded, also when training ends before the last step."""
        import torch

        running, self._running = self._running, None
        if running is None:
            return
        running.__exit__(None, None, None)
        if self.nsys:
            torch.cuda.cudart().cudaProfilerStop()
            return
        name = f"rank{self.rank}-steps{self.first}-{self.last}"
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            # a viewer must not find half of it
            partial = self.folder / f"{name}.tmp.json"
            running.export_chrome_trace(str(partial))
            partial.replace(self.folder / f"{name}.json")
            table = running.key_averages().table(sort_by="self_cpu_time_total", row_limit=40)
            (self.folder / f"{name}.txt").write_text(table, encoding="utf-8")
        LOG.info("Profile of steps %s to %s: %s", self.first, self.last, self.folder / f"{name}.json")
