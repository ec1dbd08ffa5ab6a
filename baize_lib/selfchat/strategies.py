"""How one dialogue comes about: three strategies, each a few calls of the same teacher.

    turns        one call answers as the assistant, one plays the human and asks on, in turn (v2)
    transcript   one call writes the whole conversation, with tags that are parsed (v1)
    rewritten    a transcript, then every reply written again by a call of its own (v1.5)

The first message is the seed itself. Each call is found in the table if it was paid for before, so
a dialogue that was interrupted goes on where it stopped by being made again.

    line = await self_chat(seed, teacher, SelfChatSettings(num_turns=3))
    line["messages"]    # [{"role": "user", "content": …}, {"role": "assistant", …}, …]
"""

import hashlib
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from baize_lib.dialogue import parse_transcript, without_thoughts
from baize_lib.seeds.seed import Seed
from baize_lib.selfchat import prompts
from baize_lib.selfchat.prompts import SelfChatSettings
from baize_lib.selfchat.questions import clean_question, says_end
from baize_lib.teacher.client import Reply, Teacher
from baize_lib.teacher.errors import Halted, RunStopped, TeacherError
from baize_lib.teacher.prices import Usage
from baize_lib.text import same_question, shares_a_word

__all__ = ["self_chat"]

QUESTION_TRIES = 4


@dataclass(slots=True)
class Talk:
    """One dialogue while it is made: its replies so far, and what is to be kept of it."""

    seed: Seed
    teacher: Teacher
    settings: SelfChatSettings
    attempt: int = 1
    replies: list[Reply] = field(default_factory=list)
    messages: list[dict[str, str]] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    defects: list[str] = field(default_factory=list)

    async def ask(
        self, part: str, messages: list[dict[str, str]], **request: Any
    ) -> tuple[str, str]:
        """(text, finish reason) of the next call. `part`: "assistant 1", say."""
        number = len(self.replies)
        reply = await self.teacher.chat(
            messages, top_p=self.settings.top_p, seed=sampling_seed(self.seed.id, number),
            purpose="self-chat", subject=self.seed.id, part=part, attempt=self.attempt, **request,
        )  # fmt: skip
        self.replies.append(reply)
        if "\ufffd" in reply.text:
            self.defects.append("broken characters")
        return reply.text, reply.finish_reason

    def keep(self, question: str, reply: str, reason: str) -> None:
        """One turn of the dialogue is whole."""
        self.messages += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": reply},
        ]
        self.reasons.append(reason)

    def line(self, status: str, reason: str, ended: str) -> dict[str, Any]:
        """The dialogue as `self_chat.jsonl` keeps it, a plain dict."""
        settings, usage = self.settings, sum((r.usage for r in self.replies), Usage())
        names = ["temperature", "top_p", "max_tokens", "question_temperature", "question_tokens"]
        return {
            "id": self.seed.id, "seed": asdict(self.seed), "messages": self.messages,
            "strategy": settings.strategy,
            "teacher": {
                "model": self.teacher.model, "params": {n: getattr(settings, n) for n in names},
            },
            "usage": asdict(usage),
            "cost_usd": round(sum(reply.cost_usd for reply in self.replies), 12),
            "num_calls": len(self.replies), "finish_reasons": self.reasons,
            "defects": list(dict.fromkeys(self.defects)), "status": status, "reason": reason,
            "ended": ended, "attempt": self.attempt,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }  # fmt: skip


def sampling_seed(name: str, call: int) -> int:
    """The same for the same call of the same dialogue, whatever else is going on."""
    digest = hashlib.sha256(f"{name}\n{call}".encode()).digest()
    return int.from_bytes(digest[:4]) >> 1


def as_seed(seed: Seed | str) -> Seed:
    """A question typed in, as a seed with a name made from its text."""
    if isinstance(seed, Seed):
        return seed
    digest = hashlib.sha256(seed.encode("utf-8", "replace")).hexdigest()
    return Seed(digest[:12], seed, "typed")


async def self_chat(
    seed: Seed | str, teacher: Teacher, settings: SelfChatSettings | None = None, *,
    attempt: int = 1,
) -> dict[str, Any]:  # fmt: skip
    """One dialogue from one seed, as a line of `self_chat.jsonl` (a plain dict).

    Args:
        seed: a `Seed`, or a question as text.
        attempt: another number asks everything again, and pays again.

    Returns:
        The line; its `status` is "ok", "failed" (a call failed for good) or "rejected" (paid for,
        and nothing that can be used came of it), with the `reason`.

    Raises:
        BudgetExceeded: the budget does not allow the next call.
        RunStopped: the teacher refuses every call (a bad key, no such model).
    """
    talk = Talk(as_seed(seed), teacher, settings or SelfChatSettings(), attempt)
    try:
        ended = await STRATEGIES[talk.settings.strategy](talk)
    except (RunStopped, Halted):
        raise
    except TeacherError as error:
        return talk.line("failed", str(error), error.kind)
    return talk.line("ok" if talk.messages else "rejected", "" if talk.messages else ended, ended)


