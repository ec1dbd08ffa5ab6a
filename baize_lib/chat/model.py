"""Talk to a base model and its adapters, which share one copy of the weights.

The prompt is laid out by the function that laid out the training data. A reply stops at the end
token, or where the model begins to speak for somebody else, or at the length you allow:

    chat = ChatModel(load_base(), {"tuned": run.adapter_dir})
    chat.reply([Message("user", "What is the capital of Tanzania?")], model="tuned").stopped_by
    -> "end"
"""

import contextlib
import functools
import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baize_lib.config import BaizeError
from baize_lib.dialogue import AI_TAG, HUMAN_TAG, Message
from baize_lib.models.base import Base
from baize_lib.training.lora import attach, read_card, select
from baize_lib.training.tokens import prompt_ids

__all__ = [
    "Answer",
    "ChatModel",
]


OWN_LAYOUT = "own layout"


@dataclass(frozen=True, slots=True)
class Answer:
    """One reply. `stopped_by` is "end" (the end token), "tag" (it began to speak for somebody
    else; the tag is cut off) or "length". `num_tokens` counts all it wrote, end token included.
    """

    text: str
    stopped_by: str
    num_tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        return self.num_tokens / self.seconds if self.seconds else 0.0


class ChatModel:
    """A base model and adapters by name; `model="base"` and `"own layout"` are always there.

    "base" is the base model in Baize's layout, "own layout" the same weights spoken to through the
    chat template they were tuned with.

    Args:
        base: from `models.load_base`.
        adapters: adapter folders by name, for example `{"tuned": run.adapter_dir}`.
        context: tokens of prompt and reply together; default the model's own limit.

    Raises:
        BaizeError: an adapter is missing, or was trained on another base or template.
    """

    def __init__(
        self,
        base: Base,
        adapters: Mapping[str, Path | str] | None = None,
        context: int | None = None,
    ) -> None:
        self.base, self.adapters = base, dict(adapters or {})
        self.context = context or base.model.config.max_position_embeddings
        for folder in self.adapters.values():
            attach(base, folder)
        select(base, None)

    def reply(self, messages: Sequence[Message], model: str = "base", **sampling: Any) -> Answer:
        """Answer the last message.

        Args:
            messages: alternating, the user's last; the oldest turns are left out to fit.
            model: "base", "own layout" or the name of an adapter.
            sampling: as in `reply_batch`.
        """
        return self.reply_batch([messages], model, **sampling)[0]

    def stream(
        self, messages: Sequence[Message], model: str = "base", **sampling: Any
    ) -> Iterator[str]:
        """Yield the reply in parts as they are settled; together they are `reply(...).text`."""
        said = ""
        for writers in self._write([messages], model, **sampling):
            text = writers[0].settled()
            if len(text) > len(said):
                yield text[len(said) :]
                said = text

    def reply_batch(
        self, conversations: Sequence[Sequence[Message]], model: str = "base", **sampling: Any
    ) -> list[Answer]:
        """Answer several conversations at once; greedy replies equal those given one by one.

        Args:
            sampling: max_tokens=256; temperature=1.0 (0 takes the likeliest token); top_p=0.95;
                seed=None (an integer makes the replies repeatable, each prompt on its own);
                language=None (the adapter's, else "en").

        Raises:
            BaizeError: unknown model, roles that do not alternate, a question beyond the context.
        """
        answers = []
        for start in range(0, len(conversations), 16):
            part = conversations[start : start + 16]
            *_, writers = self._write(part, model, **sampling)
            answers += [writer.answer() for writer in writers]
        return answers

    def _write(
        self,
        conversations: Sequence[Sequence[Message]],
        model: str,
        max_tokens: int = 256,
        temperature: float = 1.0,
        top_p: float = 0.95,
        seed: int | None = None,
        language: str | None = None,
    ) -> Iterator[list["_Writer"]]:
        """Yield all writers after each token that the unfinished ones wrote."""
        import torch

        adapter, layout = self._adapter(model), self._layout(model)
        if layout:
            layout["language"] = language or layout["language"]
        prompts = [self._prompt(messages, max_tokens, layout) for messages in conversations]
        writers = [_Writer(self.base.tokenizer, ids, max_tokens, seed) for ids in prompts]
        decoder = _Decoder(self.base, adapter, prompts)
        try:
            while active := [writer for writer in writers if not writer.stopped_by]:
                with torch.no_grad(), _on_all_cores(decoder.layers):
                    logits = decoder.next_logits(active)
                for writer, row in zip(active, logits, strict=True):
                    writer.write(_choose(row, temperature, top_p, writer.generator))
                yield writers
        finally:
            select(self.base, None)

    def _adapter(self, model: str) -> str | None:
        if model in ("base", OWN_LAYOUT):
            return None
        if model not in self.adapters:
            known = ", ".join(["base", OWN_LAYOUT, *self.adapters])
            raise BaizeError(f"model {model!r} is not loaded: use one of {known}")
        return attach(self.base, self.adapters[model])

    def _layout(self, model: str) -> dict[str, Any]:
        """How the dialogues that the model was trained on were laid out, from its card.

        Empty for the base's own layout.
        """
        if model == OWN_LAYOUT:
            return {}
        card = {} if model == "base" else read_card(self.adapters[model])
        end_token = card.get("settings", {}).get("end_token", True)
        return {"language": card.get("language", "en"), "end_token": end_token}

    def _prompt(
        self, messages: Sequence[Message], max_tokens: int, layout: dict[str, Any]
    ) -> list[int]:
        """The prompt's tokens, with the oldest whole turns left out until the reply fits too."""
        kept = list(messages)
        first = 1 if kept and kept[0].role == "system" else 0
        while True:
            ids = prompt_ids(kept, self.base.tokenizer, **layout) if layout else self._own_ids(kept)
            if len(ids) + max_tokens <= self.context:
                return ids
            if len(kept) < first + 3:
                raise BaizeError(
                    f"the question has {len(ids)} tokens; with a reply of {max_tokens} it exceeds "
                    f"the context of {self.context}: shorten it or lower max_tokens"
                )
            del kept[first : first + 2]

    def _own_ids(self, messages: Sequence[Message]) -> list[int]:
        tokenizer = self.base.tokenizer
        if not tokenizer.chat_template:
            raise BaizeError(f"{self.base.name} was tuned for no chat layout: ask it as 'base'")
        rows = [{"role": m.role, "content": m.content} for m in messages]
        return list(tokenizer.apply_chat_template(rows, add_generation_prompt=True)["input_ids"])


