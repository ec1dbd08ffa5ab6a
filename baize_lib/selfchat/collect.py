"""A model talks to itself: from seeds to a ledger of dialogues, within a budget, never lost.

Two strategies. `transcript` is Baize v1's idea: one call writes a whole conversation with tags.
`turns` is v2's: one call answers as the assistant, another plays the human and asks on, in turn.
The first message is the seed itself. A weak teacher on this machine is held to form by grammars
(one question; a few sentences and a block of code), a strong one by its prompt alone.

    async with local_teacher() as teacher:
        record = await self_chat(seed, teacher, Settings(num_turns=3))       # one, nothing kept
        receipt = await collect(seeds, teacher, Settings(), run.ledger)      # all, resumable

`collect` may be stopped at any moment, by Ctrl-C, the budget or `kill -9`, and called again: it
goes on inside half-finished dialogues, since every answer is on disk before the next question
(`baize_lib.ledger`). At most the calls in flight are paid again; the receipt counts them.
"""

import asyncio
import hashlib
import time
import weakref
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from baize_lib.config import BaizeError
from baize_lib.dialogue import parse_transcript
from baize_lib.seeds.seed import Seed
from baize_lib.selfchat import prompts
from baize_lib.selfchat.bill import Receipt
from baize_lib.selfchat.prompts import SelfChatSettings, system_prompt, transcript_request
from baize_lib.teacher.budget import Budget, BudgetExceeded
from baize_lib.teacher.client import Teacher, token_bound
from baize_lib.teacher.errors import RunStopped, TeacherError
from baize_lib.teacher.ledger import Ledger, Underway, check_settings, read_settings
from baize_lib.teacher.meter import CostMeter
from baize_lib.teacher.prices import Usage

__all__ = [
    "self_chat",
    "collect",
    "Session",
    "claim",
    "todo",
    "sampling_seed",
    "ledger_line",
    "transcript_line",
]


GRACE = 20.0  # seconds that answers under way are waited for when a run is stopped
FAILURES_IN_A_ROW = 20  # so many, with nothing else between, stop a run
QUESTION_TRIES = 4


# ---- one dialogue


class _Halted(Exception):  # noqa: N818
    """The run is stopping: make no other call."""


@dataclass(slots=True)
class _Talk:
    """One dialogue while it is made: the calls it has had, and the money in doubt."""

    seed: Seed
    teacher: Teacher
    settings: SelfChatSettings
    session: "Session | None" = None
    before: Underway = field(default_factory=Underway)
    calls: list[dict[str, Any]] = field(default_factory=list)
    messages: list[dict[str, str]] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    in_doubt: list[tuple[float, int]] = field(default_factory=list)

    async def ask(
        self, role: str, turn: int, messages: list[dict[str, str]], **request: Any
    ) -> tuple[str, str]:
        """(text, finish reason) of the next call: from the journal if it was paid for before."""
        number, known = len(self.calls), self.before.answers
        if number < len(known) and (known[number]["role"], known[number]["turn"]) != (role, turn):
            raise BaizeError(
                f"the journal of dialogue {self.seed.id!r} was written by another version of the "
                "course: go on with that one, or use another run folder (BAIZE_RUN)"
            )
        answer = (
            known[number] if number < len(known) else await self._pay(role, turn, messages, request)
        )
        self.calls.append(answer)
        return answer["text"], answer["finish_reason"]

    async def _pay(
        self, role: str, turn: int, messages: list[dict[str, str]], request: dict[str, Any]
    ) -> dict[str, Any]:
        if self.session and self.session.stopped:
            raise _Halted
        number, attempt = len(self.calls), self.before.attempt
        bound = Usage(token_bound(messages, request.get("extra")), 0, request["max_tokens"])
        if self.session:
            usd = self.teacher.price.cost(bound)
            self.session.ledger.begin(self.seed.id, attempt, number, usd, bound.total)
        try:
            reply = await self.teacher.chat(
                messages, top_p=self.settings.top_p,
                seed=sampling_seed(self.seed.id, attempt, number), **request,
            )  # fmt: skip
        except (BaizeError, asyncio.CancelledError) as error:
            usd = getattr(error, "uncertain_usd", 0.0)
            tokens = getattr(error, "uncertain_tokens", 0)
            self.in_doubt.append((usd, tokens))
            if self.session:
                self.session.ledger.lost(self.seed.id, attempt, number, usd, tokens)
                self.session.uncertain_usd += usd
            raise
        answer = {
            "role": role, "turn": turn, "usage": asdict(reply.usage), "cost_usd": reply.cost_usd,
            "finish_reason": reply.finish_reason, "text": reply.text,
            "uncertain": [reply.uncertain_usd, reply.uncertain_tokens],
        }  # fmt: skip
        if self.session:
            await self.session.ledger.answered(self.seed.id, attempt, number, answer)
            self.session.count_call(reply.usage, reply.cost_usd, reply.uncertain_usd)
        return answer

    def line(self, status: str, reason: str, ended: str) -> dict[str, Any]:
        in_doubt = [*self.before.in_doubt, *self.in_doubt, *(c["uncertain"] for c in self.calls)]
        line = ledger_line(
            self.seed, self.teacher.model, self.settings, self.calls, in_doubt,
            status=status, reason=reason, attempt=self.before.attempt, messages=self.messages,
            finish_reasons=self.reasons,
        )  # fmt: skip
        kept = ("role", "turn", "usage", "cost_usd", "finish_reason")
        return line | {
            "calls": [{name: call[name] for name in kept} for call in self.calls],
            "ended": ended,
        }


