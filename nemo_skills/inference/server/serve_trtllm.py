"""Becomes the command that follows, which serves a model with TensorRT-LLM.

    python -m nemo_skills.inference.server.serve_trtllm trtllm-serve MODEL --port 8000 …

Of a built engine it has to be told that it is one, and where its tokenizer is. Standard library only.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

_MODEL_AFTER = "trtllm-serve"
_ENGINE_FILE = "rank0.engine"


def command(words: list[str]) -> list[str]:
    """Return the command, with what an engine needs and the user has not given."""
    folder = words[words.index(_MODEL_AFTER) + 1]
    if not (Path(folder) / _ENGINE_FILE).is_file():
        return words
    needed = {"--backend": "tensorrt", "--tokenizer": folder}
    given = {word.partition("=")[0] for word in words}
    return words + [part for flag, value in needed.items() if flag not in given for part in (flag, value)]


def main() -> int:
    """Run the command line."""
    words = command(sys.argv[1:])
    try:
        os.execvp(words[0], words)  # noqa: S606
    except OSError as error:
        sys.stderr.write(f"cannot start {words[0]}: {error.strerror}. Is TensorRT-LLM installed here?\n")
    return 127


if __name__ == "__main__":
    sys.exit(main())
