"""Seeds: the first messages from which the teacher plays out whole dialogues.

Baize took its seeds from Quora, Stack Overflow and MedQuAD (paper, section 3). Here each of those
can be read as it is published (`sources.py`), beside small sets written for this course. Real
sources are messy: every question that is dropped is counted under its reason.

>>> seeds = load_seeds("medical", limit=2)
>>> seeds[0].text
'What are the early symptoms of type 2 diabetes?'
>>> clean([Seed("1", "What is LoRA?", "me"), Seed("2", "what is lora", "me")]).dropped
Counter({'exact duplicate': 1})
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path

from baize_lib.config import BaizeError
from baize_lib.dialogue import check_language
from baize_lib.seeds.readers import read_source
from baize_lib.seeds.seed import CHINESE, Seed, Tally
from baize_lib.text import language_of, near_duplicates

__all__ = [
    "Seeds",
    "load_seeds",
    "iter_seeds",
    "clean",
    "mix",
    "RULES",
]


@dataclass(frozen=True, slots=True)
class Seeds(Sequence):
    """The seeds that were kept, list-like, and why the others were not."""

    seeds: tuple[Seed, ...]
    tally: Tally = field(default_factory=Tally)

    @property
    def dropped(self) -> Counter:
        """Reason -> number of questions dropped for it."""
        return self.tally.dropped

    @property
    def problems(self) -> list[str]:
        """The places that could not be read, one text each (the first 1,000)."""
        return self.tally.problems

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, index):
        return self.seeds[index]

    def table(self):
        """A pandas DataFrame: what became of the questions read, how many, an example of each."""
        import pandas as pd

        rows = [("kept", len(self), self.seeds[0].text if self.seeds else "")]
        rows += [(why, n, self.tally.examples[why]) for why, n in self.dropped.most_common()]
        frame = pd.DataFrame(rows, columns=["outcome", "questions", "for example"])
        share = frame["questions"] / max(1, frame["questions"].sum())
        frame.insert(2, "share", share.map("{:.1%}".format))
        return frame.assign(**{"for example": frame["for example"].str.slice(0, 70)})


def load_seeds(
    source: str | Path,
    limit: int | None = None,
    *,
    language: str | None = None,
    near: float | None = None,
) -> Seeds:
    """Read, clean and keep the seeds of a source.

    Args:
        source: one of
            a built-in set (`general`, `programming`, `medical`, `unsafe`, `harmless`, and in
            Chinese `chinese`);
            `hf:quora`, `hf:stackoverflow`, `hf:medquad`, or `hf:` and any data set's name on the
            Hugging Face hub;
            a file, folder or zip with MedQuAD XML, a Stack Exchange `Posts.xml`, Stack Exchange
            API answers (`.json`), Quora pairs or another table (`.csv`, `.tsv`, `.parquet`),
            `.jsonl`, or plain text with a question a line; each also as `.gz`.
        limit: keep no more than so many; reading stops there. Without it, memory grows with what
            is kept, about 0.5 kB a seed; `iter_seeds` keeps nothing.
        language: "en" or "zh"; questions in another one are dropped. None takes the built-in
            set's own, and "en" for every other source.
        near: drop near-duplicates from this word overlap on (0 to 1; 0.8 is a good start).

    Raises:
        BaizeError: no such source, or nothing in it that can be read as a question.
    """
    if limit is not None and limit < 1:
        raise BaizeError(f"limit={limit}: ask for at least one seed, or leave the limit out")
    tally, kept = Tally(), []
    with closing(iter_seeds(source, language=language, tally=tally)) as stream:
        for seed in stream:
            kept.append(seed)
            if len(kept) == limit:
                break
    if not kept and set(tally.dropped) <= {"unreadable"}:
        first = f" ({tally.problems[0]})" if tally.problems else ""
        raise BaizeError(
            f"no question found in {source}{first}: expected MedQuAD or Stack Exchange XML, Stack "
            "Exchange JSON, a table with a column question, text or title, or a question a line"
        )
    return Seeds(tuple(_drop_near(kept, near, tally) if near else kept), tally)


def iter_seeds(
    source: str | Path, *, language: str | None = None, tally: Tally | None = None
) -> Iterator[Seed]:
    """The same as `load_seeds`, one seed at a time, for sources larger than the memory.

    Only fingerprints stay in memory, some 0.15 kB a seed, to find exact duplicates. What is
    dropped is counted in `tally`.
    """
    tally = Tally() if tally is None else tally
    language = language or ("zh" if source in CHINESE else "en")
    yield from _own_ids(_keep(read_source(str(source), tally), language, tally))


def clean(seeds: Iterable[Seed], *, language: str = "en", near: float | None = None) -> Seeds:
    """Keep the seeds that pass every rule in `RULES`, the first of each exact duplicate, and with
    `near` the first of each group of near-duplicates (see `load_seeds`)."""
    tally = Tally()
    kept = list(_own_ids(_keep(((seed.id, seed) for seed in seeds), language, tally)))
    return Seeds(tuple(_drop_near(kept, near, tally) if near else kept), tally)


def mix(shares: Mapping[str, float], num: int, seed: int = 0) -> Seeds:
    """`num` seeds drawn at random from several sources in the given shares, shuffled.

    The same arguments give the same seeds. A share is a part of the whole; they need not add to 1.
    A question that two sources have in common comes once.

    >>> drawn = mix({"general": 0.5, "programming": 0.35, "medical": 0.15}, 20)
    >>> sorted(Counter(s.source for s in drawn).values())
    [3, 7, 10]

    Raises:
        BaizeError: a share that is not positive, or a source with too few seeds.
    """
    if not shares or min(shares.values()) <= 0 or num < 1:
        raise BaizeError(f"a mix of {num} seeds from {dict(shares)}: make number and shares > 0")
    tally, drawn, seen = Tally(), [], set()
    for source, count in _apportion(shares, num).items():
        # The hub's data sets are long: read no more than it takes to draw from.
        loaded = load_seeds(source, 4 * count + 1000 if source.startswith("hf:") else None)
        pool = sorted(loaded, key=lambda s: s.id)
        random.Random(f"{seed}/{source}").shuffle(pool)
        pool = {_fingerprint(s.text): s for s in pool}
        new = [mark for mark in pool if mark not in seen][:count]
        if len(new) < count:
            raise BaizeError(
                f"{source} has {len(new)} seeds and the mix needs {count}: "
                "ask for fewer, give it a smaller share, or add a source"
            )
        seen.update(new)
        drawn += [pool[mark] for mark in new]
        tally.dropped.update(loaded.dropped)
        tally.examples |= loaded.tally.examples
        tally.problems += loaded.problems
    random.Random(seed).shuffle(drawn)
    return Seeds(tuple(_own_ids(drawn)), tally)


def _apportion(shares: Mapping[str, float], num: int) -> dict[str, int]:
    """Whole numbers that add up to `num`, as near to the shares as can be (largest remainder)."""
    total = sum(shares.values())
    exact = {name: num * share / total for name, share in shares.items()}
    counts = {name: int(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: counts[name] - exact[name])
    for name in by_remainder[: num - sum(counts.values())]:
        counts[name] += 1
    return {name: count for name, count in counts.items() if count}


# Cleaning: a rule looks at one text, spaces tidied, and says whether to drop it.

_CJK = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_CJK_MARKS = re.compile("[\u3000-\u303f\uff00-\uff0f\uff1a-\uff20“”…?!,.]")
_INVISIBLE = re.compile("[\u00ad\u200b\u200e\u200f\u2060\ufeff]")
_BROKEN = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffd]")
_MARKUP = re.compile(r"</\w+>|<\w+\s+\w+=|<br\s*/?>|\[/?math\]|&(nbsp|quot|amp|lt|gt|#\d+);")
_ANSWER = re.compile(
    r"(answer|edit|update|a|答案?|回答|回复)\s*[:：]|谢谢|感谢|不客气|"
    r"(yes|no|sure|well|thanks|thank you)\b[,.! ]|"
    r"(you (can|could|should|need)|try|here('s| is| are)|i think|it depends)\b",
    re.IGNORECASE,
)
_ASKS = re.compile("[?？]")


def _num_words(text: str) -> int:
    """Words; in Chinese, where spaces mark none, three characters count as two."""
    num_characters = len(_CJK.findall(text))
    others = _CJK_MARKS.sub(" ", _CJK.sub(" ", text)) if num_characters else text
    return len(others.split()) + (2 * num_characters + 1) // 3


def _in_other_language(text: str, language: str) -> bool:
    """A terse line of technical terms is in no language for sure, and stays."""
    return language_of(text) not in ("", language)


# reason -> (text, language) -> bool: drop it?
RULES: dict[str, Callable[[str, str], bool]] = {
    "broken characters": lambda text, _: bool(_BROKEN.search(text)),
    "too short (under 3 words)": lambda text, _: _num_words(text) < 3,
    "too long (over 60 words)": lambda text, _: _num_words(text) > 60 or len(text) > 600,
    "markup": lambda text, _: bool(_MARKUP.search(text)),
    "a link": lambda text, _: "http://" in text or "https://" in text,
    "reads like an answer": lambda text, _: not _ASKS.search(text) and bool(_ANSWER.match(text)),
    "another language": _in_other_language,
}


def _keep(rows: Iterable[tuple[str, Seed]], language: str, tally: Tally) -> Iterator[Seed]:
    """(place, raw seed) -> the tidied seeds that pass all rules."""
    check_language(language)
    texts: set[bytes] = set()
    for place, raw in rows:
        text = " ".join(_INVISIBLE.sub("", raw.text).split())
        mark = _fingerprint(text)
        reason = next((why for why, drops in RULES.items() if drops(text, language)), None)
        reason = reason or ("exact duplicate" if mark in texts else None)
        if reason:
            tally.drop(reason, text)
            if reason == "broken characters":
                tally.note(f"{place}: broken characters in {text[:40]!r}")
            continue
        texts.add(mark)
        yield replace(raw, text=text)


def _own_ids(seeds: Iterable[Seed]) -> Iterator[Seed]:
    """A second seed with the same id (two files of one name) has its text's mark added to it."""
    taken: set[bytes] = set()
    for seed in seeds:
        if (mark := blake2b(seed.id.encode("utf-8", "replace"), digest_size=8).digest()) in taken:
            seed = replace(seed, id=f"{seed.id}-{_fingerprint(seed.text).hex()}")
        taken.add(mark)
        yield seed


def _fingerprint(text: str) -> bytes:
    """Eight bytes, equal for texts that are equal but for case, spaces and the mark at the end."""
    plain = " ".join(text.casefold().split()).rstrip("?!. ？！。")
    return blake2b(plain.encode("utf-8", "replace"), digest_size=8).digest()


def _drop_near(seeds: list[Seed], threshold: float, tally: Tally) -> list[Seed]:
    groups = near_duplicates((seed.text for seed in seeds), threshold, width=1)
    later = {i for group in groups for i in group[1:]}
    for i in sorted(later):
        tally.drop("near-duplicate", seeds[i].text)
    return [seed for i, seed in enumerate(seeds) if i not in later]
