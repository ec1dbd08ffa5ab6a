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
import tomllib
from itertools import takewhile
from pathlib import Path

from baize_lib.dialogue import fenced, tagged, without_thoughts

_PATTERNS = Path(__file__).with_suffix(".toml").read_text(encoding="utf-8")
_BEFORE, _ASKS, _OFFERS, _END, _FILLER = (
    re.compile(text, re.VERBOSE | re.IGNORECASE) for text in tomllib.loads(_PATTERNS).values()
)
_QUOTED = re.compile(r"`[^`]*`|\"[^\"]*\"|“[^”]*”|「[^」]*」|《[^》]*》|\([^()]*\)|（[^（）]*）")
_BOLD = re.compile(r"(?<![\w*])(\*{1,3}|__)(?=\S)([^*\n]+?)(?<=\S)\1(?![\w*])")
_SENTENCE = re.compile(  # "e.g. " and "3.5" end none
    r"(?:[^.!?。！？]|\.(?<=e\.g\.|i\.e\.|\svs\.|etc\.)|[.!?](?![\s一-鿿]|\Z))*[.!?。！？]*[\"”」』)）]*\s*"
)
_BREAK = re.compile(r"[\s*_#>\"“”-]*(?:[,，.!。！;；()（）【】\[\]—*_#>\"“”]+|\A|\Z)[\s*_#>\"“”-]*")
_IN_FIRST_PERSON = re.compile(r"\b(?:i|my|me|we|our|us)\b|[我咱]", re.IGNORECASE)


def clean_question(text: str) -> str:
    """The first question in what the question-writer wrote; "" if it asks nothing.

    A request is a question without a question mark ("Show me the same in Python."). A sentence
    before the question stays where the question needs it ("My dog ate a raisin. What now?").
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
    masked = _QUOTED.sub(lambda quoted: "x" * len(quoted[0]), line)
    for sentence in _SENTENCE.finditer(masked):
        said = line[sentence.start() : sentence.end()]
        is_question = re.search(r"[?？]\W*\Z", sentence[0]) is not None
        if is_question and _OFFERS.match(said):
            return ""
        if is_question or _ASKS.match(said):
            is_short = len(re.findall(r"[一-鿿]|[^\W一-鿿]+", said)) < 5
            keeps = is_question and (is_short or _IN_FIRST_PERSON.search(context))
            return ((context if keeps else "") + said).strip()
        context += said
    return ""


def _bare(line: str) -> str:
    """The line without what stands before its question, and without quotes and emphasis."""
    before = ""
    while line != before and len(before) < 2000:
        before, line = line, _BOLD.sub(r"\2", line.strip())
        for first, last in ('""', "“”", "「」", "『』", "‘’", "**"):
            inner = line[1:].removesuffix(last)
            if line[:1] == first and first not in inner and last not in inner:
                line = inner.strip()
        line = line[found.end() :] if (found := _BEFORE.match(line)) else line
    return line


def _is_end(line: str) -> bool:
    pieces = [piece for piece in _BREAK.split(line) if piece]
    is_end = [_END.fullmatch(piece) is not None for piece in pieces]
    return any(is_end) and all(_FILLER.fullmatch(pieces[i]) for i, e in enumerate(is_end) if not e)
