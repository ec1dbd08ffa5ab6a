"""What two texts have in common: words, sameness, language, near-duplicates; and refusals.

The whole course asks these questions here, so that a word is a word everywhere. Word lists and
longer patterns stand in `words.toml`.

>>> near_duplicates(["hi there you", "no", "Hi there, you"])
[[0, 2]]
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable
from functools import cache, lru_cache
from typing import Any

from baize_lib.config import BaizeError
from baize_lib.dialogue import fenced
from baize_lib.files import compiled, written

__all__ = [
    "words", "content_words", "shares_a_word", "language_of", "declines", "jaccard",
    "near_duplicates",
]  # fmt: skip

_HAN = "\u3400-\u9fff\uf900-\ufaff"
_CJK = f"\u3040-\u30ff{_HAN}"  # written without spaces: one character is one word
_WORD = re.compile(rf"[{_CJK}]|[^\W_{_CJK}]+(?:['-][^\W_{_CJK}]+)*")
_ASCII_WORD = re.compile(r"[a-z0-9]+(?:['-][a-z0-9]+)*")  # the same rule, faster


@lru_cache(maxsize=64)
def words(text: str) -> tuple[str, ...]:
    """The words of a text, lower case; a Chinese or Japanese character is a word of its own.

    >>> words("Don't panic: 你好")
    ("don't", 'panic', '你', '好')
    """
    text = text.lower()
    if text.isascii():
        return tuple(_ASCII_WORD.findall(text))
    return tuple(_WORD.findall(text.replace("’", "'")))


def num_words(text: str) -> int:
    """How long a text is; three Chinese characters count as two words, about as long as those."""
    said = words(text)
    return len(said) - sum(word >= "\u3040" for word in said) // 3


@lru_cache(maxsize=64)
def prose(text: str) -> str:
    """The text without its code, with plain apostrophes.

    >>> prose("Don’t use `eval`.")
    "Don't use  ."
    """
    if "```" in text or "~~~" in text:
        for block in reversed(fenced(text)):
            text = f"{text[: block.start]} {text[block.end :]}"
    return re.sub(r"`[^`\n]+`", " ", text).replace("’", "'")


_WRITTEN = written(__file__, "words.toml")
_EMPTY, _ENGLISH = (frozenset(words(_WRITTEN[name])) for name in ("empty", "english"))
_PATTERN, _ASKED_WITH = compiled(_WRITTEN["pattern"]), compiled(_WRITTEN["asked_with"])


def content_words(text: str) -> frozenset[str]:
    """The words that say what a text is about; of Chinese, its characters.

    >>> sorted(content_words("How do I save my data to a file?"))
    ['data', 'file', 'save']
    """
    return frozenset(words(_PATTERN["empty_zh"].sub(" ", text))) - _EMPTY


def same_question(one: str, other: str) -> bool:
    """Whether two questions share three quarters of their content words, cut to four letters,
    and do not ask with different question words: why is not when.

    >>> same_question("How do I sort a list?", "how do you sort the lists")
    True
    """
    asked, stems = zip(*map(_question, (one, other)), strict=True)
    if all(asked) and not asked[0] & asked[1]:
        return False
    if not all(stems):
        return words(one) == words(other)
    first, second = asked[0] | stems[0], asked[1] | stems[1]
    return 4 * len(first & second) >= 3 * len(first | second)


@lru_cache(maxsize=64)
def _question(text: str) -> tuple[frozenset[str], frozenset[str]]:
    """(its question words, the stems of its content words)."""
    stems, asked = frozenset(word[:4] for word in content_words(text)), set()
    text = text.lower()
    for name, pattern in _ASKED_WITH.items():
        text, times = pattern.subn(" ", text)
        asked |= {f"?{name}"} if times else set()
    return frozenset(asked), stems


def shares_a_word(question: str, said: str) -> bool:
    """Whether the question takes up a word of what was said.

    Of Chinese two neighbouring characters that say something count as a word, and a lone one.
    """
    if any(not re.match(f"[{_HAN}]", stem) for stem in _question(question)[1] & _question(said)[1]):
        return True
    runs = re.findall(f"[{_HAN}]+", _PATTERN["empty_zh"].sub(" ", question))
    pairs = (run[i : i + 2] for run in runs for i in range(max(1, len(run) - 1)))
    return any(pair in said for pair in pairs)


@lru_cache(maxsize=1 << 13)
def language_of(text: str) -> str:
    """The language of a text outside its code, in ISO 639-1; of a mere name, "".

    >>> language_of("Quelle est la capitale de la France ?"), language_of("HTTP和HTTPS有什么区别？")
    ('fr', 'zh')
    >>> language_of("Dar es Salaam"), language_of("x = 1")
    ('', '')
    """
    said = prose(text).strip()[:160]  # more hardly says anything new, and costs time
    if said.isascii() and len(_ENGLISH.intersection(words(said))) >= 3:
        return "en"
    language, sure = _identifier().classify(said)
    doubtful = said.isascii() and language != "en"  # names alone look like Dutch or Swahili
    needed = (0.75 if len(words(said)) < 12 else 0.5) if doubtful else 0.4
    return language if sure >= needed else ""


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(_WRITTEN["languages"].split())
    return identifier


def declines(text: str) -> str:
    """The words with which a text declines within its first 400 characters, or "".

    >>> declines("I'm sorry, but I can't assist with that."), declines("I can't help but smile.")
    ("I'm sorry, but I can't", '')
    """
    found = _PATTERN["declines"].search(prose(text[:400]))
    return found[0].strip() if found else ""


def jaccard(a: str, b: str, *, width: int = 3) -> float:
    """Shared over all runs of `width` words of two texts, 0 to 1; case and signs don't count.

    >>> round(jaccard("how do I kill a process", "how do I kill a job"), 2)
    0.6
    """
    first, second = runs(a, width), runs(b, width)
    return len(first & second) / len(first | second)


def runs(text: str, width: int) -> frozenset[tuple[str, ...]]:
    """The runs of `width` words; a shorter text is one run, one without words its own signs."""
    said = words(text) or (text.strip(),)
    width = min(width, len(said))
    return frozenset(zip(*(said[k:] for k in range(width)), strict=False))


def near_duplicates(
    texts: Iterable[str], threshold: float = 0.7, *, width: int = 3
) -> list[list[int]]:
    """Groups of indices of texts that are nearly the same; `group[1:]` of each is what to drop.

    Every member is alike to the first by two measures, both at least `threshold`: `jaccard`, and
    the same with runs that more than ten texts have counting less, the more have them. For single
    sentences use `width=1`, since one changed word breaks three runs of three. Exact, and quick:
    two such texts share one of their rarest runs, so only those are compared (prefix filtering;
    Chaudhuri, Ganti & Kaushik 2006).
    """
    if not 0 < threshold <= 1 or width < 1:
        raise BaizeError(
            f"a likeness of {threshold} by runs of {width} words: take one above 0 and at most 1 "
            "(0.7 is usual), and runs of at least 1"
        )
    import numpy as np

    rows = [np.fromiter(map(hash, runs(text, width)), np.int64) for text in texts]
    found, counts = np.unique(np.concatenate([np.empty(0, np.int64), *rows]), return_counts=True)
    several = counts > 1  # a run that one text has alone is like none
    times = dict(zip(found[several].tolist(), counts[several].tolist(), strict=True))
    groups = _groups([(len(row), times.keys() & row.tolist()) for row in rows], times, threshold)
    return [groups[leader] for leader in sorted(groups)]


def _groups(
    rows: list[tuple[int, set[int]]], times: dict[int, int], threshold: float
) -> dict[int, list[int]]:
    """Leader -> its group. A row: how many runs a text has, and those that others have too."""
    full = math.log1p(len(rows) / 10)
    weight = {run: min(1.0, math.log1p(len(rows) / n) / full) for run, n in times.items()}
    sizes: list[float] = []  # of each text, its runs weighed; a run of its own weighs 1
    under: dict[int, list[int]] = defaultdict(list)  # run -> leaders that have it
    groups: dict[int, list[int]] = {}
    for i, (num_runs, mine) in enumerate(rows):
        left, rarest = sum(map(weight.__getitem__, mine)), []
        sizes.append(num_runs - len(mine) + left)
        for run in sorted(mine, key=lambda run: (times[run], run)):
            if left < threshold * sizes[i] - 1e-9:
                break
            left -= weight[run]
            rarest.append(run)
        for leader in sorted({leader for run in rarest for leader in under.get(run, ())}):
            both = mine & rows[leader][1]
            weighed = sum(map(weight.__getitem__, both))
            counted = len(both) / (num_runs + rows[leader][0] - len(both))
            if min(counted, weighed / (sizes[i] + sizes[leader] - weighed)) >= threshold - 1e-9:
                groups.setdefault(leader, [leader]).append(i)
                break
        else:
            for run in rarest:
                under[run].append(i)
    return groups
