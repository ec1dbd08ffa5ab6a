"""What a training run would take on a machine you do not have: memory, hours, dollars.

Everything here is an estimate and says so. LoRA takes 4 floating-point operations a parameter and
token: 2 forward, 2 to carry the gradient back through frozen weights (full training takes 6, for it
also computes the weights' own gradients; Kaplan et al. 2020, section 2.1). Recomputing activations
adds 2. A few measured steps replace the assumption about the device:

    print(plan("7B", Corpus(50_000, 450), "A100-80"))
    print(plan(base, rows, settings=settings, measured=measure(base, rows, settings)))
"""

import contextlib
import itertools
import re
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from baize_lib.config import BaizeError
from baize_lib.models.base import Base
from baize_lib.models.shapes import Shape, first_of
from baize_lib.training.lora import lora_counts
from baize_lib.training.settings import TrainingSettings, preset_of
from baize_lib.training.step import trainee
from baize_lib.training.tokens import Encoded, epoch_steps, micro_batches

__all__ = ["DEVICES", "Corpus", "measure", "plan"]

UTILISATION = 0.4  # share of the peak a well-fed LoRA run reaches; an assumption, measure yours
CONTEXT = 1.5  # GB that CUDA and what its allocator cannot use take on a card; an assumption
_CPU = "this CPU"


@dataclass(frozen=True, slots=True)
class Device:
    """A machine, as in `cards.yaml`, which says what the numbers are. None means unknown."""

    name: str
    memory: float | None = None
    tflops: float | None = None
    float32: float | None = None
    bfloat16: bool = True
    usd: float | None = None
    source: str = "NVIDIA's own figure"
    names: str = ""


_CARDS = yaml.safe_load(Path(__file__).with_name("cards.yaml").read_text(encoding="utf-8"))
DEVICES = {name: Device(name, **row) for name, row in _CARDS.items()}


def device_called(name: str) -> Device:
    """The card of that name, yours or the driver's; of one that is unknown all else is unknown."""
    said = re.sub(r"\b(nvidia|tesla|geforce)\b", "", name.lower()).replace("-", " ").split()
    fits = (device for device in DEVICES.values() if re.fullmatch(device.names, " ".join(said)))
    return next(fits, Device(name, source="no data sheet for this device here"))


def this_machine() -> Device:
    """The machine this runs on. A GPU's peak is its data sheet's; a CPU's is what its own matrix
    products reach in the precision that training multiplies in, measured in a second.
    """
    import psutil
    import torch

    from baize_lib.training.fast_cpu import compute_precision, product_rate

    if torch.cuda.is_available():
        return device_called(torch.cuda.get_device_name())
    precision, _ = compute_precision("float32", "cpu")
    rate, memory = product_rate(precision) / 1e12, psutil.virtual_memory().total / 1e9
    source = f"{precision} matrix products, measured just now"
    return Device(_CPU, memory, rate, rate, bfloat16=False, usd=0, source=source)


@dataclass(frozen=True, slots=True)
class Corpus:
    """How much there is to train on, all epochs together."""

    num_rows: int
    mean_tokens: float
    padding: float = 0.0  # the share of computed tokens that would be padding, in [0, 1)

    @classmethod
    def of(cls, rows: Sequence[Encoded], settings: TrainingSettings) -> "Corpus":
        """The size of `rows` over all epochs, with the padding that their batches will have."""
        if not rows:
            raise BaizeError("no dialogue to plan for: collect some, or give a Corpus")
        real = sum(len(row.input_ids) for row in rows)
        computed = sum(
            len(batch) * max(len(row.input_ids) for row in batch)
            for step in epoch_steps(rows, settings, 0)
            for batch in micro_batches(step, settings.micro_tokens)
        )
        return cls(settings.num_epochs * len(rows), real / len(rows), 1 - real / computed)

    @property
    def num_tokens(self) -> int:
        return round(self.num_rows * self.mean_tokens)

    @property
    def padding_to_512(self) -> float:
        """The same share with every row padded to 512 tokens, as Baize was trained."""
        return max(0.0, 1 - self.mean_tokens / 512)


# --- measuring


@dataclass(frozen=True, slots=True)
class Measured:
    """What some steps of real training took on `device`."""

    tokens_per_second: float  # real ones, no padding
    gigabytes: float  # on top of the weights
    num_steps: int
    operations_per_second: float
    device: str


