"""What two texts have in common: words, sameness, language, near-duplicates, refusals.

The whole course asks these questions here, so that a word is a word everywhere:

    words("Don't panic: 你好")                                   -> ("don't", "panic", "你", "好")
    same_question("How do I sort a list?", "how do you sort the lists")            -> True
    language_of("Quelle est la capitale de la France ?")                           -> "fr"
    jaccard("kill a Python process", "Kill a Python process!")                     -> 1.0
    near_duplicates(["hi there you", "no", "Hi there, you"])                       -> [[0, 2]]
    declines("Sorry, I can't help with that.")                                     -> "I can't help"
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from functools import lru_cache
from zlib import crc32

from baize_lib.config import BaizeError

__all__ = [
    "words", "content_words", "same_question", "shares_a_word", "prose", "language_of",
    "declines", "jaccard", "near_duplicates",
]  # fmt: skip

_HAN = "\u3400-\u9fff\uf900-\ufaff"
_CJK = f"\u3040-\u30ff{_HAN}"  # written without spaces: one character is one word
_WORD = re.compile(rf"[{_CJK}]|[^\W_{_CJK}]+(?:['-][^\W_{_CJK}]+)*")
_ASCII_WORD = re.compile(r"[a-z0-9]+(?:['-][a-z0-9]+)*")  # the same rule, faster
_CODE = re.compile(r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|`[^`\n]+`", re.DOTALL)


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
    return (_CODE.sub(" ", text) if "`" in text or "~~~" in text else text).replace("’", "'")


# ---- Words that say what a text is about ---------------------------------------------------------

# Words that say little by themselves: question words, pronouns, links, most verbs; and in Chinese.
_EMPTY = frozenset(
    words(
        "a about after all also am an and any anything are as at be because been being between but "
        "by can could did different do does doing don't example explain for from get had has have "
        "help her him his how i i'm if important in into is isn't it it's its just let like make "
        "many me more most much my need no not of on one or other our out own please re should so "
        "some something such tell than that that's the their them then there these they thing "
        "things think this those to too up us use used using very want was way we well were what "
        "what's when where which while who who's whom why will with work would you you're your"
    )
)
_EMPTY_ZH = re.compile(
    "为什么|为何|为啥|什么|怎么样?|怎样|如何|咋|啥|谁|多少|多久|几|哪[里儿个些种]?"
    "|因为|所以|但是|而且|如果|或者|以及|虽然|不过|然后|另外|除了|关于|通过|根据|例如|比如|其[他它中]"
    "|需要|应该|必须|可能|能够|使用|进行|提供|帮助|建议|介绍|解释|说明|告诉|知道|觉得|认为|注意|具体"
    "|还有|问题|回答|方法|办法|方式|情况|东西|事情|时候|这样|那样|一些|一下|一种|不同|重要|非常"
    "|[的了着过吗呢吧啊呀是在有一这那我你您他她它们和与或就也都还会能可以要想请问给把被让从到对为用]"
    "|[不没很更最太再又只才做好多少些样点里]"
)


def content_words(text: str) -> frozenset[str]:
    """The words that say what a text is about; of Chinese, its characters.

    >>> sorted(content_words("How do I save my data to a file?"))
    ['data', 'file', 'save']
    """
    return frozenset(words(_EMPTY_ZH.sub(" ", text))) - _EMPTY


# A question word is one word however it is put. The longer ones come first.
_ASKED_WITH = {
    "why": re.compile(r"为什么|为何|为啥|\bwhy\b"),
    "when": re.compile(r"什么时候|何时|\bwhen\b"),
    "many": re.compile(r"多少|多长时间|多久|几|\bhow (?:much|many|long|often)\b"),
    "how": re.compile(r"怎么样?|怎样|如何|咋|\bhow\b"),
    "where": re.compile(r"什么地方|哪里|哪儿|\bwhere\b"),
    "which": re.compile(r"哪[个些种一]?|\bwhich\b"),
    "what": re.compile(r"什么|啥|\bwhat(?:'s)?\b"),
    "who": re.compile(r"谁|\bwho(?:m|'s)?\b"),
}


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

# Those the model of py3langid tells apart well in one sentence; the rarer ones of its 140 would
# only be mistaken for these.
_LANGUAGES = tuple(
    "en zh ar bg bn ca cs da de el es et fa fi fr he hi hr hu id it ja ko lt lv ms nl no pl pt ro "  # noqa: SIM905
    "ru sk sl sr sv sw ta th tl tr uk ur vi".split()
)
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

_DECLINES = re.compile(
    r"""\bi\ ?(?:                                                    # I can't help with that
        (?: can't | cannot | can\ not | won't | will\ not | wouldn't | (?:don't|do\ not)\ want\ to
          | (?:'m\ |am\ )(?:unable|not\ (?:able|going|allowed|willing)) )
        (?: \ to | \ be\ able\ to | \ in\ good\ conscience )*
        \ (?: help (?!\ (?:but|myself|it|(?:feel|laugh|smil|wonder|think|notic)ing)\b) | assist
            | provide | answer | fulfil+ | comply | support | give | offer | engage
            | condone | encourage | recommend | advise | discuss | create | write | generate | share
            | do\ (?:that|this|it) | continue | participate | take\ part | be\ (?:part|involved)
            | facilitate | promote | suggest | respond | complete | process | teach | show\ you
            | tell\ (?:you\ )?how | tell\ you | explain | describe | plan | prepare | name | guide
            | go\ into | make\ (?:that|this|one|any|such) )\b
        (?! [^.!?\n]* \b(?:enough|highly)\b )                        # I can't praise it enough
      | (?:can't|cannot|won't|will\ not) (?:[.!]|$)                  # So I won't.
      | (?:must\ |have\ to\ |'d\ |would\ )? (?:decline\b | rather\ not\b)
      | refuse\ to\ (?:help|assist|do|answer|give|take|write|plan|make)\b
      | (?:'m\ |am\ ) not\ comfortable\b
    )
    | \bi(?:'m|\ am)\ (?:so\ |very\ )?sorry,?\ but\ i
      \ ?(?:can't|cannot|won't|'m\ unable|am\ unable|must)\b
    | (?:抱歉|对不起|很遗憾) [^。！？\n]{0,12} 我 [^。！？\n]{0,6} (?:不能|无法|不会|没办法|拒绝)
    | 我 (?:不能|无法|不会|没办法|拒绝) (?:[为向给](?:您|你))?
      (?:提供|协助|帮助|回答|帮[您你]|支持|满足|参与|鼓励|告诉[您你]|答应|教[您你])
    """,
    re.IGNORECASE | re.VERBOSE,
)


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
