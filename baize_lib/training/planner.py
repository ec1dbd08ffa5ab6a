"""What a training run would take on a machine you do not have: memory, hours, dollars.

Everything here is an estimate and says so. LoRA takes 4 floating-point operations a parameter and
token: 2 forward, 2 to carry the gradient back through frozen weights (full training takes 6, for it
also computes the weights' own gradients; Kaplan et al. 2020, section 2.1). Recomputing activations
adds 2. Twenty measured steps replace the assumption about the device:

    print(plan("7B", Corpus(50_000, 450), "A100-80"))
    measured = measure(base, rows, settings)
    print(plan(base, corpus_of(rows, settings), this_machine(), settings, measured=measured))
"""

import contextlib
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from baize_lib.config import BaizeError
from baize_lib.models.base import Base, compute_precision, computing_in
from baize_lib.models.shapes import BYTES_PER_WEIGHT, Shape, trainable_parameters
from baize_lib.models.weights import quiet
from baize_lib.training.batches import epoch_steps, micro_batches
from baize_lib.training.fast_cpu import lean
from baize_lib.training.fit import add_adapter
from baize_lib.training.loss import SLICE, backward, lane_tokens, lanes
from baize_lib.training.settings import TrainingSettings, preset_of
from baize_lib.training.tokens import Encoded

__all__ = [
    "Device",
    "DEVICES",
    "this_machine",
    "Corpus",
    "corpus_of",
    "Measured",
    "measure",
    "Plan",
    "plan",
    "ARTICLE_RUNS",
]


@dataclass(frozen=True, slots=True)
class Device:
    """A machine: memory in GB, peak TFLOP/s in the precision it trains in, USD an hour when rented.

    Cards: dense bfloat16, or float32 for one without it (`bfloat16` False). None means unknown.
    `source` is of the peak, `rent` of the price.
    """

    name: str
    memory: float | None
    tflops: float | None
    usd_per_hour: float | None
    source: str
    rent: str = ""
    bfloat16: bool = True


# Rents were looked up in 2026 and rounded; providers differ by a factor of four, so `plan` takes
# yours. The peaks are NVIDIA's own, read in tables that quote its sheets.
_CARDS = (
    Device(
        "T4", 16, 8.1, 0.35, "NVIDIA's figure for float32: it has no bfloat16",
        "0.38 for a Google VM with one, in a course's set-up guide; 0.20 at Matpool", False,
    ),
    Device(
        "L4", 24, 121, 0.45, "NVIDIA's 242 with sparsity, half of it dense", "0.44 at Jarvislabs"
    ),
    Device(
        "RTX 4090", 24, 165, 0.35, "NVIDIA's figure with float32 accumulate",
        "0.29 at OpenRelay, 0.34 at RunPod",
    ),
    Device(
        "A100-40", 40, 312, 1.00, "NVIDIA A100 datasheet",
        "0.80 at OpenRelay, 1.00 at RunPod, 1.99 at Lambda, 2.74 at AWS",
    ),
    Device(
        "A100-80", 80, 312, 1.50, "NVIDIA A100 datasheet",
        "1.39 to 1.79 at RunPod, 1.71 at Akash, 3.43 at AWS",
    ),
    Device(
        "H100", 80, 989, 3.00, "NVIDIA H100 SXM datasheet: half of 1,979 with sparsity",
        "2.60 at OpenRelay, 2.69 to 3.99 at RunPod, 6.88 at AWS",
    ),
)  # fmt: skip
DEVICES = {device.name: device for device in _CARDS}
UTILISATION = 0.4  # share of the peak a well-fed LoRA run reaches; an assumption, measure yours

ARTICLE_RUNS = {  # published: hours and GB on one A100-80, int8 base, every row padded to 512
    "7B": {"hours": 9, "gigabytes": 26},
    "13B": {"hours": 16, "gigabytes": 25},
    "30B": {"hours": 36, "gigabytes": 42},
}


@dataclass(frozen=True, slots=True)
class Corpus:
    """How much there is to train on, all epochs together: rows and their mean length in tokens.

    `padding` is the share of computed tokens that would be padding, in [0, 1).
    """

    num_rows: int
    mean_tokens: float
    padding: float = 0.0

    @property
    def num_tokens(self) -> int:
        return round(self.num_rows * self.mean_tokens)

    @property
    def padding_to_512(self) -> float:
        """The same share with every row padded to 512 tokens, as Baize was trained."""
        return max(0.0, 1 - self.mean_tokens / 512)


