"""`ns view` in a real browser."""

import json
import re
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from nemo_skills.evaluation.metrics.report import BenchmarkReport, Counts, Score
from tests.services.require import require

CHROMIUM = Path("/usr/bin/chromium")
VERDICTS = ("correct", "incorrect", "no_answer")
Open = Callable[..., str]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    require("browser", CHROMIUM.exists(), "Debian's chromium is not installed")
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def view(ns: list[str], weird_tmp_path: Path) -> Iterator[Open]:
    """Starts the server on folders; returns the address."""
    started: list[subprocess.Popen[str]] = []

    def start(*folders: Path) -> str:
        argv = [*ns, "view", *map(str, folders)]
        server = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=weird_tmp_path)
        started.append(server)
        assert server.stdout is not None
        found = re.search(r"http://\S+", server.stdout.readline())
        assert found
        return found[0]

    yield start
    for server in started:
        server.terminate()
        assert server.wait(20) != 0
        assert server.stdout is not None
        server.stdout.close()


def row(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "problem": f"Question {number}: what is $\\frac{{1}}{{{number + 1}}}$?",
        "expected_answer": str(number),
        "generation": f"It costs $5.\n\nSo \\[x^2 = {number}\\] and **the answer** is $\\boxed{{{number}}}$.",
        "_reasoning": f"thinking of {number}",
        "predicted_answer": str(number),
        "verdict": VERDICTS[number % 3],
    } | changes


def write_run(folder: Path, rows: list[dict[str, Any]]) -> Path:
    benchmark = folder / "eval-results" / "gsm8k"
    benchmark.mkdir(parents=True)
    lines = [json.dumps(one, ensure_ascii=False) + "\n" for one in rows]
    (benchmark / "output.jsonl").write_text("".join(lines), encoding="utf-8")
    counts = Counts(total=len(rows), correct=len(rows))
    report = BenchmarkReport(
        benchmark="gsm8k", eval_type="math", measure="correct", rows=len(rows), samples=1, valid=False,
        why_invalid="too many were cut off",
        counts=counts, metrics={"pass@1": {"correct": Score(value=12.345, problems=len(rows))}},
    )  # fmt: skip
    (benchmark / "metrics.json").write_text(json.dumps(report.to_json()))
    return folder


def numbers(page: Page) -> list[int]:
    return [int(text) for text in page.locator("section.row h2").all_inner_texts()]


def test_reading(browser: Browser, view: Open, weird_tmp_path: Path) -> None:
    hostile = (
        "<img src=x onerror=alert(1)><script>document.title='broken'</script> ![x](http://127.0.0.1:9/x)"
    )
    rows = [row(i) for i in range(100)]
    rows[7] = row(7, generation=f"{hostile} Ünïcode $\\notlatex{{$ \\(a+b\\)", _reasoning=None)
    address = view(write_run(weird_tmp_path / "one", rows))
    page = browser.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    assert "12.35 % invalid: too many were cut off" in page.inner_text("table")
    page.click("text=eval-results/gsm8k/output.jsonl")
    assert numbers(page) == list(range(20))

    first = page.locator("#row-0")
    assert first.locator(".prompt math mfrac").count() == 1
    assert first.locator(".generation math msup").is_visible()
    assert first.locator(".generation strong").inner_text() == "the answer"
    assert "It costs $5." in first.locator(".generation").inner_text()
    box = first.locator(".generation math msup").bounding_box()
    assert box is not None
    assert box["height"] > 5
    assert not first.get_by_text("thinking of 0").is_visible()
    first.locator("summary", has_text="reasoning").click()
    assert first.get_by_text("thinking of 0").is_visible()

    odd = page.locator("#row-7 .generation")
    assert "<script>" in odd.inner_text()
    assert odd.locator("img").count() == odd.locator("script").count() == 0
    assert "\\notlatex{" in odd.inner_text()
    assert odd.locator("math").count() == 1
    assert "output.jsonl" in page.title()

    page.click("#later")
    page.click("#later")
    assert numbers(page) == list(range(40, 60))
    page.click("#earlier")
    assert numbers(page) == list(range(20, 40))
    page.fill("input[name=row]", "95")
    page.press("input[name=row]", "Enter")
    assert numbers(page) == list(range(95, 100))
    assert page.locator("#later").count() == 0
    assert "of 100" in page.inner_text("#place")

    page.select_option("select[name=verdict]", "incorrect")
    page.click("text=show")
    assert numbers(page) == list(range(1, 60, 3))
    page.click("#later")
    assert numbers(page) == list(range(61, 100, 3))
    page.click("#earlier")
    assert numbers(page) == list(range(1, 60, 3))
    page.fill("input[name=text]", "ünïcode")
    page.click("text=show")
    assert numbers(page) == [7]
    page.fill("input[name=text]", "nowhere to be found")
    page.click("text=show")
    assert page.inner_text("#place").startswith("no row")
    assert all(url.startswith(address) for url in asked)


