"""How fast `fit` trains the embedded model, beside two usual ways and the machine's own limit.

    python tests/benchmarks/bench_train.py [--dialogues 24] [--precision float32] [--repeats 1]

All train LoRA r=8 on all linear layers over the same dialogues, in one process, one after another:
  ours     `fit`'s loop
  padded   the original's recipe: PEFT as it comes, every row padded to 512, loss by transformers
  trl-N    TRL's SFTTrainer, N rows of like length together, no checkpointing of activations, its
           own (chunked) loss; the best N is its best setting
Rates are real tokens (no padding) a second of wall time and of CPU time over all threads. CPU time
is the fairer column on a busy machine. "of limit" counts 4 operations a parameter and token and
divides by what plain matrix products of the model's shapes reach, timed before and after.
"""

import argparse
import functools
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from baize_lib.batches import epoch_steps
from baize_lib.config import data_dir
from baize_lib.dialogue import from_chat
from baize_lib.files import read_jsonl
from baize_lib.lean import lean
from baize_lib.models import Base, load_base, quiet
from baize_lib.train import Encoded, Settings, _add_adapter, backward, encode_all

SETTINGS = Settings(rank=8, num_epochs=1)


def timed(work: Any) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def matmul_rate(dtype: torch.dtype) -> tuple[float, float]:
    """Operations a second (wall, CPU) of the model's own products at 1,536 tokens."""
    shapes = [(576, 576), (576, 1536), (1536, 576)]
    pairs = [(torch.randn(1536, i, dtype=dtype), torch.randn(o, i, dtype=dtype)) for i, o in shapes]
    for x, w in pairs:
        x @ w.T
    wall, cpu = timed(lambda: [x @ w.T for _ in range(30) for x, w in pairs])
    operations = 30 * sum(2 * 1536 * i * o for i, o in shapes)
    return operations / wall, operations / cpu


def ours(base: Base, rows: list[Encoded]) -> Any:
    model = _add_adapter(base, SETTINGS).train()
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, fused=True)

    def run() -> None:
        with lean(model):
            for step in epoch_steps(rows, SETTINGS, 0):
                num_labels = sum(row.num_labels for batch in step for row in batch)
                for batch in step:
                    backward(model, batch, num_labels)
                optimizer.step()
                optimizer.zero_grad()

    return run, model


def padded(base: Base, rows: list[Encoded]) -> Any:
    model = _add_adapter(base, SETTINGS).train()
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

    from baize_lib.models import ALL_LINEAR

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


WAYS = {
    "ours": ours,
    "padded": padded,
    **{f"trl-{size}": functools.partial(trl, batch_size=size) for size in (1, 2, 4, 8)},
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dialogues", type=int, default=24)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--only", nargs="*", default=[*WAYS], choices=WAYS)
    options = parser.parse_args()
    base = load_base("embedded", options.precision)
    source = data_dir() / "self_chat_sample.jsonl"
    dialogues = [from_chat(row) for row in read_jsonl(source) if row.get("status", "ok") == "ok"]
    rows, _ = encode_all(dialogues[: options.dialogues], base.tokenizer, SETTINGS)
    tokens = sum(len(row.input_ids) for row in rows)
    print(f"{len(rows)} dialogues, {tokens} tokens, {torch.get_num_threads()} threads")
    found, parameters = {}, base.model.num_parameters()
    for name in options.only:
        before = matmul_rate(base.model.dtype)
        try:
            with quiet():
                run, model = WAYS[name](base, rows[:4])
                run()  # warm-up: the first pass pays for memory and threads
                model.unload()
                run, model = WAYS[name](base, rows)
                wall, cpu = timed(run)
        except ImportError as error:
            print(f"{name}: not measured ({error})")
            continue
        with quiet():
            model.unload()
        base.model.requires_grad_(False)
        after = matmul_rate(base.model.dtype)
        limit = [(a + b) / 2 for a, b in zip(before, after, strict=True)]
        found[name] = {
            "tokens/s": tokens / wall, "tokens/CPU-s": tokens / cpu,
            "of limit": 4 * parameters * tokens / wall / limit[0],
            "of limit (CPU)": 4 * parameters * tokens / cpu / limit[1],
        }  # fmt: skip
        line = "  ".join(f"{key} {value:.2f}" for key, value in found[name].items())
        print(f"{name:8s} {line}  (matmul {limit[0] / 1e9:.0f} GFLOP/s)", flush=True)
    for name in [name for name in found if name != "ours" and "ours" in found]:
        ratio = [found["ours"][key] / found[name][key] for key in ("tokens/s", "tokens/CPU-s")]
        print(f"ours / {name}: {ratio[0]:.2f} by wall, {ratio[1]:.2f} by CPU time")
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    main()
