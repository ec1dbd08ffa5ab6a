"""The human's turn of a self-chat, cut to its question.

The call that plays the human seldom writes a question and nothing else. It thinks aloud, thanks,
numbers, quotes, writes a speaker's tag, asks five things at once, answers instead of asking, or
takes its leave. `clean_question` keeps the first question or request; where there is none, "".

>>> clean_question("Sure! Here's the next question: **What is a seed?**")
'What is a seed?'
>>> clean_question("Seeds are small."), says_end("I have no more questions. Thank you!")
('', True)
"""

import re
from itertools import takewhile

from baize_lib.dialogue import fenced, tagged, without_thoughts
from baize_lib.files import compiled, written

_PATTERNS = compiled(written(__file__, "questions.toml"))


def clean_question(text: str) -> str:
    """The first question or request ("Show me the same in Python."); "" if there is none.

    A sentence before it stays if it is needed ("My dog ate a raisin. What now?").
    """
    return next(filter(None, map(_question_in, _own_lines(text))), "")


def says_end(text: str) -> bool:
    """Whether the human asks nothing, and says that nothing is left to ask."""
    return not clean_question(text) and any(map(_is_end, _own_lines(text)))


def _own_lines(text: str) -> list[str]:
    """The lines before an assistant's turn, without code and the human's own tags."""
    text = without_thoughts(text)
    for block in reversed(fenced(text)):
        text = f"{text[: block.start]}\n{text[block.end :]}"
    lines = [(tagged(line.strip()), line) for line in text.splitlines() if line.strip()]
    own = takewhile(lambda found: not found[0] or found[0].role != "assistant", lines)
    return [tag.rest if tag else line for tag, line in own]


def _question_in(line: str) -> str:
    line, context = _bare(line), ""
    masked = _PATTERNS["quoted"].sub(lambda quoted: "x" * len(quoted[0]), line)
    for sentence in _PATTERNS["sentence"].finditer(masked):
        said = line[slice(*sentence.span())]
        is_question = re.search(r"[?？]\W*\Z", sentence[0]) is not None
        if is_question and _PATTERNS["offers"].match(said):
            return ""
        if is_question or _PATTERNS["asks"].match(said):
            is_short = len(re.findall(r"[一-鿿]|[^\W一-鿿]+", said)) < 5
            keeps = is_question and (is_short or _PATTERNS["first_person"].search(context))
            return ((context if keeps else "") + said).strip()
        context += said
    return ""


def _bare(line: str) -> str:
    """The line without what stands before its question, and without quotes and emphasis."""
    before = ""
    while line != before and len(before) < 2000:
        before, line = line, _PATTERNS["bold"].sub(r"\2", line.strip())
        for first, last in ('""', "“”", "「」", "『』", "‘’", "**"):
            inner = line[1:].removesuffix(last)
            if line[:1] == first and first not in inner and last not in inner:
                line = inner.strip()
        line = line[found.end() :] if (found := _PATTERNS["before"].match(line)) else line
    return line


def _is_end(line: str) -> bool:
    pieces = [piece for piece in _PATTERNS["break"].split(line) if piece]
    others = [piece for piece in pieces if not _PATTERNS["end"].fullmatch(piece)]
    return len(others) < len(pieces) and all(map(_PATTERNS["filler"].fullmatch, others))
