"""How one dialogue comes about: three strategies, each a few calls of the same teacher.

    turns        one call answers as the assistant, one plays the human and asks on, in turn (v2)
    transcript   one call writes the whole conversation, with tags that are parsed (v1)
    rewritten    a transcript, then every reply written again by a call of its own (v1.5)

The first message is the seed itself. Each call is found in the table if it was paid for before, so
a dialogue that was interrupted goes on where it stopped by being made again.
"""

import hashlib
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from baize_lib.dialogue import parse_transcript, without_thoughts
from baize_lib.seeds.seed import Seed, as_seeds
from baize_lib.selfchat import prompts
from baize_lib.selfchat.prompts import SelfChatSettings
from baize_lib.selfchat.questions import clean_question, says_end
from baize_lib.teacher.client import Teacher
from baize_lib.teacher.errors import Halted, Reply, RunStopped, TeacherError
from baize_lib.teacher.prices import Usage
from baize_lib.text import same_question, shares_a_word

__all__ = ["self_chat"]

QUESTION_TRIES = 4


class TalkOver(Exception):  # noqa: N818
    """Nothing can follow in this dialogue; the text says why."""


@dataclass(slots=True)
class Talk:
    """One dialogue while it is made: its replies so far, and what is to be kept of it."""

    seed: Seed
    teacher: Teacher
    settings: SelfChatSettings
    attempt: int = 1
    replies: list[Reply] = field(default_factory=list)
    messages: list[dict[str, str]] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)  # why each reply ended
    defects: list[str] = field(default_factory=list)

    async def ask(self, part: str, messages: prompts.Messages, max_tokens: int,
                  temperature: float | None, **if_weak: Any) -> tuple[str, str]:  # fmt: skip
        """(text, finish reason) of the next call. `part`: "assistant 1", say."""
        call = f"{self.seed.id}\n{len(self.replies)}"  # so it is sampled alike, come what may
        digest = hashlib.sha256(call.encode()).digest()
        reply = await self.teacher.chat(
            messages, max_tokens=max_tokens, temperature=temperature, top_p=self.settings.top_p,
            seed=int.from_bytes(digest[:4]) >> 1, extra=if_weak if self.teacher.weak else None,
            purpose="self-chat", subject=self.seed.id, part=part, attempt=self.attempt,
        )  # fmt: skip
        self.replies.append(reply)
        if "\ufffd" in reply.text:
            self.defects.append("broken characters")
        return reply.text, reply.finish_reason

    def line(self, status: str, reason: str, ended: str) -> dict[str, Any]:
        """The dialogue as `self_chat.jsonl` keeps it, a plain dict."""
        usage = sum((reply.usage for reply in self.replies), Usage())
        names = ("temperature", "top_p", "max_tokens", "question_temperature", "question_tokens")
        params = {name: getattr(self.settings, name) for name in names}
        return {
            "id": self.seed.id, "seed": asdict(self.seed), "messages": self.messages,
            "strategy": self.settings.strategy,
            "teacher": {"model": self.teacher.model, "params": params}, "usage": asdict(usage),
            "cost_usd": round(sum(reply.cost_usd for reply in self.replies), 12),
            "num_calls": len(self.replies), "finish_reasons": self.reasons,
            "defects": list(dict.fromkeys(self.defects)), "status": status, "reason": reason,
            "ended": ended, "attempt": self.attempt,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }  # fmt: skip


async def self_chat(
    seed: Seed | str, teacher: Teacher, settings: SelfChatSettings | None = None, attempt: int = 1
) -> dict[str, Any]:
    """One dialogue from one seed (or a question as text), as a line of `self_chat.jsonl`.

    Its `status` is "ok", "failed" (a call failed for good) or "rejected" (paid for, and nothing
    that can be used came of it), with the `reason`. Another `attempt` asks and pays again.

    Raises:
        BudgetExceeded: the budget does not allow the next call.
        RunStopped: the teacher refuses every call (a bad key, no such model).
    """
    [seed] = as_seeds([seed])
    talk = Talk(seed, teacher, settings or SelfChatSettings(), attempt)
    try:
        ended = await STRATEGIES[talk.settings.strategy](talk)
    except TalkOver as over:
        ended = str(over)
    except (RunStopped, Halted):
        raise
    except TeacherError as error:
        return talk.line("failed", str(error), error.kind)
    return talk.line("ok", "", ended) if talk.messages else talk.line("rejected", ended, ended)


