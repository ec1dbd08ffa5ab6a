"""From a dialogue to tokens and back: what is read, what is learnt, and what a model is asked with.

The model learns what the assistant says and the end token after it, and nothing of what the human
says; the *loss mask* tells the two apart. Training and chatting both come through here.

    "\\n[|Human|] Capital?\\n[|AI|]" -> read        " Dodoma.<|im_end|>" -> learnt
"""

import copy
import html
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
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

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

__all__ = ["encode", "prompt_ids", "save_layout", "mask_html"]

IGNORED = -100  # the label of a token that is read, not learnt


@dataclass(frozen=True, slots=True)
class Encoded:
    """One dialogue as tokens. `labels` equals `input_ids` where the loss counts, else IGNORED.

    `num_cut` is the number of turns that did not fit into the allowed length.
    """

    input_ids: list[int]
    labels: list[int]
    id: str = ""
    num_cut: int = 0

    @property
    def num_labels(self) -> int:
        return sum(label != IGNORED for label in self.labels[1:])


def encode(
    messages: Dialogue | Sequence[Message],
    tokenizer: "Tokenizer",
    max_length: int = 512,
    loss_on: str = "replies",
    language: str = "en",
    end_token: bool = True,
) -> Encoded:
    """Tokens and loss mask of one dialogue, cut to whole turns of at most `max_length` tokens.

    Each piece of `dialogue.pieces` is tokenised by itself, so the mask falls exactly between
    tokens, and a prompt's tokens are always a prefix of the tokens trained on.

    Args:
        loss_on: "replies", or "all" as in Baize v1.
        end_token: end each reply with the end token; Baize v1 did not.

    Raises:
        BaizeError: roles do not alternate, no reply, or a tokenizer without an end token.
    """
    if tokenizer.eos_token_id is None:
        raise BaizeError("the tokenizer has no end token, so replies could not learn to stop")
    if loss_on not in ("replies", "all"):
        raise BaizeError(f"loss_on={loss_on!r} is unknown: use 'replies' or 'all'")
    id = messages.id if isinstance(messages, Dialogue) else ""
    spoken = messages.messages if isinstance(messages, Dialogue) else messages
    laid_out = pieces(spoken, language=language)
    ids, labels = _start(tokenizer), [IGNORED] * len(_start(tokenizer))
    for i in range(0, len(laid_out), 2):  # a question and its reply
        parts = [_piece_ids(piece, tokenizer, end_token) for piece in laid_out[i : i + 2]]
        if len(ids) + sum(map(len, parts)) > max_length:
            return Encoded(ids, labels, id, (len(laid_out) - i) // 2)
        for piece, part in zip(laid_out[i : i + 2], parts, strict=True):
            ids += part
            labels += part if piece.learn or loss_on == "all" else [IGNORED] * len(part)
    return Encoded(ids, labels, id)


def prompt_ids(
    messages: Sequence[Message],
    tokenizer: "Tokenizer",
    language: str = "en",
    end_token: bool = True,
) -> list[int]:
    """The tokens a model is asked with: those of training, up to the open assistant tag."""
    ids = _start(tokenizer)
    for piece in pieces(messages, language=language, open_reply=True):
        ids += _piece_ids(piece, tokenizer, end_token)
    return ids


def chat_template(tokenizer: "Tokenizer", language: str = "en", end_token: bool = True) -> str:
    """The layout as a Jinja template, for engines that ask a model through its chat template.

    `apply_chat_template` then gives what `dialogue.render` gives, and `prompt_ids` token for token.
    """
    words = {
        "header": HEADER[check_language(language)], "human": f"\n{HUMAN_TAG} ", "ai": f"\n{AI_TAG}",
        "begin": tokenizer.bos_token if _start(tokenizer) else "",
        "end": tokenizer.eos_token if end_token else "",
        "refusal": "roles must alternate, starting with the user",
    }  # fmt: skip
    text = Path(__file__).with_name("layout.jinja").read_text(encoding="utf-8")
    sets = (f"{{%- set {k} = {json.dumps(v, ensure_ascii=False)} -%}}" for k, v in words.items())
    return "".join(sets) + re.sub(r"\n\s*", "", text)


def save_layout(
    folder: Path | str, tokenizer: "Tokenizer", language: str = "en", end_token: bool = True
) -> None:
    """Write into an adapter's or a model's folder what makes other programs ask in our layout.

    That is the tokenizer with the chat template, and a generation config in which the end token
    and the tags end a reply (for the tags, `generate` needs `tokenizer=`).
    """
    from transformers import GenerationConfig

    speaking = copy.deepcopy(tokenizer)
    speaking.chat_template = chat_template(tokenizer, language, end_token)
    speaking.save_pretrained(folder)
    GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id, stop_strings=[HUMAN_TAG, AI_TAG], max_new_tokens=256,
    ).save_pretrained(folder)  # fmt: skip


def _start(tokenizer: "Tokenizer") -> list[int]:
    """The begin token, for tokenizers that put one (LLaMA's do)."""
    return [t for t in tokenizer("").input_ids if t == tokenizer.bos_token_id]


def _piece_ids(piece: Piece, tokenizer: "Tokenizer", end_token: bool) -> list[int]:
    ids = _text_ids(piece.text, tokenizer)
    return [*ids, tokenizer.eos_token_id] if piece.learn and end_token else ids


def _text_ids(text: str, tokenizer: "Tokenizer") -> list[int]:
    """The tokens of a text, in which an "</s>" that somebody typed stays text: only we put tokens
    that mean something. Some tokenizers know "</s>" as a word too; it is spelt out for them.
    """
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
    added = tokenizer.added_tokens_decoder
    special = {*tokenizer.all_special_ids, *(id for id in added if added[id].special)}
    special.discard(tokenizer.unk_token_id)
    if special.isdisjoint(ids):
        return ids
    words = {id: list(tokenizer.convert_ids_to_tokens(id)) for id in special}
    spelt = {id: tokenizer.convert_tokens_to_ids(letters) for id, letters in words.items()}
    return [part for id in ids for part in spelt.get(id, [id])]


def mask_html(encoded: Encoded, tokenizer: "Tokenizer") -> str:
    """The dialogue as HTML: what is learnt on orange with a solid line, the rest on blue."""
    spans, ids = [], encoded.input_ids
    learnt = [label != IGNORED for label in encoded.labels]
    edges = [i for i in range(len(ids)) if i == 0 or learnt[i] != learnt[i - 1]]
    for start, end in zip(edges, [*edges[1:], len(ids)], strict=True):
        colour, line = ("#D55E00", "solid") if learnt[start] else ("#0072B2", "dotted")
        style = f"background:{colour}33;border-bottom:2px {line} {colour}"
        spans.append(
            f'<span style="{style}">{html.escape(tokenizer.decode(ids[start:end]))}</span>'
        )
    return f'<pre style="white-space:pre-wrap;line-height:1.7">{"".join(spans)}</pre>'