async def _turns(talk: Talk) -> str:
    settings, question = talk.settings, talk.seed.text.strip()
    for turn in range(1, settings.num_turns + 1):
        text, reason = await _reply_to(talk, question, turn)
        if not text:
            return _why_empty("reply", reason, "max_tokens", settings.max_tokens)
        talk.keep(question, text, reason)
        if turn < settings.num_turns:
            question, why = await _next_question(talk, turn + 1)
            if not question:
                return why
    return "num_turns"


async def _reply_to(talk: Talk, question: str, turn: int) -> tuple[str, str]:
    settings, seed = talk.settings, talk.seed
    system = {"role": "system", "content": prompts.system_prompt(seed, settings)}
    grammar = prompts.reply_grammar(prompts.seed_domain(seed, settings), settings.language)
    text, reason = await talk.ask(
        f"assistant {turn}", [system, *talk.messages, {"role": "user", "content": question}],
        max_tokens=settings.max_tokens, temperature=settings.temperature,
        extra={"repeat_penalty": 1.1, "grammar": grammar} if talk.teacher.weak else None,
    )  # fmt: skip
    return without_thoughts(text).strip(), reason


def _why_empty(what: str, reason: str, name: str, cap: int) -> str:
    """Why a text that was paid for is empty; `name` is the setting that caps it."""
    thought = f": its thoughts filled all {cap} tokens, so raise {name}"
    return f"empty {what} ({reason})" + (thought if reason == "length" else "")


async def _next_question(talk: Talk, turn: int) -> tuple[str, str]:
    """(what the human asks next, each try a little bolder, or "", and why there is nothing)."""
    settings, temperature = talk.settings, talk.settings.question_temperature
    shown = prompts.question_messages(talk.seed, talk.messages, settings, talk.teacher.weak)
    grammar = prompts.question_grammar(settings.language)
    why = "no more questions"
    for number in range(QUESTION_TRIES):
        text, reason = await talk.ask(
            f"user {turn}", shown, max_tokens=settings.question_tokens,
            temperature=None if temperature is None else min(temperature + 0.2 * number, 1.4),
            extra={"repeat_penalty": 1.05, "grammar": grammar} if talk.teacher.weak else None,
        )  # fmt: skip
        question = clean_question(text)
        if says_end(text):
            break
        if reason == "stop" and question and _is_new(question, talk):
            return question, ""
        if not text and reason == "length":
            why = _why_empty("question", reason, "question_tokens", settings.question_tokens)
    return "", why


def _is_new(question: str, talk: Talk) -> bool:
    """Not asked before; and, from a weak teacher, about something that was said."""
    asked = [m["content"] for m in talk.messages if m["role"] == "user"]
    if any(same_question(question, other) for other in asked):
        return False
    said = " ".join(m["content"] for m in talk.messages[-2:])
    return not talk.teacher.weak or shares_a_word(question, said)


async def _transcript(talk: Talk) -> str:
    settings = talk.settings
    text, reason = await talk.ask(
        "transcript", prompts.transcript_messages(talk.seed, settings),
        max_tokens=settings.transcript_tokens, temperature=settings.temperature,
        extra={"repeat_penalty": 1.1} if talk.teacher.weak else None,
    )  # fmt: skip
    if not without_thoughts(text).strip():
        return _why_empty("transcript", reason, "max_tokens", settings.transcript_tokens)
    found = parse_transcript(text)
    talk.defects += found.defects
    messages = [{"role": m.role, "content": m.content} for m in found.messages]
    talk.messages = messages[: 2 * settings.num_turns]
    talk.reasons = ["stop"] * (len(talk.messages) // 2)
    # the cut fell into the last reply, unless a question after it or a turn too many was cut
    if talk.reasons and len(messages) == len(talk.messages):
        talk.reasons[-1] = "stop" if "unanswered question" in found.defects else reason
    if not talk.messages:
        return f"no exchange in the transcript ({', '.join(found.defects) or reason})"
    return reason


async def _rewritten(talk: Talk) -> str:
    """Baize v1.5: the questions are kept, every reply is written anew with a call of its own."""
    ended = await _transcript(talk)
    questions = [m["content"] for m in talk.messages if m["role"] == "user"]
    talk.messages, talk.reasons = [], []
    for turn, question in enumerate(questions, start=1):
        text, reason = await _reply_to(talk, question, turn)
        if not text:
            return _why_empty("reply", reason, "max_tokens", talk.settings.max_tokens)
        talk.keep(question, text, reason)
    return ended


STRATEGIES = {"turns": _turns, "transcript": _transcript, "rewritten": _rewritten}
