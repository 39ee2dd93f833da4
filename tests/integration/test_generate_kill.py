"""SIGKILL at any moment, then the same command again: exactly the rows of an uninterrupted run."""

import json
import random
import shutil
import subprocess
import time
from pathlib import Path

from nemo_skills.core.jsonl import Journal
from tests.integration.generation import gsm8k, main_argv, run_main, running_stub, untimed

KILLS = 100


def test_100_kills_while_400_rows_are_answered(weird_tmp_path: Path) -> None:
    source = weird_tmp_path / "gsm8k.jsonl"
    source.write_text("\n".join(gsm8k(400)) + "\n", encoding="utf-8")
    output = weird_tmp_path / "out" / "output.jsonl"
    seed = random.randrange(10**6)
    print("seed", seed)  # shown when the test fails
    dice = random.Random(seed)
    in_the_middle = 0
    with running_stub(latency=0.05) as stub:
        reference = weird_tmp_path / "reference.jsonl"
        assert run_main(stub.url, source, reference).returncode == 0
        argv = main_argv(stub.url, source, output, max_concurrent_requests=24)
        for _ in range(KILLS):
            main = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
            time.sleep(dice.uniform(0.15, 1.0))
            main.kill()
            main.wait()
            if output.exists():
                assert untimed(output) == untimed(reference)
                shutil.rmtree(output.parent)
            in_the_middle += output.with_name("output.jsonl-async").exists()
        done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert untimed(output) == untimed(reference)
    assert sorted(path.name for path in output.parent.iterdir()) == ["output.jsonl", "output.jsonl.done"]
    assert in_the_middle >= KILLS / 4


def test_kills_while_the_output_is_written(tmp_path: Path) -> None:
    count = 40_000
    source, output, finished = tmp_path / "in.jsonl", tmp_path / "o.jsonl", tmp_path / "finished-journal"
    rows = [json.dumps({"question": f"question {i}", "id": i}).encode() for i in range(count)]
    source.write_bytes(b"".join(row + b"\n" for row in rows))
    answered = [row[:-1] + b', "generation": "answer %d"}' % i for i, row in enumerate(rows)]
    journal = Journal.open(finished)
    for i in random.sample(range(count), count):
        journal.append(i, rows[i], answered[i])
    journal.close()
    expected = b"".join(row + b"\n" for row in answered)
    temporary, done_mark = tmp_path / "o.jsonl-tmp", tmp_path / "o.jsonl.done"
    # every row is finished, so no server is asked
    argv = main_argv("http://127.0.0.1:9", source, output)
    seen = {"writing": 0, "replaced": 0}
    seed = random.randrange(10**6)
    print("seed", seed)  # shown when the test fails
    dice = random.Random(seed)
    for attempt in range(12):
        for path in (output, done_mark):
            path.unlink(missing_ok=True)
        shutil.copy(finished, tmp_path / "o.jsonl-async")
        main = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
        waits_for = temporary if attempt % 3 else output
        while not waits_for.exists() and main.poll() is None:
            pass
        time.sleep(dice.uniform(0, 0.2) if waits_for is temporary else 0)
        main.kill()
        main.wait()
        seen["writing"] += temporary.exists()
        seen["replaced"] += output.exists() and not done_mark.exists()
        if output.exists():
            assert output.read_bytes() == expected
        else:
            assert not done_mark.exists()
        again = subprocess.run(argv, capture_output=True, text=True)
        assert again.returncode == 0, again.stderr
        assert output.read_bytes() == expected
        assert sorted(p.name for p in tmp_path.iterdir()) == [
            "finished-journal", "in.jsonl", "o.jsonl", "o.jsonl.done"
        ]  # fmt: skip
    assert seen["writing"] >= 2, seen
