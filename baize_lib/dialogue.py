"""A dialogue, and every text format it travels in.

Roles are `user` and `assistant`; Baize's own format writes them as tags. `pieces` is the one
function that lays a dialogue out as text. Training and inference both call it, so the text a model
is asked with is, to the character, the text it was trained on.

>>> question, answer = Message("user", "What is LoRA?"), Message("assistant", "Two small matrices.")
>>> print(render([question, answer], eos="</s>"))
The conversation between human and AI assistant.
[|Human|] What is LoRA?
[|AI|] Two small matrices.</s>
"""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from baize_lib.config import BaizeError
from baize_lib.files import compiled, written

__all__ = [
    "Message", "Dialogue", "HEADER", "pieces", "render", "fenced", "without_thoughts",
    "parse_transcript",
]  # fmt: skip

HUMAN_TAG, AI_TAG = "[|Human|]", "[|AI|]"
HEADER = {
    "en": "The conversation between human and AI assistant.",
    "zh": "人类与人工智能助手之间的对话。",
}
LANGUAGES = tuple(HEADER)  # what the whole path, from seeds to evaluation, can be told to speak
TEMPLATE = "baize-v1+eos"  # stored with an adapter: another template, another model

_MARKS = compiled(written(__file__, "marks.toml"))


def check_language(language: str) -> str:
    """`language`; a BaizeError if the course does not speak it."""
    if language not in LANGUAGES:
        raise BaizeError(f"language={language!r} is not known: use one of {', '.join(LANGUAGES)}")
    return language


@dataclass(frozen=True, slots=True)
class Message:
    """One thing said. `role` is "user" or "assistant" ("system" may come first)."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Dialogue:
    """Messages in order, with where they came from. A turn is one question and its reply."""

    messages: tuple[Message, ...]
    id: str = ""
    seed: str = ""
    source: str = ""

    @property
    def num_turns(self) -> int:
        return len(self.by("assistant"))

    def by(self, role: str) -> list[str]:
        """Everything `role` said, in order."""
        return [message.content for message in self.messages if message.role == role]


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of rendered text; `learn` says whether the loss counts it."""

    text: str
    learn: bool


def as_messages(said: "str | Sequence[Message | Mapping[str, str]]") -> list[Message]:
    """A question, `Message`s, or rows of role and content, all as messages.

    >>> as_messages("Hi?") == as_messages([{"role": "user", "content": "Hi?"}])
    True
    """
    rows = [Message("user", said)] if isinstance(said, str) else said
    with contextlib.suppress(KeyError, TypeError):
        messages = [m if isinstance(m, Message) else Message(m["role"], m["content"]) for m in rows]
        if all(isinstance(m.content, str) for m in messages):
            return messages
    raise BaizeError(f"a question is a text or a list of Message(role, content), not {said!r:.60}")


def pieces(
    messages: Sequence[Message], *, eos: str = "", language: str = "en", open_reply: bool = False
) -> list[Piece]:
    """Lay a dialogue out in Baize's format, cut where the loss mask changes.

    A reply's piece starts with the space after its tag and ends with `eos`, the tokenizer's end
    token: the model learns to stop. Messages alternate; a leading system message replaces the
    header. With `open_reply` the last is the user's, and the text ends on an open tag.
    """
    header, messages = HEADER[check_language(language)], as_messages(messages)
    if messages and messages[0].role == "system":
        header, messages = messages[0].content, messages[1:]
    laid_out = []
    for i, message in enumerate(messages):
        expected = ("user", "assistant")[i % 2]
        if message.role != expected:
            raise BaizeError(
                f"message {i + 1} is from {message.role!r} where {expected!r} was due: "
                "roles must alternate, starting with the user"
            )
        if message.role == "user":
            laid_out.append(Piece(f"{header}\n{HUMAN_TAG} {message.content}\n{AI_TAG}", False))
            header = ""
        else:
            laid_out.append(Piece(f" {message.content}{eos}", True))
    if not messages or len(messages) % 2 != open_reply:
        wanted = "a user's question" if open_reply else "an assistant's reply"
        raise BaizeError(f"a dialogue of {len(messages)} messages does not end with {wanted}")
    return laid_out


def render(messages: Sequence[Message], **options: Any) -> str:
    """The text of `pieces(messages, **options)`."""
    return "".join(piece.text for piece in pieces(messages, **options))


@dataclass(frozen=True, slots=True)
class Fence:
    """A block of code, `text[start:end]` with its fences, `code` between them without margin.

    `info` is what follows the opening marks ("python", "js title=a.js").
    """

    info: str
    code: str
    start: int
    end: int
    closed: bool


_ANY_MARKS = re.compile("```|~~~")  # found faster than a fence


