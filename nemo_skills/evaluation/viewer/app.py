"""The pages: plain HTML forms and links, rendered here; the browser runs no script and loads nothing else."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import orjson

from nemo_skills.core.errors import UserError
from nemo_skills.evaluation.verdicts import Verdict
from nemo_skills.evaluation.viewer.runs import OutputFile
from nemo_skills.evaluation.viewer.search import DIFFERS, EVERYTHING, Filter, Found, Page, backward, forward
from nemo_skills.evaluation.viewer.text import render

if TYPE_CHECKING:
    from aiohttp import web

_HOSTS = ("127.0.0.1", "localhost", "[::1]")
_POLICY = "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
_PROMPT_KEYS = ("problem", "question", "prompt", "input", "messages")
_REASONING_KEYS = ("_reasoning", "reasoning_content")
_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True, kw_only=True)
class Query:
    """What the address of a page asks for."""

    file: int = 0
    beside: int | None = None
    """The file of the second run."""
    row: int = 0
    up: bool = False
    """Whether rows before `row` are wanted, not those from it on."""
    what: Filter = EVERYTHING

    def address(self, **changes: Any) -> str:
        """Return the address of a page that differs in some ways."""
        new = replace(self, **changes)
        values = {"with": new.beside, "verdict": new.what.verdict, "text": new.what.text, "row": new.row}
        given = {key: value for key, value in values.items() if value not in (None, "")}
        return f"/file/{new.file}?{urlencode(given | ({'up': 1} if new.up else {}))}"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One row as it is shown."""

    prompt: str
    reasoning: str
    generation: str
    verdict: str
    predicted: str
    expected: str
    error: str
    rest: str


def make_app(files: Sequence[OutputFile]) -> "web.Application":
    """Return the application that shows these files.

    Raises:
        UserError: a library that it needs is missing.
    """
    try:
        import jinja2
        import latex2mathml  # noqa: F401
    except ImportError as error:
        raise UserError(f"ns view needs {error.name}: pip install 'nemo-skills[view]'") from None
    from aiohttp import web

    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True)
    environment.filters["markdown"] = render

    def show(template: str, **values: Any) -> web.Response:
        text = environment.get_template(template).render(**values)
        return web.Response(text=text, content_type="text/html")

    async def overview(_request: web.Request) -> web.Response:
        runs = list(dict.fromkeys(file.run for file in files))
        return show("index.html.jinja", files=list(enumerate(files)), runs=runs)

    async def rows(request: web.Request) -> web.Response:
        try:
            query = read_query(request.match_info["file"], request.query, len(files))
        except ValueError as error:
            raise web.HTTPBadRequest(text=f"{error}") from None
        return await asyncio.to_thread(lambda: show("rows.html.jinja", **_contents(files, query)))

    async def style(_request: web.Request) -> web.StreamResponse:
        return web.FileResponse(_TEMPLATES / "style.css")

    app = web.Application(middlewares=[_only_from_here()])
    app.router.add_get("/", overview)
    app.router.add_get("/file/{file}", rows)
    app.router.add_get("/style.css", style)
    return app


def read_query(file: str, values: Any, files: int) -> Query:
    """Read the parts of an address.

    Raises:
        ValueError: they make no sense.
    """
    beside = int(values["with"]) if values.get("with") else None
    query = Query(
        file=int(file),
        beside=beside,
        row=max(0, int(values.get("row") or 0)),
        up=bool(values.get("up")),
        what=Filter(verdict=values.get("verdict", ""), text=values.get("text", "")),
    )
    if not all(0 <= index < files for index in (query.file, query.beside or 0)):
        raise ValueError("there is no such file")
    return query


def _contents(files: Sequence[OutputFile], query: Query) -> dict[str, Any]:
    shown = [files[query.file]] + ([files[query.beside]] if query.beside is not None else [])
    for file in shown:
        file.rows.index_in_background()
    look = backward if query.up else forward
    page = look([file.rows for file in shown], query.row, query.what)
    address = partial(query.address, up=False)
    return {
        "files": list(enumerate(files)),
        "shown": shown,
        "query": query,
        "page": page,
        "found": [(one.number, answers(one)) for one in page.found],
        "same_prompts": all(_same_prompt(one) for one in page.found),
        "verdicts": [*(verdict.value for verdict in Verdict), *([DIFFERS] if len(shown) > 1 else [])],
        "first": address(row=0),
        "earlier": None if page.before is None else query.address(row=page.before, up=True),
        "later": None if page.after is None else address(row=page.after),
        "count": shown[0].rows.count(),
        "place": _place(page),
    }


def _place(page: Page) -> str:
    if not page.found:
        return "no row"
    first, last = page.found[0].number, page.found[-1].number
    return f"rows {first:,} to {last:,}" if first != last else f"row {first:,}"


def answers(found: Found) -> list[Answer | None]:
    """Return what is shown of a row, for each file."""
    return [None if row is None else _answer(row) for row in found.rows]


def _answer(row: dict[str, Any]) -> Answer:
    rest = dict(row)
    prompt = _take(rest, *_PROMPT_KEYS)
    error = rest.pop("error", None)
    return Answer(
        prompt=_shown(prompt),
        reasoning=_shown(_take(rest, *_REASONING_KEYS)),
        generation=_shown(_take(rest, "generation", "responses")),
        verdict=_shown(_take(rest, "verdict")),
        predicted=_shown(_take(rest, "predicted_answer")),
        expected=_shown(_take(rest, "expected_answer")),
        error=_shown(error),
        rest=orjson.dumps(rest, option=orjson.OPT_INDENT_2).decode(),
    )


def _take(row: dict[str, Any], *keys: str) -> Any:
    """Return and remove the first of some values that is there."""
    return next((row.pop(key) for key in keys if row.get(key) is not None), None)


def _shown(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, list) and all(isinstance(turn, dict) and "content" in turn for turn in value):
        return "\n\n".join(f"**{turn.get('role', '')}**\n\n{_shown(turn['content'])}" for turn in value)
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return "\n\n---\n\n".join(value)
    return orjson.dumps(value).decode()


def _same_prompt(found: Found) -> bool:
    prompts = [_take(dict(row), *_PROMPT_KEYS) for row in found.rows if row is not None]
    return all(prompt == prompts[0] for prompt in prompts)


def _only_from_here() -> Any:
    """Refuse requests under other names: a foreign page could have its name point at this machine."""
    from aiohttp import web

    @web.middleware
    async def check(request: web.Request, handler: Any) -> web.StreamResponse:
        host = request.headers.get("Host", "")
        if not any(host == name or host.startswith(f"{name}:") for name in _HOSTS):
            raise web.HTTPForbidden(text="open this page as http://127.0.0.1 or http://localhost")
        response: web.StreamResponse = await handler(request)
        response.headers["Content-Security-Policy"] = _POLICY
        response.headers["Referrer-Policy"] = "no-referrer"
        return response

    return check