def corpus_of(rows: Sequence[Encoded], settings: TrainingSettings) -> Corpus:
    """The size of an encoded corpus over all epochs, with the padding its batches will have.

    Raises:
        BaizeError: there are no rows.
    """
    if not rows:
        raise BaizeError("no dialogue to plan for: collect some, or give a Corpus of their size")
    real = sum(len(row.input_ids) for row in rows)
    batches = [batch for step in epoch_steps(rows, settings, 0) for batch in step]
    computed = sum(len(batch) * max(len(row.input_ids) for row in batch) for batch in batches)
    return Corpus(settings.num_epochs * len(rows), real / len(rows), 1 - real / computed)


# --- measuring


def this_machine(compute: str = "auto") -> Device:
    """The machine this runs on. A CPU's peak is what its own matrix products reach in what training
    multiplies in (`TrainingSettings.compute`), measured in a second; a GPU's is its data sheet's, or None
    for a card that is not in `DEVICES`.
    """
    import psutil
    import torch

    if not torch.cuda.is_available():
        precision, _ = compute_precision("float32", "cpu", compute)
        rate = statistics.median(_product_rate(precision) for _ in range(5)) / 1e12
        memory = psutil.virtual_memory().total / 1e9
        source = f"{precision} matrix products, measured just now"
        return Device(_CPU, memory, rate, 0, source, "your own machine", bfloat16=False)
    about = torch.cuda.get_device_properties(0)
    key = next((k for k in DEVICES if k.split("-")[0] in about.name), None)
    tflops = DEVICES[key].tflops if key else None
    source = DEVICES[key].source if key else "no data sheet for this card here"
    bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return Device(_device_name(), about.total_memory / 1e9, tflops, None, source, bfloat16=bfloat16)


def _device_name() -> str:
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else _CPU


_CPU = "this CPU"


def _product_rate(precision: str) -> float:
    import torch

    dtype = getattr(torch, precision)
    x, w = torch.randn(1024, 576, dtype=dtype), torch.randn(1536, 576, dtype=dtype)
    x @ w.T
    begun = time.perf_counter()
    for _ in range(20):
        x @ w.T
    return 20 * 2 * x.numel() * len(w) / (time.perf_counter() - begun)


@dataclass(frozen=True, slots=True)
class Measured:
    """What some steps of real training took: real tokens/s, and GB used on top of the weights.

    `device` is the name of the machine it was measured on.
    """

    tokens_per_second: float
    gigabytes: float
    num_steps: int
    shape: Shape
    checkpointing: bool
    device: str

    @property
    def operations_per_second(self) -> float:
        per_token = (6 if self.checkpointing else 4) * self.shape.num_parameters
        return per_token * self.tokens_per_second

    def share_of_peak(self, device: Device) -> float | None:
        """The share of the device's peak it reached, None where the peak is unknown."""
        return self.operations_per_second / (device.tflops * 1e12) if device.tflops else None


def measure(
    base: Base, rows: Sequence[Encoded], settings: TrainingSettings, num_steps: int = 20
) -> Measured:
    """Train a throwaway adapter for `num_steps` optimiser steps; nothing is kept of it.

    The first step is left out of the rate: it pays for memory and threads.
    """
    import torch

    model = add_adapter(base, settings)
    try:
        weights = [p for p in model.parameters() if p.requires_grad]
        kind, at_once = base.model.device.type, lanes(model, settings)
        compute, _ = compute_precision(base.precision, kind, settings.compute)
        with (
            _peak_memory() as peak,
            computing_in(model, compute),
            lean(model),
            torch.random.fork_rng(),
        ):
            optimizer = torch.optim.AdamW(weights, lr=settings.lr)
            model.train()
            tokens, begun = 0, time.perf_counter()
            for number, step in enumerate(_endless(rows, settings)):
                step_rows = [row for batch in step for row in batch]
                batches = micro_batches(step_rows, lane_tokens(settings.micro_tokens, at_once))
                backward(model, batches, sum(row.num_labels for row in step_rows), at_once)
                optimizer.step()
                optimizer.zero_grad()
                if number == 0:
                    begun = time.perf_counter()
                else:
                    tokens += sum(len(row.input_ids) for row in step_rows)
                if number == num_steps:
                    break
            seconds = time.perf_counter() - begun
    finally:
        with quiet():
            model.unload()
            base.model.requires_grad_(False).eval().gradient_checkpointing_disable()
    shape = Shape.of(base.model.config)
    return Measured(
        tokens / seconds, peak["gigabytes"], num_steps, shape, settings.gradient_checkpointing,
        _device_name(),
    )  # fmt: skip