def ledger_line(
    seed: Seed,
    model: str,
    settings: SelfChatSettings,
    calls: Sequence[Mapping[str, Any]],
    in_doubt: Iterable[Sequence[float]] = (),
    *,
    status: str,
    reason: str,
    attempt: int,
    messages: list[dict[str, str]],
    finish_reasons: list[str],
) -> dict[str, Any]:
    """One dialogue as the ledger keeps it (a plain dict).

    Args:
        calls: each with its `usage` and `cost_usd`.
        in_doubt: (USD, tokens) at most, for each call that may have been billed unseen.
    """
    usage, params = Usage(), ["temperature", "top_p", "max_tokens"]
    for call in calls:
        usage += Usage(**call["usage"])
    if settings.strategy == "turns":
        params += ["question_temperature", "question_tokens"]
    doubts = list(in_doubt)
    return {
        "id": seed.id, "seed": asdict(seed), "messages": messages, "strategy": settings.strategy,
        "teacher": {"model": model, "params": {name: getattr(settings, name) for name in params}},
        "usage": asdict(usage), "cost_usd": round(sum(call["cost_usd"] for call in calls), 12),
        "uncertain_usd": round(sum(usd for usd, _ in doubts), 12),
        "uncertain_tokens": sum(tokens for _, tokens in doubts),
        "calls_in_doubt": sum(tokens > 0 for _, tokens in doubts),
        "finish_reason": _summary(finish_reasons), "finish_reasons": finish_reasons,
        "status": status, "reason": reason, "attempt": attempt,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }  # fmt: skip


def _summary(reasons: list[str]) -> str:
    """One word for all replies: "length" if any was cut."""
    return "length" if "length" in reasons else reasons[-1] if reasons else ""


def sampling_seed(name: str, attempt: int, call: int) -> int:
    """The same for the same call of the same dialogue, whatever else is going on."""
    digest = hashlib.sha256(f"{name}\n{attempt}\n{call}".encode()).digest()
    return int.from_bytes(digest[:4]) >> 1


async def self_chat(seed: Seed, teacher: Teacher, settings: SelfChatSettings | None = None) -> dict:
    """One dialogue from one seed, as a ledger line (a plain dict). Nothing is written.

    Raises:
        BudgetExceeded: the budget does not allow the next call.
        RunStopped: the teacher refuses every call (a bad key, no such model).
    """
    return await _dialogue(_Talk(seed, teacher, settings or SelfChatSettings()))


async def _dialogue(talk: _Talk) -> dict[str, Any]:
    made = _turns if talk.settings.strategy == "turns" else _transcript
    try:
        return await made(talk)
    except (BudgetExceeded, RunStopped):
        raise
    except TeacherError as error:
        return talk.line("failed", str(error), error.kind)


