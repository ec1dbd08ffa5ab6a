"""Seeds: the first messages from which the teacher plays out whole dialogues.

Baize took them from Quora, Stack Overflow and MedQuAD (paper, section 3). Real sources are messy:
every question that is dropped is counted under its reason.

>>> seeds = load_seeds("medical", limit=2)
>>> seeds[0].text
'What are the early symptoms of type 2 diabetes?'
>>> clean([Seed("1", "What is LoRA?", "me"), Seed("2", "what is lora", "me")]).dropped
Counter({'exact duplicate': 1})
"""

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

from baize_lib.config import BaizeError
from baize_lib.dialogue import check_language
from baize_lib.files import text_hash
from baize_lib.seeds.readers import PATTERN, read_source
from baize_lib.seeds.seed import CHINESE, Seed, Seeds, as_seeds
from baize_lib.text import language_of, near_duplicates, num_words

__all__ = ["load_seeds", "clean", "mix"]


def load_seeds(
    source: str | Path | Iterable[Seed | str], limit: int | None = None, *,
    column: str | None = None, language: str | None = None, near: float | None = None,
) -> Seeds:  # fmt: skip
    """Read, clean and keep the seeds of a source; a BaizeError where it holds no question.

    Args:
        source: a built-in set (one of `BUILT_IN`, or `chinese`); `hf:quora`, `hf:stackoverflow`,
            `hf:medquad`, or `hf:` and the name of a data set on the Hugging Face hub; a file,
            folder or zip with MedQuAD XML, a Stack Exchange `Posts.xml` or its API's answers,
            Quora pairs or another table (`.csv`, `.tsv`, `.parquet`), JSON, JSON lines, or plain
            text with a question a line, each also as `.gz`; or a list of questions.
        limit: keep no more than so many, and stop reading there. A seed takes about 0.5 kB.
        column: the field that holds the question, where it is not called question, text, title,
            prompt, instruction or query.
        language: "en" or "zh"; questions in another one are dropped. None takes the built-in
            set's own, and "en" for every other source.
        near: drop near-duplicates from this word overlap on (0 to 1; 0.8 is a good start).
    """
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise BaizeError(f"limit={limit!r}: ask for at least one seed, or leave the limit out")
    kept, language = Seeds(), language or ("zh" if source in CHINESE else "en")
    is_name = isinstance(source, str | Path)
    raw = read_source(str(source), kept, column) if is_name else as_seeds(source)
    with closing(_keep(raw, language, kept)) as stream:
        kept.extend(islice(stream, limit))
    if not kept and set(kept.dropped) <= {"unreadable"}:
        first = f" ({kept.problems[0]})" if kept.problems else ""
        raise BaizeError(
            f"no question found in {source!s:.200}{first}: expected MedQuAD or Stack Exchange XML, "
            "a table or JSON with a field question, text or title, or a question a line"
        )
    return _finished(kept, near)


def clean(seeds: Iterable[Seed | str], *, language: str = "en", near: float | None = None) -> Seeds:
    """Keep the seeds that pass every rule in `RULES`, the first of each exact duplicate, and with
    `near` the first of each group of near-duplicates (see `load_seeds`)."""
    kept = Seeds()
    kept.extend(_keep(as_seeds(seeds), language, kept))
    return _finished(kept, near)


def mix(shares: Mapping[str, float], num: int, seed: int = 0) -> Seeds:
    """`num` seeds drawn at random from several sources in the given shares, shuffled.

    The same arguments give the same seeds. Shares need not add to 1, and a question that two
    sources have in common comes once. A BaizeError names a source with too few seeds.

    >>> drawn = mix({"general": 0.5, "programming": 0.35, "medical": 0.15}, 20)
    >>> sum(seed.source == "baize-course/medical" for seed in drawn)
    3
    """
    is_mix = isinstance(shares, Mapping) and shares and num >= 1
    if not is_mix or not all(0 < share < math.inf for share in shares.values()):
        raise BaizeError(
            f"a mix of {num} seeds from {shares!r:.200}: give shares > 0 by source, such as "
            "{'general': 0.5, 'medical': 0.5}, and a number > 0"
        )
    drawn, taken = Seeds(), set()
    edges = [round(num * part / sum(shares.values())) for part in accumulate(shares.values())]
    for source, start, end in zip(shares, [0, *edges], edges, strict=False):
        count = end - start
        # The hub's data sets are long: read no more than it takes to draw from.
        loaded = load_seeds(source, 4 * count + 1000 if source.startswith("hf:") else None)
        pool = sorted(loaded, key=lambda s: s.id)
        random.Random(f"{seed}/{source}").shuffle(pool)
        new = [s for s in pool if _fingerprint(s.text) not in taken][:count]
        if len(new) < count:
            raise BaizeError(
                f"{source} has {len(new)} seeds and the mix needs {count}: "
                "ask for fewer, give it a smaller share, or add a source"
            )
        taken.update(_fingerprint(s.text) for s in new)
        drawn += new
        drawn.dropped += loaded.dropped
        drawn.examples |= loaded.examples
        drawn.problems += loaded.problems
    random.Random(seed).shuffle(drawn)
    return _finished(drawn)


# Cleaning: reason -> (text, its spaces tidied, and language) -> true: drop it
RULES: dict[str, Callable[[str, str], Any]] = {
    "broken characters": lambda text, _: PATTERN["broken"].search(text),
    "too short (under 3 words)": lambda text, _: num_words(text) < 3,
    "too long (over 60 words)": lambda text, _: num_words(text) > 60 or len(text) > 600,
    "markup": lambda text, _: PATTERN["markup"].search(text),
    "a link": lambda text, _: "http://" in text or "https://" in text,
    "reads like an answer": lambda text, _: PATTERN["answer"].match(text),
    # a terse line of technical terms is in no language for sure, and stays
    "another language": lambda text, language: language_of(text) not in ("", language),
}


def _keep(seeds: Iterable[Seed], language: str, tally: Seeds) -> Iterator[Seed]:
    """The seeds that pass all rules, tidied; those dropped go to `tally`."""
    check_language(language)
    known: set[str] = set()
    for seed in seeds:
        text = " ".join(PATTERN["invisible"].sub("", seed.text).split())
        reason = next((why for why, drops in RULES.items() if drops(text, language)), None)
        if not reason and (mark := _fingerprint(text)) in known:
            reason = "exact duplicate"
        if reason:
            tally.drop(reason, text)
        else:
            known.add(mark)
            yield replace(seed, text=text)


def _fingerprint(text: str) -> str:
    """Equal for texts that are equal but for case, spaces and the mark at the end."""
    return text_hash(" ".join(text.casefold().split()).rstrip("?!. ？！。"))


def _finished(seeds: Seeds, near: float | None = None) -> Seeds:
    """Without near-duplicates; a second seed with the same id (two files of one name) has its
    text's mark added to it."""
    if near is not None:
        groups = near_duplicates((seed.text for seed in seeds), near, width=1)
        for i in sorted((i for group in groups for i in group[1:]), reverse=True):
            seeds.drop("near-duplicate", seeds.pop(i).text)
    taken: set[str] = set()
    for i, seed in enumerate(seeds):
        if seed.id in taken:
            seeds[i] = replace(seed, id=f"{seed.id}-{_fingerprint(seed.text)}")
        taken.add(seed.id)
    return seeds