async def _turns(talk: Talk) -> str:
    for turn in range(talk.settings.num_turns):
        await _answer(talk, await _next_question(talk) if turn else talk.seed.text.strip())
    return "num_turns"


async def _answer(talk: Talk, question: str) -> None:
    """Ask the assistant, and keep the question with its reply."""
    settings, asked = talk.settings, {"role": "user", "content": question}
    domain = prompts.domain_of(talk.seed, settings)
    text, reason = await talk.ask(
        f"assistant {len(talk.reasons) + 1}",
        prompts.reply_messages(talk.seed, [*talk.messages, asked], settings),
        settings.max_tokens, settings.temperature, repeat_penalty=1.1,
        grammar=prompts.grammar(domain, settings.language),
    )  # fmt: skip
    if not (said := without_thoughts(text).strip()):
        raise TalkOver(_why_empty("reply", reason, settings.max_tokens))
    talk.messages += [asked, {"role": "assistant", "content": said}]
    talk.reasons.append(reason)


def _why_empty(what: str, reason: str, cap: int, setting: str = "max_tokens") -> str:
    """Why a text that was paid for is empty; `setting` caps it."""
    thought = f": its thoughts filled all {cap} tokens, so raise {setting}"
    return f"empty {what} ({reason})" + (thought if reason == "length" else "")


async def _next_question(talk: Talk) -> str:
    """What the human asks next, each try a little bolder."""
    settings, heat, why = talk.settings, talk.settings.question_temperature, "no more questions"
    asked = [m["content"] for m in talk.messages if m["role"] == "user"]
    last = " ".join(m["content"] for m in talk.messages[-2:])
    for number in range(QUESTION_TRIES):
        text, reason = await talk.ask(
            f"user {len(talk.reasons) + 1}",
            prompts.question_messages(talk.seed, talk.messages, settings, talk.teacher.weak),
            settings.question_tokens, None if heat is None else min(heat + 0.2 * number, 1.4),
            repeat_penalty=1.05, grammar=prompts.grammar("question", settings.language),
        )  # fmt: skip
        question = clean_question(text)
        if says_end(text):
            break
        is_new = not any(same_question(question, earlier) for earlier in asked)
        # a weak teacher strays: its question must be about something that was said
        fits = not talk.teacher.weak or shares_a_word(question, last)
        if reason == "stop" and question and is_new and fits:
            return question
        if not text and reason == "length":
            why = _why_empty("question", reason, settings.question_tokens, "question_tokens")
    raise TalkOver(why)


async def _transcript(talk: Talk) -> str:
    settings = talk.settings
    text, reason = await talk.ask(
        "transcript", prompts.transcript_messages(talk.seed, settings), settings.transcript_tokens,
        settings.temperature, repeat_penalty=1.1,
    )  # fmt: skip
    if not without_thoughts(text).strip():
        raise TalkOver(_why_empty("transcript", reason, settings.transcript_tokens))
    found = parse_transcript(text)
    talk.defects += found.defects
    if not found.messages:
        return f"no exchange in the transcript ({', '.join(found.defects) or reason})"
    messages = [{"role": m.role, "content": m.content} for m in found.messages]
    talk.messages = messages[: 2 * settings.num_turns]
    talk.reasons = ["stop"] * (len(talk.messages) // 2)
    # the cut fell into the last reply, unless a question after it or a turn too many was cut
    if talk.messages == messages and "unanswered question" not in found.defects:
        talk.reasons[-1] = reason
    return reason


async def _rewritten(talk: Talk) -> str:
    """Baize v1.5: the questions are kept, every reply is written anew with a call of its own."""
    ended = await _transcript(talk)
    questions = [m["content"] for m in talk.messages if m["role"] == "user"]
    talk.messages, talk.reasons = [], []
    for question in questions:
        await _answer(talk, question)
    return ended


STRATEGIES = {"turns": _turns, "transcript": _transcript, "rewritten": _rewritten}
