"""The sandbox server as a process: sessions, inputs, limits of output, failures that are its own."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from nemo_skills.code_execution import Sandbox
from nemo_skills.code_execution.result import ExecutionRequest
from nemo_skills.core.errors import UserError
from nemo_skills.evaluation.graders.code import CodeGrader, CodeOptions
from tests.integration.generation import read_rows, wait_for
from tests.integration.sandboxes import RunningSandbox, running_sandbox

SERVER = Path(__file__).resolve().parents[2] / "nemo_skills" / "code_execution" / "server.py"
# denies namespaces as container engines do, then becomes the server
LOCKED_UP = (
    "import os, sys; from nemo_skills.code_execution.box import seccomp;"
    " seccomp._DENIED = {'unshare': (272, 97)}; seccomp.forbid();"
    " os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)


@pytest.fixture(scope="module")
def running() -> Iterator[RunningSandbox]:
    with running_sandbox("--workers", "3", "--session_idle_s", "1000") as found:
        yield found


@pytest.fixture
def client(running: RunningSandbox) -> Sandbox:
    return running.client


def test_outcomes_of_whole_programs(client: Sandbox) -> None:
    good = client.execute(
        "import sys\nprint(sys.stdin.read().upper())\nprint('ü', file=sys.stderr)", stdin="ä\n"
    )
    assert (good.status, good.stdout, good.stderr, good.exit_code) == ("completed", "Ä\n\n", "ü\n", 0)
    bad = client.execute("def f():\n    return 1 / 0\nf()")
    assert (bad.status, bad.exit_code) == ("error", 1)
    assert bad.stderr.startswith('Traceback (most recent call last):\n  File "main.py", line 3, in <module>')
    assert "return 1 / 0" in bad.stderr
    assert client.execute("this is no Python").stderr.endswith("SyntaxError: invalid syntax\n")
    assert client.execute("import sys; sys.exit(3)").exit_code == 3
    assert client.execute("import sys; sys.exit(0)").ok
    assert (
        client.execute("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)").exit_code == -signal.SIGSEGV
    )
    slow = client.execute("print('begun', flush=True)\nwhile True: pass", timeout_s=2)
    assert (slow.status, slow.stdout, slow.exit_code) == ("timed_out", "begun\n", None)


def test_programs_find_an_ordinary_python(client: Sandbox) -> None:
    code = """
import atexit, inspect, multiprocessing, random, subprocess, sys, tempfile, threading, numpy
from dataclasses import dataclass
@dataclass
class Point: x: int
def double(x): return 2 * x
if __name__ == "__main__":
    atexit.register(print, "at exit")
    with multiprocessing.Pool(2) as pool: print(pool.map(double, [1, 2]))
    threading.Thread(target=lambda: print("thread")).start()
    with tempfile.NamedTemporaryFile("w+") as file: print(file.write("abc"))
    child = [sys.executable, "-c", "print('child')"]
    print(subprocess.run(child, capture_output=True, text=True).stdout, end="")
    print(inspect.getsource(double), end=""); print(numpy.arange(3).sum(), Point(1))
