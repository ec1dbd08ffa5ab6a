"""How fast `fit` trains the embedded model, beside two usual ways and the machine's own limit.

    python tests/benchmarks/bench_train.py [--dialogues 24] [--rounds 3] [--only ours trl-1]

All train LoRA r=8 on all linear layers over the same dialogues, in one process, in turns:
  ours       `fit`'s loop, in float32
  padded     PEFT as it comes, every row padded to 512, loss by transformers
  original   the same with LoRA's dropout of 0.05, as published (ours draws none)
  trl-N      TRL's SFTTrainer, N rows of like length together, no checkpointing of activations, its
             own (chunked) loss; the best N is its best setting
and each again as NAME-bf16: the frozen weights in bfloat16, which `fit` chooses by itself where the
CPU has instructions for it (elsewhere it is slow).
Rates are real tokens (no padding) a second of wall time and of CPU time over all threads. CPU time
is the fairer column on a busy machine. "of limit" counts 4 operations a parameter and token and
divides by what plain matrix products of the model's shapes reach in that precision, timed before
and after.
"""

import argparse
import contextlib
import functools
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from baize_lib.config import data_dir
from baize_lib.corpus.formats import from_chat
from baize_lib.files import read_jsonl
from baize_lib.models.base import Base, computing_in, load_base
from baize_lib.models.weights import quiet
from baize_lib.training.batches import encode_all, epoch_steps, micro_batches
from baize_lib.training.fast_cpu import lean
from baize_lib.training.fit import add_adapter
from baize_lib.training.loss import backward, lane_tokens, lanes
from baize_lib.training.settings import TrainingSettings
from baize_lib.training.tokens import Encoded

SETTINGS = TrainingSettings(rank=8, num_epochs=1)


def timed(work: Any) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def matmul_rate(dtype: Any) -> tuple[float, float]:
    """Operations a second (wall, CPU) of the model's own products at 1,536 tokens."""
    import torch

    shapes = [(576, 576), (576, 1536), (1536, 576)]
    pairs = [(torch.randn(1536, i, dtype=dtype), torch.randn(o, i, dtype=dtype)) for i, o in shapes]
    for _ in range(20):  # a core that has idled takes a moment to reach its clock
        for x, w in pairs:
            x @ w.T
    wall, cpu = timed(lambda: [x @ w.T for _ in range(30) for x, w in pairs])
    operations = 30 * sum(2 * 1536 * i * o for i, o in shapes)
    return operations / wall, operations / cpu


def ours(base: Base, rows: list[Encoded]) -> Any:
    import torch

    model = add_adapter(base, SETTINGS).train()
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, fused=True)
    at_once = lanes(model, SETTINGS)

    def run() -> None:
        with lean(model):
            for step in epoch_steps(rows, SETTINGS, 0):
                part = [row for batch in step for row in batch]
                batches = micro_batches(part, lane_tokens(SETTINGS.micro_tokens, at_once))
                backward(model, batches, sum(row.num_labels for row in part), at_once)
                optimizer.step()
                optimizer.zero_grad()

    return run, model


def padded(base: Base, rows: list[Encoded], dropout: float = 0.0) -> Any:
    import torch

    model = add_adapter(base, replace(SETTINGS, dropout=dropout)).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])

    def run() -> None:
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

    return run, model


def trl(base: Base, rows: list[Encoded], batch_size: int) -> Any:
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    from baize_lib.models.shapes import ALL_LINEAR

    data = Dataset.from_list([{"input_ids": r.input_ids, "labels": r.labels} for r in rows])
    config = SFTConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=batch_size, num_train_epochs=1,
        gradient_checkpointing=False, max_length=512, use_cpu=True, bf16=False, report_to=[],
        save_strategy="no", logging_strategy="no", disable_tqdm=True, dataloader_num_workers=0,
        train_sampling_strategy="group_by_length", dataset_kwargs={"skip_prepare_dataset": True},
    )  # fmt: skip
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=list(ALL_LINEAR), task_type="CAUSAL_LM")
    trainer = SFTTrainer(
        base.model, args=config, train_dataset=data, processing_class=base.tokenizer,
        peft_config=lora,
    )  # fmt: skip
    return trainer.train, trainer.model


WAYS: dict[str, Callable[[Base, list[Encoded]], Any]] = {
    "ours": ours,
    "padded": padded,
    "original": functools.partial(padded, dropout=0.05),
    **{f"trl-{size}": functools.partial(trl, batch_size=size) for size in (1, 2, 4, 8)},
}
NAMES = [*WAYS, *(f"{name}-bf16" for name in WAYS)]
_USUAL = ["ours", "padded", "original", "trl-1", "trl-2", "ours-bf16", "trl-1-bf16", "trl-4-bf16"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dialogues", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=_USUAL, choices=NAMES)
    import torch

    options = parser.parse_args()
    base = load_base("smollm2-135m", "float32")
    base.model.requires_grad_(False)  # `computing_in` leaves what is trained alone
    source = data_dir() / "self_chat_sample.jsonl"
    dialogues = [from_chat(row) for row in read_jsonl(source) if row.get("status", "ok") == "ok"]
    rows, _ = encode_all(dialogues[: options.dialogues], base.tokenizer, SETTINGS)
    tokens = sum(len(row.input_ids) for row in rows)
    print(f"{len(rows)} dialogues, {tokens} tokens, {torch.get_num_threads()} threads")
    work = 4 * base.model.num_parameters() * tokens
    seen: dict[str, list[tuple[float, ...]]] = {name: [] for name in options.only}
    for turn in range(options.rounds):
        for name in options.only:
            way = WAYS[name.removesuffix("-bf16")]
            compute = "bfloat16" if name.endswith("-bf16") else "float32"
            dtype = getattr(torch, compute)
            before = matmul_rate(dtype)
            with (
                computing_in(base.model, compute),
                quiet(),
                contextlib.redirect_stdout(io.StringIO()),
            ):
                if turn == 0:  # the first pass pays for memory and threads
                    run, model = way(base, rows[:4])
                    run()
                    model.unload()
                run, model = way(base, rows)
                wall, cpu = timed(run)
                model.unload()
            base.model.requires_grad_(False)
            after = matmul_rate(dtype)
            limit = [(a + b) / 2 for a, b in zip(before, after, strict=True)]
            of_limit = work / wall / limit[0], work / cpu / limit[1]
            seen[name].append((tokens / wall, tokens / cpu, *of_limit, limit[0] / 1e9))
            print(f"round {turn + 1}  {_row(name, seen[name][-1])}", flush=True)
    median = {
        name: [statistics.median(column) for column in zip(*runs, strict=True)]
        for name, runs in seen.items()
    }
    print(f"\nmedians of {options.rounds} rounds")
    for name, values in median.items():
        print(_row(name, values))
    best = [name for name in ("ours", "ours-bf16") if name in seen]
    for ours_, name in [(o, name) for o in best for name in seen if not name.startswith("ours")]:
        pairs = list(zip(seen[ours_], seen[name], strict=True))
        ratios = [statistics.median(a[i] / b[i] for a, b in pairs) for i in range(2)]
        print("{} / {}: {:.2f} by wall, {:.2f} by CPU time".format(ours_, name, *ratios))


def _row(name: str, values: Sequence[float]) -> str:
    return (
        "{:13s} {:5.0f} tokens/s  {:5.0f} tokens/CPU-s  {:.2f} of limit  {:.2f} of limit (CPU)  "
        "matmul {:.0f} GFLOP/s"
    ).format(name, *values)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    main()
