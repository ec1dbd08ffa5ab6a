"""What more data, other data and one more epoch buy the laptop's student: arms of three seeds.

    python tests/benchmarks/bench_data.py        # two hours on two cores; goes on where it was
    python tests/benchmarks/bench_data.py --arms "25 ordinary" --seeds 0

Each arm trains SmolLM2-135M on recorded dialogues and answers all English prompts greedily, 120
tokens at most. All arms share one held-out set, taken out before anything else. Adapters and
answers are kept in runs/bench_data/, the results, one line an arm and seed, in
data/training/arms.jsonl, which bonus 07 draws. Marks are those of the course's checks, with
nothing read by eye; `p` is a paired test against the same weights in their own layout.

"25 ordinary" is what a run learns from its own live dialogues alone (`num_recorded=0`). "single
turns" has the first question and reply of every ordinary dialogue, as Alpaca's data would have,
"several turns" as many tokens of whole dialogues, in as many steps; these two are also asked
follow-up questions.
"NEFTune" adds noise to the embeddings while training (Jain et al. 2023, alpha 5).
"""

import argparse
import contextlib
import json
import time
from collections import Counter
from dataclasses import replace
from itertools import accumulate, groupby

import torch

from baize_lib.chat import ChatModel
from baize_lib.config import data_dir, runs_dir
from baize_lib.corpus import apply_filters, read_dialogues, read_sample, split, whole_turns
from baize_lib.dialogue import Message
from baize_lib.evaluation import ask, compare_arms, declines, grade, health, load_prompts
from baize_lib.files import read_jsonl
from baize_lib.models import load_base
from baize_lib.text import jaccard, shares_a_word
from baize_lib.training import TrainingSettings, attach, encode_all, fit, held_out_loss, select

FOLDER = runs_dir() / "bench_data"
RESULTS = data_dir() / "training" / "arms.jsonl"
MODEL, OWN = "smollm2-135m", "own layout"
PROMPTS = load_prompts(language="en")
FOLLOW_UPS = [row["turns"] for row in read_jsonl(data_dir() / "evaluation" / "follow_ups.jsonl")]
SETTINGS = TrainingSettings(lr=1e-3, num_epochs=1, batch_size=8)
GREEDY = {"max_tokens": 120, "temperature": 0.0}


def recorded():
    """(ordinary dialogues, those recorded under a guardrail, held-out ones), all that pass."""
    kept = apply_filters(map(whole_turns, read_sample())).kept
    train, held_out = split(list(kept), 0.08)
    guarded = [d for d in train if d.source.endswith(("/unsafe", "/harmless"))]
    return [d for d in train if d not in guarded], guarded, held_out


def arms(tokenizer):
    """Name -> (dialogues to train on, settings that differ)."""
    ordinary, guarded, _ = recorded()
    pairs = list(read_dialogues(data_dir() / "refusals" / "refusals.jsonl"))
    single = [replace(d, messages=d.messages[:2]) for d in ordinary]
    whole, asked = (encode_all(each, tokenizer, SETTINGS)[0] for each in (ordinary, single))
    room = sum(len(row.input_ids) for row in asked)
    fits = sum(sofar <= room for sofar in accumulate(len(row.input_ids) for row in whole))
    sizes = {f"{n} ordinary": (ordinary[:n], {}) for n in (25, 100, 300, len(ordinary))}
    return (
        sizes
        | {
            "all, guarded, pairs": (ordinary + guarded + pairs, {}),
            "single turns": (
                single,
                {"batch_size": round(8 * len(single) / fits)},
            ),  # as many steps
            "several turns": (ordinary[:fits], {}),
            "300 ordinary, NEFTune": (ordinary[:300], {}),
            "the same, 2 epochs": (ordinary + guarded + pairs, {"num_epochs": 2}),
        }
    )


def answered(chat, model):
    """(attempts, verdicts by prompt) of one model on all the prompts; the log remembers."""
    attempts = ask(chat, PROMPTS, (model,), log=FOLDER / "answers.jsonl", **GREEDY)
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


