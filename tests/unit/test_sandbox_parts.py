"""Parts of the sandbox and of answers that run code, without processes."""

import asyncio
import errno
import json
import os
import struct
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_skills.code_execution import ExecutionResult, Sandbox, Status
from nemo_skills.code_execution.box import keeper, seccomp
from nemo_skills.code_execution.box.keeper import Output
from nemo_skills.code_execution.boxes import OverdueError
from nemo_skills.code_execution.pool import Pool, PoolOptions
from nemo_skills.code_execution.result import ExecutionRequest
from nemo_skills.core.errors import UserError
from nemo_skills.inference.code_tools import CodeTools, code_of_call, find_code_tags, shown_output
from nemo_skills.inference.config import GenerateConfig
from nemo_skills.pipeline.servers.sandbox import sandbox_component
from nemo_skills.prompt.lookup import CODE_TAGS

_LOAD, _RETURN, _EQUAL, _AT_LEAST, _ANY = 0x20, 0x06, 0x15, 0x35, 0x45
ALLOW, REFUSE, UNKNOWN, NO_FAMILY = (
    0x7FFF0000,
    0x50000 | errno.EPERM,
    0x50000 | errno.ENOSYS,
    0x50000 | errno.EAFNOSUPPORT,
)


def decide(program: bytes, number: int, argument: int = 0, arch: int = 0xC000003E) -> int:
    """Run a filter as the kernel does."""
    data = struct.pack("<IIQQ", number, arch, 0, argument)
    steps = list(struct.iter_unpack("=HBBI", program))
    place, value = 0, 0
    while True:
        code, if_true, if_false, operand = steps[place]
        place += 1
        if code == _LOAD:
            (value,) = struct.unpack_from("<I", data, operand)
        elif code == _RETURN:
            return operand
        else:
            tests = {_EQUAL: value == operand, _AT_LEAST: value >= operand, _ANY: bool(value & operand)}
            place += if_true if tests[code] else if_false


@pytest.mark.parametrize(
    ("number", "argument", "decision"),
    [
        (0, 0, ALLOW), (59, 0, ALLOW), (101, 0, REFUSE), (165, 0, REFUSE), (272, 0, REFUSE), (321, 0, REFUSE),
        (56, 17, ALLOW), (56, 0x10000011, REFUSE), (56, 0x20000, REFUSE), (56, 0x003D0F00, ALLOW),
        (435, 0, UNKNOWN), (41, 1, ALLOW), (41, 2, ALLOW), (41, 10, ALLOW),
        (41, 16, NO_FAMILY), (41, 40, NO_FAMILY),
        (0x40000000, 0, REFUSE),
    ],
)  # fmt: skip
def test_filter_of_system_calls(number: int, argument: int, decision: int) -> None:
    assert decide(seccomp.filter_program("x86_64"), number, argument) == decision


def test_filter_of_the_other_machine_type() -> None:
    program = seccomp.filter_program("aarch64")
    assert decide(program, 117, arch=0xC00000B7) == REFUSE
    assert decide(program, 63, arch=0xC00000B7) == ALLOW
    assert decide(program, 220, 0x10000011, arch=0xC00000B7) == REFUSE
    assert decide(program, 63) == 0x80000000, "calls of another architecture"


@given(
    code=st.text(), stdins=st.lists(st.text(), min_size=1), timeout=st.floats(0.001, 1e6), stop=st.booleans()
)
def test_requests_travel_as_json(code: str, stdins: list[str], timeout: float, stop: bool) -> None:
    request = ExecutionRequest(code, stdins=tuple(stdins), timeout_s=timeout, stop_at_failure=stop)
    assert ExecutionRequest.from_json(json.loads(json.dumps(request.to_json()))) == request


@given(
    status=st.sampled_from(Status), out=st.text(), code=st.none() | st.integers(-64, 255), new=st.booleans()
)
def test_results_travel_as_json(status: Status, out: str, code: int | None, new: bool) -> None:
    result = ExecutionResult(status, out, out, code, 1.5, new)
    assert ExecutionResult.from_json(json.loads(json.dumps(result.to_json()))) == result


@given(parts=st.lists(st.binary(max_size=40)), keep=st.integers(0, 100))
def test_output_keeps_its_beginning(parts: list[bytes], keep: int) -> None:
    output = Output(keep)
    for part in parts:
        output.add(part)
    whole = b"".join(parts)
    text = whole[:keep].decode("utf-8", "replace")
    lost = max(0, len(whole) - keep)
    assert output.text() == (f"{text}\n[output cut: {lost} more bytes]\n" if lost else text)


