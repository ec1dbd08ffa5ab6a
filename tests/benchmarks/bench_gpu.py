"""How fast and how large LoRA training is on one GPU, on random weights of the article's shapes.

    python tests/benchmarks/bench_gpu.py                              # one GPU: the whole table
    python tests/benchmarks/bench_gpu.py --device cpu --shapes tiny   # the same code, anywhere

Rows have the lengths of the recorded dialogues, scaled to a mean of 448 tokens (what a dialogue of
Baize's cost; cut at 512) and hold random tokens; loss falls on two thirds of them. A quantised
model is built on the meta device and filled layer by layer: it never exists in full precision.
Goal for 7B in bfloat16 on an H100: 18,000 tokens/s. "of peak" counts 4 operations a parameter and
token (6 where activations are computed again).
"""

import argparse
import random
import time
from dataclasses import replace
from typing import Any

from baize_lib.corpus.formats import read_sample
from baize_lib.models.base import Base
from baize_lib.models.shapes import Shape, empty_model
from baize_lib.models.weights import quiet
from baize_lib.training.planner import this_machine
from baize_lib.training.settings import PRESETS, TrainingSettings
from baize_lib.training.step import trainee
from baize_lib.training.tokens import IGNORED, Encoded, epoch_steps

TINY = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "vocab_size": 1000,
}  # fmt: skip
SHAPES = {name: PRESETS[name].config for name in ("7B", "13B", "30B")} | {"tiny": TINY}
ARTICLE_TARGETS, ALL_LINEAR = PRESETS["7B"].settings.targets, "all-linear"
RUNS = [  # shape, precision, targets, activations computed again, micro-tokens
    ("7B", "bfloat16", ARTICLE_TARGETS, False, 8192),
    ("7B", "bfloat16", ALL_LINEAR, False, 8192),
    ("7B", "int8", ARTICLE_TARGETS, False, 4096),
    ("7B", "nf4", ARTICLE_TARGETS, False, 8192),
    ("13B", "bfloat16", ARTICLE_TARGETS, False, 4096),
    ("30B", "nf4", ARTICLE_TARGETS, True, 8192),
]


def random_model(shape: Shape, precision: str, device: str) -> Any:
    """A causal language model of random weights, made where it will stay, a layer at a time."""
    import torch

    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    model = empty_model(shape.config).to(dtype)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, torch.nn.Linear) and name != "lm_head":
                setattr(parent, name, _linear(child, precision, device, dtype))
    for name, weight in list(model.named_parameters()):
        if weight.is_meta:
            parent = model.get_submodule(name.rpartition(".")[0])
            norm = weight.dim() == 1
            made = torch.ones if norm else torch.randn
            value = made(weight.shape, dtype=dtype, device=device) * (1 if norm else 0.02)
            setattr(parent, name.rpartition(".")[2], torch.nn.Parameter(value, False))
    model.model.rotary_emb = type(model.model.rotary_emb)(config=model.config).to(device)
    return model.requires_grad_(False)


def _linear(meta: Any, precision: str, device: str, dtype: Any) -> Any:
    import torch

    value = torch.randn(meta.weight.shape, dtype=dtype, device=device) * 0.02
    if precision in ("int8", "nf4"):
        import bitsandbytes as bnb

        sizes, options = (meta.in_features, meta.out_features), {"bias": False, "device": "meta"}
        if precision == "nf4":
            layer = bnb.nn.Linear4bit(*sizes, quant_type="nf4", compute_dtype=dtype, **options)
            layer.support_avx512bf16_for_cpu = False
            weight = bnb.nn.Params4bit(value.cpu(), requires_grad=False, quant_type="nf4")
        else:
            layer = bnb.nn.Linear8bitLt(*sizes, has_fp16_weights=False, **options)
            weight = bnb.nn.Int8Params(value.cpu(), requires_grad=False, has_fp16_weights=False)
        layer.weight = weight
        return layer.to(device)  # quantised on the way
    layer = torch.nn.Linear(meta.in_features, meta.out_features, bias=False, device="meta")
    layer.weight = torch.nn.Parameter(value, False)
    return layer


def random_rows(num: int, vocabulary: int) -> list[Encoded]:
    """Rows as long as the recorded dialogues, scaled; random tokens, the last two thirds learnt."""
    draw = random.Random(0)
    words = [sum(len(m.content.split()) for m in d.messages) for d in read_sample()]
    scale = 448 * len(words) / sum(words)
    rows = []
    for number in range(num):
        length = max(16, min(512, round(scale * draw.choice(words))))
        ids = [draw.randrange(vocabulary) for _ in range(length)]
        rows.append(Encoded(ids, [IGNORED] * (length // 3) + ids[length // 3 :], str(number)))
    return rows


def measured(
    name: str, precision: str, settings: TrainingSettings, device: str, num: int
) -> tuple[float, float | None, float]:
    """Tokens a second, GB at the peak, floating-point operations a second."""
    import torch

    shape = Shape.of(SHAPES[name])
    called = "float32" if (device, precision) == ("cpu", "bfloat16") else precision
    base = Base(random_model(shape, precision, device), None, name, called, "made")
    steps = epoch_steps(random_rows(num, shape.config.vocab_size), settings, 0)
    tokens, begun = 0, time.perf_counter()
    with trainee(base, settings) as student, student.computing():
        for number, rows in enumerate(steps):
            if number == 1:  # the first pays for memory
                _wait(device)
                tokens, begun = 0, time.perf_counter()
            student.step(number + 1, len(steps), rows)
            tokens += sum(len(row.input_ids) for row in rows)
        _wait(device)
        rate = tokens / (time.perf_counter() - begun)
    peak = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else None
    return rate, peak, (6 if settings.gradient_checkpointing else 4) * shape.num_active * rate


def _wait(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def main(arguments: list[str] | None = None) -> None:
    """Print the table, or that there is no GPU."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--shapes", nargs="*", default=["7B", "13B", "30B"], choices=SHAPES)
    parser.add_argument("--rows", type=int, default=320)
    options = parser.parse_args(arguments)
    import torch

    there = options.device == "cpu" or torch.cuda.is_available()
    machine = this_machine() if there else None
    print(f"device: {machine.name if machine else 'no GPU here, so nothing is measured'}")
    print(f"{'model':6s} {'precision':10s} {'targets':8s} {'tokens/s':>12s} {'GB':>12s}  of peak")
    runs = RUNS + [("tiny", p, ALL_LINEAR, p == "nf4", 1024) for p in ("bfloat16", "int8", "nf4")]
    for name, precision, targets, again, micro_tokens in runs:
        if name not in options.shapes:
            continue
        shown = ["not measured", "not measured", ""]
        called = "float32" if (options.device, precision) == ("cpu", "bfloat16") else precision
        if machine:
            settings = replace(
                TrainingSettings(), targets=targets, batch_size=64 if name != "tiny" else 8,
                micro_tokens=micro_tokens, gradient_checkpointing=again,
            )  # fmt: skip
            if options.device == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            with quiet():
                rate, peak, used = measured(name, precision, settings, options.device, options.rows)
            share = f"{used / machine.tflops / 1e12:.0%}" if machine.tflops else "unknown"
            shown = [f"{rate:,.0f}", f"{peak:.1f}" if peak else "not measured", share]
        print(
            f"{name:6s} {called:10s} {targets if isinstance(targets, str) else len(targets)} "
            f"layers {shown[0]:>12s} {shown[1]:>12s}  "
            f"{shown[2]}",
            flush=True,
        )


if __name__ == "__main__":
    main()