def measure(
    base: Base, rows: Sequence[Encoded], settings: TrainingSettings, num_steps: int = 20
) -> Measured:
    """Train a throwaway adapter for `num_steps` optimiser steps; nothing is kept of it.

    One more step comes first and is left out of the rate: it pays for memory and threads.
    """
    import torch

    if not rows:
        raise BaizeError("no dialogue to measure with: collect some first")
    epochs = (epoch_steps(rows, settings, epoch) for epoch in itertools.count())
    steps = itertools.islice(itertools.chain.from_iterable(epochs), num_steps + 1)
    tokens, begun = 0, 0.0
    with _memory_used() as used, trainee(base, settings) as student, student.computing():
        for number, step_rows in enumerate(steps):
            student.step(number + 1, num_steps + 1, step_rows)
            tokens += sum(len(row.input_ids) for row in step_rows)
            if number == 0:
                tokens, begun = 0, time.perf_counter()
        rate = tokens / (time.perf_counter() - begun)
    operations = _operations(Shape.of(base.model.config), settings) * rate
    there = torch.cuda.is_available()
    name = device_called(torch.cuda.get_device_name()).name if there else _CPU
    return Measured(rate, max(used) / 1e9, num_steps, operations, name)


def _operations(shape: Shape, settings: TrainingSettings) -> int:
    """Floating-point operations a token."""
    return (6 if settings.gradient_checkpointing else 4) * shape.num_active


@contextlib.contextmanager
def _memory_used() -> Iterator[list[float]]:
    """Bytes in use at moments inside the `with`, beyond those before; last a GPU's peak."""
    import psutil
    import torch

    process, done, seen = psutil.Process(), threading.Event(), [0.0]
    there = torch.cuda.is_available()
    if there:
        torch.cuda.reset_peak_memory_stats()

    def in_use() -> int:
        return torch.cuda.max_memory_allocated() if there else process.memory_info().rss

    def watch() -> None:
        while not there and not done.wait(0.01):  # a GPU notes its peak by itself
            seen.append(in_use() - before)

    before = in_use()
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield seen
    finally:
        done.set()
        seen.append(in_use() - before)


# --- planning


@dataclass(frozen=True, slots=True)
class Plan:
    """An estimate; None means unknown. What is padded is the published recipe: every row padded to
    512, and PEFT's and transformers' own code, which keeps every logit.
    """

    device: str
    precision: str
    num_parameters: int
    num_trainable: int
    corpus: Corpus
    memory: dict[str, float]  # GB by part
    gigabytes_padded: float
    fits: bool | None
    tokens_per_second: float | None
    hours: float | None
    hours_padded: float | None
    usd: float | None
    basis: str  # what it rests on

    @property
    def gigabytes(self) -> float:
        return sum(self.memory.values())

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {size:.2f}" for name, size in self.memory.items())
        fits = {True: "fits", False: "does not fit", None: "unknown whether it fits"}[self.fits]
        return (
            f"{self.num_parameters / 1e9:.2f} billion parameters in {self.precision}, "
            f"{self.num_trainable / 1e6:.1f} million trained, on {self.device} (all estimates)\n"
            f"memory  {self.gigabytes:.1f} GB: {fits} ({parts})\n"
            f"time    {_time(self.hours)} for {self.corpus.num_tokens:,} tokens at "
            f"{_shown(self.tokens_per_second, 'tokens/s', 0)}\n        ({self.basis})\n"
            f"        as published, every row padded to 512 ({self.corpus.padding_to_512:.0%} "
            f"padding): {_time(self.hours_padded)}, {self.gigabytes_padded:.1f} GB\n"
            f"cost    {_shown(self.usd, 'USD', 2)}"
        )


def _shown(value: float | None, unit: str, digits: int = 1) -> str:
    return "unknown" if value is None else f"{value:,.{digits}f} {unit}"


def _time(hours: float | None) -> str:
    return f"{60 * hours:.1f} minutes" if hours and hours < 1 else _shown(hours, "h")


