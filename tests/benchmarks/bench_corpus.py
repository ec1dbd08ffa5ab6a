"""Inspecting a corpus of Baize's size: seconds and peak memory of each step.

    python tests/benchmarks/bench_corpus.py [dialogues, default 110000]

The dialogues are made up but varied: words drawn by Zipf's law from a vocabulary of 30,000, replies
from 20 to 120 words, 3 % near-copies, some defects. Goal on two cores: 120 s and 2 GB in all.
"""

import json
import random
import resource
import sys
import tempfile
import time
from itertools import accumulate
from pathlib import Path

from baize_lib.corpus.defects import count_defects
from baize_lib.corpus.filters import apply_filters
from baize_lib.corpus.formats import read_dialogues
from baize_lib.corpus.split import export, leakage
from baize_lib.corpus.statistics import statistics

TURNS, VOCABULARY = 3, 30_000


def write_ledger(path: Path, count: int) -> None:
    rng = random.Random(0)
    letters = "etaoinshrdlcumwfgypbvk"
    common = "the of and to a in is that it for you with this are was have be not they can"
    known = common.split()
    known += ["".join(rng.choices(letters, k=rng.randint(2, 9))) for _ in range(VOCABULARY - 20)]
    weights = list(accumulate(1 / rank for rank in range(1, VOCABULARY + 1)))
    pool = rng.choices(known, cum_weights=weights, k=4_000_000)

    def text(num_words: int) -> str:
        at = rng.randrange(len(pool) - num_words)
        said = pool[at : at + num_words]
        for stop in range(12, num_words, 13):
            said[stop] += "."
        return " ".join(said).capitalize() + "."

    earlier: list[list[dict]] = []
    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            if earlier and rng.random() < 0.03:
                messages = [*rng.choice(earlier)]
                messages[-1] = {"role": "assistant", "content": text(60)}
            else:
                messages = [
                    {"role": role, "content": text(rng.randint(*length))}
                    for _ in range(TURNS)
                    for role, length in (("user", (6, 22)), ("assistant", (20, 120)))
                ]
            if rng.random() < 0.02:
                messages[1] = {"role": "assistant", "content": text(8) * 6}
            if len(earlier) < 2000:
                earlier.append(messages)
            row = {
                "id": f"d{i}", "seed": {"id": f"s{i}", "text": messages[0]["content"]},
                "messages": messages, "status": "ok", "finish_reason": "stop",
                "usage": {"input": 900, "cached_input": 0, "output": 300}, "cost_usd": 0.0009,
            }  # fmt: skip
            file.write(json.dumps(row) + "\n")


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 110_000
    began, rows = time.perf_counter(), []

    def step(name: str, result: object) -> None:
        nonlocal began
        now, peak = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        rows.append((name, now - began, peak))
        print(f"{name:<34} {now - began:7.1f} s   {peak:5.2f} GB   {result}", flush=True)
        began = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        ledger = Path(folder) / "self_chat.jsonl"
        write_ledger(ledger, count)
        step("(making the ledger)", f"{ledger.stat().st_size / 1e6:.0f} MB")
        dialogues = list(read_dialogues(ledger, statuses=None))
        step("read", f"{len(dialogues)} dialogues")
        found = statistics(dialogues)
        step("statistics", f"{found.mean_words('assistant'):.1f} words a reply")
        counted = {row["defect"]: row["dialogues"] for row in count_defects(dialogues)}
        step("defects", {name: n for name, n in counted.items() if n})
        filtered = apply_filters(dialogues)
        step("filters and near-duplicates", dict(+filtered.dropped))
        card = export(Path(folder), filtered)
        step("split and export", {name: f["dialogues"] for name, f in card["files"].items()})
        parts = [
            list(read_dialogues(Path(folder) / "corpus" / f"{part}.jsonl"))
            for part in ("train", "validation")
        ]
        step("read both parts", [len(part) for part in parts])
        prompts = [" ".join(dialogue.by("user")[0].split()[:9]) for dialogue in parts[1][:100]]
        step("leakage", f"{len(leakage(*parts, prompts))} rows")
    inspecting = rows[1:]
    seconds, peak = sum(row[1] for row in inspecting), inspecting[-1][2]
    print(f"{'all, without making the ledger':<34} {seconds:7.1f} s   {peak:5.2f} GB")


if __name__ == "__main__":
    main()