def test_side_by_side(browser: Browser, view: Open, weird_tmp_path: Path) -> None:
    one = write_run(weird_tmp_path / "one", [row(i) for i in range(50)])
    changed = [row(i, verdict="correct") if i in (4, 40) else row(i) for i in range(49)]
    two = write_run(weird_tmp_path / "two", changed)
    page = browser.new_page()
    page.goto(view(one, two) + "file/0")
    page.select_option("select[name=with]", "1")
    page.select_option("select[name=verdict]", "")
    page.click("text=show")
    assert page.locator("#row-4 article").count() == 2
    left, right = (page.locator("#row-4 article").nth(i).bounding_box() for i in (0, 1))
    assert left is not None
    assert right is not None
    assert left["x"] + left["width"] <= right["x"]
    page.select_option("select[name=verdict]", "differs")
    page.click("text=show")
    assert numbers(page) == [4, 40, 49]
    assert page.locator("#row-4 .badge").all_inner_texts() == ["incorrect", "correct"]
    assert "no such row" in page.inner_text("#row-49")


def test_a_million_rows(browser: Browser, view: Open, weird_tmp_path: Path) -> None:
    folder = weird_tmp_path / "many"
    folder.mkdir()
    text = "x" * 300
    with (folder / "output.jsonl").open("w") as file:
        for start in range(0, 1_000_000, 10_000):
            file.write(
                "".join(
                    f'{{"problem":"Q{i}","generation":"{text}","verdict":"correct"}}\n'
                    for i in range(start, start + 10_000)
                )
            )
    address = view(folder)
    page = browser.new_page()
    page.goto(address)
    began = time.monotonic()
    page.goto(f"{address}file/0")
    assert numbers(page) == list(range(20))
    opened = time.monotonic() - began
    page.goto(f"{address}file/0?row=999990")
    assert numbers(page) == list(range(999_990, 1_000_000))
    page.goto(f"{address}file/0?text=Q654321&row=600000")
    assert numbers(page) == [654_321]
    page.reload()
    assert "of 1,000,000" in page.inner_text("#place")
    server = next(one for one in psutil.Process().children() if "view" in one.cmdline())
    assert server.memory_info().rss < 200 << 20
    assert opened < 10, "it opens without reading the file"


def test_mistakes(ns: list[str], weird_tmp_path: Path) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*ns, "view", *words], cwd=weird_tmp_path, capture_output=True, text=True)

    (weird_tmp_path / "empty").mkdir()
    for words, message in ((["nowhere"], "nowhere does not exist"), (["empty"], "no .jsonl file in empty")):
        done = run(*words)
        assert done.returncode == 2
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def test_requests_from_elsewhere_are_refused(view: Open, weird_tmp_path: Path) -> None:
    address = view(write_run(weird_tmp_path / "one", [row(0)]))
    request = urllib.request.Request(address, headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(request)
    for path in ("file/1", "file/x", "file/0?with=9", "file/0?row=x"):
        with pytest.raises(urllib.error.HTTPError, match="400"):
            urllib.request.urlopen(address + path)
