"""Dialogues in and out of files: ledgers, chat rows, ShareGPT, Baize's released records.

One reader takes them all, telling them apart by their keys, from JSON lines or one JSON list:

    {"messages": …}            a ledger line or a chat row
    {"conversations": …}       ShareGPT
    {"topic": …, "input": …}   Baize's released corpus, whatever language its header is in

A line that cannot be read is never passed over in silence: it is named with its file and line.
"""

import json
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from baize_lib.config import BaizeError, data_dir
from baize_lib.dialogue import HUMAN_TAG, Dialogue, Message, parse_transcript, render
from baize_lib.files import write_jsonl
from baize_lib.teacher.prices import Usage

__all__ = [
    "Collected",
    "from_chat",
    "read_dialogues",
    "read_sample",
    "write_dialogues",
    "to_dataset",
    "push_to_hub",
]


NO_USAGE = Usage()


@dataclass(frozen=True, slots=True)
class Collected(Dialogue):
    """A dialogue with what its ledger line knows; other files leave these at their defaults.

    Attributes:
        usage: tokens billed for it, all calls together.
        tokens: role -> tokens its calls wrote (a first question that is the seed cost none);
            empty if the ledger has no calls.
        cut_turns: turns (from 0) whose reply was cut by `max_tokens`.
        repairs: what the parser had to mend in the transcript it came from.
    """

    status: str = "ok"
    reason: str = ""
    usage: Usage = NO_USAGE
    cost_usd: float = 0.0
    tokens: Mapping[str, int] = field(default_factory=dict)
    cut_turns: tuple[int, ...] = ()
    repairs: tuple[str, ...] = ()


def read_dialogues(
    path: Path | str,
    *,
    statuses: tuple[str, ...] | None = ("ok",),
    unreadable: list[str] | None = None,
) -> Iterator[Collected]:
    """Stream the dialogues of a file, whichever of the known formats it is in.

    Args:
        statuses: the ledger lines wanted; None takes failed ones too, which cost money as well.
        unreadable: a list that gets "file:line: why" for each line that cannot be read. Without
            one, a warning at the end counts them and names the first.

    Raises:
        BaizeError: the file does not exist.
    """
    path = Path(path)
    if not path.is_file():
        raise BaizeError(f"{path} does not exist: check the name, or run the notebook before this")
    faults = [] if unreadable is None else unreadable
    for line, row in _rows(path):
        try:
            if isinstance(row, Exception):
                raise row
            dialogue = _read_row(row)
        except _UNREADABLE as error:
            faults.append(f"{path}:{line}: {error or type(error).__name__}")
            continue
        if statuses is None or dialogue.status in statuses:
            yield dialogue
    if faults and unreadable is None:
        warnings.warn(f"{len(faults)} unreadable lines, first {faults[0]}", stacklevel=2)


_UNREADABLE = (BaizeError, ValueError, TypeError, LookupError, AttributeError, RecursionError)