def plan(
    base: Base | Shape | str,
    corpus: Corpus | Sequence[Encoded],
    device: Device | str | None = None,
    settings: TrainingSettings | None = None,
    *,
    precision: str | None = None,
    measured: Measured | None = None,
) -> Plan:
    """Estimate one training run.

    Args:
        base: a loaded base, a Shape, or the name of a preset, which brings its settings along.
        corpus: the rows of `encode_all`, or how much there will be.
        device: default this machine. Rents differ: `replace(DEVICES["L4"], usd=0.5)` takes yours.
        precision: of the frozen weights; default the loaded base's or the preset's, else bfloat16,
            or float32 where the device has no bfloat16.
        measured: steps of this base or another, measured on this very device.
    """
    from baize_lib.training.fast_cpu import compute_precision

    device, own = device or this_machine(), "auto"
    device = device_called(device) if isinstance(device, str) else device
    if isinstance(base, str):
        preset = preset_of(base)
        base, settings, own = preset.shape, settings or preset.settings, preset.precision
    elif isinstance(base, Base):
        base, own = Shape.of(base.model.config), base.precision
    settings, usual = settings or TrainingSettings(), "bfloat16" if device.bfloat16 else "float32"
    if not isinstance(corpus, Corpus):
        corpus = Corpus.of(corpus, settings)
    precision = precision or (usual if own == "auto" else own)
    compute, kind = usual, "cpu" if device.name == _CPU else "cuda"  # what training multiplies in
    if precision not in ("int8", "nf4"):
        compute, _ = compute_precision(precision, kind, settings.compute)
    trainable, read = lora_counts(base, settings)
    run = (base, trainable, read, precision, compute, settings, device.name == _CPU, corpus)
    memory, memory_padded = _memory(*run), _memory(*run, padded=True)
    rate, basis = _rate(base, device, compute, settings, corpus, measured)
    if precision in ("int8", "nf4") and not measured:
        basis += f"; unpacking {precision} takes longer, how much is not known here"
    hours = corpus.num_tokens / rate / 3600 if rate else None
    return Plan(
        device.name, precision, base.num_parameters, trainable, corpus, memory,
        sum(memory_padded.values()),
        sum(memory.values()) < 0.94 * device.memory if device.memory else None, rate, hours,
        hours and hours * (1 - corpus.padding) / (1 - corpus.padding_to_512),
        None if hours is None or device.usd is None else hours * device.usd, basis,
    )  # fmt: skip


def _rate(
    shape: Shape, device: Device, compute: str, settings: TrainingSettings, corpus: Corpus,
    measured: Measured | None,
) -> tuple[float | None, str]:  # fmt: skip
    """Real tokens a second, and what that rests on."""
    peak = device.float32 if compute == "float32" else device.tflops
    if not measured and not peak:
        return None, "no measured rate and no data sheet for this device"
    if not measured:
        rate = UTILISATION * peak * 1e12 / _operations(shape, settings) * (1 - corpus.padding)
        return rate, f"assuming {UTILISATION:.0%} of {peak:.3g} TFLOP/s ({device.source})"
    if measured.device != device.name:
        where = f"measured on {measured.device} and the plan is for {device.name}"
        raise BaizeError(f"these steps were {where}: measure there, or leave them out")
    basis = f"{measured.num_steps} steps measured on {device.name}"
    if peak:
        share = measured.operations_per_second / (peak * 1e12)
        basis += f", {share:.0%} of the peak ({device.source})"
    return measured.operations_per_second / _operations(shape, settings), basis


def _memory(
    shape: Shape, trainable: int, read: int, precision: str, compute: str,
    settings: TrainingSettings, on_cpu: bool, corpus: Corpus, padded: bool = False,
) -> dict[str, float]:  # fmt: skip
    """GB by part. A LoRA weight takes 16 bytes in all: itself, its gradient, Adam's two moments.

    What a layer keeps for backward was counted in the operations it runs, for LLaMA's names of the
    sizes. `read` is the width of all that adapters read: PEFT's own code, used with packed weights
    and with dropout, keeps it again in float32, and dropped.
    """
    text, number = shape.config.get_text_config(), 4 if compute == "float32" else 2  # bytes
    width, heads = first_of(text, "hidden_size") or 1, first_of(text, "num_attention_heads") or 1
    layers, inner = first_of(text, "num_hidden_layers") or 1, first_of(text, "intermediate_size")
    keys = (first_of(text, "num_key_value_heads") or heads) * (
        first_of(text, "head_dim") or width // heads
    )
    layer = number * (6 * width + 2 * keys + 3 * (inner or 4 * width))
    if on_cpu and not padded:  # the probabilities that `Attention` keeps
        layer += round(number * heads * (corpus.mean_tokens + 128) / 2)
    if padded or settings.dropout or precision in ("int8", "nf4"):
        layer += (4 + 5 * bool(settings.dropout)) * read // layers
    again = settings.gradient_checkpointing
    kept = layers * number * width + layer if again else layers * layer
    copied = 2 * shape.num_parameters if (precision, compute) == ("float32", "bfloat16") else 0
    logits = 12 * text.vocab_size if padded else 6 * 2048  # of ours a slice at a time exists
    parts = {
        "weights": shape.gigabytes(precision, number),
        "bfloat16 copy": copied / 1e9,
        "adapter": 8 * trainable / 1e9,
        "optimizer": 8 * trainable / 1e9,
        "activations": settings.micro_tokens * kept / 1e9,
        "logits": settings.micro_tokens * logits / 1e9,
        "CUDA": 0 if on_cpu else CONTEXT,
    }
    return {name: size for name, size in parts.items() if size}
