"""corpus.split: moved."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from baize_lib.config import BaizeError, Run
from baize_lib.corpus.filters import Filtered, _jaccard, _matcher, _runs, opening, prompt_matcher
from baize_lib.corpus.formats import write_dialogues
from baize_lib.dialogue import Dialogue
from baize_lib.files import sha256_of, text_hash, write_atomic
from baize_lib.text import near_duplicates

__all__ = [
    "split",
    "leakage",
    "export",
]


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
