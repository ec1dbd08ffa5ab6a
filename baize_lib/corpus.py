"""From a ledger to a training set: filter with every drop counted, split without leaks, export.

    filtered = apply_filters(read_dialogues(run.ledger, statuses=None))
    filtered.rows()                              # what each filter took, in order
    filtered.cost()                              # USD and tokens per *accepted* dialogue
    export(run, filtered)                        # corpus/train.jsonl, validation.jsonl, card.json

A filter is a named function that says True for "drop". They run in the order of `FILTERS`, and a
dialogue is charged to the first that drops it. What was paid for dropped and failed dialogues
belongs to the price of the accepted ones.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from baize_lib.config import BaizeError, Run
from baize_lib.dialogue import Dialogue
from baize_lib.files import sha256_of, text_hash, write_atomic
from baize_lib.inspection import DEFECTS, other_language, statistics, words
from baize_lib.pricing import Price, Usage
from baize_lib.records import read_dialogues, read_sample, write_dialogues
from baize_lib.similarity import near_duplicates

__all__ = [
    "read_dialogues", "read_sample", "FILTERS", "default_filters", "whole_turns", "Filtered",
    "apply_filters", "Split", "split", "prompt_matcher", "asks_a_prompt", "leakage", "export",
]  # fmt: skip

NO_USAGE = Usage()
Filter = Callable[[Dialogue], Any]  # truthy: drop it


def default_filters(language: str = "en") -> dict[str, Filter]:
    """The filters used unless others are given, in order; name -> function.

    Refusals stay: for an unsafe request a refusal is the right answer. So do short replies and
    replies that ask back; add their `DEFECTS` entry to drop them.
    """
    names = (
        "failed", "role_order", "empty_turn", "dangling_tag", "both_voices", "broken_characters",
        "cut_reply", "loop", "question_repeated", "reply_repeated", "as_an_ai", "personal_data",
    )  # fmt: skip
    return {name: DEFECTS[name] for name in names} | {"other_language": other_language(language)}


FILTERS = default_filters()


def whole_turns(dialogue: Dialogue) -> Dialogue:
    """The dialogue up to its first reply cut by `max_tokens`: a cut reply teaches to stop midway.

    Map it over dialogues before filtering, to keep the turns before the cut.
    """
    cut = getattr(dialogue, "cut_turns", ())
    if not cut or min(cut) == 0:
        return dialogue
    has_system = dialogue.messages[0].role == "system"
    kept = dialogue.messages[: 2 * min(cut) + has_system]
    return replace(dialogue, messages=kept, cut_turns=())


@dataclass(frozen=True, slots=True)
class Filtered:
    """What `apply_filters` kept, and where the rest went.

    Attributes:
        dropped: filter -> dialogues charged to it, in the order the filters ran, zeros included.
        examples: filter -> the first three dialogues it dropped.
        usage, cost_usd: tokens and USD of everything seen, dropped and failed included.
    """

    kept: list[Dialogue]
    dropped: Counter[str]
    examples: dict[str, list[Dialogue]]
    usage: Usage = NO_USAGE
    cost_usd: float = 0.0

    @property
    def num_seen(self) -> int:
        return len(self.kept) + self.dropped.total()

    def rows(self) -> list[dict[str, Any]]:
        """One row a filter: how many it dropped, their share of all, how many were left."""
        left, rows = self.num_seen, []
        for name, dropped in self.dropped.items():
            left -= dropped
            share = dropped / max(self.num_seen, 1)
            rows.append({"filter": name, "dropped": dropped, "share": share, "left": left})
        return rows

    def cost(self, shadow: Price | None = None) -> dict[str, Any]:
        """Dialogues seen and accepted, USD and tokens for each accepted one.

        Args:
            shadow: also what the same tokens would have cost at this price, where the teacher
                was free.
        """
        accepted = len(self.kept)
        row: dict[str, Any] = {
            "seen": self.num_seen, "accepted": accepted, "usd": self.cost_usd,
            "usd_per_1000_accepted": _per(1000 * self.cost_usd, accepted),
            "tokens": self.usage.total, "tokens_per_accepted": _per(self.usage.total, accepted),
        }  # fmt: skip
        if shadow:
            usd = shadow.cost(self.usage)
            row |= {"shadow_price": shadow.model, "shadow_usd": usd,
                    "shadow_usd_per_1000_accepted": _per(1000 * usd, accepted)}  # fmt: skip
        return row


def _per(amount: float, count: int) -> float | None:
    return amount / count if count else None


def apply_filters(
    dialogues: Iterable[Dialogue],
    filters: dict[str, Filter] = FILTERS,
    *,
    near_duplicate: float | None = 0.7,
) -> Filtered:
    """Drop what a filter names; each dropped dialogue is charged to the first filter that fires.

    Args:
        near_duplicate: last, drop what resembles an earlier kept dialogue this much (Jaccard
            similarity of first question and reply, 0 to 1); None keeps them.
    """
    kept: list[Dialogue] = []
    dropped = Counter(dict.fromkeys(filters, 0))
    examples: dict[str, list[Dialogue]] = defaultdict(list)
    usage, cost_usd = NO_USAGE, 0.0

    def drop(name: str, dialogue: Dialogue) -> None:
        dropped[name] += 1
        if len(examples[name]) < 3:
            examples[name].append(dialogue)

    for dialogue in dialogues:
        usage += getattr(dialogue, "usage", NO_USAGE)
        cost_usd += getattr(dialogue, "cost_usd", 0.0)
        reason = next((name for name, fires in filters.items() if fires(dialogue)), None)
        if reason:
            drop(reason, dialogue)
        else:
            kept.append(dialogue)
    if near_duplicate is not None:
        dropped["near_duplicate"] = 0
        repeats = {i for g in near_duplicates(map(opening, kept), near_duplicate) for i in g[1:]}
        for i in sorted(repeats):
            drop("near_duplicate", kept[i])
        kept = [dialogue for i, dialogue in enumerate(kept) if i not in repeats]
    return Filtered(kept, dropped, dict(examples), usage, cost_usd)


def opening(dialogue: Dialogue) -> str:
    """The first question and reply: what near-duplicates are compared by."""
    return "\n".join(message.content for message in dialogue.messages[:2])


@dataclass(frozen=True, slots=True)
class Split:
    """A corpus in two parts that share no seed and no group of near-duplicates."""

    train: list[Dialogue]
    validation: list[Dialogue]


def split(
    dialogues: Sequence[Dialogue], validation: float = 0.1, *, seed: int = 0,
    near_duplicate: float | None = 0.7,
) -> Split:  # fmt: skip
    """Split by the hash of each dialogue's seed, keeping same seeds and near-duplicates together.

    The same dialogues always split the same way, in whatever order they come. Two groups or more
    give at least one dialogue to each part.

    Args:
        validation: share of the dialogues to hold out, 0 to 1.
        seed: another number gives another split.
        near_duplicate: likeness that keeps two together; None where there are none left.

    Raises:
        BaizeError: `validation` is not in [0, 1).
    """
    if not 0 <= validation < 1:
        raise BaizeError(f"validation={validation} is not a share: use at least 0, below 1")
    keys = [text_hash(f"{seed}:{d.seed or opening(d)}") for d in dialogues]
    alike = near_duplicates(map(opening, dialogues), near_duplicate) if near_duplicate else []
    groups = _groups(keys, alike)
    quota = round(validation * len(dialogues))
    quota = min(max(quota, 1), len(keys) - 1) if validation and len(groups) > 1 else 0
    held_out: set[int] = set()
    for group in groups:
        if len(held_out) + len(group) <= quota:
            held_out.update(group)
    if quota and not held_out:
        held_out.update(min(groups, key=len))
    parts: tuple[list[Dialogue], list[Dialogue]] = ([], [])
    for i, dialogue in enumerate(dialogues):
        parts[i in held_out].append(dialogue)
    return Split(*parts)


def _groups(keys: list[str], alike: list[list[int]]) -> list[list[int]]:
    """Indices joined by equal keys or likeness, groups in the order of their smallest key."""
    parent = list(range(len(keys)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    first: dict[str, int] = {}
    for i, key in enumerate(keys):
        parent[i] = root(first.setdefault(key, i))
    for group in alike:
        for i in group[1:]:
            parent[root(i)] = root(group[0])
    joined = defaultdict(list)
    for i in range(len(keys)):
        joined[root(i)].append(i)
    return sorted(joined.values(), key=lambda group: min(keys[i] for i in group))


# Words that say little about what a question is about; one Chinese character is one word.
_FUNCTION_WORDS = frozenset(
    words(
        "a an the of and to in is are was were be been do does did can could will would should may "
        "i me my you your we our it its this that these those what which who when where why how "
        "what's for with on at by from as or if so please tell explain there about into not have "
        "has had 的是了吗呢吧啊哪什么怎样如何请一个在有和与我你您它他她们可以能会这那为解释告诉说"
    )
)


def prompt_matcher(
    prompts: Iterable[str], threshold: float = 0.7
) -> Callable[[str], tuple[str, float] | None]:
    """A function that says which prompt a text repeats, if any, and how much of it (0 to 1).

    Compared are the content words as sets: Jaccard similarity, or 1 where a text holds every
    content word of the prompt and at most as many others. Exact, no sketch: only prompts
    that share one of their rarest words with the text are looked at.
    """
    contents = {prompt: _content_words(prompt) for prompt in prompts}
    commonness = Counter(word for content in contents.values() for word in content)
    by_word: dict[str, list[str]] = defaultdict(list)
    for prompt, content in contents.items():
        rarest = sorted(content, key=lambda word: (commonness[word], word))
        for word in rarest[: int((1 - threshold) * len(content)) + 1]:
            by_word[word].append(prompt)

    def match(text: str) -> tuple[str, float] | None:
        said = _content_words(text)
        found = [
            (_likeness(contents[prompt], said), prompt)
            for prompt in {prompt for word in said for prompt in by_word.get(word, ())}
        ]
        likeness, prompt = max(found, default=(0.0, ""))
        return (prompt, likeness) if likeness >= threshold else None

    return match


def _content_words(text: str) -> frozenset[str]:
    said = frozenset(words(text))
    return said - _FUNCTION_WORDS or said


def _likeness(prompt: frozenset[str], said: frozenset[str]) -> float:
    if prompt <= said and len(said) <= 2 * len(prompt):
        return 1.0
    return len(prompt & said) / len(prompt | said)


def asks_a_prompt(prompts: Iterable[str], threshold: float = 0.7) -> Filter:
    """A filter: some question of the dialogue repeats one of the evaluation prompts."""
    match = prompt_matcher(prompts, threshold)
    return lambda dialogue: any(map(match, dialogue.by("user")))


def leakage(
    train: Sequence[Dialogue], validation: Sequence[Dialogue] = (), prompts: Iterable[str] = (),
    *, near_duplicate: float = 0.7,
) -> list[dict[str, Any]]:  # fmt: skip
    """Rows of what training would give away: held-out dialogues and evaluation prompts it holds.

    A row has where ("validation" or "prompt"), train_id, text (as in train) and other (its double).
    Near-duplicates within `train` should be dropped first (`apply_filters`): a held-out dialogue is
    compared with the first of each such group.
    """
    rows = []
    both = [*train, *validation]
    for group in near_duplicates(map(opening, both), near_duplicate):
        trained = next((i for i in group if i < len(train)), None)
        for i in group:
            if trained is not None and i >= len(train):
                text, other = opening(both[trained]), opening(both[i])
                rows.append(_leak("validation", both[trained], text, other))
    match = prompt_matcher(prompts)
    for dialogue in train:
        for question in dialogue.by("user"):
            if found := match(question):
                rows.append(_leak("prompt", dialogue, question, found[0]))
    return rows


def _leak(where: str, dialogue: Dialogue, text: str, other: str) -> dict[str, Any]:
    return {"where": where, "train_id": dialogue.id, "text": text, "other": other}


def export(
    run: Run | Path | str, kept: Filtered | Iterable[Dialogue], *, validation: float = 0.1,
    seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Split and write `corpus/train.jsonl`, `validation.jsonl` and, last, `card.json`.

    Each file appears whole or not at all. The card, which is returned, holds counts, what each
    filter dropped, cost, each file's SHA-256 and a `corpus_hash` of both: an adapter remembers it.

    Args:
        run: a run, or the folder to write `corpus/` in.

    Raises:
        BaizeError: nothing was kept; it says what took how many.
    """
    filtered = kept if isinstance(kept, Filtered) else Filtered(list(kept), Counter(), {})
    if not filtered.kept:
        raise BaizeError(_why_empty(filtered))
    folder = (run.path if isinstance(run, Run) else Path(run)) / "corpus"
    alike = None if "near_duplicate" in filtered.dropped else 0.7  # dropped already
    parts = split(filtered.kept, validation, seed=seed, near_duplicate=alike)
    files = {}
    for name, part in (("train", parts.train), ("validation", parts.validation)):
        path = folder / f"{name}.jsonl"
        write_dialogues(path, part)
        found = statistics(part)
        files[path.name] = {
            "sha256": sha256_of(path), "dialogues": len(part),
            "mean_turns": round(found.mean_turns, 3),
            "words": sum(row["words"] for row in found.rows()),
        }  # fmt: skip
    hashes = "".join(file["sha256"] for file in files.values())
    card = {
        "corpus_hash": hashlib.sha256(hashes.encode()).hexdigest()[:16],
        "format": "chat", "files": files, "split": {"validation": validation, "seed": seed},
        "dropped": dict(filtered.dropped), "cost": filtered.cost(),
    }  # fmt: skip
    write_atomic(folder / "card.json", json.dumps(card, indent=1, ensure_ascii=False) + "\n")
    return card


def _why_empty(filtered: Filtered) -> str:
    took = ", ".join(f"{name} {times}" for name, times in filtered.dropped.most_common() if times)
    if not took:
        return "no dialogue to export: the ledger is empty, collect some first (notebook 02)"
    return (
        f"no dialogue left to export: of {filtered.num_seen} the filters dropped {took}; "
        "leave the largest out of `filters`, or collect with another setting"
    )
