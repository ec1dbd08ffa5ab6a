"""Talk to a base model and its adapters, which share one copy of the weights.

The prompt is laid out by the function that laid out the training data. A reply stops at the end
token, or where the model begins to speak for somebody else, or at the length you allow:

    chat = ChatModel(load_base(), {"tuned": run.adapter_dir})
    chat.reply("What is the capital of Tanzania?", model="tuned").stopped_by   # -> "end"

Any number of threads may ask: one at a time computes, a token each, and none sees another's
adapter.
"""

import hashlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baize_lib.chat.decode import Decoder
from baize_lib.config import BaizeError, Run, data_dir
from baize_lib.dialogue import AI_TAG, HUMAN_TAG, Message, as_messages
from baize_lib.models.base import Base, load_base
from baize_lib.training.lora import attach, read_card, select
from baize_lib.training.tokens import prompt_ids

__all__ = ["ChatModel", "open_chat"]

OWN_LAYOUT = "own layout"
BATCH = 24  # replies written at the same time
_ONE_AT_A_TIME = threading.RLock()  # adapters are switched on in weights that all share

Asked = str | Sequence[Message]


@dataclass(frozen=True, slots=True)
class Answer:
    """One reply."""

    text: str
    stopped_by: str  # "end" token, "tag" (it began to speak for somebody, or a stop), or "length"
    num_tokens: int  # all it wrote, end token included
    seconds: float
    num_read: int = 0  # tokens of the prompt


class ChatModel:
    """A base model and adapters by name; `model="base"` and `"own layout"` are always there.

    "base" is the base model in Baize's layout, "own layout" the same weights spoken to through the
    chat template they were tuned with. `adapters` are folders by name; errors as in `attach`.
    """

    def __init__(self, base: Base, adapters: Mapping[str, Path | str] | None = None) -> None:
        self.base, self.adapters = base, dict(adapters or {})
        limit = getattr(base.model.config.get_text_config(), "max_position_embeddings", None)
        self.context = limit or 2048  # tokens of prompt and reply together
        self._packs: dict[Any, Any] = {}
        # How the dialogues that a model was trained on were laid out; None for its own layout.
        self._layouts: dict[str, dict[str, Any] | None] = {"base": {}, OWN_LAYOUT: None}
        with _ONE_AT_A_TIME:
            for name, folder in self.adapters.items():
                attach(base, folder)
                card = read_card(folder)
                told = card.get("settings", {}).get("end_token", True)
                self._layouts[name] = {"language": card.get("language", "en"), "end_token": told}
        self.models = tuple(self._layouts)  # the names `model` may have

    def reply(self, asked: Asked, model: str = "base", **sampling: Any) -> Answer:
        """Answer a question, or the last message of a conversation; `sampling` as in `replies`.

        The oldest turns are left out where the conversation exceeds the context.
        """
        return self.replies([asked], model, **sampling)[0]

    def follow(
        self, asked: Asked, model: str = "base", **sampling: Any
    ) -> Iterator[tuple[str, Answer]]:
        """Yield after each token the text that it settled, and the answer as it is by then."""
        said = ""
        for (writer,) in self._write([asked], model, **sampling):
            text = writer.settled()
            yield text[len(said) :], writer.answer()
            said = text

    def replies(
        self, conversations: Sequence[Asked], model: str = "base", **sampling: Any
    ) -> list[Answer]:
        """Answer several conversations at once; greedy replies equal those given one by one.

        `sampling` is max_tokens=256; temperature=1.0 (0 takes the likeliest token); top_p=0.95;
        seed=None (an integer makes the replies repeatable, each prompt on its own); stop=() (texts
        that end a reply); language=None (the adapter's, else "en").
        """
        answers: dict[int, Answer] = {}
        order = sorted(range(len(conversations)), key=lambda i: len(str(conversations[i])))
        for start in range(0, len(order), BATCH):  # of like length, so that little is padded
            part = order[start : start + BATCH]
            *_, writers = self._write([conversations[i] for i in part], model, **sampling)
            answers |= {i: writer.answer() for i, writer in zip(part, writers, strict=True)}
        return [answers[i] for i in range(len(conversations))]

    def _write(
        self,
        conversations: Sequence[Asked],
        model: str,
        max_tokens: int = 256,
        temperature: float = 1.0,
        top_p: float = 0.95,
        seed: int | None = None,
        stop: Sequence[str] = (),
        language: str | None = None,
    ) -> Iterator[list["_Writer"]]:
        """Yield all writers after each token that the unfinished ones wrote."""
        if not (max_tokens >= 1 and 0 <= temperature < 1e4 and 0 < top_p <= 1):
            raise BaizeError(
                f"max_tokens={max_tokens}, temperature={temperature}, top_p={top_p}: max_tokens "
                "must be at least 1, temperature not negative, top_p above 0 and at most 1"
            )
        if model not in self.models:
            raise BaizeError(f"model {model!r} is not loaded: use one of {', '.join(self.models)}")
        layout = self._layouts[model]
        if layout is not None and language:
            layout = layout | {"language": language}
        ends = _end_tokens(self.base), (HUMAN_TAG, AI_TAG, *filter(None, stop))
        with _ONE_AT_A_TIME:  # a tokenizer keeps "are special tokens read?" between its calls
            prompts = [self._prompt(_messages(row), max_tokens, layout) for row in conversations]
            adapter = attach(self.base, self.adapters[model]) if model in self.adapters else None
            decoder = Decoder(self.base, adapter, prompts, self._packs)
        writers = [_Writer(self.base.tokenizer, ends, ids, max_tokens, seed) for ids in prompts]
        active, last = list(range(len(writers))), None
        try:
            while active:
                with _ONE_AT_A_TIME:
                    logits = decoder.next_logits(active, last)
                for row, i in zip(logits, active, strict=True):
                    writers[i].write(_choose(row, temperature, top_p, writers[i].generator))
                yield writers
                active = [i for i in active if not writers[i].stopped_by]
                last = [[writers[i].ids[-1]] for i in active]
        finally:
            with _ONE_AT_A_TIME:
                select(self.base, None)

    def _prompt(
        self, messages: list[Message], max_tokens: int, layout: dict[str, Any] | None
    ) -> list[int]:
        """The prompt's tokens, with the oldest whole turns left out until the reply fits too."""
        tokenizer, first = self.base.tokenizer, sum(m.role == "system" for m in messages[:1])
        if layout is None and not tokenizer.chat_template:
            raise BaizeError(f"{self.base.name} was tuned for no chat layout: ask it as 'base'")
        while True:
            if layout is None:
                rows = [{"role": m.role, "content": m.content} for m in messages]
                ids = tokenizer.apply_chat_template(rows, add_generation_prompt=True)["input_ids"]
            else:
                ids = prompt_ids(messages, tokenizer, **layout)
            if len(ids) + max_tokens <= self.context:
                return list(ids)
            if len(messages) < first + 3:
                raise BaizeError(
                    f"the question has {len(ids)} tokens; with a reply of {max_tokens} it exceeds "
                    f"the context of {self.context}: shorten it or lower max_tokens"
                )
            del messages[first : first + 2]


