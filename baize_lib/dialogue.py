"""A dialogue, and every text format it travels in.

Roles are `user` and `assistant`, as in the ecosystem; Baize's own format writes them as tags:

    The conversation between human and AI assistant.
    [|Human|] What is LoRA?
    [|AI|] A way to fine-tune a large model by training two small matrices.

`pieces` is the one function that lays a dialogue out as text. Training and inference both call it,
so the text a model is asked with is, to the character, the text it was trained on.

>>> question, answer = Message("user", "What is LoRA?"), Message("assistant", "Two small matrices.")
>>> print(render([question, answer], eos="</s>"))
The conversation between human and AI assistant.
[|Human|] What is LoRA?
[|AI|] Two small matrices.</s>
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from baize_lib.config import BaizeError

__all__ = [
    "Message",
    "Dialogue",
    "Piece",
    "Transcript",
    "HEADER",
    "HUMAN_TAG",
    "AI_TAG",
    "TEMPLATE",
    "LANGUAGES",
    "check_language",
    "pieces",
    "render",
    "check_roles",
    "parse_transcript",
    "fenced",
]


HUMAN_TAG, AI_TAG = "[|Human|]", "[|AI|]"
HEADER = {
    "en": "The conversation between human and AI assistant.",
    "zh": "人类与人工智能助手之间的对话。",
}
LANGUAGES = tuple(HEADER)  # what the whole path, from seeds to evaluation, can be told to speak
TEMPLATE = "baize-v1+eos"  # stored with an adapter: another template, another model


def check_language(language: str) -> str:
    """`language`, if the course speaks it.

    Raises:
        BaizeError: it is none of `LANGUAGES`.
    """
    if language not in LANGUAGES:
        known = ", ".join(LANGUAGES)
        raise BaizeError(f"language={language!r} is not known: use one of {known}")
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
        return sum(message.role == "assistant" for message in self.messages)

    def by(self, role: str) -> list[str]:
        """Everything `role` said, in order."""
        return [message.content for message in self.messages if message.role == role]


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of rendered text; `learn` says whether the loss counts it."""

    text: str
    learn: bool


def pieces(
    messages: Sequence[Message],
    *,
    eos: str = "",
    language: str = "en",
    open_reply: bool = False,
) -> list[Piece]:
    """Lay a dialogue out in Baize's format, cut where the loss mask changes.

    A reply's piece starts with the space after its tag and ends with `eos`: the model learns to
    stop. (Baize v1 wrote no end token, so its model had to be stopped from outside.)

    Args:
        messages: alternating user and assistant; a leading system message replaces the header.
        eos: the tokenizer's end token, appended to every reply.
        language: whose header to write, a key of `HEADER`.
        open_reply: end on an open `[|AI|]` tag, ready for a model to continue; the last message
            must then be the user's.

    Raises:
        BaizeError: the roles do not alternate, or the language has no header.
    """
    header, turns = _split_header(messages, language)
    check_roles(turns, open_reply=open_reply)
    laid_out = []
    for i in range(0, len(turns), 2):
        before = header if i == 0 else ""
        laid_out.append(Piece(f"{before}\n{HUMAN_TAG} {turns[i].content}\n{AI_TAG}", False))
        if i + 1 < len(turns):
            laid_out.append(Piece(f" {turns[i + 1].content}{eos}", True))
    return laid_out


def render(messages: Sequence[Message], **options: Any) -> str:
    """The text of `pieces(messages, **options)`."""
    return "".join(piece.text for piece in pieces(messages, **options))


def check_roles(messages: Sequence[Message], *, open_reply: bool = False) -> None:
    """Raise BaizeError unless user and assistant alternate, from the user to the right end."""
    for i, message in enumerate(messages):
        expected = ("user", "assistant")[i % 2]
        if message.role != expected:
            raise BaizeError(
                f"message {i + 1} is from {message.role!r} where {expected!r} was due: "
                "roles must alternate, starting with the user"
            )
    if not messages or (len(messages) % 2 == 1) != open_reply:
        wanted = "a user's question" if open_reply else "an assistant's reply"
        raise BaizeError(f"a dialogue of {len(messages)} messages does not end with {wanted}")


def _split_header(messages: Sequence[Message], language: str) -> tuple[str, Sequence[Message]]:
    if messages and messages[0].role == "system":
        return messages[0].content, messages[1:]
    return HEADER[check_language(language)], messages


@dataclass(frozen=True, slots=True)
class Fence:
    """A block of code in a text, from its first mark to the end of its closing fence's line.

    Attributes:
        info: what follows the opening marks, usually a language ("python", "js title=a.js").
        code: the lines between the fences, without the opening fence's own indentation.
        start, end: the whole block is `text[start:end]`.
        closed: whether there is a closing fence; without one the block runs to the text's end.
    """

    info: str
    code: str
    start: int
    end: int
    closed: bool


_LINE = re.compile(r"[^\r\n]*(?:\r\n?|\n)|[^\r\n]+")
_MARKS = re.compile(
    r"((?<!`)`{3,}+|(?<!~)~{3,}+)([^`~\r\n]*)$"
)  # "```python", "~~~~ {.js n=1}", "```"
_MARGIN = re.compile(r"[ \t>]*(?:(?:[-*+]|\d{1,3}[.)])[ \t]+)?")  # "    ", "> ", "- ", "1. "


