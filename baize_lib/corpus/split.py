"""Two parts that share nothing: a split by seed, a search for leaks, and the files of a corpus.

train, validation = split(filtered.kept, 0.1)
leakage(train, validation, prompts)          # [] is what one hopes for
export(run, filtered)                        # corpus/train.jsonl, validation.jsonl, card.json
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from math import ceil
from pathlib import Path
from typing import Any

from baize_lib.config import BaizeError, Run
from baize_lib.corpus.filters import Filter, Filtered, opening
from baize_lib.corpus.formats import dialogues_in, write_dialogues
from baize_lib.dialogue import Dialogue
from baize_lib.files import sha256_of, text_hash, write_atomic
from baize_lib.text import content_words, near_duplicates, runs

__all__ = ["asks_a_prompt", "split", "leakage", "export"]


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
    if not isinstance(validation, int | float) or not 0 <= validation < 1:
        raise BaizeError(f"validation={validation!r} is not a share: use at least 0, below 1")
    dialogues = list(dialogues_in(dialogues))
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
    import numpy as np
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    first: dict[str, int] = {}
    pairs = [(first.setdefault(key, i), i) for i, key in enumerate(keys)]
    pairs += [(one, other) for one, *others in alike for other in others]
    rows, columns = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(pairs)), (rows, columns)), shape=(len(keys), len(keys)))
    joined = defaultdict(list)
    for i, label in enumerate(connected_components(graph, directed=False)[1] if keys else ()):
        joined[label].append(i)
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
    held_out = [opening(dialogue) for dialogue in dialogues_in(validation)]
    match_held_out = _matcher([runs(text, 3) for text in held_out], near_duplicate, _jaccard)
    match_prompt = prompt_matcher(prompts)
    rows = []

    def leak(where: str, dialogue: Dialogue, text: str, other: str) -> None:
        rows.append({"where": where, "train_id": dialogue.id, "text": text, "other": other})

    for dialogue in dialogues_in(train):
        if found := match_held_out(runs(opening(dialogue), 3)):
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

    Raises:
        BaizeError: `prompts` is one text, or `threshold` is not in (0, 1].
    """
    if isinstance(prompts, str) or not 0 < threshold <= 1:
        raise BaizeError(
            f"prompts={prompts!r:.40}, threshold={threshold}: give a list, and above 0, at most 1"
        )
    prompts = list(prompts)
    find = _matcher([_about(prompt) for prompt in prompts], threshold, _repeats)

    def match(text: str) -> tuple[str, float] | None:
        found = find(_about(text))
        return (prompts[found[0]], found[1]) if found else None

    return match


def _matcher(
    sets: list[frozenset], threshold: float, likeness: Callable[[frozenset, frozenset], float]
) -> Callable[[frozenset], tuple[int, float] | None]:
    """A function from a set to (position, likeness) of the most alike of `sets`, if any is.

    Exact and quick: a set of n members that is as alike as t to another shares t n of them with
    it, so one at least of its rarest n - t n + 1; each is looked for under those (prefix
    filtering, as in `text.near_duplicates`).
    """
    commonness = Counter(member for members in sets for member in members)
    under: dict[Any, list[int]] = defaultdict(list)
    for i, members in enumerate(sets):
        rarest = sorted(members, key=lambda member: (commonness[member], member))
        needed = ceil(threshold * len(members) - 1e-9)  # 0.8 of 5 is 4, whatever floats say
        for member in rarest[: len(members) - needed + 1]:
            under[member].append(i)

    def find(wanted: frozenset) -> tuple[int, float] | None:
        near = {i for member in wanted if member in under for i in under[member]}
        value, i = max(((likeness(sets[i], wanted), -i) for i in near), default=(0.0, 0))
        return (-i, value) if value >= threshold - 1e-9 else None

    return find


def _about(text: str) -> frozenset[str]:
    return content_words(text) or frozenset(runs(text, 1))


def _jaccard(one: frozenset, other: frozenset) -> float:
    return len(one & other) / len(one | other)


def _repeats(prompt: frozenset, said: frozenset) -> float:
    return 1.0 if prompt <= said and len(said) <= 2 * len(prompt) else _jaccard(prompt, said)


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
    filtered = kept if isinstance(kept, Filtered) else Filtered(list(kept), Counter())
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
        return "no dialogue to export: nothing was collected, collect some first (notebook 02)"
    return (
        f"no dialogue left to export: of {filtered.num_seen} the filters dropped {took}; "
        "leave the largest out of `filters`, or collect with another setting"
    )