def open_chat(
    run: Run, student: str, precision: str = "auto", adapter: Path | str | None = None
) -> ChatModel:
    """The student with the run's own adapter as "tuned", or the recorded one; says which."""
    own, recorded = run.adapter_dir, data_dir() / "adapter"
    adapter = Path(adapter or (own if own.is_dir() else recorded))
    read_card(adapter)  # before the base is loaded, which takes longer
    names = {own: f"that of run {run.path.name}", recorded: "the recorded one, in data/adapter"}
    print(f"adapter: {names.get(adapter, adapter)}")
    return ChatModel(load_base(student, precision), {"tuned": adapter})


def _messages(asked: Asked) -> list[Message]:
    """A question or a conversation as messages; half a character cannot be tokenised."""
    said = [(m.role, m.content.encode("utf-8", "replace")) for m in as_messages(asked)]
    return [Message(role, content.decode("utf-8")) for role, content in said]


def _end_tokens(base: Base) -> set[int]:
    """Every token that ends a reply: the tokenizer's, and those the model was tuned with."""
    ends = base.model.generation_config.eos_token_id or []
    return {base.tokenizer.eos_token_id, *([ends] if isinstance(ends, int) else ends)}


class _Writer:
    """One reply in the making; `ends` are the tokens and the texts that end it."""

    def __init__(
        self, tokenizer: Any, ends: tuple[set[int], tuple[str, ...]], prompt: list[int],
        max_tokens: int, seed: int | None,
    ) -> None:  # fmt: skip
        import torch

        self.tokenizer, self.max_tokens, self.num_read = tokenizer, max_tokens, len(prompt)
        self.end_tokens, self.stops = ends
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
        if token in self.end_tokens:
            self.stopped_by = "end"
        else:
            self.text = self.tokenizer.decode(self.ids, clean_up_tokenization_spaces=False)
            found = [at for stop in self.stops if (at := self.text.find(stop)) >= 0]
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
            sizes = range(max(map(len, self.stops)) - 1, 0, -1)
            halves = (size for size in sizes for stop in self.stops if text.endswith(stop[:size]))
            text = text[: len(text) - next(halves, 0)]
        return text.rstrip()

    def answer(self) -> Answer:
        written, text = len(self.ids), self.text.strip()
        return Answer(text, self.stopped_by, written, self.seconds, self.num_read)


def _choose(logits: Any, temperature: float, top_p: float, generator: Any) -> int:
    """A token from (vocabulary,) logits: the likeliest, or a draw from the likeliest `top_p`."""
    import torch

    if temperature <= 0:
        return int(logits.argmax())
    chances, tokens = torch.sort((logits / temperature).softmax(-1), descending=True)
    chances[chances.cumsum(-1) - chances > top_p] = 0
    return int(tokens[torch.multinomial(chances, 1, generator=generator)])
