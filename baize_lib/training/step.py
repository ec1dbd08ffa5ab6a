"""One optimiser step, and a base made ready for it: training and measuring both go through here.

    with trainee(base, settings) as student, student.computing():
        loss, lr, norm = student.step(1, num_steps, rows)

A rehearsal on a few tokens comes first, so that a base that cannot be trained is refused by name
before anything is spent.

Several processes, started by `accelerate launch`, train as one *team*: each has the whole base and
adapter, takes its share of a step's dialogues, and the gradients are added up.
"""

import contextlib
import math
import os
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from baize_lib.config import BaizeError
from baize_lib.models.base import Base
from baize_lib.models.weights import quiet, refusing
from baize_lib.training.lora import add_adapter, inner_model
from baize_lib.training.loss import Loss, backward, in_lanes, lane_tokens, lanes, loss_of
from baize_lib.training.settings import TrainingSettings
from baize_lib.training.tokens import Encoded, micro_batches

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor, device, nn
    from torch.optim import Optimizer

__all__ = ["trainee", "held_out_loss"]


# --- one process or several


@dataclass(frozen=True, slots=True)
class Team:
    """This process's number and how many there are."""

    rank: int = 0
    size: int = 1

    def batches(self, rows: Sequence[Encoded], micro_tokens: int) -> Iterator[list[Encoded]]:
        """This process's micro-batches of a step's rows; none where the others have them all."""
        return micro_batches(rows[self.rank :: self.size], micro_tokens)

    def add_up(self, tensors: Sequence["Tensor"]) -> None:
        """Replace each tensor by its sum over all processes, in one message."""
        from torch.distributed import all_reduce
        from torch.nn.utils import parameters_to_vector, vector_to_parameters

        if self.size > 1:
            flat = parameters_to_vector(tensors)
            all_reduce(flat)
            vector_to_parameters(flat, tensors)

    def total(self, number: float, device: "device") -> float:
        """The sum of every process's `number`; none goes on before all have come here."""
        import torch

        held = torch.tensor(number, dtype=torch.float64, device=device)
        self.add_up([held])
        return held.item()


