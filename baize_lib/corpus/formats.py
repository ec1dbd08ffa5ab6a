"""Dialogues in and out of files, in the layouts people have them in.

A row says by its fields which layout it is in:

    {"messages": [{"role": …, "content": …}]}            OpenAI, TRL, and `self_chat.jsonl`
    {"conversations": [{"from": "human", "value": …}]}   ShareGPT, BELLE 3.5M, LLaMA-Factory
    {"conversation": [{"human": …, "assistant": …}]}     Firefly, XTuner
    {"instruction": …, "input": …, "output": …}          Alpaca, BELLE, Dolly (one turn)
    {"prompt": …, "response": …, "history": [[q, a]]}    one turn, or the last of several
    {"data": [q, a, q, a]}                               UltraChat
    {"topic": …, "input": …}                             Baize's released corpus

A file is JSON lines, a JSON list, printed objects or a table, perhaps packed (`seeds.records`).
What cannot be read is never passed over in silence: it is named with its file and line.

>>> [dialogue] = read_dialogues([{"instruction": "Say hello.", "input": "", "output": "Hello."}])
>>> dialogue.by("assistant")
['Hello.']
"""

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baize_lib.config import BaizeError, data_dir
from baize_lib.dialogue import HUMAN_TAG, Dialogue, Message, check_language, parse_transcript
from baize_lib.files import write_jsonl, written
from baize_lib.seeds.records import records
from baize_lib.teacher.prices import Usage

__all__ = ["read_dialogues", "read_sample", "write_dialogues"]

NO_USAGE = Usage()


@dataclass(frozen=True, slots=True)
class Collected(Dialogue):
    """A dialogue with what its line of `self_chat.jsonl` knows; other files leave the defaults."""

    status: str = "ok"
    teacher: str = ""  # the model that said it, as it was asked for
    usage: Usage = NO_USAGE  # all calls together
    cost_usd: float = 0.0
    cut_turns: tuple[int, ...] = ()  # turns (from 0) whose reply was cut by `max_tokens`
    repairs: tuple[str, ...] = ()  # what the parser had to mend in the transcript it came from


def read_dialogues(
    source: Path | str | Iterable[Mapping[str, Any]], *, statuses: tuple[str, ...] | None = ("ok",)
) -> Iterator[Collected]:
    """Stream the dialogues of a file, or of rows, whichever of the known layouts they are in.

    A warning at the end counts the rows that cannot be read, and names the first with their lines.
    `statuses` are the lines of `self_chat.jsonl` wanted; None takes failed ones too, which cost
    money as well. There is a BaizeError for no such file, and where not one row can be read.
    """
    is_file = isinstance(source, str | Path)
    if is_file and not Path(source).is_file():
        what = "is a folder: name a file in it" if Path(source).is_dir() else "does not exist"
        raise BaizeError(f"{source} {what}; check the name, or run the notebook before this")
    if not isinstance(source, Iterable | Path):
        raise BaizeError(f"{source!r:.60} holds no dialogues: give a file, or a list of rows")
    rows = records(Path(source)) if is_file else ((f"row {i}", r) for i, r in enumerate(source, 1))
    num_read, faults = 0, []
    for place, row in rows:
        try:
            dialogue = _read_row(row)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            faults.append(f"\n{place}: {error}")
            continue
        num_read += 1
        if statuses is None or dialogue.status in statuses:
            yield dialogue
    told = f"{len(faults)} of {num_read + len(faults)} rows cannot be read:{''.join(faults[:20])}"
    if faults and not num_read:
        raise BaizeError(told)
    if faults:
        warnings.warn(told, stacklevel=2)


def read_sample(
    num: int | None = None, *, language: str = "en", teacher: str | None = None
) -> list[Collected]:
    """The (first `num`) dialogues recorded with the course, by its collector and a local teacher.

    `language` is "en" or "zh". `teacher` is the one they are to be mixed with: a BaizeError where
    they are another's, since two teachers make no corpus of either.
    """
    recorded = list(read_dialogues(data_dir() / "self_chat_sample.jsonl"))
    chosen = [d for d in recorded if ("/chinese" in d.source) == (check_language(language) == "zh")]
    others = {d.teacher for d in chosen[:num]} - {teacher}
    if teacher and others:
        raise BaizeError(
            f"the recorded dialogues are by {', '.join(sorted(others))}, not by {teacher}: take "
            "none (num_recorded=0), or that teacher (BAIZE_TEACHER)"
        )
    return chosen[:num]


def dialogues_in(items: Iterable[Dialogue]) -> Iterator[Dialogue]:
    """The items, each of them a dialogue; else a BaizeError."""
    for item in items if isinstance(items, Iterable) else [items]:
        if not isinstance(item, Dialogue):
            raise BaizeError(f"{item!r:.60} is no dialogue: read_dialogues makes some of rows")
        yield item


# ---- One row -------------------------------------------------------------------------------------