def read_sample() -> list[Collected]:
    """The dialogues recorded with the course: made by its collector with the embedded model."""
    return list(read_dialogues(data_dir() / "self_chat_sample.jsonl"))


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (line number, row, or what is wrong with it), from JSON lines or a JSON list."""
    with path.open("rb") as file:
        start = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
        if not start.startswith(b"["):
            file.seek(0)
            for number, line in enumerate(file, start=1):
                line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if line.strip():
                    yield number, _decoded(line)
            return
    yield from _list_items(path.read_text(encoding="utf-8-sig", errors="replace"))


def _decoded(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        return error


_BETWEEN = re.compile(r"[\s,]*")
_NEXT_ITEM = re.compile(r"\}\s*,\s*(?=\{)")


def _list_items(text: str) -> Iterator[tuple[int, Any]]:
    """The items of a JSON list; after a broken one, go on at the next `}, {`."""
    decoder = json.JSONDecoder()
    position, line, counted = text.index("[") + 1, 1, 0
    while True:
        position = _BETWEEN.match(text, position).end()
        line, counted = line + text.count("\n", counted, position), position
        if position >= len(text):
            yield line, ValueError("the list is not closed: the file may be cut short")
            return
        if text[position] == "]":
            return
        try:
            item, position = decoder.raw_decode(text, position)
            yield line, item
        except (ValueError, RecursionError) as error:
            yield line, error
            following = _NEXT_ITEM.search(text, position)
            if not following:
                return
            position = following.end()


def _read_row(row: Any) -> Collected:
    if not isinstance(row, dict):
        raise ValueError(f"a JSON object was expected, not {type(row).__name__}")
    repairs: tuple[str, ...] = tuple(map(str, row.get("defects") or ()))
    if "conversations" in row:
        dialogue = from_sharegpt(row)
    elif "input" in row and "messages" not in row:
        dialogue, repairs = from_baize_record(row)
    else:
        unfinished = row.get("status", "ok") != "ok" and not row.get("messages")
        dialogue = from_chat(row | {"messages": []} if unfinished else row)
    tokens: Counter[str] = Counter()
    for call in row.get("calls") or ():
        tokens[call["role"]] += _usage(call).output
    return Collected(
        tuple(map(_checked, dialogue.messages)), dialogue.id, dialogue.seed, dialogue.source,
        status=str(row.get("status", "ok")), reason=str(row.get("reason") or ""),
        usage=_usage(row), cost_usd=sum(float(row.get(k) or 0) for k in _COSTS), tokens=tokens,
        cut_turns=_cut_turns(row, dialogue.num_turns), repairs=repairs,
    )  # fmt: skip


_COSTS = ("cost_usd", "uncertain_usd")  # the second: calls that may have been billed
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def _checked(message: Message) -> Message:
    if not isinstance(message.content, str):
        raise ValueError(f"a message's content is {type(message.content).__name__}, not text")
    if message.content.isascii() or not _LONE_SURROGATE.search(message.content):
        return message
    return Message(message.role, _LONE_SURROGATE.sub("\ufffd", message.content))


def _usage(row: dict[str, Any]) -> Usage:
    counts = row["usage"] if isinstance(row.get("usage"), dict) else {}
    return Usage(*(int(counts.get(key) or 0) for key in ("input", "cached_input", "output")))


def _cut_turns(row: dict[str, Any], num_turns: int) -> tuple[int, ...]:
    """Which replies were cut; a ledger without a reason a reply speaks of the last one only."""
    last_only = ["stop"] * (num_turns - 1) + [row.get("finish_reason")]
    reasons = row.get("finish_reasons") or last_only
    return tuple(i for i, reason in enumerate(reasons) if reason in ("length", "content_filter"))


def to_chat(dialogue: Dialogue | Sequence[Message]) -> dict[str, Any]:
    """`{"messages": [{"role", "content"}, …]}`: what TRL, OpenAI and Axolotl read."""
    messages = dialogue.messages if isinstance(dialogue, Dialogue) else dialogue
    return {"messages": [{"role": m.role, "content": m.content} for m in messages]}


def from_chat(row: dict[str, Any]) -> Dialogue:
    """A dialogue from a chat row or a ledger line.

    Raises:
        BaizeError: `messages` is missing or malformed.
    """
    try:
        messages = tuple(Message(m["role"], m["content"]) for m in row["messages"])
    except (KeyError, TypeError) as error:
        raise BaizeError(
            f"a chat row needs 'messages', a list of role and content ({error!r}); "
            f"it has {sorted(row) if isinstance(row, dict) else type(row).__name__}"
        ) from error
    seed = row.get("seed") or {}
    seed = seed if isinstance(seed, dict) else {"text": str(seed)}
    return Dialogue(messages, str(row.get("id", "")), seed.get("text", ""), seed.get("source", ""))


_SHAREGPT_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant",
    "assistant": "assistant", "bing": "assistant", "bard": "assistant", "system": "system",
}  # fmt: skip


def to_sharegpt(dialogue: Dialogue) -> dict[str, Any]:
    """`{"id", "conversations": [{"from": "human" | "gpt", "value"}, …]}`."""
    speaker = {"user": "human", "assistant": "gpt", "system": "system"}
    turns = [{"from": speaker[m.role], "value": m.content} for m in dialogue.messages]
    return {"id": dialogue.id, "conversations": turns}


def from_sharegpt(row: dict[str, Any]) -> Dialogue:
    """A dialogue from a ShareGPT row.

    Raises:
        BaizeError: `conversations` is missing, or a speaker is unknown.
    """
    try:
        messages = tuple(
            Message(_SHAREGPT_ROLES[turn["from"].lower()], turn["value"])
            for turn in row["conversations"]
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise BaizeError(
            f"a ShareGPT row needs 'conversations', a list of from and value, with known speakers "
            f"({', '.join(_SHAREGPT_ROLES)}): {error!r}"
        ) from error
    return Dialogue(messages, str(row.get("id", "")))


def to_baize_record(dialogue: Dialogue, *, language: str = "en") -> dict[str, str]:
    """The released corpus's record, `{"topic", "input"}`; its last tag dangles, as released."""
    text = render(dialogue.messages, language=language)
    return {"topic": dialogue.seed, "input": f"{text}\n{HUMAN_TAG} "}