"""
    lines = client.execute(code, timeout_s=60).stdout.splitlines()
    expected = ["[2, 4]", "3", "child", "def double(x): return 2 * x", "3 Point(x=1)", "thread", "at exit"]
    assert sorted(lines) == sorted(expected)
    assert lines[-1] == "at exit"
    draws = {client.execute("import random; print(random.random())").stdout for _ in range(3)}
    assert len(draws) == 3


def test_several_inputs_stop_at_the_first_failure(client: Sandbox) -> None:
    code = "import os\nprint(os.path.exists('left'))\nopen('left', 'w')\nprint(10 // int(input()))"
    request = ExecutionRequest(code, stdins=("1", "5", "0", "2"))
    results = client.run(request)
    assert [result.stdout for result in results] == ["False\n10\n", "False\n2\n", "False\n"]
    assert [str(result.status) for result in results] == ["completed", "completed", "error"]
    every = client.run(ExecutionRequest(code, stdins=request.stdins, stop_at_failure=False))
    assert [result.ok for result in every] == [True, True, False, True]


def test_output_is_cut_with_a_note(client: Sandbox) -> None:
    result = client.execute("print('x' * 5000); print('done')", max_output_bytes=1000)
    assert result.ok
    assert result.stdout == "x" * 1000 + "\n[output cut: 4006 more bytes]\n"


def test_sessions_keep_variables_to_themselves(client: Sandbox) -> None:
    first = client.execute("import math\nx = 4\nmath.sqrt(x)", "one")
    assert (first.stdout, first.new_session) == ("2.0\n", True)
    assert client.execute("y", "two").stderr.endswith("NameError: name 'y' is not defined\n")
    assert client.execute("def f(): return x + 1\nf()", "one").stdout == "5\n"
    failed = client.execute("x = 6\nraise ValueError('no')", "one")
    assert (failed.status, failed.new_session) == ("error", False)
    assert "cell 3" in failed.stderr
    slow = client.execute("x = 7\nwhile True: pass", "one", timeout_s=1.5)
    assert slow.status == "timed_out"
    kept = client.execute("print(x)", "one")
    assert (kept.stdout, kept.new_session) == ("7\n", False)
    assert client.execute("import os; os._exit(4)", "one").exit_code == 4
    assert client.execute("x", "one").new_session
    client.close_session("one")
    client.close_session("two")
    assert client.execute("1", "one").new_session


def test_nothing_runs_between_cells(client: Sandbox) -> None:
    client.execute(
        "import threading, time\nn = 0\ndef count():\n  global n\n  while True: n += 1; time.sleep(0.001)\n"
        "threading.Thread(target=count, daemon=True).start()\ntime.sleep(0.05)\nbefore = n", "t"
    )  # fmt: skip
    time.sleep(0.5)
    late = client.execute("print(n - before < 200)", "t")
    assert late.stdout == "True\n"
    client.close_session("t")


def test_many_at_once(client: Sandbox) -> None:
    async def everything() -> list[str]:
        async def session(number: int) -> str:
            name = f"many{number}"
            for _ in range(3):
                await client.execute_async(f"x = globals().get('x', {number}) + 100", name, timeout_s=60)
            result = await client.execute_async("print(x)", name, timeout_s=60)
            await client.close_session_async(name)
            return result.stdout

        alone = [client.execute_async(f"print({n})", timeout_s=60) for n in range(20)]
        return [*await asyncio.gather(*map(session, range(8))), *[(await one).stdout for one in alone]]

    assert asyncio.run(everything()) == [f"{300 + n}\n" for n in range(8)] + [f"{n}\n" for n in range(20)]


def test_bad_requests_are_refused(client: Sandbox) -> None:
    for body in (b"{", b'{"code": 1}', b'{"code": "1", "colour": 2}', b'{"code": "1", "timeout_s": 1e9}'):
        request = urllib.request.Request(f"{client.address}/execute", data=body)
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(request)
        assert error.value.code == 400
        assert json.loads(error.value.read())["error"]
    assert client.execute("1", timeout_s=1e9).status == "infrastructure"


def test_idle_sessions_end() -> None:
    with running_sandbox("--session_idle_s", "0.3", "--max_sessions", "1") as running:
        assert running.client.execute("1", "a").ok
        assert running.client.execute("1", "b").status == "infrastructure"
        wait_for(lambda: running.client.health()["sessions"] == 0)
        assert running.client.execute("1", "b").ok


def test_server_that_dies_is_no_failure_of_the_program() -> None:
    with running_sandbox() as running, ThreadPoolExecutor() as pool:
        assert running.client.execute("x = 1", "s").ok
        waiting = pool.submit(running.client.execute, "import time; time.sleep(60)", timeout_s=90)
        wait_for(lambda: len(psutil.Process(running.process.pid).children(recursive=True)) > 6)
        family = psutil.Process(running.process.pid).children(recursive=True)
        running.process.kill()
        assert waiting.result(30).status == "infrastructure"
        _, alive = psutil.wait_procs(family, timeout=30)
        assert not alive
        assert running.client.execute("1").status == "infrastructure"


def test_zygote_that_dies_is_replaced() -> None:
    with running_sandbox() as running:
        [zygote] = psutil.Process(running.process.pid).children()
        zygote.kill()
        wait_for(lambda: running.client.execute("print(1)").stdout == "1\n")


def of_the_sandbox() -> set[int]:
    """Return all processes that a zygote has forked, whoever their parent is."""
    found = psutil.process_iter(["cmdline"])
    return {process.pid for process in found if any("zygote.py" in w for w in process.info["cmdline"] or ())}


def test_without_isolation_it_refuses_unless_told(tmp_path: Path) -> None:
    before = of_the_sandbox()
    argv = [sys.executable, "-c", LOCKED_UP, str(SERVER)]
    refused = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 1
    assert "programs cannot be isolated here: unshare" in refused.stderr
    assert "--allow_unisolated" in refused.stderr
    process = subprocess.Popen(
        [*argv, "--allow_unisolated"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    try:
        assert process.stdout and process.stderr
        client = Sandbox(process.stdout.readline().split()[-1])
        assert client.health()["isolated"] is False
        assert client.execute("print(2)").stdout == "2\n"
        assert client.execute("while True: pass", timeout_s=0.3).status == "timed_out"
        assert (
            client.execute("x = [bytearray(1 << 20) for _ in range(1 << 20)]", timeout_s=30).status
            == "memory"
        )
        daemon = "import os, time\nif not os.fork():\n  os.setsid(); time.sleep(600)\nprint('left')"
        assert client.execute(daemon).stdout == "left\n"
        assert client.execute("x = 3", "s").ok and client.execute("x", "s").stdout == "3\n"
        assert client.execute("import os, time\nif not os.fork(): time.sleep(600)", "s").ok
        assert len(of_the_sandbox() - before) >= 4
        client.close_session("s")
        wait_for(lambda: len(of_the_sandbox() - before) == 1)
        assert client.execute("1", "left").ok
        process.kill()
        wait_for(lambda: of_the_sandbox() <= before)
    finally:
        process.kill()
        assert "NOT ISOLATED" in process.communicate(timeout=30)[1]
    assert not list(tmp_path.iterdir())


NOBODY = ["--reuid=65534", "--regid=65534", "--clear-groups"]
ROOT_IN_A_CONTAINER = ["--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]


@pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/usr/bin/python3").exists(), reason="root can become others"
)
@pytest.mark.parametrize("who", [NOBODY, ROOT_IN_A_CONTAINER])
def test_isolates_without_rights_too(who: list[str]) -> None:
    argv = ["setpriv", *who, "/usr/bin/python3", str(SERVER), "--processes", "32"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/") as server:
        try:
            assert server.stdout and server.stderr
            line = server.stdout.readline()
            if not line:
                pytest.skip(server.stderr.read())
            client = Sandbox(line.split()[-1])
            assert client.health()["isolated"] is True
            paths = ("/proc/1/environ", "/proc/1/mem", "/home", "/var", "/work", "/etc/shadow")
            spy = f"for p in {paths}:\n  try: open(p)\n  except OSError: print('no')"
            assert client.execute(spy).stdout == "no\n" * 6
            rights = (
                "for l in open('/proc/self/status'):\n  if l.startswith('Cap'): print(int(l.split()[1], 16))"
            )
            assert client.execute(rights).stdout == "0\n" * 5
            bomb = client.execute(
                "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass", timeout_s=1
            )
            assert bomb.status in ("timed_out", "processes")
            assert (
                client.execute("import os\nos.kill(1, 9); os.kill(1, 15); print('next')").stdout == "next\n"
            )
        finally:
            server.terminate()


def _row(**fields: str) -> dict[str, str]:
    return {"problem": "", "preamble": "", "entry_point": "f", "test": "assert f(2) == 4\n", **fields}


@pytest.mark.parametrize(
    ("body", "verdict", "scores"),
    [
        ("def f(x): return 2 * x", "incorrect", {"passing_base_tests": 1, "passing_plus_tests": 0}),
        ("def f(x): return x ** 2", "correct", {"passing_base_tests": 1, "passing_plus_tests": 1}),
        ("def f(x): return 0", "incorrect", {"passing_base_tests": 0, "passing_plus_tests": 0}),
        ("def f(x):\n  while True: pass", "timed_out", {"passing_base_tests": 0, "passing_plus_tests": 0}),
        ("import sys; sys.exit(0)", "incorrect", None),
        ("import os; os._exit(0)", "incorrect", None),
        ("def f(x): return", "incorrect", None),
        ("", "no_answer", {"passing_base_tests": 0, "passing_plus_tests": 0}),
    ],
)
def test_grades_of_functions(client: Sandbox, body: str, verdict: str, scores: dict[str, int] | None) -> None:
    grader = CodeGrader(
        CodeOptions(sandbox_address=client.address, time_limit_s=2 if "while" in body else 60)
    )
    grade = grader.grade(_row(generation=f"```python\n{body}\n```", plus_test="assert f(3) == 9\n"))
    assert grade.verdict == verdict
    if scores:
        assert grade.details["scores"] == scores


def test_grades_of_contest_programs(client: Sandbox) -> None:
    from nemo_skills.dataset.livecodebench.tests import Test, pack

    grader = CodeGrader(CodeOptions(sandbox_address=client.address, time_limit_s=60))
    tests = [Test(input=f"{n}\n", output=f"{n * n}") for n in range(7)]
    row = {"tests": pack(tests), "test_type": "stdin", "entry_point": None}
    assert (
        grader.grade({**row, "generation": "```python\nprint(int(input()) ** 2)\n```"}).verdict == "correct"
    )
    wrong = grader.grade(
        {**row, "generation": "```python\nx = int(input())\nprint(x ** 2 if x < 5 else 0)\n```"}
    )
    assert (wrong.verdict, wrong.details["test"], wrong.details["of"]) == ("incorrect", 6, 7)
    functional = {
        "tests": pack([Test(input='[1, 2]\n"a"', output='[[1, 2], "a"]')]),
        "test_type": "functional",
    }
    method = (
        "```python\nclass Solution:\n    def go(self, x: List[int], y): print('debug'); return (x, y)\n```"
    )
    assert grader.grade({**functional, "entry_point": "go", "generation": method}).verdict == "correct"
    talkative = method.replace(
        "print('debug')", "__import__('os').system('echo ' + 'x' * 99_999); print('x' * 999_999)"
    )
    assert grader.grade({**functional, "entry_point": "go", "generation": talkative}).verdict == "correct"
    other = method.replace("(x, y)", "x")
    assert grader.grade({**functional, "entry_point": "go", "generation": other}).verdict == "incorrect"
    assert grader.grade({**row, "generation": "I do not know."}).verdict == "no_answer"


def test_packages_that_only_tests_need(client: Sandbox) -> None:
    answer = _row(
        generation="```python\ndef f(x): return 2 * x\n```", plus_test="import numpy\nassert f(3) == 6\n"
    )
    options = {"sandbox_address": client.address, "time_limit_s": 60.0}
    grader = CodeGrader(CodeOptions(plus_packages=["numpy"], **options))
    grader.warm_up()
    assert grader.grade(answer).verdict == "correct"
    lacks = f"Tests import nonumpy, which the sandbox's {sys.executable} lacks"
    with pytest.raises(UserError, match=lacks):
        CodeGrader(CodeOptions(plus_packages=["json", "nonumpy"], **options)).warm_up()
    CodeGrader(CodeOptions(plus_packages=["nonumpy"], tests="base", **options)).warm_up()
    # nobody has named the package: still not the answer's fault
    with pytest.raises(UserError, match=lacks):
        grader.grade({**answer, "plus_test": "import nonumpy\n"})


def test_tests_too_large_for_memory_are_not_the_answers_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def unpack(_: str) -> None:
        raise MemoryError

    monkeypatch.setattr("nemo_skills.dataset.livecodebench.tests.unpack", unpack)
    row = {"tests": "", "test_type": "stdin", "generation": "```python\npass\n```"}
    assert CodeGrader(CodeOptions()).grade(row).verdict == "grader_error"


def test_grading_without_a_sandbox_is_no_verdict_about_the_answer() -> None:
    with running_sandbox() as running:
        grader = CodeGrader(CodeOptions(sandbox_address=running.client.address))
        grader.warm_up()
        grader._sandbox = running.client
    grade = grader.grade(_row(generation="```python\ndef f(x): return 4\n```"))
    assert grade.verdict == "grader_error"
    assert "gives no answer" in grade.details["error"]


def test_the_grading_main_finds_the_sandbox_of_its_job(client: Sandbox, tmp_path: Path) -> None:
    rows = [
        _row(generation="```python\ndef f(x): return 4\n```"),
        _row(generation="```python\ndef f(x): return 5\n```"),
        _row(generation="no code"),
    ]
    answers = tmp_path / "output.jsonl"
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = [sys.executable, "-m", "nemo_skills.evaluation.evaluate", f"++input_files={answers}"]
    argv += ["++eval_type=code", "++processes=2"]

    def grade(port: int) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        entry = {"state": "starting", "host": "127.0.0.1", "port": port}
        (tmp_path / "sandbox-0.json").write_text(json.dumps(entry))
        env = {**os.environ, "NS_RUN_DIR": str(tmp_path)}
        done = subprocess.run(argv, capture_output=True, text=True, timeout=120, env=env)
        return done, [row.get("verdict", "") for row in read_rows(answers)]

    done, verdicts = grade(int(client.address.rpartition(":")[2]))
    assert done.returncode == 0, done.stderr
    assert verdicts == ["correct", "incorrect", "no_answer"]
