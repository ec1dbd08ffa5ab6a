"""How fast LoRA training is on this CPU: this course, TRL, PEFT as it comes, the published recipe.

    python tests/benchmarks/bench_train.py [--minutes 5] [--only ours trl-1]

All train LoRA r=8 on all linear layers of SmolLM2-135M over the same recorded dialogues, in one
process, in turns, each in the precision it is faster in (both are tried first):
  ours       `fit`'s own steps
  trl-N      TRL's SFTTrainer, N rows of like length together, no checkpointing of activations, its
             own (chunked) loss; the best N is its best setting
  padded     PEFT as it comes, every row padded to 512, loss by transformers
  published  the same with LoRA's dropout of 0.05, as Baize was trained (ours draws none)
The number of dialogues follows from a first try, so that all ends in about `--minutes`. Rates are
real tokens (no padding) a second of wall time and of CPU time over all threads; CPU time is the
fairer column on a busy machine. "of limit" counts 4 operations a parameter and token and divides by
what plain matrix products of the model's shapes reach in that precision, timed before and after.
llama.cpp's and Unsloth's trainers are not here: the one trains no adapter, the other needs a GPU.
"""

import argparse
import contextlib
import functools
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from baize_lib.corpus.formats import read_sample
from baize_lib.models.base import Base, load_base
from baize_lib.models.weights import quiet
from baize_lib.training.fast_cpu import product_rate
from baize_lib.training.lora import add_adapter
from baize_lib.training.settings import TrainingSettings
from baize_lib.training.step import trainee
from baize_lib.training.tokens import Encoded, encode_all, epoch_steps

SETTINGS = TrainingSettings(rank=8, num_epochs=1)
Rows = list[Encoded]