def from_baize_record(row: dict[str, Any]) -> tuple[Dialogue, tuple[str, ...]]:
    """A dialogue, and its defects, from a released record; its header may be in any language.

    Raises:
        BaizeError: `input` is missing.
    """
    if not isinstance(row, dict) or not isinstance(row.get("input"), str):
        raise BaizeError("a released Baize record needs 'topic' and 'input', both texts")
    found = parse_transcript(row["input"])
    expected = ("text before the first tag", *_dangling(row["input"]))
    defects = tuple(_without(found.defects, expected))
    return Dialogue(found.messages, seed=str(row.get("topic", ""))), defects


def _dangling(text: str) -> tuple[str, ...]:
    return ("empty turn",) if text.rstrip().endswith(HUMAN_TAG) else ()


def _without(defects: Iterable[str], expected: Iterable[str]) -> list[str]:
    left = list(defects)
    for defect in expected:
        if defect in left:
            left.remove(defect)
    return left


_WRITERS: dict[str, Callable[[Dialogue], dict[str, Any]]] = {
    "chat": to_chat, "sharegpt": to_sharegpt, "baize": to_baize_record,
}  # fmt: skip


def write_dialogues(
    path: Path | str, dialogues: Iterable[Dialogue], format: str = "chat", language: str = "en"
) -> int:
    """Write JSON lines, atomically, as "chat", "sharegpt" or "baize". Returns how many.

    `language` is that of the header that "baize" records carry; the others have none.
    """
    if format not in _WRITERS:
        raise BaizeError(f"format {format!r} is not known: use one of {', '.join(_WRITERS)}")
    writer = partial(to_baize_record, language=language) if format == "baize" else _WRITERS[format]
    return write_jsonl(path, map(writer, dialogues))


def to_dataset(dialogues: Iterable[Dialogue]) -> Any:
    """A `datasets.Dataset` with columns messages, id, seed and source."""
    import datasets

    return datasets.Dataset.from_list(
        [to_chat(d) | {"id": d.id, "seed": d.seed, "source": d.source} for d in dialogues]
    )


def push_to_hub(
    splits: Mapping[str, Iterable[Dialogue]], name: str, *, token: str | None = None,
    private: bool = True,
) -> str:  # fmt: skip
    """Upload `{"train": …, "validation": …}` as the data set `name`. Returns its address.

    Raises:
        BaizeError: there is no token, or the hub cannot be reached or refuses.
    """
    import datasets
    import httpx
    from huggingface_hub import get_token

    token = token or get_token()
    if not token:
        raise BaizeError(
            "no Hugging Face token: run `hf auth login`, or set HF_TOKEN to a token that may write"
        )
    made = datasets.DatasetDict({split: to_dataset(rows) for split, rows in splits.items()})
    try:
        made.push_to_hub(name, token=token, private=private)
    except (OSError, ValueError, httpx.HTTPError) as error:
        reason = str(error).replace(token, "***")
        raise BaizeError(
            f"the hub did not take {name} ({reason}): check the connection, the name "
            "('you/data-set') and that the token may write"
        ) from None
    return f"https://huggingface.co/datasets/{name}"
