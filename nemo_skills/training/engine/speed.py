"""How fast steps are, and how much of the device's power they use."""

import time
from dataclasses import dataclass
from typing import Any, Self

import torch

from nemo_skills.training.engine.parallel import Topology

# dense bfloat16 operations a second, from the makers' data sheets
_PEAK = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "B200": 2250e12, "L40S": 362e12}


@dataclass(frozen=True)
class Speed:
    """A stop watch of one step."""

    _begun: float

    @classmethod
    def start(cls) -> Self:
        """Start to measure."""
        return cls(time.monotonic())

    def figures(self, tokens: float, model: Any, topology: Topology) -> dict[str, float]:
        """Return tokens per second, and on known devices the share of their power (MFU)."""
        rate = tokens / max(time.monotonic() - self._begun, 1e-9)
        figures = {"tokens_per_second": rate}
        if topology.device.type == "cuda":
            name = torch.cuda.get_device_name(topology.device)
            peak = next((power for key, power in _PEAK.items() if key in name), None)
            if peak:
                # forward and backward pass take six operations for each weight and token
                weights = sum(parameter.numel() for parameter in model.parameters())
                figures["mfu"] = 6 * weights * rate / (peak * topology.world_size)
        return figures
