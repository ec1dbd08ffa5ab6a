"""Two parts that share nothing: a split by seed, a search for leaks, and the files of a corpus.

train, validation = split(filtered.kept, 0.1)
leakage(train, validation, prompts)          # [] is what one hopes for
export(run, filtered)                        # corpus/train.jsonl, validation.jsonl, card.json
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from baize_lib.config import BaizeError, Run
from baize_lib.corpus.filters import Filter, Filtered, opening
from baize_lib.corpus.formats import dialogues_in, write_dialogues
from baize_lib.dialogue import Dialogue
from baize_lib.files import sha256_of, text_hash, write_atomic
from baize_lib.text import content_words, near_duplicates, runs

__all__ = ["asks_a_prompt", "split", "leakage", "export"]

ALIKE = 0.7  # likeness from which two texts count as the same


def split(
    dialogues: Sequence[Dialogue], validation: float = 0.1, *, seed: int = 0
) -> tuple[list[Dialogue], list[Dialogue]]:
    """(train, validation), by the hash of each dialogue's seed; the same whatever their order.

    Dialogues of one seed, and near-duplicates, stay together. Two groups or more give at least one
    dialogue to each part. `validation` is the share to hold out, at least 0 and below 1.
    """
    if not isinstance(validation, int | float) or not 0 <= validation < 1:
        raise BaizeError(f"validation={validation!r} is not a share: use at least 0, below 1")
    dialogues = list(dialogues_in(dialogues))
    keys = [text_hash(f"{seed}:{d.seed or opening(d)}") for d in dialogues]
    groups = _groups(keys, near_duplicates(map(opening, dialogues), ALIKE))
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
    from scipy.cluster.hierarchy import DisjointSet

    joined, first = DisjointSet(range(len(keys))), {}
    for i, key in enumerate(keys):
        joined.merge(first.setdefault(key, i), i)
    for one, *others in alike:
        for other in others:
            joined.merge(one, other)
    return sorted(map(sorted, joined.subsets()), key=lambda group: min(keys[i] for i in group))


def leakage(
    train: Iterable[Dialogue], validation: Iterable[Dialogue] = (), prompts: Iterable[str] = ()
) -> list[dict[str, str]]:
    """What training would give away: held-out dialogues and evaluation prompts that `train` holds.

    A row has where ("validation" or "prompt"), train_id, text (in train) and other (its double).
    Held-out dialogues are compared by the three-word runs of first question and reply, prompts
    with every question as `asks_a_prompt` does. Both are exact.
    """
    held_out = [opening(dialogue) for dialogue in dialogues_in(validation)]
    find_held_out = matcher(held_out, lambda text: runs(text, 3))
    find_prompt = prompt_matcher(prompts)
    rows = []
    for dialogue in dialogues_in(train):
        looked_at = [("validation", opening(dialogue), find_held_out)]
        looked_at += [("prompt", asked, find_prompt) for asked in dialogue.by("user")]
        for where, text, find in looked_at:
            if other := find(text):
                row = {"where": where, "train_id": dialogue.id, "text": text, "other": other[0]}
                rows.append(row)
    return rows


def asks_a_prompt(prompts: Iterable[str]) -> Filter:
    """A filter: some question of the dialogue repeats one of the evaluation prompts.

    Compared are the sets of content words: their Jaccard similarity, or 1 where a text holds every
    content word of the prompt and at most as many others.
    """
    find = prompt_matcher(prompts)
    return lambda dialogue: any(map(find, dialogue.by("user")))


Find = Callable[[str], tuple[str, float] | None]  # the text that is most alike, and how much


def prompt_matcher(prompts: Iterable[str], threshold: float = ALIKE) -> Find:
    """A function that says which prompt a text repeats, if any, and how closely (0 to 1)."""
    if isinstance(prompts, str):
        raise BaizeError(f"prompts={prompts!r:.40}: give a list of them")
    return matcher(
        list(prompts), lambda text: content_words(text) or runs(text, 1), threshold, may_hold=True
    )


def matcher(
    texts: list[str], parts: Callable[[str], frozenset], threshold: float = ALIKE, *,
    may_hold: bool = False,
) -> Find:  # fmt: skip
    """A function from a text to the one of `texts` whose parts are most alike, if any are enough.

    Likeness is Jaccard's; with `may_hold`, 1 for a text that holds all parts and at most as many
    others. Only texts that share a part are compared, which loses none.
    """
    sets = [parts(text) for text in texts]
    under: dict[Any, list[int]] = defaultdict(list)  # part -> the texts that have it
    for i, each in enumerate(sets):
        for part in each:
            under[part].append(i)

    def find(text: str) -> tuple[str, float] | None:
        wanted, best = parts(text), (0.0, 0)
        for i in {i for part in wanted for i in under.get(part, ())}:
            both, either = len(sets[i] & wanted), len(sets[i] | wanted)
            holds = may_hold and both == len(sets[i]) and len(wanted) <= 2 * both
            best = max(best, (1.0 if holds else both / either, -i))
        return (texts[-best[1]], best[0]) if best[0] >= threshold - 1e-9 else None

    return find


def export(
    run: Run | Path | str, kept: Filtered | Iterable[Dialogue], *, validation: float = 0.1,
    seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Split and write `corpus/train.jsonl`, `validation.jsonl` and, last, `card.json`.

    Each file appears whole or not at all. The card, which is returned, holds counts, what each
    filter dropped, cost, each file's SHA-256 and a `corpus_hash` of both: an adapter remembers it.
    `run` is a run, or the folder to write `corpus/` in. A BaizeError says why nothing was kept.
    """
    filtered = kept if isinstance(kept, Filtered) else Filtered(list(kept), Counter())
    if not filtered.kept:
        took = ", ".join(f"{name} {n}" for name, n in filtered.dropped.most_common() if n)
        raise BaizeError(
            f"no dialogue to export: of {filtered.num_seen} the filters dropped {took}; leave the "
            "largest out of `filters`, or collect with another setting"
            if took
            else "no dialogue to export: nothing was collected, collect some first (notebook 02)"
        )
    folder = (run.path if isinstance(run, Run) else Path(run)) / "corpus"
    parts = split(filtered.kept, validation, seed=seed)
    files = {}
    for name, part in zip(("train.jsonl", "validation.jsonl"), parts, strict=True):
        write_dialogues(folder / name, part)
        files[name] = {
            "sha256": sha256_of(folder / name), "dialogues": len(part),
            "turns": sum(dialogue.num_turns for dialogue in part),
        }  # fmt: skip
    hashes = "".join(file["sha256"] for file in files.values())
    card = {
        "corpus_hash": text_hash(hashes),
        "kept": len(filtered.kept), "dropped": dict(filtered.dropped), "cost": filtered.cost(),
        "format": "chat", "files": files, "split": {"validation": validation, "seed": seed},
    }  # fmt: skip
    write_atomic(folder / "card.json", json.dumps(card, indent=1, ensure_ascii=False) + "\n")
    return card