class _Writer:
    """One reply in the making."""

    def __init__(self, tokenizer: Any, prompt: list[int], max_tokens: int, seed: int | None):
        import torch

        self.tokenizer, self.max_tokens = tokenizer, max_tokens
        self.begun, self.seconds = time.perf_counter(), 0.0
        self.ids: list[int] = []
        self.text = self.stopped_by = ""
        self.generator = torch.Generator()
        if seed is None:
            self.generator.seed()
        else:  # by prompt, so that a reply does not depend on its neighbours in the batch
            digest = hashlib.sha256(repr((seed, prompt)).encode()).digest()
            self.generator.manual_seed(int.from_bytes(digest[:7]))

    def write(self, token: int) -> None:
        self.ids.append(token)
        if token == self.tokenizer.eos_token_id:
            self.stopped_by = "end"
        else:
            self.text = self.tokenizer.decode(self.ids, clean_up_tokenization_spaces=False)
            found = [at for tag in (HUMAN_TAG, AI_TAG) if (at := self.text.find(tag)) >= 0]
            if found:  # found in the text, so it does not matter how the tag fell into tokens
                self.text, self.stopped_by = self.text[: min(found)], "tag"
            elif len(self.ids) >= self.max_tokens:
                self.stopped_by = "length"
        self.seconds = time.perf_counter() - self.begun

    def settled(self) -> str:
        """The text that no later token can change: no half a tag, character or closing blank."""
        text = self.text.lstrip()
        if not self.stopped_by:
            text = text.rstrip("\ufffd")
            for size in range(len(HUMAN_TAG) - 1, 0, -1):
                if any(tag[:size] == text[-size:] for tag in (HUMAN_TAG, AI_TAG)):
                    text = text[:-size]
                    break
        return text.rstrip()

    def answer(self) -> Answer:
        return Answer(self.text.strip(), self.stopped_by, len(self.ids), self.seconds)