def _endless(rows: Sequence[Encoded], settings: TrainingSettings) -> Iterator[list[list[Encoded]]]:
    epoch = 0
    while True:
        yield from epoch_steps(rows, settings, epoch)
        epoch += 1


@contextlib.contextmanager
def _peak_memory() -> Iterator[dict[str, float]]:
    """GB that were used at once inside the `with`, beyond those used before it."""
    import psutil
    import torch

    found = {"gigabytes": 0.0}
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield found
        found["gigabytes"] = (torch.cuda.max_memory_allocated() - before) / 1e9
        return
    process, done = psutil.Process(), threading.Event()
    before = process.memory_info().rss

    def watch() -> None:
        while not done.wait(0.01):
            used = (process.memory_info().rss - before) / 1e9
            found["gigabytes"] = max(found["gigabytes"], used)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield found
    finally:
        done.set()
        watcher.join()


# --- planning


@dataclass(frozen=True, slots=True)
class Plan:
    """An estimate. None means unknown; `memory` is in GB by part; `basis` says what it rests on."""

    device: str
    precision: str
    num_parameters: int
    num_trainable: int
    corpus: Corpus
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
        parts = ", ".join(f"{name} {size:.2f}" for name, size in self.memory.items())
        fits = {True: "fits", False: "does not fit", None: "unknown whether it fits"}[self.fits]
        corpus = self.corpus
        lines = [
            f"{self.num_parameters / 1e9:.2f} billion parameters in {self.precision}, "
            f"{self.num_trainable / 1e6:.1f} million trained, on {self.device} (all estimates)",
            f"memory  {self.gigabytes:.1f} GB: {fits} ({parts})",
            f"time    {_time(self.hours)} for {corpus.num_tokens:,} tokens at "
            f"{_shown(self.tokens_per_second, 'tokens/s', 0)}",
            f"        ({self.basis})",
            f"        {_time(self.hours_padded)} with every row padded to 512 "
            f"({corpus.padding_to_512:.0%} padding)",
        ]
        return "\n".join([*lines, f"cost    {_shown(self.usd, 'USD', 2)}"])


def plan(
    base: Base | Shape | str,
    corpus: Corpus,
    device: Device | str,
    settings: TrainingSettings | None = None,
    *,
    precision: str | None = None,
    measured: Measured | None = None,
    usd_per_hour: float | None = None,
) -> Plan:
    """Estimate one training run.

    Args:
        base: a loaded base, a Shape, or the name of a preset, which brings its settings along.
        device: a Device, or a key of `DEVICES`; of any other name what is not known stays unknown.
        settings: rank, targets, micro-batch and checkpointing; default the preset's, or ours.
        precision: of the frozen weights; default the loaded base's, else bfloat16, or float32 where
            the device has no bfloat16.
        measured: steps measured on this very device, of this base or another: their share of the
            device's peak replaces the assumed one.
        usd_per_hour: your price, to replace the one in `DEVICES`.

    Raises:
        BaizeError: an unknown preset or precision, or steps measured on another device.
    """
    if isinstance(device, str):
        device = DEVICES.get(device) or Device(device, None, None, None, "")
    usual = "bfloat16" if device.bfloat16 else "float32"
    shape, settings, precision = _base(base, settings, precision, usual)
    trainable = trainable_parameters(shape, settings.rank, settings.targets)
    memory = _memory(shape, trainable, precision, settings, device, corpus.mean_tokens)
    rate, basis = _rate(shape, device, settings, measured)
    if precision in ("int8", "nf4") and not measured:
        basis += f"; unpacking {precision} takes longer, how much is not known here"
    if rate:
        rate *= 1 if measured else 1 - corpus.padding
    price = usd_per_hour if usd_per_hour is not None else device.usd_per_hour
    hours = corpus.num_tokens / rate / 3600 if rate else None
    padded = None
    if hours:
        padded = hours * (1 - corpus.padding) / (1 - corpus.padding_to_512)
    return Plan(
        device.name, precision, shape.num_parameters, trainable, corpus, memory,
        sum(memory.values()) < 0.94 * device.memory if device.memory else None, rate, hours,
        hours * price if hours is not None and price is not None else None, padded, basis,
    )  # fmt: skip