def fenced(text: str) -> list[Fence]:
    """The fenced blocks of code of a text, in order: ``` or ~~~, three marks or more.

    As in CommonMark, the closing fence has the same marks, at least as many, and no info; a list
    or a quote may hold the block. Two things are as models write them: a fence may open after a
    colon or a speaker's tag, and one that opens with the same marks and an info string where
    another is still open means that the end of that one was forgotten.

    >>> [(block.info, block.code) for block in fenced("Like this:\\n~~~js\\nlet a\\n~~~\\nDone.")]
    [('js', 'let a\\n')]
    """
    blocks: list[Fence] = []
    opened: tuple[str, str, str, int, int] | None = None  # margin, marks, info, its start, code's
    for line in _LINE.finditer(text):
        found = _MARKS.search(line[0].rstrip())
        if not found:
            continue
        before, marks, info = line[0][: found.start()], found[1], found[2].strip()
        alone = bool(_MARGIN.fullmatch(before))
        if opened and marks.startswith(opened[1]):
            if not info and alone:
                blocks.append(_block(text, opened, line.start(), line.end(), True))
                opened = None
                continue
            if info and marks == opened[1]:
                blocks.append(_block(text, opened, line.start(), line.start(), False))
                opened = None
        if not opened and (alone or before.rstrip().endswith(_BEFORE_CODE)):
            margin = before if alone else ""
            opened = (margin, marks, info, line.start() + len(before), line.end())
    if opened:
        blocks.append(_block(text, opened, len(text), len(text), False))
    return blocks


_BEFORE_CODE = (":", "：", "]", "】", "*")  # "Like this: ```python", "[AI] ```", "**AI:** ```"


def _block(
    text: str, opened: tuple[str, str, str, int, int], code_end: int, end: int, closed: bool
) -> Fence:
    margin, _, info, start, code_start = opened
    code = text[code_start:code_end]
    if quotes := margin.count(">"):
        code = re.sub(rf"(?m)^(?:[ \t]*>){{1,{quotes}}} ?", "", code)
    elif margin:
        code = re.sub(rf"(?m)^[ \t]{{1,{len(margin)}}}", "", code)
    return Fence(info, code, start, end, closed)


@dataclass(frozen=True, slots=True)
class Transcript:
    """What `parse_transcript` found: whole exchanges, and what was wrong with the rest."""

    messages: tuple[Message, ...]
    defects: tuple[str, ...]


_TAG = re.compile(
    r"^(?:\[\|?|【)(?:(Human|人类|用户)|AI|助手|人工智能助手)(?:\|?\]|】)[:：]?[ \t]*",
    re.IGNORECASE,
)
_FENCE = re.compile(r"^\s*(?:```|~~~)[ \t]*(\w*)")


def parse_transcript(text: str) -> Transcript:
    """Read a transcript with `[Human]` / `[AI]` tags (or `[|Human|]` / `[|AI|]`). Never raises.

    A tag counts only at the start of a line outside fenced code, so "[AI]" in a sentence or a
    program stays text. A complete last exchange is kept; a question without a reply is not. Tags
    put into Chinese (`[人类]`, `【助手】`, with a wide colon or none) are tags too.

    >>> parse_transcript("[Human] Hi\\n[AI] Hello.\\n[Human] And").defects
    ('unanswered question',)
    """
    spoken: list[tuple[str, str]] = []  # (role, text)
    defects: list[str] = []
    for role, lines in _runs(text):
        content = "\n".join(lines).strip()
        if not role:
            if content:
                spoken.append(("", content))
        elif not content:
            defects.append("empty turn")
        elif spoken and spoken[-1][0] == role:
            defects.append("repeated tag")
            spoken[-1] = (role, f"{spoken[-1][1]}\n{content}")
        else:
            spoken.append((role, content))
    if spoken and not spoken[0][0]:
        spoken = _place_untagged(spoken, defects)
    return Transcript(tuple(_whole_exchanges(spoken, defects)), tuple(defects))


def _runs(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield (role, lines) for each tagged stretch; role "" is the text before the first tag."""
    lines = text.strip().split("\n")
    in_code = _fenced(lines)
    role, current = "", []
    for i, line in enumerate(lines):
        tag = None if i in in_code else _TAG.match(line)
        if tag:
            yield role, current
            role = "user" if tag[1] else "assistant"
            current = [line[tag.end() :]]
        else:
            current.append(line)
    yield role, current


def _fenced(lines: Sequence[str]) -> set[int]:
    """The line numbers inside closed code fences; a fence left open hides nothing."""
    inside, opened = set(), None
    for i, line in enumerate(lines):
        fence = _FENCE.match(_TAG.sub("", line))
        if not fence:
            continue
        if opened is None or fence[1]:  # a language name always opens
            opened = i
        else:
            inside.update(range(opened + 1, i + 1))
            opened = None
    return inside


def _place_untagged(spoken: list[tuple[str, str]], defects: list[str]) -> list[tuple[str, str]]:
    if len(spoken) == 1:
        defects.append("no tags")
        return []
    if spoken[1][0] == "assistant":  # the first question lost its tag
        defects.append("missing first tag")
        return [("user", spoken[0][1]), *spoken[1:]]
    defects.append("text before the first tag")
    return spoken[1:]


def _whole_exchanges(spoken: list[tuple[str, str]], defects: list[str]) -> Iterator[Message]:
    if spoken and spoken[0][0] == "assistant":
        defects.append("reply without a question")
        spoken = spoken[1:]
    if spoken and spoken[-1][0] == "user":
        defects.append("unanswered question")
        spoken = spoken[:-1]
    for role, content in spoken:
        yield Message(role, content)
