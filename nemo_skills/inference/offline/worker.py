"""The process of an engine that lives in another environment; `engine.RemoteEngine` starts it.

python -m nemo_skills.inference.offline.worker REQUESTS REPLIES: two open file descriptors. One line of JSON
each way: first the spec, then batches. Whatever libraries print goes to stderr.
"""

import dataclasses
import json
import os
import sys
from typing import Any, TextIO

from nemo_skills.core.errors import UserError
from nemo_skills.core.log import setup_logging
from nemo_skills.inference.offline.spec import EngineSpec, Item
from nemo_skills.inference.offline.text import TextEngine


def main() -> None:
    """Serve until the other side closes its pipe."""
    setup_logging("WARNING")
    # forked children of an engine must not hold the pipes open
    requests, replies = map(int, sys.argv[1:3])
    for descriptor in (requests, replies):
        os.set_inheritable(descriptor, False)
    os.dup2(2, 1)
    with os.fdopen(requests, encoding="utf-8") as incoming, os.fdopen(replies, "w") as outgoing:
        serve(incoming, outgoing)


def serve(requests: TextIO, replies: TextIO) -> None:
    """Answer the lines of `requests`."""
    engine: TextEngine | None = None
    for line in requests:
        message: dict[str, Any] = json.loads(line)
        reply: dict[str, Any] = {}
        try:
            if engine is None:
                engine = TextEngine(EngineSpec.of(message["spec"]))
            else:
                items = [Item(**{**item, "seeds": tuple(item["seeds"])}) for item in message["items"]]
                reply["results"] = [dataclasses.asdict(result) for result in engine.answer(items)]
        except UserError as error:
            reply = {"error": str(error), "exit_code": error.exit_code}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
