"""What a run does first: it finds out what is finished, and whether that still answers the input."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from nemo_skills.core.errors import UserError
from nemo_skills.core.jsonl import InputFiles, Journal, disk_errors
from nemo_skills.core.log import get_logger
from nemo_skills.inference.config import GenerateConfig
from nemo_skills.inference.done import DoneMark
from nemo_skills.inference.outputs import OutputPaths
from nemo_skills.inference.reuse import Earlier, Reuse
from nemo_skills.inference.settings import answer_settings, require_same_settings
from nemo_skills.inference.survey import InputState, Selection, same_rows, survey

_log = get_logger(__name__)


class Opened(NamedTuple):
    """An output that a run can go on with."""

    source: InputState
    changed: bool
    """Whether the output was complete, for an input that has changed."""


def make_note(source: InputState, config: GenerateConfig) -> bytes:
    """Return what a journal says about its rows."""
    return orjson.dumps({"source": source.encode(), "settings": answer_settings(config)})


def already_complete(config: GenerateConfig, paths: OutputPaths) -> bool:
    """Say so if this output was finished, or all chunks merged, and the input is still the same."""
    earlier = find_earlier(config, paths)
    if earlier is None or not is_current(config, paths, earlier):
        return False
    mark = earlier.mark
    failed = f", {mark.failed} more without an answer in {paths.failed}" if mark.failed else ""
    _log.info(
        "Nothing to do: %s is complete (%d rows%s). ++skip_filled=false does it again.",
        *(earlier.output, mark.rows, failed),
    )
    return True


def find_earlier(config: GenerateConfig, paths: OutputPaths) -> Earlier | None:
    """Return the finished output that covers this run: its own, or that of which its chunk is part."""
    for candidate in (paths, OutputPaths.of(config.output_file)):
        if candidate.complete:
            return Earlier(candidate.output, candidate.done, DoneMark.read(candidate.done))
    return None


def is_current(config: GenerateConfig, paths: OutputPaths, earlier: Earlier) -> bool:
    """Whether a finished output seems to answer the input as it is now; cheap, and never a wrong yes."""
    if earlier.mark.source is None:
        return True
    try:
        inputs = InputFiles.find(config.input_file)
    except UserError:  # an input that is gone has no new rows
        return True
    return earlier.mark.source.looks_current(inputs, _selection(config, paths, earlier))


@dataclass(kw_only=True)
class Opening:
    """Gets a locked output ready."""

    config: GenerateConfig
    paths: OutputPaths
    inputs: InputFiles
    journal: Journal

    def run(self) -> Opened | None:
        """Return the rows to take; None when the output is complete.

        Raises:
            UserError: the input is no good, or answers of an earlier run cannot be told apart any more.
        """
        config, journal, done = self.config, self.journal, self.paths.done
        if not config.skip_filled:
            for path in (done, OutputPaths.of(config.output_file).done):
                # a whole that was merged earlier says nothing about chunks that now start over
                with disk_errors(path):
                    path.unlink(missing_ok=True)
            journal.clear()
        earlier = find_earlier(config, self.paths) if config.skip_filled else None
        if earlier is not None and is_current(config, self.paths, earlier):
            journal.remove()
            return None
        note = orjson.loads(journal.note) if journal.note is not None else {}
        if not journal.empty:
            require_same_settings(note.get("settings", {}), config, journal.path)
        known = self._known(note)
        if earlier is None and known is not None:
            self._say_resumed()
            return Opened(known, changed=False)
        found = survey(config, self.inputs, journal)
        if earlier is not None and self._only_looks_changed(earlier, found.state):
            journal.remove()
            return None
        self._say_resumed()
        self._reuse(earlier, found.state, found.edited)
        journal.annotate(make_note(found.state, config))
        if earlier is not None:
            journal.flush()
            journal.sync()
            with disk_errors(done):
                done.unlink(missing_ok=True)
        return Opened(found.state, changed=earlier is not None)

    def _known(self, note: Mapping[str, Any]) -> InputState | None:
        """Return what an earlier run has noted about the input, if that still holds."""
        known = InputState.decode(note.get("source"))
        if known is None or not known.looks_current(self.inputs, Selection.of(self.config)):
            return None
        return known if known.checked or self.config.on_bad_row == "skip" else None

    def _only_looks_changed(self, earlier: Earlier, state: InputState) -> bool:
        """Whether files that were touched, copied or compressed have the rows that the output answers."""
        source = earlier.mark.source
        if source is None:
            return False
        if earlier.output == self.paths.output:
            if not source.has_same_rows(state):
                return False
            earlier.mark.renew(earlier.done, state)
        elif source.selection == Selection.of(self.config).whole and same_rows(
            self.inputs, source.parts, self.config.row_limit
        ):
            os.utime(earlier.done)  # launchers compare times; other chunks may be at it as well
        else:
            return False
        _log.info("%s has other files than before, but the same rows.", self.inputs)
        return True

    def _reuse(self, earlier: Earlier | None, state: InputState, edited: int) -> None:
        reuse = Reuse(inputs=self.inputs, span=state.span, journal=self.journal)
        if edited or (not self.journal.empty and self.journal.done < self.journal.repair.records):
            moved = reuse.from_journal()
            if edited or moved:
                _log.warning(
                    "The input has changed since the earlier run: %d answers are kept, %d of them for rows"
                    " that are at other positions now.",
                    *(self.journal.done, moved),
                )
        if earlier is not None:
            require_same_settings(earlier.mark.settings, self.config, earlier.output)
            of_all_chunks = earlier.output != self.paths.output
            taken = reuse.from_output(earlier, of_all_chunks=of_all_chunks)
            _log.warning(
                "The input has changed since %s was finished: %d of its %d rows keep their answers.",
                *(earlier.output, taken, earlier.mark.rows),
            )
        elif self.journal.empty and self.paths.output.exists() and self.config.skip_filled:
            _log.warning(
                "%s is there, but no mark that it is complete: it will be replaced.", self.paths.output
            )

    def _say_resumed(self) -> None:
        journal = self.journal
        if journal.empty:
            return
        _log.info("Going on from %d rows in %s.", journal.repair.rows, journal.path)
        if journal.repair.damaged_lines:
            shown = ", ".join(map(str, journal.repair.damaged_lines[:10]))
            _log.warning("%s: damaged lines (%s); their rows are done again.", journal.path, shown)


def _selection(config: GenerateConfig, paths: OutputPaths, earlier: Earlier) -> Selection:
    selection = Selection.of(config)
    return selection if earlier.output == paths.output else selection.whole