def join() -> Team:
    """The team that `accelerate launch` (or torchrun) has started; one process if none did."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return Team()
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())
    return Team(state.process_index, state.num_processes)


# --- the student


@dataclass(slots=True)
class Trainee:
    """A base with a new adapter on it, ready for optimiser steps."""

    base: Base
    model: "PeftModel"
    settings: TrainingSettings
    team: Team
    compute: str  # the precision training multiplies in
    reason: str  # why that
    loss: Loss
    lanes: int  # micro-batches side by side
    weights: "list[nn.Parameter]"  # the adapter's
    optimizer: "Optimizer"
    scale: float  # how much too large gradients are computed: in float16 small ones would vanish

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """What happens inside is training: in its precision and mode, with its own random numbers.

        Out of memory, a BaizeError says so, and what filled it is let go.
        """
        import torch

        from baize_lib.training.fast_cpu import fast

        devices = range(torch.cuda.device_count())
        with _room(self.settings), torch.random.fork_rng(devices), fast(self.model, self.compute):
            self.model.train()
            yield

    def step(self, number: int, total: int, rows: Sequence[Encoded]) -> tuple[float, float, float]:
        """Step `number` of `total` on `rows`: the loss per learnt token, rate, gradient's norm.

        Where loss or gradient is no finite number a BaizeError names the rows, and the adapter is
        as it was before.
        """
        import torch

        settings, team = self.settings, self.team
        num_labels = sum(row.num_labels for row in rows)
        batches = list(team.batches(rows, lane_tokens(settings.micro_tokens, self.lanes)))
        while True:
            # so that a resumed run drops alike, and no two processes do
            torch.manual_seed((settings.seed * 1_000_003 + number) * team.size + team.rank)
            loss = backward(self.model, batches, num_labels, self.loss, self.lanes, self.scale)
            gradients = [weight.grad for weight in self.weights]
            team.add_up(gradients)
            torch._foreach_div_(gradients, self.scale)
            loss = team.total(loss, self.weights[0].device) / num_labels
            norm = torch.nn.utils.clip_grad_norm_(self.weights, settings.max_grad_norm).item()
            if math.isfinite(norm) or not math.isfinite(loss) or self.scale <= 1:
                break
            self.scale /= 4  # float16 overflowed on the way back: again, and nothing is lost
        for value, name in ((loss, "loss"), (norm, "gradient's norm")):
            if not math.isfinite(value):
                raise BaizeError(
                    f"the {name} of step {number} is {value}: look at dialogues "
                    f"{', '.join(row.id for row in rows)}, or lower lr (now {settings.lr:g})"
                )
        lr = self.optimizer.param_groups[0]["lr"] = _learning_rate(number, total, settings)
        self.optimizer.step()
        return loss, lr, norm


@contextlib.contextmanager
def trainee(base: Base, settings: TrainingSettings, team: Team | None = None) -> Iterator[Trainee]:
    """Put a new adapter on the base, and take it off at the end; the base is left as it was.

    A BaizeError names settings that cannot work, or a base that cannot be trained.
    """
    import torch

    from baize_lib.training.fast_cpu import compute_precision

    kind = base.model.device.type
    compute, reason = compute_precision(base.precision, kind, settings.compute)
    model = add_adapter(base, settings)
    try:
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=settings.lr, weight_decay=0, fused=True)
        what = f"{base.name} ({base.model.config.model_type}) cannot be trained here"
        with refusing(what, "choose another base model"):
            _refuse_unless_causal(base)
            student = Trainee(
                base, model, settings, team or Team(), compute, reason, loss_of(model),
                lanes(model, settings), weights, optimizer, 1024.0 if compute == "float16" else 1.0,
            )  # fmt: skip
            _rehearse(student)
        yield student
    finally:
        with quiet():
            model.unload()
            base.model.requires_grad_(False).eval().gradient_checkpointing_disable()


def _refuse_unless_causal(base: Base) -> None:
    """Another last token must leave the logits before it as they were, to rounding."""
    import torch

    ids = torch.arange(1, 17, device=base.model.device).repeat(2, 1)
    ids[1, -1] = 1
    with torch.no_grad():
        one, other = (base.model.eval()(input_ids=x[None], use_cache=False).logits for x in ids)
    apart = (one - other)[:, :-1].abs().max().item()
    if apart > 30 * torch.finfo(one.dtype).eps * one.abs().max().item():
        raise BaizeError(
            f"{base.name} looks at later words to predict earlier ones: choose a causal model"
        )


def _rehearse(student: Trainee) -> None:
    row = Encoded([*range(1, 17)], [*range(1, 17)], "rehearsal")
    with student.computing():
        backward(student.model, [[row]], row.num_labels, student.loss)
    if not any(weight.grad.any() for weight in student.weights):
        what = f"{student.settings.targets} of {student.base.name}"
        raise BaizeError(f"no gradient reaches the adapter on {what}: use targets='all-linear'")


def _learning_rate(number: int, total: int, settings: TrainingSettings) -> float:
    warmup = max(1, min(settings.warmup, total // 10))
    if number <= warmup:
        return settings.lr * number / warmup
    left = (total - number + 1) / (total - warmup + 1)
    falling = left if settings.schedule == "linear" else (1 - math.cos(math.pi * left)) / 2
    return settings.lr * falling


@contextlib.contextmanager
def _room(settings: TrainingSettings) -> Iterator[None]:
    import torch

    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "memory" not in str(error):
            raise
        traceback.clear_frames(error.__traceback__)  # they hold what filled the memory
        torch.cuda.empty_cache()  # does nothing where there is no GPU
        raise BaizeError(
            f"out of memory: halve micro_tokens (now {settings.micro_tokens}) or set "
            "gradient_checkpointing=True, then run again: it goes on from the last checkpoint"
        ) from None


# --- what it has learnt


def held_out_loss(
    model: "nn.Module", rows: Sequence[Encoded], micro_tokens: int = 2048, team: Team | None = None
) -> float:
    """Mean loss per learnt token over `rows`, in nats, dropout off, `micro_tokens` padded tokens at
    a time; the processes of a `team` share the rows and each gets the mean over all.
    """
    import torch

    from baize_lib.training.fast_cpu import fast

    if not rows:
        raise BaizeError("no dialogue to measure the loss on: put some into the validation set")
    team, loss = team or Team(), loss_of(model.eval())
    at_once = lanes(model)

    def measured(batch: Sequence[Encoded]) -> float:
        with torch.no_grad():  # each thread has its own
            return loss(model, batch).item()

    with fast(model):
        batches = team.batches(rows, lane_tokens(micro_tokens, at_once))
        total = sum(in_lanes(measured, batches, at_once))
    return team.total(total, inner_model(model).device) / sum(row.num_labels for row in rows)