def _base(
    base: Base | Shape | str, settings: TrainingSettings | None, precision: str | None, usual: str
) -> tuple[Shape, TrainingSettings, str]:
    if isinstance(base, str):
        preset = preset_of(base)
        shape, settings = preset.shape, settings or preset.settings
    elif isinstance(base, Shape):
        shape = base
    else:
        shape, precision = Shape.of(base.model.config), precision or base.precision
    precision = precision or usual
    if precision not in BYTES_PER_WEIGHT:
        raise BaizeError(
            f"precision {precision!r} is unknown: use one of {', '.join(BYTES_PER_WEIGHT)}"
        )
    return shape, settings or TrainingSettings(), precision


def _rate(
    shape: Shape, device: Device, settings: TrainingSettings, measured: Measured | None
) -> tuple[float | None, str]:
    operations = (6 if settings.gradient_checkpointing else 4) * shape.num_parameters
    if measured:
        if measured.device != device.name:
            raise BaizeError(
                f"these steps were measured on {measured.device} and the plan is for "
                f"{device.name}: measure there, or plan without `measured`"
            )
        share = measured.share_of_peak(device)
        share = f", {share:.0%} of the peak ({device.source})" if share else ""
        basis = f"{measured.num_steps} steps measured on {device.name}{share}"
        return measured.operations_per_second / operations, basis
    if not device.tflops:
        return None, "no measured rate and no data sheet for this device"
    rate = UTILISATION * device.tflops * 1e12 / operations
    return rate, f"assuming {UTILISATION:.0%} of {device.tflops:.3g} TFLOP/s ({device.source})"


def _memory(
    shape: Shape,
    trainable: int,
    precision: str,
    settings: TrainingSettings,
    device: Device,
    length: float,
) -> dict[str, float]:
    """GB by part. A LoRA weight takes 16 bytes in all: itself, its gradient, Adam's two moments.

    What a layer keeps for backward was counted in the operations it runs; `length` is of a row.
    """
    compute = precision
    if precision in ("int8", "nf4"):
        compute = "bfloat16" if device.bfloat16 else "float32"
    elif device.name == _CPU:
        compute, _ = compute_precision(precision, "cpu", settings.compute)
    number = 4 if compute == "float32" else 2  # bytes of an activation
    width, inner = shape.hidden_size, shape.intermediate_size
    shared = width // shape.num_heads * shape.num_kv_heads  # width of the keys, and of the values
    layer = number * (6 * width + 2 * shared + 3 * inner)
    if device.name == _CPU:
        layer += round(number * shape.num_heads * (length + 128) / 2)  # `attention`'s probabilities
    if settings.dropout:
        layer += 3 * width + inner  # masks, a byte an entry
    kept = shape.num_layers * layer
    if settings.gradient_checkpointing:
        kept = shape.num_layers * number * width + layer
    embeddings = (1 if shape.tied else 2) * shape.vocab_size * width
    full = 4 if "float32" in (precision, compute) else 2  # embeddings and head: never quantised
    weights = (shape.num_parameters - embeddings) * BYTES_PER_WEIGHT[precision] + embeddings * full
    copied = 2 * shape.num_parameters if (precision, compute) == ("float32", "bfloat16") else 0
    slices = settings.micro_tokens * SLICE  # of the vocabulary, one at a time
    return {
        "weights": weights / 1e9,
        **({"bfloat16 copy": copied / 1e9} if copied else {}),
        "adapter": 8 * trainable / 1e9,
        "optimizer": 8 * trainable / 1e9,
        "activations": settings.micro_tokens * kept / 1e9,
        "logits": slices * (4 if number == 4 else 6) / 1e9,
    }


def _shown(value: float | None, unit: str, digits: int = 1) -> str:
    return "unknown" if value is None else f"{value:,.{digits}f} {unit}"


def _time(hours: float | None) -> str:
    if hours is not None and hours < 1:
        return f"{60 * hours:.1f} minutes"
    return _shown(hours, "h")
