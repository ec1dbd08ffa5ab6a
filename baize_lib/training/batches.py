"""From a corpus to the batches of a training run.

A step's dialogues are shuffled, yet alike in length, so that little of what is computed is padding.
What a *micro-batch* holds changes speed and memory and nothing else.

    rows, counts = encode_all(dialogues, tokenizer, settings)
    for rows_of_step in epoch_steps(rows, settings, epoch=0):
        for micro_batch in micro_batches(rows_of_step, settings.micro_tokens): ...
"""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from baize_lib.config import BaizeError
from baize_lib.dialogue import Dialogue
from baize_lib.training.settings import TrainingSettings
from baize_lib.training.tokens import Encoded, encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["encode_all"]


def encode_all(
    dialogues: Sequence[Dialogue], tokenizer: "PreTrainedTokenizerBase", settings: TrainingSettings
) -> tuple[list[Encoded], Counter[str]]:
    """Encode a corpus. Returns the rows, and counts of dialogues dropped or cut, by reason.

    Raises:
        BaizeError: a dialogue is malformed; it is named.
    """
    rows, reasons = [], Counter()
    chosen = (settings.max_length, settings.loss_on, settings.language, settings.end_token)
    for number, dialogue in enumerate(dialogues, start=1):
        try:
            row = encode(dialogue, tokenizer, *chosen)
        except BaizeError as error:
            name = getattr(dialogue, "id", "") or number
            raise BaizeError(f"dialogue {name}: {error}") from error
        if not row.num_labels:
            reasons[f"dropped: first turn longer than {settings.max_length} tokens"] += 1
            continue
        reasons["cut at a turn"] += row.num_cut > 0
        rows.append(replace(row, id=row.id or str(number)))
    return rows, +reasons


def epoch_steps(
    rows: Sequence[Encoded], settings: TrainingSettings, epoch: int
) -> list[list[Encoded]]:
    """One epoch: the rows of each optimiser step, shuffled, yet alike in length."""
    shuffled = list(rows)
    random.Random(f"{settings.seed} {epoch}").shuffle(shuffled)
    window, size = 16 * settings.batch_size, settings.batch_size
    steps = []
    for start in range(0, len(shuffled), window):
        near = sorted(shuffled[start : start + window], key=lambda row: len(row.input_ids))
        steps += [near[i : i + size] for i in range(0, len(near), size)]
    random.Random(f"{settings.seed} {epoch} steps").shuffle(steps)
    return steps


def micro_batches(rows: Sequence[Encoded], micro_tokens: int) -> Iterator[list[Encoded]]:
    """Rows in parts of at most `micro_tokens` padded tokens (or one row), shortest first."""
    batch: list[Encoded] = []
    for row in sorted(rows, key=lambda row: len(row.input_ids)):
        if batch and len(row.input_ids) * (len(batch) + 1) > micro_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
