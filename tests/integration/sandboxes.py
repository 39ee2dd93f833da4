"""Starts the real sandbox server for tests."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nemo_skills.code_execution import Sandbox
from tests.integration.generation import read_rows, run_main
from tests.services.require import require

CANARY = "canary-c0ffee-secret"


@dataclass
class RunningSandbox:
    """A running server and its client."""

    client: Sandbox
    process: subprocess.Popen[str]


@contextmanager
def running_sandbox(*options: str) -> Iterator[RunningSandbox]:
    """Start a server whose environment holds a secret; it ends with the block."""
    argv = [sys.executable, "-m", "nemo_skills.code_execution.server", *options]
    env = {**os.environ, "HF_TOKEN": CANARY}
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    try:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        if "listens on" not in line:
            require("sandbox", False, process.stderr.read().splitlines()[0])
        yield RunningSandbox(Sandbox(line.split()[-1], connect_timeout_s=1), process)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise


# what the model says depends on the question and on what it was shown so far; the latest comes first
SCRIPT = [
    [r"lasting.*```output\n43\n```\n$", "So it is 43."],
    [r"lasting.*```output\n42\n```\n$", "More.\n```python\nx + 1\n```\nnever said"],
    [r"lasting", "I compute.\n```python\nx = 6 * 7\nprint(x)\n```\nnever said"],
    [r"failing.*ZeroDivisionError: division by zero\n```\n$", "It fails."],
    [r"failing", "```python\n1 / 0\n```\n"],
    [r"endless.*longer than 3 seconds", "It takes too long."],
    [r"endless", "```python\nwhile True: pass\n```\n"],
    [r"stubborn.*No more code", "I give in."],
    [r"stubborn", "```python\nprint('again')\n```\n"],
    [r"wordy.*\[output cut\]\n```\n$", "It is long."],
    [r"wordy", "```python\nprint('x' * 5000)\n```\n"],
    [r"Markdown.*or so\n```\n$", "and no code."],
    [r"Markdown.*said\n```\n$", "or\n```\n"],
    [r"Markdown.*or\n```\n$", "or so\n```\n"],
    [r"Markdown", "I quote:\n```text\nsaid\n```\n"],
    [r"hasty.*```\n```output\nlast\n```\n$", "There it is."],
    [r"hasty", "```python\nprint('last')\n```"],
    [r"plain", "Nothing to run here."],
    [r"calling.*<tool_response>\n9\n</tool_response>", "Nine."],
    [r"calling", '<tool_call>\n{"name": "python", "arguments": {"code": "print(3 ** 2)"}}\n</tool_call>'],
    [r"garbled.*<tool_response>\nError: the call is not valid JSON", "Sorry."],
    [r"garbled", "<tool_call>\n{print(1)}\n</tool_call>"],
]
SCRIPTED_ANSWER = (
    "I compute.\n```python\nx = 6 * 7\nprint(x)\n```\n```output\n42\n```\n"
    "More.\n```python\nx + 1\n```\n```output\n43\n```\nSo it is 43."
)
"""What comes of the question `the lasting one`."""


# patterns for structured output: an untrained model writes code like one that was taught each format
_CALL = r'[{]"name": "python", "arguments": [{]"code": "6[*]7"[}][}]'
_FORCED = {
    ("fenced", None): r"```python\n6[*]7\n```\n",
    ("qwen", "qwen-instruct"): rf"<tool_call>\n{_CALL}\n</tool_call>",
    ("llama3", "llama3-instruct"): r"<[|]python_tag[|]>6[*]7<[|]eom_id[|]>",
}


def check_code_execution(url: str, folder: Path) -> None:
    """Have a vLLM server write code in the formats of several families, and check that it is run."""
    source, output = folder / "in.jsonl", folder / "out.jsonl"
    source.write_text('{"question": "6 * 7?"}\n')
    with running_sandbox() as sandbox:
        for (tags, template), pattern in _FORCED.items():
            body = f"{{structured_outputs:{{regex:{json.dumps(pattern)}}}}}"
            done = run_main(
                url, source, output, server__server_type="vllm", code_execution=True, code_tags=tags,
                sandbox_address=sandbox.client.address, prompt_template=template, max_code_executions=2,
                inference__extra_body=body.replace("\\\\n", "\\n"), inference__tokens_to_generate=400,
                skip_filled=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            [row] = read_rows(output)
            assert (row["num_code_executions"], row["num_code_errors"]) == (2, 0), row
            assert row["generation"].count("\n42\n") == 2, row
