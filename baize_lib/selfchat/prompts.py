"""What both sides of a self-chat are told, and how a dialogue is to be made.

The texts stand in `texts.yaml`, the grammars that hold a weak teacher to a form in `*.gbnf` files
beside it (llama.cpp's notation).

>>> system_prompt(Seed("1", "What is flu?", "medquad"), SelfChatSettings()).split(".")[0]
'You are a careful medical assistant for lay people'
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baize_lib.config import BaizeError
from baize_lib.dialogue import check_language
from baize_lib.seeds.seed import Seed

__all__ = ["SelfChatSettings", "transcript_messages"]

_HERE = Path(__file__).parent
Messages = Sequence[dict[str, str]]
DOMAINS = {  # by what a source names
    "programming": ("programming", "stackoverflow", "stackexchange", "code"),
    "medical": ("medical", "medquad", "health"),
    "general": ("",),
}
_CHOICES = {"strategy": ("turns", "transcript", "rewritten"), "domain": ("auto", *DOMAINS)}


@dataclass(frozen=True, slots=True)
class SelfChatSettings:
    """How dialogues are made. A run remembers these and refuses to be continued with others."""

    strategy: str = "turns"  # or "transcript", "rewritten"
    num_turns: int = 3
    max_tokens: int = 120  # cap of one reply, in tokens of the teacher's own tokenizer
    question_tokens: int = 40  # cap of one question
    temperature: float | None = 0.3  # of the assistant; None leaves it out
    question_temperature: float | None = 0.8  # of the human
    top_p: float | None = 0.95
    language: str = "en"  # what both sides are told to speak, one of `dialogue.LANGUAGES`
    domain: str = "auto"  # by each seed's source, or "general", "programming", "medical"
    guardrail: bool = False  # tell the assistant to decline what would do harm
    system: str | None = None  # its whole system prompt, instead of domain and guardrail

    def __post_init__(self) -> None:
        check_language(self.language)
        for name, known in _CHOICES.items():
            if (value := getattr(self, name)) not in known:
                raise BaizeError(f"{name}={value!r} is not known: use one of {', '.join(known)}")
        for name in ("num_turns", "max_tokens", "question_tokens"):
            if getattr(self, name) < 1:
                raise BaizeError(f"{name}={getattr(self, name)}: at least 1 is needed")

    @property
    def transcript_tokens(self) -> int:
        """Cap of a whole transcript, tokens."""
        return self.num_turns * (self.max_tokens + self.question_tokens)


@functools.cache
def _texts(language: str) -> dict[str, Any]:
    import yaml

    return yaml.safe_load(_HERE.joinpath("texts.yaml").read_bytes())[language]


def domain_of(seed: Seed, settings: SelfChatSettings) -> str:
    """The domain of the settings; with "auto", the one that the seed's source names."""
    if settings.domain != "auto":
        return settings.domain
    source = seed.source.lower()
    return next(d for d, names in DOMAINS.items() if any(name in source for name in names))


def system_prompt(seed: Seed, settings: SelfChatSettings) -> str:
    """What the assistant is told for this seed."""
    if settings.system is not None:
        return settings.system
    texts, between = _texts(settings.language), "" if settings.language == "zh" else " "
    told = texts["system"][domain_of(seed, settings)]
    return told + (between + texts["guardrail"] if settings.guardrail else "")


def reply_messages(seed: Seed, messages: Messages, settings: SelfChatSettings) -> Messages:
    """The request for the assistant's reply to the last of `messages`."""
    return [{"role": "system", "content": system_prompt(seed, settings)}, *messages]


def transcript_messages(seed: Seed, settings: SelfChatSettings) -> Messages:
    """The request for a whole conversation in one call."""
    task = _texts(settings.language)["transcript"].replace("{seed}", seed.text)
    task = task.replace("{num_turns}", str(settings.num_turns))
    return [{"role": "user", "content": f"{task}\n{system_prompt(seed, settings)}"}]


def question_messages(
    seed: Seed, messages: Messages, settings: SelfChatSettings, weak: bool = False
) -> Messages:
    """The request for the human's next question after `messages`.

    A strong teacher has read them as the assistant, so nothing is read twice, and gets one more
    line. A weak one gets the task, two worked examples and the conversation as text.
    """
    texts = _texts(settings.language)
    if not weak:
        ask = {"role": "user", "content": texts["ask"]}
        return reply_messages(seed, [*messages, ask], settings)
    shown = [{"role": "system", "content": texts["human"]}]
    for example in texts["examples"]:
        shown.append({"role": "user", "content": example["conversation"]})
        shown.append({"role": "assistant", "content": example["question"]})
    human, ai = texts["speakers"]
    said = (f"{human if m['role'] == 'user' else ai}{m['content']}" for m in messages)
    return [*shown, {"role": "user", "content": "\n".join(said)}]


@functools.cache
def grammar(what: str, language: str) -> str:
    """One "question" by its first words, or one to three sentences, with code in "programming"."""
    kind = what if what in ("question", "programming") else "prose"
    return _HERE.joinpath(f"{kind}.{language}.gbnf").read_text(encoding="utf-8")