def fenced(text: str) -> list[Fence]:
    """The fenced blocks of code of a text, in order: ``` or ~~~, three marks or more.

    As in CommonMark, and as models write them: a fence may open after a colon or a speaker's tag,
    and one with an info string where another is open ends that one.

    >>> [(block.info, block.code) for block in fenced("Like this:\\n~~~js\\nlet a\\n~~~\\nDone.")]
    [('js', 'let a\\n')]
    """
    blocks, position = [], 0
    while mark := _ANY_MARKS.search(text, position):
        start = max(position, text.rfind("\n", 0, mark.start()) + 1)
        if not (found := _MARKS["fence"].search(text, start)):
            break
        margin, code = found["margin"], found["code"] + (found["rest"] or "")
        if margin:
            blank = r"[ \t>]" if ">" in margin else r"[ \t]"
            code = re.sub(rf"^{blank}{{1,{len(margin)}}}", "", code, flags=re.MULTILINE)
        closed, position = found["end"] is not None, found.end()
        blocks.append(Fence(found["info"].strip(), code, found.start("marks"), position, closed))
    return blocks


def without_thoughts(text: str) -> str:
    """What is said in `text`, without what a thinking model thought before it or in between.

    After an opener without an end all is thought, so the result may be empty; before an end
    without an opener, too. Marks in code, closed fences or between backticks, are only mentioned.

    >>> without_thoughts("<think>They greet me.</think>\\n\\nHello."), without_thoughts("<think>So")
    ('Hello.', '')
    """
    said = _unthought(text)
    while said != text:
        text, said = said, _MARKS["thought_leaves"].sub("", said.strip())
    return said


def _unthought(text: str, *, before_a_tag: bool = False) -> str:
    """`text` without thoughts; an end alone ends one, or only one that stands `before_a_tag`."""
    if not _MARKS["thought_hint"].search(text):
        return text
    said, kept, position = "", 0, 0  # text[:kept] is in `said`, or thought
    while found := _MARKS["thought"].search(text, position):
        position = found.end()
        if found["marks"] and not found["end"]:
            position = found.end("info")
        if found["inline"] or found["marks"]:
            continue
        if found["lone"] and before_a_tag and not tagged(text[position:].lstrip().split("\n")[0]):
            continue
        said = "" if found["lone"] else said + text[kept : found.start()]
        gap = r"\s*" if said[-1:] in ("", "\n") else r"[ \t]*" if said[-1].isspace() else ""
        kept = position = re.compile(gap).match(text, position).end()
    return said + text[kept:]


@dataclass(frozen=True, slots=True)
class Tag:
    """A speaker's tag at the beginning of a line."""

    role: str
    label: str
    rest: str  # what follows it on the line
    kind: int  # 0 for Baize's own "[|Human|]", 1 for "[Human]", 2 for "Human:" and others, 3 "Q:"
    is_asked_for: bool
    is_quoted: bool


_NARROW = {0xFF01 + i: 0x21 + i for i in range(94)}  # "［Ｈｕｍａｎ］：" -> "[Human]:"
_ASKED_FOR = ("human", "ai", "人类", "用户", "助手", "人工智能助手")  # in brackets


def tagged(line: str) -> Tag | None:
    """The speaker's tag that a line begins with, in whatever layout.

    >>> tagged("**Human:** Why?").rest, tagged("［AI］ Because.").role, tagged("Humans ask.")
    ('Why?', 'assistant', None)
    """
    found = _MARKS["tag"].match(line if line.isascii() else line.translate(_NARROW))
    if not found:
        return None
    before, after, rest = found["before"], found["after"], line[found.end() :]
    opens, closes = set("[【〔「『<({") & set(before), set("]】〕」』>)}") & set(after)
    alone = ("#" in before or found["bold"]) and not rest.strip()  # "### Human" on its own line
    is_code = before.startswith(("    ", "\t")) and not opens  # "    user: root"
    if is_code or bool(opens) != bool(closes) or not (opens or ":" in after or alone):
        return None
    bold = (found["bold"] or "").strip()
    if bold and bold not in after and rest.rstrip().endswith(bold):  # "**Human: Hi**"
        rest = rest.rstrip().removesuffix(bold)
    kind = 3 if found["asks"] or found["answers"] else 1 if opens & set("[【〔") else 2
    kind = 0 if found[0].rstrip() in (HUMAN_TAG, AI_TAG) else kind
    asked = before in ("[", "[|", "【") and found["label"].lower() in _ASKED_FOR
    role = next(role for role in ("user", "assistant", "system") if found[role])
    return Tag(role, found["label"], rest, kind, asked, ">" in before)


@dataclass(frozen=True, slots=True)
class Transcript:
    """What `parse_transcript` found: whole exchanges, and what was wrong with the rest."""

    messages: tuple[Message, ...]
    defects: tuple[str, ...]


