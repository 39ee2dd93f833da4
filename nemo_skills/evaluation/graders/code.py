"""Grades programs by running tests in a sandbox."""

import random
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from nemo_skills.core.errors import UserError
from nemo_skills.core.hydra import opt
from nemo_skills.evaluation.graders.programs import (
    assertion_program,
    call_program,
    contest_program,
    extract_code,
    import_check,
    imports_of,
    same_output,
    same_value,
)
from nemo_skills.evaluation.verdicts import Grade, Verdict

if TYPE_CHECKING:
    from nemo_skills.code_execution import ExecutionResult, Sandbox
    from nemo_skills.dataset.livecodebench.tests import Test

_FIRST, _BATCH = 3, 16
_SHOWN = 500
_SPARE_BYTES = 10_000
_EXIT_CODES = range(100, 250)
_VERDICTS = {"infrastructure": Verdict.grader_error, "timed_out": Verdict.timed_out}


@dataclass(frozen=True, kw_only=True)
class CodeOptions:
    """Where programs run, and how long."""

    sandbox_address: str | None = opt(None, "http://host:port of a sandbox; null takes this job's own")
    generation_key: str = opt("generation", "key of the model's answer")
    time_limit_s: float = opt(10.0, "longest time for a run: all assertions, or one contest test")
    tests: Literal["all", "base"] = opt("all", "base leaves out the tests that others added later (plus)")
    plus_packages: list[str] = opt([], "packages that plus tests import, which the sandbox must have")

    def __post_init__(self) -> None:
        """Check the limit."""
        if self.time_limit_s <= 0:
            raise UserError("time_limit_s must be positive.")


