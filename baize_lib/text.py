"""What two texts have in common: words, sameness, language, near-duplicates; and refusals.

The whole course asks these questions here, so that a word is a word everywhere. The word lists
and the longer patterns stand in `words.toml`.

    words("Don't panic: 你好")                                   -> ("don't", "panic", "你", "好")
    same_question("How do I sort a list?", "how do you sort the lists")            -> True
    language_of("Quelle est la capitale de la France ?")                           -> "fr"
    jaccard("kill a Python process", "Kill a Python process!")                     -> 1.0
    near_duplicates(["hi there you", "no", "Hi there, you"])                       -> [[0, 2]]
    declines("Sorry, I can't help with that.")                                     -> "I can't help"
"""

import re
import tomllib
from collections import defaultdict
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from zlib import crc32

from baize_lib.config import BaizeError
from baize_lib.dialogue import fenced

__all__ = [
    "words", "content_words", "same_question", "shares_a_word", "prose", "language_of",
    "declines", "jaccard", "near_duplicates",
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


# ---- Words that say what a text is about ---------------------------------------------------------

_WRITTEN = tomllib.loads(Path(__file__).with_name("words.toml").read_text(encoding="utf-8"))
_EMPTY = frozenset(words(_WRITTEN["empty"]))
_EMPTY_ZH = re.compile(_WRITTEN["empty_zh"], re.VERBOSE)
_ASKED_WITH = {name: re.compile(put, re.VERBOSE) for name, put in _WRITTEN["asked_with"].items()}


def content_words(text: str) -> frozenset[str]:
    """The words that say what a text is about; of Chinese, its characters.

    >>> sorted(content_words("How do I save my data to a file?"))
    ['data', 'file', 'save']
    """
    return frozenset(words(_EMPTY_ZH.sub(" ", text))) - _EMPTY


def same_question(one: str, other: str) -> bool:
    """Whether two questions ask the same, as far as their words can tell.

    They share three quarters of their content words, each cut to its first four letters, and do
    not ask with different question words: why is not when.

    >>> same_question("How do I sort a list?", "how do you sort the lists")
    True
    >>> same_question("番茄怎么种？", "如何种番茄？")
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
    stems, asked, text = _stems(text), set(), text.lower()
    for name, pattern in _ASKED_WITH.items():
        text, times = pattern.subn(" ", text)
        asked |= {f"?{name}"} if times else set()
    return frozenset(asked), stems


def _stems(text: str) -> frozenset[str]:
    return frozenset(word[:4] for word in content_words(text))


def shares_a_word(question: str, said: str) -> bool:
    """Whether the question takes up a word of what was said.

    Chinese puts no space between words: two neighbouring characters of the question that say
    something count as one, and a single one that stands between empty words.

    >>> shares_a_word("花盆要多大？", "请选一个底部有孔的大花盆。")
    True
    """
    if any(not re.match(f"[{_HAN}]", stem) for stem in _stems(question) & _stems(said)):
        return True
    runs = re.findall(f"[{_HAN}]+", _EMPTY_ZH.sub(" ", question))
    pairs = (run[i : i + 2] for run in runs for i in range(max(1, len(run) - 1)))
    return any(pair in said for pair in pairs)


# ---- Language ------------------------------------------------------------------------------------

_LANGUAGES = tuple(_WRITTEN["languages"].split())
_ENGLISH = frozenset(_WRITTEN["english"].split())
_ENOUGH = 160  # characters: more hardly say anything new about the language, and cost time


@lru_cache(maxsize=1 << 13)
def language_of(text: str, languages: tuple[str, ...] = _LANGUAGES) -> str:
    """The language of a text outside its code, as ISO 639-1 says it; "" if that cannot be told.

    The answer is one of `languages`. A name, a term or a few symbols are in none.

    >>> language_of("Quelle est la capitale de la France ?"), language_of("HTTP和HTTPS有什么区别？")
    ('fr', 'zh')
    >>> language_of("Dar es Salaam"), language_of("x = 1")
    ('', '')
    """
    said = prose(text).strip()[:_ENOUGH]
    if said.isascii() and "en" in languages and len(_ENGLISH.intersection(words(said))) >= 3:
        return "en"
    language, sure = _identifier(languages).classify(said)
    doubtful = said.isascii() and language != "en"  # names alone look like Dutch or Swahili
    needed = (0.75 if len(words(said)) < 12 else 0.5) if doubtful else 0.4
    return language if sure >= needed else ""


@lru_cache(maxsize=8)
def _identifier(languages: tuple[str, ...]):
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(languages)
    return identifier


# ---- Refusals ------------------------------------------------------------------------------------

_DECLINES = re.compile(_WRITTEN["declines"], re.IGNORECASE | re.VERBOSE)


def declines(text: str) -> str:
    """The words with which a text declines within its first 400 characters, or "".

    >>> declines("I'm sorry, but I can't assist with that."), declines("I can't help but smile.")
    ("I'm sorry, but I can't", '')
    """
    found = _DECLINES.search(prose(text[:400]))
    return found[0].strip() if found else ""


# ---- Likeness ------------------------------------------------------------------------------------


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


_FEW = 10  # texts: a run that so many have counts in full


def near_duplicates(
    texts: Iterable[str], threshold: float = 0.7, *, width: int = 3
) -> list[list[int]]:
    """Groups of indices of texts that are nearly the same, in the order of the texts.

    The first index of a group is its earliest text. Every other member is alike to that one by
    two measures, both at least `threshold`: `jaccard`, and the same with runs that more than ten
    texts have counting less, the more texts have them. So "What is the dosage of A?" is not the
    same as that of B, where a thousand ask for a dosage. Texts like no other are in no group:
    `group[1:]` of each is what to drop. For single sentences use `width=1`: one changed word
    breaks three runs of three.

    Exact, and quick: two texts as alike as that share one of their rarest runs, so only texts
    that do are compared (prefix filtering; Chaudhuri, Ganti & Kaushik 2006).

    Raises:
        BaizeError: a threshold outside (0, 1], or a width below 1.
    """
    if not 0 < threshold <= 1 or width < 1:
        raise BaizeError(
            f"a likeness of {threshold} by runs of {width} words: take one above 0 and at most 1 "
            "(0.7 is usual), and runs of at least 1"
        )
    import numpy as np

    rows, lengths, weights = _known_runs(texts, width)
    if not len(weights):
        return []
    sizes = np.array([lengths, [weights[row].sum() for row in rows]])  # in runs, and weighed
    sizes[1] += lengths - np.array(list(map(len, rows)))
    mine = np.zeros((2, len(weights)))  # the runs of the text at hand: 1, and their weight
    under: dict[int, list[int]] = defaultdict(list)  # run -> leaders that have it
    groups: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        of_row = weights[row]
        rarest = row[of_row[::-1].cumsum()[::-1] >= threshold * sizes[1, i] - 1e-9].tolist()
        near = sorted({leader for run in rarest for leader in under.get(run, ())})
        if near:
            mine[0, row], mine[1, row] = 1, of_row
            starts = np.cumsum([0, *(len(rows[leader]) for leader in near[:-1])])
            shared = np.add.reduceat(mine[:, np.concatenate([rows[n] for n in near])], starts, 1)
            mine[:, row] = 0
            alike = shared / (sizes[:, near] + sizes[:, i : i + 1] - shared) >= threshold - 1e-12
            near = np.array(near)[alike.all(axis=0)].tolist()
        if near:
            groups.setdefault(near[0], [near[0]]).append(i)
        else:
            for run in rarest:
                under[run].append(i)
    return [groups[leader] for leader in sorted(groups)]


def _known_runs(texts: Iterable[str], width: int):
    """(runs of each text that others have too, rarest first; how many it has in all; weights)."""
    import numpy as np

    hashed = [_hashes(text, width) for text in texts]
    lengths = np.array(list(map(len, hashed)))
    known, times = np.unique(np.concatenate([*hashed, np.empty(0, np.uint32)]), return_counts=True)
    known, times = known[times > 1], times[times > 1]  # what one text has alone is like none
    for i, row in enumerate(hashed):
        at = np.searchsorted(known, row).clip(max=len(known) - 1)
        at = at[known[at] == row] if len(known) else at[:0]
        hashed[i] = at[np.argsort(times[at], kind="stable")].astype(np.int32)
    weights = np.log1p(len(hashed) / times) / np.log1p(len(hashed) / _FEW)
    return hashed, lengths, weights.clip(max=1)


def _hashes(text: str, width: int):
    """Sorted unique 32-bit hashes of a text's `runs`: uint32 array, never empty."""
    import numpy as np

    said = words(text) or (text.strip(),)
    hashes = np.array([crc32(word.encode("utf-8", "replace")) for word in said], dtype=np.uint32)
    width = min(width, len(hashes))
    mixed = np.zeros(len(hashes) - width + 1, dtype=np.uint32)
    for k in range(width):
        mixed = mixed * np.uint32(0x9E3779B1) + hashes[k : k + len(mixed)]
    return np.unique(mixed)
