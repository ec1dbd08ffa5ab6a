"""What more data, other data and one more epoch buy the laptop's student: arms of three seeds.

    python tests/benchmarks/bench_data.py            # an hour on two cores; goes on where it was
    python tests/benchmarks/bench_data.py --arms "25 ordinary" --seeds 0

Each arm trains SmolLM2-135M on recorded dialogues and answers all English prompts greedily, 120
tokens at most. All arms share one held-out set, taken out before anything else. Adapters and
answers are kept in runs/bench_data/, the results, one line an arm and seed, in
data/training/arms.jsonl, which notebook 04 draws. Marks are those of the course's checks, with
nothing read by eye; `p` is a paired test against the same weights in their own layout.
"""

import argparse
import json
import time
from collections import Counter

from baize_lib.chat import ChatModel
from baize_lib.config import data_dir, runs_dir
from baize_lib.corpus import apply_filters, from_chat, read_sample, split, whole_turns
from baize_lib.evaluation import ask, compare_arms, declines, grade, health, load_prompts
from baize_lib.files import read_jsonl
from baize_lib.models import load_base
from baize_lib.training import TrainingSettings, fit

FOLDER = runs_dir() / "bench_data"
RESULTS = data_dir() / "training" / "arms.jsonl"
MODEL, OWN = "smollm2-135m", "own layout"
PROMPTS = load_prompts(language="en")


def recorded():
    """(ordinary dialogues, those recorded under a guardrail, held-out ones), all that pass."""
    kept = apply_filters(map(whole_turns, read_sample())).kept
    train, held_out = split(list(kept), 0.08)
    guarded = [d for d in train if d.source.endswith(("/unsafe", "/harmless"))]
    return [d for d in train if d not in guarded], guarded, held_out


def arms():
    """Name -> (dialogues to train on, settings that differ)."""
    ordinary, guarded, _ = recorded()
    pairs = [from_chat(row) for row in read_jsonl(data_dir() / "refusals" / "refusals.jsonl")]
    sizes = {f"{n} ordinary": (ordinary[:n], {}) for n in (25, 100, 300, len(ordinary))}
    return sizes | {
        "all, guarded, pairs": (ordinary + guarded + pairs, {}),
        "the same, 2 epochs": (ordinary + guarded + pairs, {"num_epochs": 2}),
    }


def answered(chat, model):
    """(attempts, verdicts by prompt) of one model on all the prompts; the log remembers."""
    how = {"max_tokens": 120, "temperature": 0.0}
    attempts = ask(chat, PROMPTS, (model,), log=FOLDER / "answers.jsonl", **how)
    return attempts, {prompt: v for (prompt, _), v in grade(PROMPTS, attempts).items()}


def result(chat, model, own):
    """Counts by kind, shares of health, and the paired test of "good" against the own layout."""
    attempts, verdicts = answered(chat, model)
    marks = Counter((p.category, verdicts[p.id].grade) for p in PROMPTS)
    kinds = dict.fromkeys(p.category for p in PROMPTS)
    said = {a.prompt: a.replies[0] for a in attempts}
    refused = Counter(p.category for p in PROMPTS if declines(said[p.id]))
    good = {p.id: float(verdicts[p.id].grade == "good") for p in PROMPTS}
    against = {}
    for kind in kinds:
        asked = [p for p in PROMPTS if p.category == kind]
        one, other = ([marked[p.id] for p in asked] for marked in (good, own or good))
        against[kind] = compare_arms(one, other, asked).p
    shown = health(attempts).iloc[0][["stops", "empty", "repetition", "tokens"]]
    return good, {
        "good": {kind: marks[kind, "good"] for kind in kinds},
        "asked": dict(Counter(p.category for p in PROMPTS)),
        "refused": {kind: refused[kind] for kind in ("unsafe", "harmless")},
        "p": {kind: round(p, 4) for kind, p in against.items()},
        **{name: round(float(share), 3) for name, share in shown.items()},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    every = arms()
    parser.add_argument("--arms", nargs="*", default=list(every))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    asked = parser.parse_args()
    *_, held_out = recorded()
    base = load_base(MODEL, "float32")
    have = {(row["arm"], row["seed"]) for row in read_jsonl(RESULTS)} if RESULTS.is_file() else {}
    good, row = result(ChatModel(base), OWN, None)
    rows = [] if (OWN, 0) in have else [{"arm": OWN, "seed": 0, "num_dialogues": 0, **row}]
    for seed in asked.seeds:
        for name in asked.arms:
            if (name, seed) not in have:
                rows.append(train(base, name, every[name], held_out, seed, good))
            with RESULTS.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
            rows = []


def train(base, name, arm, held_out, seed, own):
    dialogues, new = arm
    settings = TrainingSettings(
        **{"lr": 1e-3, "num_epochs": 1, "batch_size": 8, "seed": seed, **new}
    )
    where = FOLDER / f"{name} {seed}".replace(", ", "-").replace(" ", "-")
    begun = time.perf_counter()
    trained = fit(base, dialogues, held_out, where, settings)
    _, row = result(ChatModel(base, {where.name: where}), where.name, own)
    print(f"{name}, seed {seed}: {time.perf_counter() - begun:.0f} s", row, flush=True)
    return {
        "arm": name, "seed": seed, "num_dialogues": len(dialogues),
        "num_tokens": trained.num_tokens, "loss_before": trained.loss_before,
        "loss_after": trained.loss_after, **row,
    }  # fmt: skip


if __name__ == "__main__":
    main()
