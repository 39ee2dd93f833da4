"""Downloading, from a server on this machine."""

import dataclasses
import os
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from nemo_skills.core.errors import UserError
from nemo_skills.dataset.preparing import Preparation, Split, prepare
from nemo_skills.dataset.rows import PreparedRow, SourceRow
from nemo_skills.dataset.svamp.prepare import PREPARATION

SAMPLE = (Path(__file__).parents[1] / "data" / "benchmarks" / "svamp.json").read_bytes()


class Origin(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/moved/svamp.json":
            self.send_response(302)
            self.send_header("Location", "/svamp.json")
            self.end_headers()
        elif path.endswith("svamp.json"):
            cut = self.path.startswith("/cut")
            self.send_response(200)
            self.send_header("Content-Length", str(len(SAMPLE)))
            self.end_headers()
            self.wfile.write(SAMPLE[:100] if cut else SAMPLE)
        else:
            self.send_error(404)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def origin(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(urllib.request, "_opener", None)
    with ThreadingHTTPServer(("127.0.0.1", 0), Origin) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def published_at(*urls: str) -> Preparation:
    return dataclasses.replace(PREPARATION, splits={"test": Split(urls=urls)})


def test_files_are_fetched_and_not_kept(origin: str, weird_tmp_path: Path) -> None:
    # what a killed run has left is in nobody's way
    left = weird_tmp_path / ".preparing-left"
    (left / "svamp.json").mkdir(parents=True)
    os.utime(left, (0, 0))
    urls = (f"{origin}/svamp.json?download=true", f"{origin}/moved/svamp.json")
    prepared = prepare(published_at(*urls), "test", weird_tmp_path)
    assert prepared.manifest.rows == 4
    assert prepared.manifest.sources == urls
    ids = [line.partition(b'", ')[0] for line in prepared.path.read_bytes().splitlines()]
    assert ids == [b'{"id": "chal-1', b'{"id": "chal-2', b'{"id": "chal-1#2', b'{"id": "chal-2#2']
    assert sorted(path.name for path in weird_tmp_path.iterdir()) == ["test.jsonl", "test.manifest.json"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("cut/svamp.json", "the download of http.*/cut/svamp.json broke off; try again"),
        ("none.json", r"cannot download http.*none.json \(HTTP Error 404.*pass it with --source none.json"),
    ],
)
def test_failed_downloads_leave_what_was_there(
    path: str, message: str, origin: str, weird_tmp_path: Path
) -> None:
    earlier = prepare(published_at(f"{origin}/svamp.json"), "test", weird_tmp_path)
    with pytest.raises(UserError, match=message) as failed:
        prepare(published_at(f"{origin}/{path}"), "test", weird_tmp_path)
    assert failed.value.exit_code == 1
    assert earlier.manifest.describes(earlier.path)
    assert sorted(path.name for path in weird_tmp_path.iterdir()) == ["test.jsonl", "test.manifest.json"]


def test_two_processes_may_prepare_the_same(origin: str, tmp_path: Path) -> None:
    preparation = published_at(f"{origin}/svamp.json")

    def convert(row: SourceRow) -> PreparedRow:
        # while the first one reads its files, a second one runs from start to end
        if not (tmp_path / "test.jsonl").exists():
            prepare(preparation, "test", tmp_path)
            assert list(tmp_path.glob(".preparing-*/*"))
        return PREPARATION.convert(row)

    prepared = prepare(dataclasses.replace(preparation, convert=convert), "test", tmp_path)
    assert prepared.manifest.describes(prepared.path)
    assert not list(tmp_path.glob(".preparing*"))