def parse_transcript(text: str) -> Transcript:
    """Read a transcript with `[Human]` / `[AI]` tags, or in another layout. Never raises.

    A tag counts only at the start of a line outside fenced code. A question without a reply is not
    kept. What was not asked for is read and named: other tags, a fence around all, thoughts, JSON.

    >>> parse_transcript("[Human] Hi\\n[AI] Hello.\\n[Human] And").defects
    ('unanswered question',)
    """
    defects: list[str] = []
    text = re.sub(r"\r\n?", "\n", text.removeprefix("\ufeff"))
    text = _MARKS["glued"].sub(lambda turn: turn["code"] or f"{turn['end']}\n", text)
    text = _MARKS["model_tag"].sub(r"[\1] ", text).strip()
    unthought = _unthought(text, before_a_tag=True)
    said = [*_runs(_unwrapped(unthought, defects), defects)]
    if not any(role for role, _ in said):
        turns = [
            (tag.role, json.loads(turn["words"], strict=False))
            for turn in _MARKS["json"].finditer(unthought)
            if (tag := tagged(f"{turn['who'] or turn['name']}:"))
        ]
        said = turns or said
        defects += ["JSON"] if turns else []
    spoken: list[tuple[str, str]] = []  # (role, words)
    for role, content in said:
        words = without_thoughts(content)
        if (unthought != text or words != content) and "thoughts" not in defects:
            defects.append("thoughts")
        if role == "system":
            defects.append("system line")
        elif not words:
            defects += ["empty turn"] if role else []
        elif spoken and spoken[-1][0] == role:
            defects.append("repeated tag")
            spoken[-1] = (role, f"{spoken[-1][1]}\n{words}")
        else:
            spoken.append((role, words))
    messages = tuple(Message(role, words) for role, words in _exchanges(spoken, defects))
    return Transcript(messages, tuple(defects))


def _tags(text: str) -> dict[int, Tag]:
    """Line number -> tag: the plainest kind that has both speakers, and others that say the same;
    a tag inside a closed block of code is none."""
    is_shifted = False  # by a bare fence left open: ends were taken for openers
    for block in reversed(fenced(text)):
        if block.closed and not is_shifted:
            start = text.index("\n", block.start)
            lines = text.count("\n", start, block.end) * "\n"
            text = text[:start] + lines + text[block.end :]
        is_shifted = not block.info and (is_shifted or not block.closed)
    found = {i: tag for i, line in enumerate(text.split("\n")) if (tag := tagged(line))}
    for kind in range(4):
        labels = {tag.label: tag.role for tag in found.values() if tag.kind <= kind}
        if {"user", "assistant"} <= set(labels.values()):
            break
    same = labels if kind else ()
    return {i: tag for i, tag in found.items() if tag.kind <= kind or tag.label in same}


def _unwrapped(text: str, defects: list[str]) -> str:
    """The text without a fence that stands around the whole transcript, and what follows it."""
    block = next(iter(fenced(text)), None)
    if not block or _tags(text[: block.start]) or not _tags(block.code):
        return text
    defects.append("a fence around all")
    inside = text[block.start :].partition("\n")[2]
    last = fenced(inside)[-1:]
    is_end = last and not last[0].closed and not last[0].info
    return text[: block.start] + inside[: last[0].start if is_end else None]


def _runs(text: str, defects: list[str]) -> Iterator[tuple[str, str]]:
    """Yield (role, words) of each tagged stretch; what stands before the first tag has role ""."""
    lines, tags = text.split("\n"), _tags(text)
    if not all(tag.is_asked_for for tag in tags.values()):
        defects.append("other tags")
    is_exact = all(tag.kind == 0 for tag in tags.values())  # as `render` writes it
    for start, end in pairwise([*sorted({0, *tags}), len(lines)]):
        tag = tags.get(start)
        words = "\n".join([tag.rest, *lines[start + 1 : end]] if tag else lines[start:end])
        if tag and tag.is_quoted:
            words = re.sub(r"^[ \t]*> ?", "", words, flags=re.MULTILINE)
        if not is_exact:
            if end == len(lines) and (remark := _MARKS["remark"].search(words)):
                words = words[: remark.start()]
                defects.append("closing remark")
            words = words.rstrip()
            while trail := _MARKS["trail"].search(words, max(0, len(words) - 80)):
                words = words[: trail.start()].rstrip()
        yield tag.role if tag else "", words.strip()


def _exchanges(spoken: list[tuple[str, str]], defects: list[str]) -> list[tuple[str, str]]:
    """Whole exchanges, without what a teacher says before, after and around them."""
    if spoken and not spoken[0][0]:
        (_, untagged), *spoken = spoken
        if not spoken:
            defects.append("no tags")
            return []
        lines = [line for line in untagged.split("\n") if line not in HEADER.values()]
        asked = "\n".join(line for line in lines if not _MARKS["preamble"].fullmatch(line)).strip()
        is_question = asked and spoken[0][0] == "assistant"
        if not is_question or asked != untagged:
            defects.append("text before the first tag")
        if is_question:
            defects.append("missing first tag")
            spoken = [("user", asked), *spoken]
    if spoken and spoken[0][0] == "assistant":
        defects.append("reply without a question")
        spoken = spoken[1:]
    if spoken and spoken[-1][0] == "user":
        defects.append("unanswered question")
        spoken = spoken[:-1]
    return spoken
