"""Several files, compressed files and changed files, as users give them to the commands."""

import gzip
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import zstandard

from tests.integration.generation import main_argv, read_rows, run_main, running_stub, write_rows

NS = [sys.executable, "-m", "nemo_skills.pipeline.cli"]


def test_ns_generate_takes_patterns_and_notices_changes(weird_tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("NEMORUN_HOME", str(weird_tmp_path / "nemo run"))
    plain = write_rows(weird_tmp_path / "part 2.jsonl", 10, start=10).read_bytes()
    packed = write_rows(weird_tmp_path / "x", 10).read_bytes()
    (weird_tmp_path / "part 1.jsonl.gz").write_bytes(gzip.compress(packed))
    last = write_rows(weird_tmp_path / "x", 5, start=20).read_bytes()
    (weird_tmp_path / "last.jsonl.zst").write_bytes(zstandard.compress(last))
    words = ["generate", "--server_type=stub", "--model=demo", "--input_file=part*,last.jsonl.zst"]
    words += ["--output_dir=o", "++prompt_config=generic/default"]

    def run() -> str:
        done = subprocess.run(
            [*NS, *words], cwd=weird_tmp_path, capture_output=True, text=True, timeout=120
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    run()
    output = weird_tmp_path / "o" / "generation" / "output.jsonl"
    before = read_rows(output)
    assert [row["id"] for row in before] == list(range(25))
    assert "is done" in run()
    (weird_tmp_path / "part 2.jsonl").write_bytes(b'{"question": "new", "id": -1}\n' + plain)
    text = run()
    assert "25 of its 25 rows keep their answers" in text
    assert "part 2.jsonl:1 has changed since it was answered, or is new" in text
    after = read_rows(output)
    assert after[:10] + after[11:] == before
    assert after[10]["question"] == "new"
    assert "is done" in run()
    (weird_tmp_path / "part 2.jsonl").touch()
    assert "the same rows" in run()
    assert "is done" in run()


def test_kills_while_answers_are_taken_over(tmp_path: Path) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "o.jsonl"
    done, journal = tmp_path / "o.jsonl.done", tmp_path / "o.jsonl-async"
    rows = [json.dumps({"question": f"question {i}", "id": i}) for i in range(12_000)]
    source.write_text("".join(row + "\n" for row in rows[:5000] + rows[5500:]))
    seed = random.randrange(10**6)
    print("seed", seed)  # shown when the test fails
    dice = random.Random(seed)
    with running_stub() as stub:
        assert run_main(stub.url, source, output).returncode == 0
        before = {row["id"]: row for row in read_rows(output)}
        asked = stub.requests
        dice.shuffle(rows)
        source.write_text("".join(row + "\n" for row in rows))
        argv = main_argv(stub.url, source, output)
        while_taking_over = 0
        # every further attempt gets a little further
        for size in sorted(dice.uniform(0.02, 1.1) * output.stat().st_size for _ in range(8)):
            main = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
            while main.poll() is None and not (journal.exists() and journal.stat().st_size > size):
                time.sleep(0.001)
            main.kill()
            main.wait()
            while_taking_over += done.exists() and journal.exists()
            assert done.exists() or journal.exists()
        last = subprocess.run(argv, capture_output=True, text=True)
        assert last.returncode == 0, last.stderr
        # 500 rows are new; what was in flight when the client was killed is asked again
        assert stub.requests - asked < 500 + 8 * 512
    after = read_rows(output)
    assert [row["id"] for row in after] == [json.loads(row)["id"] for row in rows]
    assert all(row == before[row["id"]] for row in after if row["id"] in before)
    assert sum(row["id"] not in before for row in after) == 500
    assert while_taking_over >= 3
