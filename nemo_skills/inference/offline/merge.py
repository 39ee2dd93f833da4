"""From the journals of all ranks to the output."""

import re
from collections import Counter
from typing import NamedTuple, Self

import orjson

from nemo_skills.core.errors import UserError
from nemo_skills.core.jsonl import Shards, atomic_output, disk_errors, parse_row, write_file
from nemo_skills.core.log import get_logger
from nemo_skills.inference.offline.spec import Result
from nemo_skills.inference.offline.task import Inputs, Place, Task
from nemo_skills.inference.outputs import FailedRows

BAD_ROW, TOO_LONG, EMPTY = "bad_row", "context_length", "empty_prompt"
_ENTRY = re.compile(rb'\{"counts":\[(\d+),(\d+),(\d+),(\d+)\],"(row|refused)":')
_KEEPS = "Finished rows are kept: make room, then run the same command again."
_log = get_logger(__name__)


class Counts(NamedTuple):
    """What is worth knowing about answers."""

    responses: int = 0
    cut_off: int = 0
    """Responses that reached the longest length."""
    empty: int = 0
    cut_prompts: int = 0
    """Prompts that were shortened."""

    @classmethod
    def of(cls, result: Result) -> Self:
        """Count the answers to one row."""
        return cls(
            responses=len(result.answers),
            cut_off=sum(answer.finish == "length" for answer in result.answers),
            empty=sum(not answer.text.strip() for answer in result.answers),
            cut_prompts=int(result.cut > 0),
        )

    def plus(self, other: "Counts") -> "Counts":
        """Add up."""
        return Counts(*(a + b for a, b in zip(self, other, strict=True)))


class Refusal(NamedTuple):
    """Why a row got no answer."""

    reason: str
    error: str


class Entry(NamedTuple):
    """What a journal holds for one row: its output, or why there is none."""

    counts: Counts
    row: bytes | None
    refusal: Refusal | None = None

    def encode(self) -> bytes:
        """Return the text for a journal."""
        head = b'{"counts":%b,' % orjson.dumps(list(self.counts))
        if self.row is not None:
            return head + b'"row":' + self.row + b"}"
        assert self.refusal is not None
        return head + b'"refused":' + orjson.dumps(list(self.refusal)) + b"}"

    @classmethod
    def decode(cls, text: bytes) -> Self:
        """Read what `encode` wrote."""
        match = _ENTRY.match(text)
        assert match, text[:100]
        counts, body = Counts(*map(int, match.groups()[:4])), text[match.end() : -1]
        if match[5] == b"row":
            return cls(counts, body)
        return cls(counts, None, Refusal(*orjson.loads(body)))


def merge(task: Task, inputs: Inputs, shards: Shards) -> None:
    """Write the output in the order of the input, then the mark that it is complete.

    Raises:
        UserError: too many rows have no answer, or the disk is full; the journals are kept.
    """
    paths, counts = task.paths, Counts()
    reasons: Counter[str] = Counter()
    failed = FailedRows(paths.failed)
    with disk_errors(paths.output, _KEEPS), atomic_output(paths.output) as file:
        for place in inputs.places():
            entry = Entry.decode(shards.row(place.position))
            counts = counts.plus(entry.counts)
            if entry.row is not None:
                file.write(task.placed(entry.row, place.position, inputs.count))
                file.write(b"\n")
            elif entry.refusal is not None:
                reasons[entry.refusal.reason] += 1
                _add_failed(failed, place, entry.refusal)
        failed.close()
        _judge(task, inputs, reasons)
    refused, bad = sum(reasons.values()), reasons[BAD_ROW]
    rows = inputs.total - refused
    mark = {
        "rows": rows,
        "failed": refused - bad,
        "skipped": bad,
        **counts._asdict(),
        "settings": task.settings,
        "input": inputs.fingerprint,
    }
    with disk_errors(paths.done):
        write_file(paths.done, orjson.dumps(mark) + b"\n")
    _report(rows, counts, task)


def _add_failed(failed: FailedRows, place: Place, refusal: Refusal) -> None:
    row = {} if refusal.reason == BAD_ROW else parse_row(place.line.path, place.line)
    # the text of a bad row may be anything
    line = place.line._replace(raw=b"{}") if refusal.reason == BAD_ROW else place.line
    failed.add(line, row, {"_reason": refusal.reason, "_error": refusal.error})


def _judge(task: Task, inputs: Inputs, reasons: Counter[str]) -> None:
    """Say what was left out, or refuse to finish when that is more than allowed."""
    if not reasons:
        return
    listed = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    text = (
        f"{sum(reasons.values())} of {inputs.total} rows got no answer ({listed}), see {task.paths.failed}."
    )
    if sum(reasons.values()) == inputs.total:
        raise UserError(f"{text} Nothing is left.", exit_code=1)
    failed = sum(reasons.values()) - reasons[BAD_ROW]
    if failed > task.allowed_failures(inputs.total):
        raise UserError(
            f"{text} The others are kept. Accept it with ++max_failed_rows={failed}.", exit_code=1
        )
    _log.warning("%s", text)


def _report(rows: int, counts: Counts, task: Task) -> None:
    _log.info("%d rows are in %s.", rows, task.paths.output)
    notes = {
        "responses were cut off at the longest length": counts.cut_off,
        "responses are empty": counts.empty,
        "prompts were shortened": counts.cut_prompts,
    }
    for note, count in notes.items():
        if count:
            _log.info("%d %s.", count, note)