def turns_lost(base, adapter, held_out):
    """Mean held-out loss in nats a token: of first replies, and of the later ones."""
    rows, _ = encode_all(held_out, base.tokenizer, SETTINGS)
    parts = {"loss_first": [], "loss_later": []}
    for row in rows:
        number, first, later = 0, [], []
        for learnt, run in groupby(row.labels, key=lambda label: label != -100):
            labels, number = list(run), number + learnt
            first += labels if number <= 1 else [-100] * len(labels)
            later += labels if number > 1 else [-100] * len(labels)
        parts["loss_first"].append(replace(row, labels=first))
        if any(label != -100 for label in later):
            parts["loss_later"].append(replace(row, labels=later))
    select(base, attach(base, adapter))
    losses = {name: round(held_out_loss(base.model, part), 4) for name, part in parts.items()}
    select(base, None)
    return losses


def followed(chat, model):
    """What became of the second replies: ended, took up a word of the first turn, repeated it."""
    firsts = chat.replies([question for question, _ in FOLLOW_UPS], model, **GREEDY)
    talks = [
        [Message("user", one), Message("assistant", reply.text or "."), Message("user", other)]
        for (one, other), reply in zip(FOLLOW_UPS, firsts, strict=True)
    ]
    counts = Counter(asked=len(talks))
    for (question, _, _), first, then in zip(
        talks, firsts, chat.replies(talks, model, **GREEDY), strict=True
    ):
        repeats = jaccard(first.text, then.text) >= 0.5
        about = shares_a_word(then.text, f"{question.content} {first.text}")
        counts += Counter(ends=then.stopped_by == "end", repeats=repeats)
        counts += Counter(on_topic=about and not repeats)
    return {key: counts[key] for key in ("asked", "ends", "on_topic", "repeats")}


@contextlib.contextmanager
def noise(base, alpha=5):
    """NEFTune: uniform noise of alpha / sqrt(length x width) on the embeddings while training."""

    def noisy(module, inputs, embedded):
        if not torch.is_grad_enabled():
            return embedded
        size = alpha / (embedded.shape[1] * embedded.shape[2]) ** 0.5
        return embedded + torch.empty_like(embedded).uniform_(-size, size)

    hook = base.model.get_input_embeddings().register_forward_hook(noisy)
    yield
    hook.remove()


def train(base, name, arm, held_out, seed, own):
    dialogues, new = arm
    settings = replace(SETTINGS, seed=seed, **new)
    where = FOLDER / f"{name} {seed}".replace(", ", "-").replace(" ", "-")
    begun = time.perf_counter()
    with noise(base) if "NEFTune" in name else contextlib.nullcontext():
        trained = fit(base, dialogues, held_out, where, settings)
    chat = ChatModel(base, {where.name: where})
    _, row = result(chat, where.name, own)
    if name in ("single turns", "several turns"):
        row |= turns_lost(base, where, held_out) | {"follow_ups": followed(chat, where.name)}
    print(f"{name}, seed {seed}: {time.perf_counter() - begun:.0f} s", row, flush=True)
    return {
        "arm": name, "seed": seed, "num_dialogues": len(dialogues),
        "num_tokens": trained.num_tokens, "loss_before": trained.loss_before,
        "loss_after": trained.loss_after, **row,
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arms", nargs="*", help="default: all")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    asked = parser.parse_args()
    *_, held_out = recorded()
    base = load_base(MODEL, "float32")
    every = arms(base.tokenizer)
    have = {(row["arm"], row["seed"]) for row in read_jsonl(RESULTS)} if RESULTS.is_file() else {}
    good, row = result(ChatModel(base), OWN, None)
    rows = [] if (OWN, 0) in have else [{"arm": OWN, "seed": 0, "num_dialogues": 0, **row}]
    for seed in asked.seeds:
        for name in asked.arms or every:
            if (name, seed) not in have:
                rows.append(train(base, name, every[name], held_out, seed, good))
            with RESULTS.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
            rows = []


if __name__ == "__main__":
    main()