def _read_row(row: Any) -> Collected:
    if not isinstance(row, Mapping):
        what = f"a JSON object was expected, not {type(row).__name__}"
        raise row if isinstance(row, ValueError) else ValueError(what)
    status = row["status"] if row.get("status") in _FIELDS["unfinished"] else "ok"
    said, repairs = _said_in(row)
    system = next(
        (row[k] for k in _FIELDS["system"] if isinstance(row.get(k), str) and row[k].strip()), ""
    )
    if system and said[:1] and said[0][0] != "system":
        said.insert(0, ("system", system))
    messages = tuple(Message(role, _text(content)) for role, content in said)
    if not messages and status == "ok":
        raise ValueError("it holds no message")
    seed = row.get("seed", row.get("topic")) or ""
    seed = seed if isinstance(seed, Mapping) else {"text": seed}
    asked = row["teacher"] if isinstance(row.get("teacher"), Mapping) else {}
    usage = row["usage"] if isinstance(row.get("usage"), Mapping) else {}
    num_turns = sum(message.role == "assistant" for message in messages)
    reasons = row.get("finish_reasons") or [row.get("finish_reason")]
    reasons = ["stop"] * (num_turns - len(reasons)) + list(reasons)  # one alone: the last turn's
    return Collected(
        messages, "" if row.get("id") is None else str(row["id"]),
        _text(str(seed.get("text") or "")),
        str(seed.get("source") or row.get("source") or ""),
        status=status, teacher=str(asked.get("model") or ""),
        usage=Usage(*(int(usage.get(key) or 0) for key in ("input", "cached_input", "output"))),
        cost_usd=float(row.get("cost_usd") or 0),
        cut_turns=tuple(i for i, why in enumerate(reasons) if why in ("length", "content_filter")),
        repairs=(*repairs, *map(str, row.get("defects") or ())),
    )  # fmt: skip


_FIELDS = written(__file__, "formats.toml")
_ROLES = {name: role for role, names in _FIELDS["roles"].items() for name in names}
_Said = list[tuple[str, Any]]  # (role, content)


def _said_in(row: Mapping[str, Any]) -> tuple[_Said, tuple[str, ...]]:
    """(what was said, the parser's repairs) in a row of any layout."""
    for name in ("messages", "conversations", "conversation"):
        if isinstance(row.get(name), list):
            return [said for item in row[name] for said in _one(item, name)], ()
    if row.get("status") in _FIELDS["unfinished"]:
        return [], ()
    if isinstance(row.get("data"), list) and all(isinstance(text, str) for text in row["data"]):
        return [(("user", "assistant")[i % 2], text) for i, text in enumerate(row["data"])], ()
    if turn := _turn_in(row):
        before = row.get("history") or ()
        earlier = [said for q, a in before for said in (("user", q), ("assistant", a))]
        return earlier + _with_input(row, turn), ()
    if isinstance(row.get("input"), str) and "topic" in row:
        found = parse_transcript(row["input"])
        expected = ["text before the first tag"]  # the header, and a last tag that dangles
        expected += ["empty turn"] * row["input"].rstrip().endswith(HUMAN_TAG)
        repairs = Counter(found.defects) - Counter(expected)
        return [(m.role, m.content) for m in found.messages], tuple(repairs.elements())
    raise ValueError(
        f"no layout the course knows has the fields {', '.join(map(str, row))[:80]}: make it "
        "messages, a list of role and content, or instruction and output"
    )


def _one(item: Any, name: str) -> _Said:
    """What one item of a list of messages says: a message, or a whole turn."""
    if not isinstance(item, Mapping):
        raise ValueError(f"{name} holds a {type(item).__name__}, not messages")
    role = item.get("role", item.get("from"))
    if role is None and (turn := _turn_in(item)):
        return turn
    if str(role).lower() not in _ROLES:
        raise ValueError(f"the speaker {role!r} in {name} is none of {', '.join(_ROLES)}")
    content = item.get("content", item.get("value", item.get("text")))
    if content is None and item.get("tool_calls", item.get("function_call")):
        raise ValueError("a call of a tool, and only text can be read")
    return [(_ROLES[str(role).lower()], content)]


def _turn_in(row: Mapping[str, Any]) -> _Said:
    pairs = ((row[q], row[a]) for q, a in _FIELDS["pairs"] if q in row and a in row)
    return list(zip(("user", "assistant"), next(pairs, ()), strict=False))


def _with_input(row: Mapping[str, Any], turn: _Said) -> _Said:
    """One turn; Alpaca's input follows its instruction, and BELLE's may hold earlier turns."""
    (_, question), reply = turn
    if not isinstance(question, str):
        return turn
    if question.startswith("Human:") and question.rstrip().endswith("\nAssistant:"):
        *earlier, _ = parse_transcript(f"{question} …").messages
        return [*((m.role, m.content) for m in earlier), reply]
    more = row.get("context", row.get("input")) if "instruction" in row else None
    has_more = isinstance(more, str) and more.strip()
    return [("user", f"{question}\n{more}"), reply] if has_more else turn


def _text(content: Any) -> str:
    """A message's content as one text; half a character is marked as lost."""
    if isinstance(content, list):
        for part in content:
            if isinstance(part, Mapping) and not isinstance(part.get("text"), str):
                raise ValueError(f"a part of type {part.get('type')!r}, and only text can be read")
        content = "\n".join(part if isinstance(part, str) else part["text"] for part in content)
    if not isinstance(content, str):
        raise ValueError(f"a message's content is {type(content).__name__}, not text")
    return content if content.isascii() else re.sub("[\ud800-\udfff]", "\ufffd", content)


# ---- Writing -------------------------------------------------------------------------------------


def write_dialogues(path: Path | str, dialogues: Iterable[Dialogue]) -> int:
    """Write chat messages with id, seed and source, a line each, atomically. Returns how many."""
    rows = (
        {
            "messages": [{"role": m.role, "content": m.content} for m in dialogue.messages],
            "id": dialogue.id, "seed": dialogue.seed, "source": dialogue.source,
        }
        for dialogue in dialogues_in(dialogues)
    )  # fmt: skip
    return write_jsonl(path, rows)
