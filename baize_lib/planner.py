"""What a training run would take on a machine you do not have: memory, hours, dollars.

Everything here is an estimate and says so. LoRA takes 4 floating-point operations a parameter and
token: 2 forward, 2 to carry the gradient back through frozen weights (full training takes 6, for it
also computes the weights' own gradients; Kaplan et al. 2020, section 2.1). Recomputing activations
adds 2. A measured rate replaces the assumed one:

    print(plan("7B", 50_000_000, "A100-80"))
    print(plan(shape, 24_000, "this CPU", tokens_per_second=result.tokens_per_second))
"""

from collections.abc import Sequence
from dataclasses import dataclass

from baize_lib.models import (
    ARTICLE_SHAPES,
    ARTICLE_TARGETS,
    BYTES_PER_WEIGHT,
    Shape,
    trainable_parameters,
)

__all__ = ["Device", "DEVICES", "Plan", "plan", "ARTICLE_RUNS"]


@dataclass(frozen=True, slots=True)
class Device:
    """A card: memory in GB, peak dense bfloat16 (T4: float16) TFLOP/s, USD an hour when rented."""

    memory: float
    tflops: float
    usd_per_hour: float
    source: str


# Prices are rounded on-demand prices seen in 2026; they differ twofold between providers.
DEVICES = {
    "T4": Device(16, 65, 0.35, "NVIDIA T4 datasheet (float16; it has no bfloat16)"),
    "L4": Device(24, 121, 0.70, "NVIDIA L4 datasheet: 242 with sparsity, half of it dense"),
    "RTX 4090": Device(24, 165, 0.70, "NVIDIA Ada architecture white paper, float32 accumulate"),
    "A100-40": Device(40, 312, 1.30, "NVIDIA A100 datasheet"),
    "A100-80": Device(80, 312, 1.50, "NVIDIA A100 datasheet"),
    "H100": Device(
        80, 989, 3.00, "NVIDIA H100 SXM datasheet: 1,979 with sparsity, half of it dense"
    ),
}
UTILISATION = 0.4  # share of the peak a well-fed LoRA run reaches; an assumption, measure yours

ARTICLE_RUNS = {  # published: hours and GB on one A100-80, int8 base, every row padded to 512
    "7B": {"hours": 9, "gigabytes": 26},
    "13B": {"hours": 16, "gigabytes": 25},
    "30B": {"hours": 36, "gigabytes": 42},
}


@dataclass(frozen=True, slots=True)
class Plan:
    """An estimate. None means unknown; `memory` is in GB by part; `basis` says what it rests on."""

    device: str
    precision: str
    num_parameters: int
    num_trainable: int
    tokens: int
    memory: dict[str, float]
    fits: bool | None
    tokens_per_second: float | None
    hours: float | None
    usd: float | None
    hours_padded: float | None
    basis: str

    @property
    def gigabytes(self) -> float:
        return sum(self.memory.values())

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {size:.1f}" for name, size in self.memory.items())
        fits = {True: "fits", False: "does not fit", None: "unknown whether it fits"}[self.fits]
        lines = [
            f"{self.num_parameters / 1e9:.1f} billion parameters in {self.precision}, "
            f"{self.num_trainable / 1e6:.1f} million trained, on {self.device} (all estimates)",
            f"memory  {self.gigabytes:.1f} GB: {fits} ({parts})",
            f"time    {_shown(self.hours, 'h')} for {self.tokens:,} tokens at "
            f"{_shown(self.tokens_per_second, 'tokens/s', 0)}; {self.basis}",
        ]
        if self.hours_padded is not None:
            lines.append(f"        {_shown(self.hours_padded, 'h')} with every row padded to 512")
        return "\n".join([*lines, f"cost    {_shown(self.usd, 'USD', 2)}"])


def plan(
    shape: Shape | str,
    tokens: int,
    device: str,
    *,
    precision: str = "bfloat16",
    rank: int = 8,
    targets: Sequence[str] = ARTICLE_TARGETS,
    micro_tokens: int = 16_384,
    gradient_checkpointing: bool = True,
    num_rows: int | None = None,
    tokens_per_second: float | None = None,
    usd_per_hour: float | None = None,
) -> Plan:
    """Estimate one training run.

    Args:
        shape: a Shape, or "7B", "13B", "30B".
        tokens: real tokens to train on, all epochs together.
        device: a key of `DEVICES`; for any other, what is not known stays unknown.
        micro_tokens: padded tokens computed at once.
        num_rows: dialogues, all epochs together: adds what padding each to 512 would take.
        tokens_per_second: a measured rate, to replace the assumed one.
        usd_per_hour: your price, to replace the one in `DEVICES`.
    """
    shape = ARTICLE_SHAPES[shape] if isinstance(shape, str) else shape
    card, trainable = DEVICES.get(device), trainable_parameters(shape, rank, targets)
    memory = _memory(shape, trainable, precision, micro_tokens, gradient_checkpointing)
    rate, basis = tokens_per_second, "at a measured rate"
    if rate is None:
        rate, basis = None, "no measured rate and no data sheet for this device"
        if card:
            operations = (6 if gradient_checkpointing else 4) * shape.num_parameters
            rate = UTILISATION * card.tflops * 1e12 / operations
            basis = f"assuming {UTILISATION:.0%} of {card.tflops:g} TFLOP/s ({card.source})"
    hours = tokens / rate / 3600 if rate else None
    price = usd_per_hour if usd_per_hour is not None else card.usd_per_hour if card else None
    return Plan(
        device, precision, shape.num_parameters, trainable, tokens, memory,
        sum(memory.values()) < 0.94 * card.memory if card else None, rate, hours,
        hours * price if hours is not None and price is not None else None,
        num_rows * 512 / rate / 3600 if num_rows and rate else None, basis,
    )  # fmt: skip


def _memory(
    shape: Shape, trainable: int, precision: str, micro_tokens: int, checkpointing: bool
) -> dict[str, float]:
    """GB by part. A LoRA weight takes 16 bytes in all: itself, its gradient, Adam's two moments.

    What a layer keeps for backward was counted in the operations it runs; on the embedded model the
    count is 11% above the bytes really kept in float32, and 1% in bfloat16.
    """
    number = 4 if precision == "float32" else 2  # bytes of an activation
    layer = number * (9 * shape.hidden_size + 4 * shape.intermediate_size)
    layer += 6 * shape.hidden_size + shape.intermediate_size  # dropout masks, a byte each
    kept = number * shape.hidden_size
    activations = shape.num_layers * kept + layer if checkpointing else shape.num_layers * layer
    embeddings = (1 if shape.tied else 2) * shape.vocab_size * shape.hidden_size
    full = 4 if precision == "float32" else 2  # embeddings and head are never quantised
    weights = (shape.num_parameters - embeddings) * BYTES_PER_WEIGHT[precision]
    return {
        "weights": (weights + embeddings * full) / 1e9,
        "adapter": 8 * trainable / 1e9,
        "optimizer": 8 * trainable / 1e9,
        "activations": micro_tokens * activations / 1e9,
        "logits": 3 * 256 * shape.vocab_size * 4 / 1e9,
    }


def _shown(value: float | None, unit: str, digits: int = 1) -> str:
    return "unknown" if value is None else f"{value:,.{digits}f} {unit}"
