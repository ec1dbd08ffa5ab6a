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
from baize_lib.inspection import defects_for, words
from baize_lib.pricing import Price, Usage
from baize_lib.records import read_dialogues, read_sample, write_dialogues
from baize_lib.similarity import near_duplicates

__all__ = [
    "read_dialogues", "read_sample", "FILTERS", "default_filters", "whole_turns",
    "Filtered", "apply_filters", "opening", "split", "leakage", "prompt_matcher", "asks_a_prompt",
    "export",
]  # fmt: skip

NO_USAGE = Usage()
Filter = Callable[[Dialogue], Any]  # truthy: drop the dialogue


def default_filters(language: str = "en") -> dict[str, Filter]:
    """The filters used unless others are given, in order; name -> function.

    Refusals stay: for an unsafe request a refusal is the right answer. So do short replies and
    replies that ask back; add their `DEFECTS` entry to drop them.

    Raises:
        BaizeError: a language the course does not speak.
    """
    names = (
        "failed", "role_order", "empty_turn", "dangling_tag", "both_voices", "broken_characters",
        "cut_reply", "loop", "question_repeated", "reply_repeated", "as_an_ai", "personal_data",
        "other_language",
    )  # fmt: skip
    checks = defects_for(language)
    return {name: checks[name] for name in names}


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
    return "\n".join((*dialogue.by("user")[:1], *dialogue.by("assistant")[:1]))