async def _turns(talk: _Talk) -> dict[str, Any]:
    settings, question, ended = talk.settings, talk.seed.text.strip(), "num_turns"
    system = {"role": "system", "content": system_prompt(talk.seed, settings)}
    grammar = prompts.reply_grammar(prompts.seed_domain(talk.seed, settings), settings.language)
    for turn in range(settings.num_turns):
        asked = [*talk.messages, {"role": "user", "content": question}]
        text, reason = await talk.ask(
            "assistant", turn, [system, *asked], max_tokens=settings.max_tokens,
            temperature=settings.temperature, extra=_held(talk, grammar, 1.1),
        )  # fmt: skip
        if not text.strip():
            ended = f"empty reply ({reason})"
            break
        talk.messages = [*asked, {"role": "assistant", "content": text.strip()}]
        talk.reasons.append(reason)
        if turn + 1 < settings.num_turns:
            question = await _next_question(talk, turn + 1)
            if not question:
                ended = "no more questions"
                break
    if not talk.messages:
        return talk.line("rejected", ended, ended)
    return talk.line("ok", "", ended)


async def _next_question(talk: _Talk, turn: int) -> str:
    """What the human asks next, each try a little bolder; "" when there is nothing new to ask."""
    settings, temperature = talk.settings, talk.settings.question_temperature
    shown = prompts.question_messages(talk.messages, settings.language)
    for number in range(QUESTION_TRIES):
        text, reason = await talk.ask(
            "user", turn, shown, max_tokens=settings.question_tokens,
            temperature=None if temperature is None else min(temperature + 0.2 * number, 1.4),
            extra=_held(talk, prompts.QUESTION_GRAMMAR[settings.language], 1.05),
        )  # fmt: skip
        question = prompts.clean_question(text)
        if prompts.says_end(question):
            return ""
        if reason != "length" and question and _is_new(question, talk):
            return question
    return ""


def _is_new(question: str, talk: _Talk) -> bool:
    """Not asked before; and, from a weak teacher, about something that was said."""
    asked = [m["content"] for m in talk.messages if m["role"] == "user"]
    if any(prompts.same_question(question, other) for other in asked):
        return False
    said = " ".join(m["content"] for m in talk.messages[-2:])
    return not talk.teacher.is_local or prompts.shares_a_word(question, said)


def _held(talk: _Talk, grammar: str | None, repeat_penalty: float) -> dict | None:
    """More fields for a weak teacher's request: llama.cpp takes a grammar, OpenAI does not."""
    if not talk.teacher.is_local:
        return None
    return {"repeat_penalty": repeat_penalty} | ({"grammar": grammar} if grammar else {})


async def _transcript(talk: _Talk) -> dict[str, Any]:
    request = transcript_request(talk.seed, talk.settings)
    extra = {"repeat_penalty": 1.1} if talk.teacher.is_local else None
    await talk.ask("transcript", 0, extra=extra, **request)
    return transcript_line(
        talk.seed, talk.teacher.model, talk.settings, talk.calls[0], talk.before.attempt,
        [*talk.before.in_doubt, talk.calls[0]["uncertain"]],
    )  # fmt: skip


