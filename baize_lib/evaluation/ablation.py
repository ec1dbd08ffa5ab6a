"""What one choice buys: training runs that differ in one setting, measured by one yardstick.

An *ablation* changes one thing and leaves the rest. To compare its arms, all of them must be asked
for the same tokens, and a difference must be larger than what another seed alone would do:

    held_out(base, folder, validation, settings)    # HeldOut(replies=…, words=…, end=…)
    usual_range([1.02, 1.05, 1.03])                 # where a fourth seed would fall

>>> usual_range([1.0, 1.0])
(1.0, 1.0)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev

from baize_lib.config import BaizeError
from baize_lib.dialogue import Dialogue
from baize_lib.models.base import Base
from baize_lib.training.batches import encode_all
from baize_lib.training.lora import attach, select
from baize_lib.training.loss import held_out_loss
from baize_lib.training.settings import TrainingSettings
from baize_lib.training.tokens import IGNORED, Encoded

__all__ = [
    "HeldOut",
    "held_out",
    "usual_range",
]


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Mean losses on held-out replies, in nats a token.

    Attributes:
        replies: words and end tokens, laid out with end tokens whatever the arm was trained on.
        words: the words alone, laid out as the arm was trained: the same words for every arm.
        end: the end tokens alone; exp(-end) is the (geometric) mean chance of stopping there.
    """

    replies: float
    words: float
    end: float


def held_out(
    base: Base,
    adapter: Path | str | None,
    validation: Sequence[Dialogue],
    settings: TrainingSettings,
) -> HeldOut:
    """Measure an adapter, or with None the base itself, on the replies of `validation`.

    Args:
        settings: the arm's own. `end_token` tells its layout; `max_length` should be the same for
            all arms, so that all are asked for the same tokens.

    Raises:
        BaizeError: no dialogue to measure on, or an adapter that does not fit the base.
    """
    asked = replace(settings, loss_on="replies", end_token=True)
    rows, _ = encode_all(validation, base.tokenizer, asked)
    end = base.tokenizer.eos_token_id
    words = [_learn(row, [label != end for label in row.labels]) for row in rows]
    ends = [_learn(row, [label == end for label in row.labels]) for row in rows]
    select(base, attach(base, adapter) if adapter else None)
    try:
        on_words, on_ends = held_out_loss(base.model, words), held_out_loss(base.model, ends)
        num_words, num_ends = (sum(row.num_labels for row in part) for part in (words, ends))
        total = on_words * num_words + on_ends * num_ends
        if not settings.end_token:
            on_words = held_out_loss(base.model, [_without(row, end) for row in words])
    finally:
        select(base, None)
    return HeldOut(total / (num_words + num_ends), on_words, on_ends)


def _learn(row: Encoded, wanted: Sequence[bool]) -> Encoded:
    labels = [label if keep else IGNORED for label, keep in zip(row.labels, wanted, strict=True)]
    return replace(row, labels=labels)


def _without(row: Encoded, token: int) -> Encoded:
    """The row as it would be had no reply an end token; typed ones are other tokens."""
    kept = [i for i, id in enumerate(row.input_ids) if id != token]
    ids, labels = ([part[i] for i in kept] for part in (row.input_ids, row.labels))
    return replace(row, input_ids=ids, labels=labels)


# Student's t, 97.5%, for 1 to 9 degrees of freedom
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def usual_range(values: Sequence[float]) -> tuple[float, float]:
    """Where one more value of the same kind would fall 19 times out of 20: (low, high).

    The prediction interval of a normal distribution, mean ± t s sqrt(1 + 1/n). With few values it
    is wide, and should be: two or three seeds say little about a fourth.

    Raises:
        BaizeError: fewer than two values.
    """
    if len(values) < 2:
        raise BaizeError(f"{len(values)} value shows no spread: train with at least two seeds")
    t = _T[min(len(values) - 1, len(_T)) - 1]
    half = t * stdev(values) * math.sqrt(1 + 1 / len(values))
    return fmean(values) - half, fmean(values) + half
