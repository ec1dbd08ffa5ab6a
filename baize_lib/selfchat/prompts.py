"""What both sides of a self-chat are told, and how a dialogue is to be made.

The texts stand in `texts.yaml`, the grammars that hold a weak teacher to a form in `*.gbnf` files
beside it (llama.cpp's notation). A strong teacher needs neither grammar nor worked examples: it
goes on with the conversation it already has in memory, and is asked for the next question.

>>> system_prompt(Seed("1", "What is flu?", "medquad"), SelfChatSettings()).split(".")[0]
'You are a careful medical assistant for lay people'
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from baize_lib.config import BaizeError
from baize_lib.dialogue import check_language
from baize_lib.seeds.seed import Seed

__all__ = ["SelfChatSettings", "transcript_messages"]

STRATEGIES = ("turns", "transcript", "rewritten")
DOMAINS = ("general", "programming", "medical")
_SOURCES = {
    "programming": ("programming", "stackoverflow", "stackexchange", "code"),
    "medical": ("medical", "medquad", "health"),
}


@dataclass(frozen=True, slots=True)
class SelfChatSettings:
    """How dialogues are made. A run remembers these and refuses to be continued with others.

    Attributes:
        strategy: "turns", "transcript" or "rewritten".
        max_tokens: cap of one reply, tokens; `question_tokens`: cap of one question. They are
            tokens of the teacher's own tokenizer.
        temperature: of the assistant; `question_temperature`: of the human. None leaves it out.
        domain: one of `DOMAINS`, or "auto" to take it from each seed's source.
        guardrail: tell the assistant to decline what would do harm.
        language: which language both sides are told to speak, one of `dialogue.LANGUAGES`.
        system: the assistant's whole system prompt, instead of those of domain and guardrail.
    """

    strategy: str = "turns"
    num_turns: int = 3
    max_tokens: int = 120
    question_tokens: int = 40
    temperature: float | None = 0.3
    question_temperature: float | None = 0.8
    top_p: float | None = 0.95
    language: str = "en"
    domain: str = "auto"
    guardrail: bool = False
    system: str | None = None

    def __post_init__(self) -> None:
        check_language(self.language)
        for name, allowed in (("strategy", STRATEGIES), ("domain", ("auto", *DOMAINS))):
            if getattr(self, name) not in allowed:
                value = getattr(self, name)
                raise BaizeError(f"{name}={value!r} is not known: use one of {', '.join(allowed)}")
        for name in ("num_turns", "max_tokens", "question_tokens"):
            if getattr(self, name) < 1:
                raise BaizeError(f"{name}={getattr(self, name)}: at least 1 is needed")

    @property
    def transcript_tokens(self) -> int:
        """Cap of a whole transcript, tokens."""
        return self.num_turns * (self.max_tokens + self.question_tokens)


@functools.cache
def _texts() -> dict[str, Any]:
    import yaml

    return yaml.safe_load(_file("texts.yaml"))


@functools.cache
def _file(name: str) -> str:
    return resources.files("baize_lib.selfchat").joinpath(name).read_text(encoding="utf-8")


def domain_of(source: str) -> str:
    """The domain a seed's source belongs to, by its name; "general" if by none."""
    for domain, names in _SOURCES.items():
        if any(name in source.lower() for name in names):
            return domain
    return "general"


def seed_domain(seed: Seed, settings: SelfChatSettings) -> str:
    """The domain of the settings; with "auto", that of the seed's source."""
    return domain_of(seed.source) if settings.domain == "auto" else settings.domain


def system_prompt(seed: Seed, settings: SelfChatSettings) -> str:
    """What the assistant is told for this seed."""
    if settings.system is not None:
        return settings.system
    texts = _texts()[settings.language]
    parts = [texts["system"][seed_domain(seed, settings)]]
    parts += [texts["guardrail"]] if settings.guardrail else []
    return ("" if settings.language == "zh" else " ").join(parts)


def transcript_messages(seed: Seed, settings: SelfChatSettings) -> list[dict[str, str]]:
    """The request for a whole conversation in one call."""
    task = _texts()[settings.language]["transcript"]
    task = task.replace("{seed}", seed.text).replace("{num_turns}", str(settings.num_turns))
    return [{"role": "user", "content": f"{task}\n{system_prompt(seed, settings)}"}]


def question_messages(
    seed: Seed, messages: Sequence[dict[str, str]], settings: SelfChatSettings, weak: bool = False
) -> list[dict[str, str]]:
    """The request for the human's next question after `messages`.

    A strong teacher gets the conversation as it had it as the assistant, so nothing is read twice,
    and one more line that asks for the question. A weak one gets the task, two worked examples and
    the conversation as text.
    """
    texts = _texts()[settings.language]
    if not weak:
        system = {"role": "system", "content": system_prompt(seed, settings)}
        return [system, *messages, {"role": "user", "content": texts["ask"]}]
    shown = [{"role": "system", "content": texts["human"]}]
    for example in texts["examples"]:
        shown.append({"role": "user", "content": example["conversation"]})
        shown.append({"role": "assistant", "content": example["question"]})
    human, ai = texts["speakers"]
    said = (f"{human if m['role'] == 'user' else ai}{m['content']}" for m in messages)
    return [*shown, {"role": "user", "content": "\n".join(said)}]


def question_grammar(language: str) -> str:
    """One question, by its first words."""
    return _file(f"question.{language}.gbnf")


def reply_grammar(domain: str, language: str) -> str:
    """One to three sentences, for programming with a block of code."""
    kind = "programming" if domain == "programming" else "prose"
    return _file(f"{kind}.{language}.gbnf")