def transcript_line(
    seed: Seed,
    model: str,
    settings: SelfChatSettings,
    answer: Mapping[str, Any],
    attempt: int = 1,
    in_doubt: Iterable[Sequence[float]] = (),
) -> dict[str, Any]:
    """The ledger line of a transcript, with the defects its parser found.

    Args:
        answer: `text`, `finish_reason`, `usage` and `cost_usd` of the call that wrote it.
    """
    found = parse_transcript(answer["text"])
    messages = [{"role": m.role, "content": m.content} for m in found.messages]
    last, reasons = answer["finish_reason"], ["stop"] * (len(messages) // 2)
    if reasons and "unanswered question" not in found.defects:
        reasons[-1] = last  # the cut fell into the last reply, not into a question after it
    why = "" if reasons else f"no exchange in the transcript ({', '.join(found.defects) or last})"
    line = ledger_line(
        seed, model, settings, [answer], in_doubt, status="ok" if reasons else "rejected",
        reason=why, attempt=attempt, messages=messages, finish_reasons=reasons,
    )  # fmt: skip
    unread = {} if reasons else {"text": answer["text"], "finish_reason": last}
    return line | {"defects": list(found.defects), "ended": last} | unread


# ---- all dialogues


@dataclass(slots=True)
class Session:
    """What the dialogues of one `collect` share, and what they come to.

    Attributes:
        stopped: why no other call is made: "" (go on), "interrupted" or "error".
        closing: why no other dialogue is begun, while those under way may go on: "" or "budget".
    """

    ledger: Ledger
    teacher: Teacher
    settings: SelfChatSettings
    meter: CostMeter | None
    stopped: str = ""
    closing: str = ""
    statuses: Counter[str] = field(default_factory=Counter)
    already: int = 0
    lines: int = 0
    replies: int = 0
    cut: int = 0
    calls: int = 0
    paid_again: int = 0
    failures_in_a_row: int = 0
    usage: Usage = field(default_factory=Usage)
    usd: float = 0.0
    uncertain_usd: float = 0.0
    earlier_usd: float = 0.0

    def read_ledger(self) -> None:
        """Note what is there; count it in the budget, unless this very budget has seen it."""
        budget, meter = self.teacher.budget, self.meter
        known = _counted.setdefault(budget, {}).get(self.ledger.path.resolve())
        fresh_meter = meter is not None and not meter.dialogues
        for record in self.ledger.scan():
            self.lines += 1
            if known is None or self.lines > known:
                budget.replay([record])
            if fresh_meter:
                meter.add(record, fresh=False)
            self.earlier_usd += _paid(record)
        for talk in self.ledger.underway.values():
            rows = list(_bills(talk))
            if known is None:
                budget.replay(rows)
            self.paid_again += len(talk.in_doubt)
            self.earlier_usd += sum(map(_paid, rows))
        self.already = len(self.ledger.done)

    def remember_counted(self) -> None:
        _counted[self.teacher.budget][self.ledger.path.resolve()] = self.lines

    async def work(self, todo: Iterator[tuple[Seed, int]], concurrency: int) -> None:
        """Go through `todo`, `concurrency` dialogues at a time."""
        tasks = [asyncio.create_task(self._worker(todo)) for _ in range(concurrency)]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        except BaseException as error:
            self.stopped = "interrupted" if isinstance(error, asyncio.CancelledError) else "error"
            print(f"stopping: answers under way are waited for, {GRACE:.0f} s at most")
            await asyncio.wait(tasks, timeout=GRACE)  # answers under way are worth keeping
            raise
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _worker(self, todo: Iterator[tuple[Seed, int]]) -> None:
        for seed, attempt in todo:
            if self.stopped or self.closing:
                return
            before = self.ledger.underway.get(seed.id) or Underway(attempt)
            try:
                record = await _dialogue(_Talk(seed, self.teacher, self.settings, self, before))
            except _Halted:
                return
            except BudgetExceeded:
                self.closing = "budget"
                return
            await self.ledger.append(record)
            self.count_dialogue(record)
            self._check_luck(record)

    def _check_luck(self, record: Mapping[str, Any]) -> None:
        """Stop a run in which nothing succeeds."""
        self.failures_in_a_row = (record["status"] == "failed") * (self.failures_in_a_row + 1)
        if self.failures_in_a_row >= FAILURES_IN_A_ROW:
            raise BaizeError(
                f"{FAILURES_IN_A_ROW} dialogues in a row failed, the last one with: "
                f"{record['reason']}. Nothing is lost: when the cause is mended, go on with "
                "collect(..., retry_failed=True)"
            )

    def count_call(self, usage: Usage, usd: float, uncertain_usd: float = 0.0) -> None:
        self.calls += 1
        self.usage += usage
        self.usd += usd
        self.uncertain_usd += uncertain_usd

    def count_dialogue(self, record: Mapping[str, Any]) -> None:
        status = record["status"]
        self.lines += 1
        self.statuses[status] += 1
        self.replies += len(record["finish_reasons"])
        self.cut += record["finish_reasons"].count("length")
        if self.meter:
            self.meter.add(record)

    def receipt(self, seeds: Collection[Seed], seconds: float) -> Receipt:
        done = self.ledger.done
        return Receipt(
            ok=self.statuses["ok"], failed=self.statuses["failed"],
            rejected=self.statuses["rejected"], already=self.already,
            left=sum(seed.id not in done for seed in seeds), replies=self.replies, cut=self.cut,
            calls=self.calls, paid_again=self.paid_again, usage=self.usage, usd=self.usd,
            uncertain_usd=self.uncertain_usd,
            total_usd=self.earlier_usd + self.usd + self.uncertain_usd, seconds=seconds,
            ledger=self.ledger.path, stopped=self.closing,
            rate="" if self.teacher.is_local else str(self.teacher.rate),
        )  # fmt: skip


# Budget -> ledger -> number of its lines that budget has counted: a second `collect` with the same
# budget, in a notebook say, must not count them twice.
_counted: weakref.WeakKeyDictionary[Budget, dict[Path, int]] = weakref.WeakKeyDictionary()


def _paid(row: Mapping[str, Any]) -> float:
    return (row.get("cost_usd") or 0) + (row.get("uncertain_usd") or 0)


def _bills(talk: Underway) -> Iterator[dict[str, Any]]:
    """What a dialogue under way has cost, as rows `Budget.replay` reads."""
    for answer in talk.answers:
        usd, tokens = answer["uncertain"]
        yield answer | {"uncertain_usd": usd, "uncertain_tokens": tokens}
    for usd, tokens in talk.in_doubt:
        yield {"uncertain_usd": usd, "uncertain_tokens": tokens}


async def collect(
    seeds: Iterable[Seed],
    teacher: Teacher,
    settings: SelfChatSettings | None = None,
    ledger: Path | str = "self_chat.jsonl",
    *,
    retry_failed: bool = False,
    meter: CostMeter | None = None,
    concurrency: int | None = None,
) -> Receipt:
    """Make one dialogue of every seed that has none yet, and write each to the ledger.

    Whatever stops it, call it again with the same arguments to go on: what the ledger says was
    spent is counted in `teacher.budget` first. Seeds may be added at the end, nothing else changed.

    Args:
        seeds: each with an id of its own; an iterator is read into memory.
        retry_failed: also try again the seeds whose dialogue failed or was rejected.
        meter: shows progress and cost while it runs.
        concurrency: dialogues under way at once; None takes as many as the teacher may have calls.

    Returns:
        The receipt, also when the budget ended the run early (`stopped` says so).

    Raises:
        RunStopped: the teacher refuses every call; at once, the reason in its text.
        BaizeError: other settings than the ledger's, another process on it, a full disk, or 20
            failures in a row.
        asyncio.CancelledError: interrupted; what was answered is kept, and a line says so.
    """
    settings, path, began = settings or SelfChatSettings(), Path(ledger), time.monotonic()
    seeds = seeds if isinstance(seeds, Collection) else tuple(seeds)
    with Ledger(path) as opened:
        claim(path, seeds, teacher.model, settings)
        session = Session(opened, teacher, settings, meter)
        session.read_ledger()
        try:
            await session.work(
                todo(seeds, opened, retry_failed), concurrency or teacher.max_concurrency
            )
        finally:
            session.remember_counted()
            if session.stopped:
                print(
                    f"stopped: {len(opened.done):,} dialogues and every answered call are kept in "
                    f"{path.name}; run the same again to go on"
                )
        return session.receipt(seeds, time.monotonic() - began)


def todo(seeds: Iterable[Seed], ledger: Ledger, retry_failed: bool) -> Iterator[tuple[Seed, int]]:
    """(seed, number of the attempt) for each seed that is still to be done."""
    earlier = dict(ledger.failed)
    for seed in seeds:
        if seed.id not in ledger.done and (retry_failed or seed.id not in earlier):
            yield seed, earlier.get(seed.id, 0) + 1


def claim(path: Path, seeds: Collection[Seed], model: str, settings: SelfChatSettings) -> None:
    """Tie the ledger at `path` to these settings, this teacher and these seeds.

    Raises:
        BaizeError: it was begun with others (more seeds at the end are no others), or two seeds
            have one id.
    """
    before = read_settings(path)
    size = min(before.get("num_seeds", 0), len(seeds)) if before else 0
    start, whole = _fingerprints(seeds, size)
    now = asdict(settings) | {"teacher": model, "num_seeds": len(seeds), "seeds": whole}
    if before and size < len(seeds) and before.get("seeds") == start:
        before |= {"num_seeds": len(seeds), "seeds": whole}
    check_settings(path, now, before)


def _fingerprints(seeds: Iterable[Seed], size: int) -> tuple[str, str]:
    """Hashes of the first `size` seeds and of all."""
    digest, names, start = hashlib.sha256(), set(), ""
    for number, seed in enumerate(seeds):
        if number == size:
            start = digest.hexdigest()[:16]
        if seed.id in names:
            raise BaizeError(f"two seeds have the id {seed.id!r}: give each its own")
        names.add(seed.id)
        digest.update(f"{seed.id}\0{seed.text}\n".encode("utf-8", "replace"))
    return start, digest.hexdigest()[:16]