@pytest.mark.parametrize(
    ("peak_mb", "kills", "status"),
    [
        (100, (5, 5), "error"),  # the program's own doing
        (100, (5, 6), "infrastructure"),
        (100, (None, None), "infrastructure"),  # who knows
        (300, (5, 6), "memory"),
        (300, (None, None), "memory"),
    ],
)
def test_who_killed_the_program(
    peak_mb: int, kills: tuple[int | None, int | None], status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = iter(kills)
    monkeypatch.setattr(keeper.kernel, "oom_kills", lambda: next(told))
    family = Mock(peak=0, memory_limit=200 << 20)
    watch = keeper.Watch(family, 1, (1, 2), {"keep_bytes": 9, "timeout_s": 9})
    family.peak = peak_mb << 20
    assert watch._ended(-9) == status
    assert watch._ended(3) == "error"


def test_a_box_that_does_not_answer_is_no_failure_of_the_program() -> None:
    box = Mock(ask=AsyncMock(side_effect=OverdueError))
    pool = Pool(Mock(start=AsyncMock(return_value=(box, 1))), PoolOptions(workers=1))
    for session in (None, "one"):
        [result] = asyncio.run(pool.execute(ExecutionRequest("pass", session_id=session)))
        assert result.status is Status.infrastructure
        assert "did not answer" in result.stderr


def test_addresses() -> None:
    assert Sandbox("127.0.0.1:80").address == Sandbox("http://127.0.0.1:80/").address == "http://127.0.0.1:80"
    for wrong in ("", "nonsense", "http://host"):
        with pytest.raises(ValueError, match="no address of a sandbox"):
            Sandbox(wrong)


@pytest.mark.parametrize("name", CODE_TAGS.names())
def test_code_of_shipped_tags_is_found(name: str) -> None:
    tags = find_code_tags(name)
    tools = CodeTools(config=_config(), tags=tags)
    begun = f"Words.{tags.code_begin}first()\n"
    assert tools.code_in("Words.") is None
    assert tools.code_in(begun) == "first()\n"
    ran = f"{tools.closed(begun)}{tags.output_begin}1\n{tags.output_end}More."
    assert tools.code_in(ran) is None
    assert tools.code_in(f"{ran}{tags.code_begin}second()\n") == "second()\n"


def test_unknown_tags_name_the_nearest(tmp_path: Any) -> None:
    with pytest.raises(UserError, match="Did you mean 'qwen'"):
        find_code_tags("qwem")
    path = tmp_path / "own.yaml"
    path.write_text(
        "code_begin: '<c>'\ncode_end: '</c>'\noutput_begin: '<o>'\noutput_end: '</o>'\ncode_format: xml\n"
    )
    with pytest.raises(UserError, match="code_format must be plain or json, not 'xml'"):
        find_code_tags(str(path))


@pytest.mark.parametrize(
    ("call", "code"),
    [
        ('{"name": "python", "arguments": {"code": "x"}}', "x"),
        ('{"name": "run", "arguments": "{\\"source\\": \\"y\\"}"}', "y"),
        ('{"name": "run", "arguments": {"n": 1, "code": "x", "a": "b"}}', "x"),
        ('{"name": "run", "arguments": {}}', None),
        ("{", None),
        ("[]", None),
        ('{"arguments": 3}', None),
    ],
)
def test_code_in_tool_calls(call: str, code: str | None) -> None:
    assert code_of_call(call) == code


def _config(**values: Any) -> GenerateConfig:
    from nemo_skills.inference.config import ServerConfig

    server = ServerConfig(server_type="stub")
    return GenerateConfig(input_file="i", output_file="o", prompt_config="p", server=server, **values)


@pytest.mark.parametrize(
    ("result", "shown"),
    [
        (ExecutionResult(Status.completed, "1\n", "a warning\n"), "1"),
        (ExecutionResult(Status.error, "1\n", "Traceback\nE: no\n"), "1\nTraceback\nE: no"),
        (ExecutionResult(Status.error, "", "x" * 50 + "E: no\n"), "[cut]\n" + "x" * 14 + "E: no"),
        (ExecutionResult(Status.completed, "y" * 21), "y" * 20 + "\n[output cut]"),
        (
            ExecutionResult(Status.timed_out, "1\n"),
            "1\nThe code took longer than 10 seconds and was stopped.",
        ),
        (
            ExecutionResult(Status.completed, "1\n", new_session=True),
            "Earlier variables are lost: Python was started anew.\n1",
        ),
        (ExecutionResult(Status.completed), ""),
    ],
)
def test_what_the_model_sees(result: ExecutionResult, shown: str) -> None:
    assert shown_output(result, _config(max_code_output_characters=20), first=False) == shown


def test_the_component_of_a_job() -> None:
    component = sandbox_component()
    assert (component.role, component.gpus) == ("sandbox", 0)
    [argv] = component.commands
    assert argv[-2:] == ("--port", "{port}")


def test_importing_the_client_is_cheap() -> None:
    import subprocess
    import sys

    heavy = "{'aiohttp', 'orjson', 'hydra'}"
    code = f"import sys, nemo_skills.code_execution.client; print({heavy} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert done.stdout == "set()\n"
