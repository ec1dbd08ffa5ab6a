"""From dialogues to tokens: what is read, what is learnt, and what a model is asked with.

The model learns what the assistant says and the end token after it, and nothing of what the human
says; the *loss mask* tells the two apart. Training and chatting both come through here.

    "\\n[|Human|] Capital?\\n[|AI|]" -> read        " Dodoma.<|im_end|>" -> learnt

    rows, counts = encode_all(dialogues, tokenizer, settings)
    for step in epoch_steps(rows, settings, epoch=0):
        for batch in micro_batches(step, settings.micro_tokens): ...
"""

import copy
import html
import itertools
import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from baize_lib.config import BaizeError
from baize_lib.dialogue import (
    AI_TAG,
    HEADER,
    HUMAN_TAG,
    Dialogue,
    Message,
    Piece,
    check_language,
    pieces,
)  # fmt: skip
from baize_lib.training.settings import TrainingSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

__all__ = ["encode", "encode_all", "prompt_ids", "save_layout", "mask_html"]

IGNORED = -100  # the label of a token that is read, not learnt
_USUAL = TrainingSettings()


@dataclass(frozen=True, slots=True)
class Encoded:
    """One dialogue as tokens."""

    input_ids: list[int]
    labels: list[int]  # as input_ids where the loss counts, else IGNORED
    id: str = ""
    num_cut: int = 0  # turns that did not fit into the allowed length

    @property
    def num_labels(self) -> int:
        return sum(label != IGNORED for label in self.labels[1:])


def encode(
    said: Dialogue | Sequence[Message], tokenizer: "Tokenizer", settings: TrainingSettings = _USUAL
) -> Encoded:
    """Tokens and loss mask of one dialogue, cut to whole turns of at most `max_length` tokens.

    Each piece of `dialogue.pieces` is tokenised by itself, so the mask falls exactly between
    tokens, and a prompt's tokens are always a prefix of the tokens trained on. A BaizeError where
    roles do not alternate or a reply is missing.
    """
    loss_on, language = settings.loss_on, settings.language
    if tokenizer.eos_token_id is None:
        raise BaizeError("the tokenizer has no end token, so replies could not learn to stop")
    if loss_on not in ("replies", "all"):
        raise BaizeError(f"loss_on={loss_on!r} is unknown: use 'replies' or 'all'")
    id, spoken = getattr(said, "id", ""), getattr(said, "messages", said)
    laid_out, ids = pieces(spoken, language=language), _start(tokenizer)
    labels = [IGNORED] * len(ids)
    for i in range(0, len(laid_out), 2):  # a question and its reply
        parts = [_piece_ids(piece, tokenizer, settings.end_token) for piece in laid_out[i : i + 2]]
        if len(ids) + sum(map(len, parts)) > settings.max_length:
            return Encoded(ids, labels, id, (len(laid_out) - i) // 2)
        for piece, part in zip(laid_out[i : i + 2], parts, strict=True):
            ids += part
            labels += part if piece.learn or loss_on == "all" else [IGNORED] * len(part)
    return Encoded(ids, labels, id)


def encode_all(
    dialogues: Sequence[Dialogue], tokenizer: "Tokenizer", settings: TrainingSettings
) -> tuple[list[Encoded], Counter[str]]:
    """A corpus as rows, and counts of dialogues dropped or cut, by reason; a malformed one is named
    in a BaizeError.
    """
    rows, reasons = [], Counter()
    for number, dialogue in enumerate(dialogues, start=1):
        name = dialogue.id or str(number)
        try:
            row = encode(dialogue, tokenizer, settings)
        except BaizeError as error:
            raise BaizeError(f"dialogue {name}: {error}") from error
        if not row.num_labels:
            reasons[f"dropped: first turn longer than {settings.max_length} tokens"] += 1
            continue
        reasons["cut at a turn"] += row.num_cut > 0
        rows.append(replace(row, id=name))
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


def prompt_ids(
    said: Sequence[Message], tokenizer: "Tokenizer", language: str = "en", end_token: bool = True
) -> list[int]:
    """The tokens a model is asked with: those of training, up to the open assistant tag."""
    ids = _start(tokenizer)
    for piece in pieces(said, language=language, open_reply=True):
        ids += _piece_ids(piece, tokenizer, end_token)
    return ids


def _start(tokenizer: "Tokenizer") -> list[int]:
    """The begin token, for tokenizers that put one (LLaMA's do)."""
    return [t for t in tokenizer("").input_ids if t == tokenizer.bos_token_id]


def _piece_ids(piece: Piece, tokenizer: "Tokenizer", end_token: bool) -> list[int]:
    """The tokens of a piece, in which an "</s>" that somebody typed stays text: only we put tokens
    that mean something. Some tokenizers know "</s>" as a word too; it is spelt out for them.
    """
    ids = tokenizer(piece.text, add_special_tokens=False, split_special_tokens=True).input_ids
    added = tokenizer.added_tokens_decoder
    special = {*tokenizer.all_special_ids, *(id for id in added if added[id].special)}
    for id in {*ids} & special - {tokenizer.unk_token_id}:
        letters = tokenizer.convert_tokens_to_ids([*tokenizer.convert_ids_to_tokens(id)])
        ids = [part for i in ids for part in (letters if i == id else [i])]
    return [*ids, tokenizer.eos_token_id] if piece.learn and end_token else ids


# --- the same layout for other programs, and for the eye


def chat_template(tokenizer: "Tokenizer", language: str = "en", end_token: bool = True) -> str:
    """The layout as a Jinja template, for engines that ask a model through its chat template.

    `apply_chat_template` then gives what `dialogue.render` gives, and `prompt_ids` token for token.
    """
    words = {"header": HEADER[check_language(language)], "human": HUMAN_TAG, "ai": AI_TAG}
    words["begin"] = tokenizer.bos_token if _start(tokenizer) else ""
    words["end"] = tokenizer.eos_token if end_token else ""
    text = Path(__file__).with_name("layout.jinja").read_text(encoding="utf-8")
    sets = (f"{{%- set {k} = {json.dumps(v, ensure_ascii=False)} -%}}" for k, v in words.items())
    return "".join(sets) + re.sub(r"\n\s*", "", text)


def save_layout(
    folder: Path | str, tokenizer: "Tokenizer", language: str = "en", end_token: bool = True
) -> None:
    """Write into a model's folder what makes other programs ask in our layout: the tokenizer with
    the chat template, and a generation config in which the end token and the tags end a reply (for
    the tags, `generate` needs `tokenizer=`).
    """
    from transformers import GenerationConfig

    speaking = copy.deepcopy(tokenizer)
    speaking.chat_template = chat_template(tokenizer, language, end_token)
    speaking.save_pretrained(folder)
    GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id, stop_strings=[HUMAN_TAG, AI_TAG], max_new_tokens=256,
    ).save_pretrained(folder)  # fmt: skip


def mask_html(encoded: Encoded, tokenizer: "Tokenizer") -> str:
    """The dialogue as HTML: what is learnt on orange with a solid line, the rest on blue."""
    spans, ids = [], encoded.input_ids
    learnt = [label != IGNORED for label in encoded.labels]
    for is_learnt, group in itertools.groupby(range(len(ids)), learnt.__getitem__):
        colour, line = ("#D55E00", "solid") if is_learnt else ("#0072B2", "dotted")
        style = f"background:{colour}33;border-bottom:2px {line} {colour}"
        text = html.escape(tokenizer.decode([ids[i] for i in group]))
        spans.append(f'<span style="{style}">{text}</span>')
    return f'<pre style="white-space:pre-wrap;line-height:1.7">{"".join(spans)}</pre>'
