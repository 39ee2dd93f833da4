"""From a row of training data to tokens, and which of them the model learns: the only place that decides it.

Rows hold `input` and `output` (texts, taken as they are), or `messages` (with `role`, `content` and perhaps
`train`, and `tools` beside them), which the tokenizer's chat template turns into text. The model learns what
it would have to say itself: `output` and the token that ends it, or the assistant's turns with the tag that
ends each. What precedes is tokenised as a server would tokenise a prompt. Of a row with nothing but `text`,
as pretraining takes it, every token is learned.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from nemo_skills.core.errors import UserError, did_you_mean

_KEYS = ("messages", "input", "output", "text")
Message = dict[str, Any]


class Example(NamedTuple):
    """Tokens of a row."""

    input_ids: list[int]
    loss_mask: list[bool]
    """Whether the model learns to say the token at this place (given those before it)."""

    @property
    def trains(self) -> bool:
        """Whether there is anything to learn; nothing precedes the first token, so it cannot be predicted."""
        return True in self.loss_mask[1:]

    def cut(self, max_tokens: int) -> "Example":
        """Return the first tokens."""
        return Example(self.input_ids[:max_tokens], self.loss_mask[:max_tokens])


class _Part(NamedTuple):
    text: str
    learned: bool


def tokenise(row: Mapping[str, Any], tokenizer: Any) -> Example:
    """Return the tokens of one row, up to the last one that is learned: what follows it teaches nothing.

    Args:
        row: with `input` and `output`, or with `messages`.
        tokenizer: of transformers, see `load_tokenizer`.

    Raises:
        UserError: the row has neither, or the tokenizer lacks what is needed for it.
    """
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer has no end-of-sequence token (eos_token), which ends every response")
    if row.get("messages") is not None:
        parts = _chat_parts(row["messages"], row.get("tools"), tokenizer)
        # a chat template writes all special tokens itself
        ids, mask = _encode(parts, tokenizer)
        ended = ids[-1] in tokenizer.added_tokens_decoder
    else:
        parts = _text_parts(row)
        ids, mask = _encode(parts, tokenizer)
        if starts_with_bos(tokenizer) and ids[:1] != [tokenizer.bos_token_id]:
            ids, mask = [tokenizer.bos_token_id, *ids], [False, *mask]
        ended = ids[-1:] == [tokenizer.eos_token_id]
    if not ended:
        ids.append(tokenizer.eos_token_id)
        mask.append(True)
    return Example(ids, mask)


def check_row(row: Mapping[str, Any], tokenizer: Any) -> None:
    """Find most of what `tokenise` would refuse, without the time that tokens take.

    Raises:
        UserError: the row is none to train on.
    """
    if row.get("messages") is None:
        _text_parts(row)
    else:
        _learned(row["messages"])
        _require_template(tokenizer)


def load_tokenizer(path: str) -> Any:
    """Load a tokenizer that can end a response.

    Raises:
        UserError: there is none at this place, or it has no end-of-sequence token.
    """
    from nemo_skills.prompt.render import load_tokenizer as load

    tokenizer = load(path)
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer '{path}' has no end-of-sequence token (eos_token) to end responses with"
        )
    return tokenizer


def _text_parts(row: Mapping[str, Any]) -> list[_Part]:
    if "text" in row and "input" not in row and "output" not in row:
        return [_Part(_text(row, "text"), True)]
    return [_Part(_text(row, "input"), False), _Part(_text(row, "output"), True)]


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if isinstance(value, str):
        return value
    if value is not None:
        raise UserError(f"'{key}' must be a text, not {type(value).__name__}")
    near = next((hint for name in row if name not in _KEYS and (hint := did_you_mean(name, _KEYS))), "")
    raise UserError(
        f"a row needs 'input' and 'output', or 'messages', or 'text', but there is no '{key}'.{near}"
        f" Keys of the row: {', '.join(row) or 'none'}"
    )


def _encode(parts: Sequence[_Part], tokenizer: Any) -> tuple[list[int], list[bool]]:
    """Tokenise texts that follow each other, so that no token reaches from one into the next."""
    pieces = _pieces_at_once(parts, tokenizer) or _pieces(parts, tokenizer)
    ids, mask = list[int](), list[bool]()
    for part, piece in zip(parts, pieces, strict=True):
        ids += piece
        mask += [part.learned] * len(piece)
    return ids, mask


def _pieces_at_once(parts: Sequence[_Part], tokenizer: Any) -> list[list[int]] | None:
    """Return the tokens of each text where they are those of the whole; saves time from three texts on."""
    if len(parts) <= 2:
        return None
    pieces = [_ids(part.text, tokenizer) for part in parts]
    whole = _ids("".join(part.text for part in parts), tokenizer)
    return pieces if list(itertools.chain.from_iterable(pieces)) == whole else None


def _pieces(parts: Sequence[_Part], tokenizer: Any) -> list[list[int]]:
    """Tokenise each text after those before it, or alone where it would change their tokens.

    Some tokenizers write the beginning of a text differently from the same words inside of it.
    """
    pieces: list[list[int]] = []
    before: list[int] = []
    text = ""
    for part in parts:
        text += part.text
        ids = _ids(text, tokenizer)
        piece = ids[len(before) :] if ids[: len(before)] == before else _ids(part.text, tokenizer)
        pieces.append(piece)
        before = before + piece
    return pieces


def _ids(text: str, tokenizer: Any) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def starts_with_bos(tokenizer: Any) -> bool:
    """Whether this tokenizer, and with it a server, puts a token before every prompt."""
    start = tokenizer.bos_token_id
    return start is not None and tokenizer("a")["input_ids"][:1] == [start]


def _chat_parts(messages: Any, tools: Any, tokenizer: Any) -> list[_Part]:
    """Cut the text of a conversation where the assistant begins and ends to say what is learned."""
    learned = _learned(messages)
    turns = [_for_template(message) for message in messages]
    _require_template(tokenizer)
    render = _Renderer(tokenizer, tools)
    whole = render(turns[: learned[-1] + 1])
    parts: list[_Part] = []
    start = 0
    for index in learned:
        before = render(turns[:index], prompt=True)
        # a line break behind the closing tag only separates turns
        after = render(turns[: index + 1]).rstrip()
        if not (after.startswith(before) and whole.startswith(after)):
            raise UserError(
                f"the chat template writes message {index + 1} differently once more messages follow, or not"
                " after its own prompt for an answer, so that what the assistant said cannot be told apart."
                " Make one row of each answer (train only the last message of a row), or write 'input' and"
                " 'output' texts"
            )
        parts += [_Part(whole[start : len(before)], False), _Part(whole[len(before) : len(after)], True)]
        start = len(after)
    return parts


def _require_template(tokenizer: Any) -> None:
    if not tokenizer.chat_template:
        raise UserError("the tokenizer has no chat template, which rows with 'messages' need")


def _learned(messages: Any) -> list[int]:
    """Return the numbers of the messages that are learned."""
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        raise UserError("'messages' must be a list of objects with 'role' and 'content'")
    learned = []
    for index, message in enumerate(messages):
        role = message.get("role")
        if not isinstance(role, str) or (message.get("content") is None and not message.get("tool_calls")):
            raise UserError(f"message {index + 1} lacks 'role' or 'content'")
        train = message.get("train", role == "assistant")
        if not isinstance(train, bool):
            raise UserError(f"message {index + 1}: 'train' must be true or false")
        if train and role != "assistant":
            raise UserError(f"message {index + 1}: only what the assistant says can be trained, not '{role}'")
        if train:
            learned.append(index)
    if not learned:
        raise UserError("no message of the assistant is to be trained")
    return learned


def _for_template(message: Message) -> Message:
    """Drop our flag; unpack the arguments of tool calls, which travel as JSON text, but not to templates."""
    plain = {key: value for key, value in message.items() if key != "train"}
    calls = plain.get("tool_calls")
    if isinstance(calls, list):
        plain["tool_calls"] = [_unpacked(call) for call in calls]
    return plain


def _unpacked(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"])
    except ValueError:
        return call
    return {**call, "function": {**function, "arguments": arguments}}


class _Renderer:
    def __init__(self, tokenizer: Any, tools: Any) -> None:
        self._tokenizer = tokenizer
        self._tools = tools or None

    def __call__(self, messages: Sequence[Message], *, prompt: bool = False) -> str:
        """Return the text of messages, and with `prompt` what comes before an answer to them."""
        from jinja2.exceptions import TemplateError

        try:
            text: str = self._tokenizer.apply_chat_template(
                messages, tools=self._tools, tokenize=False, add_generation_prompt=prompt
            )
        except (TemplateError, TypeError, KeyError) as error:
            raise UserError(f"the chat template refuses the messages: {error}") from None
        return text