class CodeGrader:
    """Runs the last code block of an answer.

    Rows have assertions in `test`, perhaps more in `plus_test`; or packed `tests` of a contest, whose
    `test_type` is `stdin` or `functional`.
    """

    Options: ClassVar[type] = CodeOptions
    measure: ClassVar[str] = "passing_tests"
    version: ClassVar[int] = 2
    timeout_s: ClassVar[float] = 86_400.0
    """Out of reach: the sandbox limits programs, and its client the wait for it, which is not their fault."""
    soft_timeout_s: ClassVar[float | None] = None

    def __init__(self, options: CodeOptions) -> None:
        self._options = options
        self._sandbox: Sandbox | None = None
        self._there: frozenset[str] = sys.stdlib_module_names

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys that every row must have."""
        return (self._options.generation_key,)

    def warm_up(self) -> None:
        """Find the sandbox.

        Raises:
            UserError: there is none, or it lacks a package that tests import.
        """
        from nemo_skills.code_execution.finding import find_sandbox

        self._sandbox = find_sandbox(self._options.sandbox_address)
        if self._options.tests == "all":
            self._require(self._options.plus_packages)

    def grade(self, row: Mapping[str, Any]) -> Grade:
        """Run the tests of a row."""
        try:
            return self._grade(row)
        except MemoryError:  # unpacking tests took too much, and not the program, which runs elsewhere
            return Grade(
                verdict=Verdict.grader_error, details={"error": "no memory for the tests (memory_mb)"}
            )

    def _grade(self, row: Mapping[str, Any]) -> Grade:
        code = extract_code(str(row[self._options.generation_key] or ""))
        if code is None:
            scores = dict.fromkeys(self._suites(row), 0)
            return Grade(verdict=Verdict.no_answer, details={"scores": scores} if scores else {})
        if "tests" in row:
            return self._contest(row, code)
        if "test" in row:
            return self._assertions(row, code)
        raise ValueError("the row has no tests: neither 'test' nor 'tests'")

    def _assertions(self, row: Mapping[str, Any], code: str) -> Grade:
        scores: dict[str, int] = {}
        verdict, details = Verdict.correct, dict[str, Any]()
        for name, test in self._suites(row).items():
            if verdict is Verdict.correct:
                verdict, details = self._suite(row, code, test)
            scores[name] = int(verdict is Verdict.correct)
        if verdict.counts:
            details = {"scores": scores, **details}
        return Grade(verdict=verdict, predicted_answer=code, details=details)

    def _suites(self, row: Mapping[str, Any]) -> dict[str, str]:
        """Return assertions by the name of their score."""
        suites = {"passing_base_tests": row.get("test"), "passing_plus_tests": row.get("plus_test")}
        if self._options.tests == "base":
            del suites["passing_plus_tests"]
        return {name: test for name, test in suites.items() if test}

    def _suite(self, row: Mapping[str, Any], code: str, test: str) -> tuple[Verdict, dict[str, Any]]:
        self._require(imports_of(test))
        # a program that ends early, on purpose or not, does not know the code that says that all went well
        passed = random.choice(_EXIT_CODES)
        result = self._run(assertion_program(row, code, test, passed), ("",))[0]
        if result.exit_code == passed:
            return Verdict.correct, {}
        return _failed(result)

    def _contest(self, row: Mapping[str, Any], code: str) -> Grade:
        from nemo_skills.dataset.livecodebench.tests import unpack

        tests = unpack(row["tests"])
        verdict, details = Verdict.correct, dict[str, Any]()
        start = 0
        while start < len(tests) and verdict is Verdict.correct:
            batch = tests[start : start + (_BATCH if start else _FIRST)]
            verdict, details = self._some_tests(row, code, batch)
            if verdict is not Verdict.correct and "test" in details:
                details = {**details, "test": details["test"] + start, "of": len(tests)}
            start += len(batch)
        return Grade(verdict=verdict, predicted_answer=code, details=details)

    def _some_tests(
        self, row: Mapping[str, Any], code: str, tests: "list[Test]"
    ) -> tuple[Verdict, dict[str, Any]]:
        functional = row["test_type"] == "functional"
        mark = f"result-{random.getrandbits(64):016x}:"
        program = call_program(row["entry_point"], code, mark) if functional else contest_program(code)
        longest = max(len(test["output"].encode()) for test in tests)
        results = self._run(program, tuple(test["input"] for test in tests), 2 * longest + _SPARE_BYTES)
        for number, (test, result) in enumerate(zip(tests, results, strict=False), start=1):
            if not result.ok:
                verdict, details = _failed(result)
                return verdict, {**details, "test": number}
            same = same_value(result.stdout, mark, test["output"]) if functional else None
            if not (same_output(result.stdout, test["output"]) if same is None else same):
                return Verdict.incorrect, {"status": "wrong output", "test": number}
        if len(results) < len(tests):
            return Verdict.grader_error, {"error": "the sandbox gave too few results"}
        return Verdict.correct, {}

    def _require(self, modules: Collection[str]) -> None:
        """Raise if the sandbox lacks modules: programs would fail for want of what only their tests need."""
        unknown = sorted(set(modules) - self._there)
        if not unknown:
            return
        result = self._run(import_check(unknown), ("",))[0]
        if not result.ok:
            raise UserError(f"The sandbox cannot run programs: {result.stderr[-_SHOWN:]}", exit_code=1)
        python, missing = result.stdout.splitlines()
        if missing:
            raise UserError(
                f"Tests import {missing}, which the sandbox's {python} lacks. Install it there, start the"
                " sandbox with --python, or leave plus tests out with ++grader.tests=base."
            )
        self._there |= set(unknown)

    def _run(
        self, program: str, stdins: tuple[str, ...], output_bytes: int = _SPARE_BYTES
    ) -> "list[ExecutionResult]":
        from nemo_skills.code_execution.result import ExecutionRequest

        if self._sandbox is None:
            self.warm_up()
        assert self._sandbox is not None
        request = ExecutionRequest(
            program, timeout_s=self._options.time_limit_s, stdins=stdins, max_output_bytes=output_bytes
        )
        return list(self._sandbox.run(request))


def _failed(result: "ExecutionResult") -> tuple[Verdict, dict[str, Any]]:
    verdict = _VERDICTS.get(result.status, Verdict.incorrect)
    message = result.stderr[-_SHOWN:]
    if verdict is Verdict.grader_error:
        return verdict, {"error": message}
    return verdict, {"status": str(result.status), "message": message}