def split(
    dialogues: Sequence[Dialogue], validation: float = 0.1, *, seed: int = 0,
    near_duplicate: float | None = 0.7,
) -> tuple[list[Dialogue], list[Dialogue]]:  # fmt: skip
    """(train, validation), by the hash of each dialogue's seed; the same whatever their order.

    Dialogues of one seed, and near-duplicates, stay together. Two groups or more give at least one
    dialogue to each part.

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
    quota = min(max(round(validation * len(keys)), 1), len(keys) - 1)
    held_out: set[int] = set()
    if validation and len(groups) > 1:
        for group in groups:
            if len(held_out) + len(group) <= quota:
                held_out.update(group)
        held_out = held_out or set(min(groups, key=len))
    parts: tuple[list[Dialogue], list[Dialogue]] = ([], [])
    for i, dialogue in enumerate(dialogues):
        parts[i in held_out].append(dialogue)
    return parts


def _groups(keys: list[str], alike: list[list[int]]) -> list[list[int]]:
    """Indices joined by equal keys or likeness, groups in the order of their smallest key."""
    parent = list(range(len(keys)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    first: dict[str, int] = {}
    same_key = ([first.setdefault(key, i), i] for i, key in enumerate(keys))
    for one, *others in (*same_key, *alike):
        for other in others:
            parent[root(other)] = root(one)
    joined = defaultdict(list)
    for i in range(len(keys)):
        joined[root(i)].append(i)
    return sorted(joined.values(), key=lambda group: min(keys[i] for i in group))


def leakage(
    train: Iterable[Dialogue], validation: Iterable[Dialogue] = (), prompts: Iterable[str] = (),
    *, near_duplicate: float = 0.7,
) -> list[dict[str, Any]]:  # fmt: skip
    """What training would give away: held-out dialogues and evaluation prompts that `train` holds.

    A row has where ("validation" or "prompt"), train_id, text (in train) and other (its double).
    Held-out dialogues are compared by the three-word runs of first question and reply, prompts
    with every question as `prompt_matcher` does. Both are exact.
    """
    held_out = [opening(dialogue) for dialogue in validation]
    match_held_out = _matcher(list(map(_runs, held_out)), near_duplicate, _jaccard)
    match_prompt = prompt_matcher(prompts)
    rows = []

    def leak(where: str, dialogue: Dialogue, text: str, other: str) -> None:
        rows.append({"where": where, "train_id": dialogue.id, "text": text, "other": other})

    for dialogue in train:
        if found := match_held_out(_runs(opening(dialogue))):
            leak("validation", dialogue, opening(dialogue), held_out[found[0]])
        for question in dialogue.by("user"):
            if match := match_prompt(question):
                leak("prompt", dialogue, question, match[0])
    return rows


def asks_a_prompt(prompts: Iterable[str], threshold: float = 0.7) -> Filter:
    """A filter: some question of the dialogue repeats one of the evaluation prompts."""
    match = prompt_matcher(prompts, threshold)
    return lambda dialogue: any(map(match, dialogue.by("user")))


def prompt_matcher(
    prompts: Iterable[str], threshold: float = 0.7
) -> Callable[[str], tuple[str, float] | None]:
    """A function that says which prompt a text repeats, if any, and how closely (0 to 1).

    Compared are the sets of content words: their Jaccard similarity, or 1 where a text holds every
    content word of the prompt and at most as many others.
    """
    prompts = list(prompts)
    find = _matcher([_content_words(prompt) for prompt in prompts], threshold, _repeats)

    def match(text: str) -> tuple[str, float] | None:
        found = find(_content_words(text))
        return (prompts[found[0]], found[1]) if found else None

    return match


def _matcher(
    sets: list[frozenset], threshold: float, likeness: Callable[[frozenset, frozenset], float]
) -> Callable[[frozenset], tuple[int, float] | None]:
    """A function from a set to (position, likeness) of the most alike of `sets`, if any is.

    Exact and quick: a set of Jaccard similarity t with another of n members holds one at least of
    any (1 - t) n + 1 of them, so each is looked for under its rarest (prefix filtering; Chaudhuri,
    Ganti & Kaushik 2006).
    """
    commonness = Counter(member for members in sets for member in members)
    under: dict[Any, list[int]] = defaultdict(list)
    for i, members in enumerate(sets):
        rarest = sorted(members, key=lambda member: (commonness[member], member))
        for member in rarest[: int((1 - threshold) * len(members)) + 1]:
            under[member].append(i)

    def find(wanted: frozenset) -> tuple[int, float] | None:
        near = {i for member in wanted if member in under for i in under[member]}
        value, i = max(((likeness(sets[i], wanted), -i) for i in near), default=(0.0, 0))
        return (-i, value) if value >= threshold else None

    return find


def _jaccard(one: frozenset, other: frozenset) -> float:
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared)


def _repeats(prompt: frozenset, said: frozenset) -> float:
    return 1.0 if prompt <= said and len(said) <= 2 * len(prompt) else _jaccard(prompt, said)


def _runs(text: str) -> frozenset[tuple[str, ...]]:
    said = words(text)
    return frozenset(zip(said, said[1:], said[2:], strict=False)) or frozenset({said})


# Words that say little about what a question is about; one Chinese character is one word.
_FUNCTION_WORDS = frozenset(
    words(
        "a an the of and to in is are was were be been do does did can could will would should may "
        "i me my you your we our it its this that these those what which who when where why how "
        "what's for with on at by from as or if so please tell explain there about into not have "
        "has had 的是了吗呢吧啊哪什么怎样如何请一个在有和与我你您它他她们可以能会这那为解释告诉说"
    )
)


def _content_words(text: str) -> frozenset[str]:
    said = frozenset(words(text))
    return said - _FUNCTION_WORDS or said


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
    for name, part in zip(("train", "validation"), parts, strict=True):
        path = folder / f"{name}.jsonl"
        write_dialogues(path, part)
        files[path.name] = {
            "sha256": sha256_of(path), "dialogues": len(part),
            "turns": sum(dialogue.num_turns for dialogue in part),
        }  # fmt: skip
    hashes = "".join(file["sha256"] for file in files.values())
    card = {
        "corpus_hash": hashlib.sha256(hashes.encode()).hexdigest()[:16],
        "kept": len(filtered.kept), "dropped": dict(filtered.dropped), "cost": filtered.cost(),
        "format": "chat", "files": files, "split": {"validation": validation, "seed": seed},
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