def cpu_kind() -> str:
    """What this CPU calls itself, and the units it has for matrix products."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        about = dict(line.split("\t", 1) for line in lines if "\t" in line)
        flags = next((v for k, v in about.items() if k.strip() == "flags"), "").split()
        name = next((v for k, v in about.items() if k.strip() == "model name"), "?").strip("\t: ")
        units = [u for u in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if u in flags]
        return f"{name}, {os.cpu_count()} cores, {' '.join(units)}"
    return f"unknown, {os.cpu_count()} cores"


def ours(base: Base, rows: Rows) -> None:
    with trainee(base, replace(SETTINGS, compute=base.precision)) as student, student.computing():
        steps = epoch_steps(rows, SETTINGS, 0)
        for number, part in enumerate(steps, start=1):
            student.step(number, len(steps), part)


def padded(base: Base, rows: Rows, dropout: float = 0.0) -> None:
    model = add_adapter(base, replace(SETTINGS, dropout=dropout)).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    for start in range(0, len(rows), 4):
        part = rows[start : start + 4]
        ids, labels = torch.zeros(len(part), 512).long(), torch.full((len(part), 512), -100)
        mask = torch.zeros(len(part), 512).long()
        for i, row in enumerate(part):
            ids[i, : len(row.input_ids)] = torch.tensor(row.input_ids)
            labels[i, : len(row.labels)] = torch.tensor(row.labels)
            mask[i, : len(row.input_ids)] = 1
        model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.unload()


def trl(base: Base, rows: Rows, batch_size: int) -> None:
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    data = Dataset.from_list([{"input_ids": r.input_ids, "labels": r.labels} for r in rows])
    config = SFTConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=batch_size, num_train_epochs=1,
        gradient_checkpointing=False, max_length=512, use_cpu=True, bf16=False, report_to=[],
        save_strategy="no", logging_strategy="no", disable_tqdm=True, dataloader_num_workers=0,
        train_sampling_strategy="group_by_length", dataset_kwargs={"skip_prepare_dataset": True},
    )  # fmt: skip
    lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = SFTTrainer(
        base.model, args=config, train_dataset=data, processing_class=base.tokenizer,
        peft_config=lora,
    )  # fmt: skip
    trainer.train()
    trainer.model.unload()


WAYS: dict[str, Callable[[Base, Rows], None]] = {
    "ours": ours,
    **{f"trl-{size}": functools.partial(trl, batch_size=size) for size in (1, 2, 4)},
    "padded": padded,
    "published": functools.partial(padded, dropout=0.05),
}
OURS_F32 = "ours, float32"  # also shown where bfloat16 is faster


def timed(work: Callable[[], None]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    with quiet(), contextlib.redirect_stdout(io.StringIO()):
        work()
    return time.perf_counter() - wall, time.process_time() - cpu


def one_run(way: str, base: Base, rows: Rows, precision: str) -> tuple[float, float, float, float]:
    """Tokens a second of wall and of CPU time, and the shares of the limit by either."""
    tokens, before = sum(len(row.input_ids) for row in rows), product_rate(precision)
    wall, cpu = timed(lambda: WAYS[way](base, rows))
    base.model.requires_grad_(False)
    rate = (before + product_rate(precision)) / 2
    work, threads = 4 * base.model.num_parameters() * tokens, torch.get_num_threads()
    return tokens / wall, tokens / cpu, work / wall / rate, work / cpu * threads / rate


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--only", nargs="*", default=list(WAYS), choices=list(WAYS))
    options = parser.parse_args(arguments)
    end = time.perf_counter() + 60 * options.minutes
    print(f"CPU: {cpu_kind()}; {torch.get_num_threads()} threads; load {os.getloadavg()[0]:.1f}")
    with contextlib.redirect_stdout(io.StringIO()):
        bases = {p: load_base("smollm2-135m", p) for p in ("float32", "bfloat16")}
    for precision in bases:
        print(f"matrix products: {product_rate(precision) / 1e9:.0f} GFLOP/s in {precision}")
    rows = encode_all(read_sample(), bases["float32"].tokenizer, SETTINGS)[0]

    few, chosen, cost = rows[:2], {}, 0.0
    for way in options.only:  # which precision, and how long it takes
        took = {p: timed(lambda w=way, b=b: WAYS[w](b, few))[0] for p, b in bases.items()}
        chosen[way] = min(took, key=took.get)
        cost += took[chosen[way]] / sum(len(row.input_ids) for row in few)
        print(f"{way:10s} prefers {chosen[way]}", flush=True)
    runs = [(way, chosen[way], way) for way in options.only]
    if chosen.get("ours") == "bfloat16":
        runs.append(("ours", "float32", OURS_F32))
    rounds, left = 2, end - time.perf_counter()
    budget = max(800.0, left / rounds / (1.15 * cost))  # tokens of a round
    sizes = [sum(len(row.input_ids) for row in rows[:n]) for n in range(len(rows) + 1)]
    count = max(4, next((n for n, size in enumerate(sizes) if size > budget), len(rows)) - 1)
    print(f"{count} dialogues, {sizes[count]} tokens, {rounds} rounds", flush=True)

    seen: dict[str, list[tuple[float, ...]]] = {name: [] for *_, name in runs}
    for _ in range(rounds):
        for way, precision, name in runs:
            seen[name].append(one_run(way, bases[precision], rows[:count], precision))
    print(f"{'':14s} tokens/s  a CPU second  of limit  of limit by CPU time")
    for name, found in seen.items():
        row = [statistics.median(column) for column in zip(*found, strict=True)]
        print("{:14s} {:8.0f} {:13.0f} {:9.2f} {:9.2f}".format(name, *row))
    theirs = [name for name in seen if not name.startswith("ours")]
    for name in theirs if "ours" in seen else []:
        pairs = list(zip(seen["ours"], seen[name], strict=True))
        wall, cpu = (statistics.median(a[i] / b[i] for a, b in pairs) for i in range(2))
        print(f"ours / {name}: {wall:.2f} by wall, {cpu:.2f} by CPU time")


if __name__ == "__main__":
    main()