class _Decoder:
    """Next-token logits for several prompts at once, padded on the left, with a key-value cache."""

    def __init__(self, base: Base, adapter: str | None, prompts: Sequence[list[int]]) -> None:
        import torch
        from transformers import DynamicCache

        self.base, self.adapter, self.cache = base, adapter, DynamicCache(config=base.model.config)
        width, device = max(map(len, prompts)), base.model.device
        self.ids = torch.tensor([[0] * (width - len(ids)) + ids for ids in prompts], device=device)
        starts = torch.tensor([width - len(ids) for ids in prompts], device=device)
        self.mask = (torch.arange(width, device=device) >= starts[:, None]).long()
        self.rows: list[_Writer] | None = None
        self.layers = _plain_layers(base.model)

    def next_logits(self, active: list[_Writer]) -> Any:
        """Logits (len(active), vocabulary) after what each writer wrote last, on the CPU."""
        import torch

        if self.rows is not None:
            if len(active) < len(self.rows):  # finished rows are dropped: nothing is computed twice
                keep = torch.tensor([i for i, w in enumerate(self.rows) if not w.stopped_by])
                keep = keep.to(self.mask.device)
                self.cache.batch_select_indices(keep)
                self.mask = self.mask[keep]
            self.ids = torch.tensor([[w.ids[-1]] for w in active], device=self.mask.device)
            self.mask = torch.cat([self.mask, torch.ones_like(self.ids)], dim=1)
        self.rows = active
        positions = (self.mask.cumsum(1) - 1).clamp(min=0)[:, -self.ids.shape[1] :]
        select(self.base, self.adapter)
        output = self.base.model(
            input_ids=self.ids, attention_mask=self.mask, position_ids=positions,
            past_key_values=self.cache, use_cache=True, logits_to_keep=1,
        )  # fmt: skip
        return output.logits[:, -1].float().cpu()


@contextlib.contextmanager
def _on_all_cores(layers: Sequence[Any]) -> Iterator[None]:
    """Multiply by oneDNN, which spreads a few rows over a CPU's cores; PyTorch's own way uses one.

    Measured on two cores, SmolLM2-135M in float32, a step of 12 replies: 92 ms instead of 114, with
    an adapter 135 instead of 187; the same 28 replies either way.
    """
    import torch

    def multiply(weight: Any, x: Any) -> Any:
        return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")

    for layer in layers:
        layer.__dict__["forward"] = functools.partial(multiply, layer.weight)
    try:
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def _plain_layers(model: Any) -> list[Any]:
    """The layers that `_on_all_cores` can take: on a CPU, in float32, without a bias."""
    import torch

    if not (
        torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    ):
        return []
    return [
        layer
        for layer in model.modules()
        if type(layer) is torch.nn.Linear
        and layer.bias is None
        and layer.weight.device.type == "cpu"
        and layer.weight.dtype == torch.float32
    ]


def _choose(logits: Any, temperature: float, top_p: float, generator: Any) -> int:
    """A token from (vocabulary,) logits: the likeliest, or a draw from the likeliest `top_p`."""
    import torch

    if temperature <= 0:
        return int(logits.argmax())
    chances, tokens = torch.sort((logits / temperature).softmax(-1), descending=True)
    chances[chances.cumsum(-1) - chances > top_p] = 0
    return int(tokens[torch.multinomial(chances, 1, generator=generator)])
