"""A small main to run as a program: prints its config as JSON."""

import dataclasses
import enum
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nemo_skills.core.errors import UserError
from nemo_skills.core.hydra import MISSING, main, opt


class Level(enum.Enum):
    LOW = 1
    HIGH = 2


@dataclass(frozen=True, kw_only=True)
class Inference:
    temperature: float = opt(0.0, "Randomness of the answers")
    top_k: int = opt(-1, "How many candidates")
    endpoint: Literal["chat", "text"] = opt("chat", "Which endpoint to call")
    extra_body: dict[str, Any] = opt(dict, "Anything else for the server")

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature must be at least 0, not {self.temperature}")


@dataclass(frozen=True, kw_only=True)
class Server:
    port: int = opt(MISSING, "Port to listen on")


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Config of the demo."""

    input_file: str = opt(MISSING, "Rows to read")
    folder: Path = opt(Path("data"), "Where things are")
    max_samples: int | None = opt(None, "How many rows; null for all")
    verbose: bool = opt(False, "Say more")
    suffix: str = opt("", "Text behind each prompt")
    system: str | None = opt("be kind", "System message")
    stop: list[str] = opt([], "Where to stop")
    sizes: tuple[int, ...] = opt((), "Sizes")
    seeds: int | list[int] = opt(0, "One seed or many")
    level: Level = opt(Level.LOW, "How much")
    color: str = opt("red", "A color", choices=("red", "green"))
    anything: Any = opt(None, "Free-form")
    where: str = opt("${folder}/logs", "Where logs go")
    inference: Inference = opt(Inference, "Sampling")
    server: Server | None = opt(None, "A server, if any")


@main(DemoConfig)
def run(config: DemoConfig) -> None:
    """Print the config as JSON."""
    if config.suffix == "raise":
        raise UserError("the suffix is bad", exit_code=5)
    if config.suffix == "interrupt":
        raise KeyboardInterrupt
    json.dump(dataclasses.asdict(config), sys.stdout, default=str)


if __name__ == "__main__":
    run()
