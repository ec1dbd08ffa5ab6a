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
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from baize_lib import prompts
from baize_lib.config import BaizeError
from baize_lib.dialogue import parse_transcript
from baize_lib.files import read_jsonl
from baize_lib.ledger import Ledger, Underway, check_settings, read_settings
from baize_lib.pricing import Budget, BudgetExceeded, CostMeter, Price, Usage
from baize_lib.sources import Seed
from baize_lib.teacher import Reply, RunStopped, Teacher, TeacherError, token_bound

__all__ = [
    "Settings", "self_chat", "collect", "Receipt", "Forecast", "forecast", "bill_by_role_and_turn",
]  # fmt: skip

GRACE = 20.0  # seconds that answers under way are waited for when a run is stopped
FAILURES_IN_A_ROW = 20  # so many, with nothing else between, stop a run
QUESTION_TRIES = 3


@dataclass(frozen=True, slots=True)
class Settings:
    """How dialogues are made. A ledger remembers these and refuses to be continued with others.

    Attributes:
        max_tokens: cap of one reply, tokens; `question_tokens`: cap of one question.
        temperature: of the assistant; `question_temperature`: of the human. None leaves it out.
        domain: a key of `prompts.DOMAINS`, or "auto" to take it from each seed's source.
        guardrail: tell the assistant to decline what would do harm.
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
        for name, allowed in (
            ("strategy", ("turns", "transcript")),
            ("language", prompts.LANGUAGES),
            ("domain", ("auto", *prompts.DOMAINS)),
        ):
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


# ---- one dialogue


class _Halted(Exception):  # noqa: N818
    """The run is stopping: make no other call."""


@dataclass(slots=True)
class _Talk:
    """One dialogue while it is made: the calls it has had, and the money in doubt."""

    seed: Seed
    teacher: Teacher
    settings: Settings
    session: "_Session | None" = None
    before: Underway = field(default_factory=Underway)
    calls: list[dict[str, Any]] = field(default_factory=list)
    messages: list[dict[str, str]] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    in_doubt: list[tuple[float, int]] = field(default_factory=list)

    async def ask(
        self, role: str, turn: int, messages: list[dict[str, str]], **request: Any
    ) -> tuple[str, str]:
        """(text, finish reason) of the next call: from the journal if it was paid for before."""
        if len(self.calls) < len(self.before.answers):
            answer = self.before.answers[len(self.calls)]
        else:
            answer = await self._pay(role, turn, messages, request)
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
                seed=_sampling_seed(self.seed.id, attempt, number), **request,
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
            self.session.count_call(reply)
        return answer

    def record(self, status: str, reason: str, **more: Any) -> dict[str, Any]:
        """The ledger line."""
        usage, settings = Usage(), self.settings
        for call in self.calls:
            usage += Usage(**call["usage"])
        in_doubt = [*self.before.in_doubt, *self.in_doubt, *(c["uncertain"] for c in self.calls)]
        uncertain_usd, uncertain_tokens = (sum(row[i] for row in in_doubt) for i in (0, 1))
        kept = ("role", "turn", "usage", "cost_usd", "finish_reason")
        calls = [{name: call[name] for name in kept} for call in self.calls]
        params = {
            "temperature": settings.temperature, "top_p": settings.top_p,
            "max_tokens": settings.max_tokens,
        }  # fmt: skip
        if settings.strategy == "turns":
            params["question_temperature"] = settings.question_temperature
            params["question_tokens"] = settings.question_tokens
        return {
            "id": self.seed.id, "seed": asdict(self.seed), "messages": self.messages,
            "strategy": settings.strategy,
            "teacher": {"model": self.teacher.model, "params": params},
            "usage": asdict(usage),
            "cost_usd": round(sum(call["cost_usd"] for call in self.calls), 12),
            "uncertain_usd": round(uncertain_usd, 12), "uncertain_tokens": uncertain_tokens,
            "finish_reason": _summary(self.reasons), "finish_reasons": self.reasons,
            "status": status, "reason": reason, "attempt": self.before.attempt,
            "calls": calls if settings.strategy == "turns" else [],
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **more,
        }  # fmt: skip


def _summary(reasons: list[str]) -> str:
    """One word for all replies: "length" if any was cut."""
    return "length" if "length" in reasons else reasons[-1] if reasons else ""


def _sampling_seed(name: str, attempt: int, call: int) -> int:
    """The same for the same call of the same dialogue, whatever else is going on."""
    digest = hashlib.sha256(f"{name}\n{attempt}\n{call}".encode()).digest()
    return int.from_bytes(digest[:4]) >> 1


async def self_chat(seed: Seed, teacher: Teacher, settings: Settings | None = None) -> dict:
    """One dialogue from one seed, as a ledger line (a plain dict). Nothing is written.

    Raises:
        BudgetExceeded: the budget does not allow the next call.
        RunStopped: the teacher refuses every call (a bad key, no such model).
    """
    return await _dialogue(_Talk(seed, teacher, settings or Settings()))


async def _dialogue(talk: _Talk) -> dict[str, Any]:
    made = _turns if talk.settings.strategy == "turns" else _transcript
    try:
        return await made(talk)
    except (BudgetExceeded, RunStopped):
        raise
    except TeacherError as error:
        return talk.record("failed", str(error))


async def _turns(talk: _Talk) -> dict[str, Any]:
    settings, question, ended = talk.settings, talk.seed.text.strip(), "num_turns"
    system = {"role": "system", "content": system_prompt(talk.seed, settings)}
    for turn in range(settings.num_turns):
        asked = [*talk.messages, {"role": "user", "content": question}]
        text, reason = await talk.ask(
            "assistant", turn, [system, *asked], max_tokens=settings.max_tokens,
            temperature=settings.temperature, extra=_held(talk, prompts.REPLY_GRAMMAR, 1.1),
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
        return talk.record("rejected", ended, ended=ended)
    return talk.record("ok", "", ended=ended)


async def _next_question(talk: _Talk, turn: int) -> str:
    """What the human asks next; "" when there is nothing new to ask."""
    settings = talk.settings
    shown = prompts.question_messages(talk.messages, settings.language)
    for _ in range(QUESTION_TRIES):
        text, reason = await talk.ask(
            "user", turn, shown, max_tokens=settings.question_tokens,
            temperature=settings.question_temperature,
            extra=_held(talk, prompts.QUESTION_GRAMMAR, 1.05),
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


def _held(talk: _Talk, grammars: Mapping[str, str], repeat_penalty: float) -> dict | None:
    """More fields for a weak teacher's request: llama.cpp takes a grammar, OpenAI does not."""
    if not talk.teacher.is_local:
        return None
    grammar = grammars.get(talk.settings.language)
    return {"repeat_penalty": repeat_penalty} | ({"grammar": grammar} if grammar else {})


def system_prompt(seed: Seed, settings: Settings) -> str:
    """The assistant's system prompt for this seed."""
    if settings.system is not None:
        return settings.system
    domain = prompts.domain_of(seed.source) if settings.domain == "auto" else settings.domain
    return prompts.assistant(domain, settings.language, settings.guardrail)


def transcript_request(seed: Seed, settings: Settings) -> dict[str, Any]:
    """`messages`, `max_tokens` and `temperature` of the one call that writes a transcript."""
    system = system_prompt(seed, settings)
    task = prompts.transcript(seed.text, settings.num_turns, settings.language)
    return {
        "messages": [{"role": "user", "content": f"{task}\n{system}"}],
        "max_tokens": settings.transcript_tokens, "temperature": settings.temperature,
    }  # fmt: skip


def transcript_record(talk: _Talk, text: str, finish_reason: str) -> dict[str, Any]:
    """The ledger line for a transcript, with the defects its parser found."""
    found = parse_transcript(text)
    talk.messages = [{"role": m.role, "content": m.content} for m in found.messages]
    replies = len(found.messages) // 2
    cut = finish_reason == "length" and "unanswered question" not in found.defects
    talk.reasons = ["stop"] * replies
    if talk.reasons and finish_reason != "stop":
        talk.reasons[-1] = finish_reason if cut or finish_reason != "length" else "stop"
    more = {"defects": list(found.defects), "ended": finish_reason}
    if replies:
        return talk.record("ok", "", **more)
    reason = f"no exchange in the transcript ({', '.join(found.defects) or finish_reason})"
    return talk.record("rejected", reason, text=text, **more)


async def _transcript(talk: _Talk) -> dict[str, Any]:
    request = transcript_request(talk.seed, talk.settings)
    extra = {"repeat_penalty": 1.1} if talk.teacher.is_local else None
    text, reason = await talk.ask("transcript", 0, extra=extra, **request)
    return transcript_record(talk, text, reason)


# ---- all dialogues


@dataclass(frozen=True, slots=True)
class Receipt:
    """What one `collect` did. Tokens, USD and seconds are of this session alone.

    Attributes:
        already: dialogues the ledger held before; `left`: seeds not finished, to go on with.
        replies, cut: replies made, and how many `max_tokens` cut.
        uncertain_usd: part beyond `usd` that failed or lost calls may have cost.
        paid_again: calls an earlier session had begun whose answers were never recorded.
        total_usd: what the ledger holds, all sessions, doubtful calls included.
        stopped: why it ended early: "" (it did not), "budget" or "interrupted".
    """

    ok: int
    failed: int
    rejected: int
    already: int
    left: int
    replies: int
    cut: int
    calls: int
    paid_again: int
    usage: Usage
    usd: float
    uncertain_usd: float
    total_usd: float
    seconds: float
    ledger: Path
    stopped: str = ""

    @property
    def tokens_per_second(self) -> float:
        """Tokens written by the teacher, per second of wall time."""
        return self.usage.output / self.seconds if self.seconds else 0.0

    @property
    def cut_share(self) -> float:
        return self.cut / self.replies if self.replies else 0.0

    def rows(self) -> list[tuple[str, str]]:
        """(name, text) pairs, as shown."""
        rows = [
            ("dialogues", f"{self.ok:,}" + (f" + {self.already:,} before" * bool(self.already)))
        ]
        if self.failed or self.rejected:
            rows.append(("failed, rejected", f"{self.failed:,}, {self.rejected:,}"))
        if self.left:
            why = f" (stopped: {self.stopped})" if self.stopped else " (retry_failed=True)"
            rows.append(("seeds left", f"{self.left:,}{why}"))
        rows += [
            ("calls", f"{self.calls:,}"),
            ("tokens in, out", f"{self.usage.input:,}, {self.usage.output:,}"),
            ("spent", f"${self.usd:,.6f}"),
        ]
        if self.uncertain_usd:
            rows.append(("perhaps billed too", f"${self.uncertain_usd:,.6f}"))
        if self.paid_again:
            rows.append(("calls paid again at most", f"{self.paid_again:,}"))
        return [
            *rows,
            ("spent in all sessions", f"${self.total_usd:,.6f}"),
            ("replies cut by max_tokens", f"{self.cut:,} of {self.replies:,}"),
            ("time", f"{self.seconds:,.1f} s, {self.tokens_per_second:,.0f} tokens/s written"),
        ]

    def __str__(self) -> str:
        width = max(len(name) for name, _ in self.rows())
        return "\n".join(f"{name:<{width}}  {text}" for name, text in self.rows())

    def _repr_html_(self) -> str:
        left = 'style="text-align:left"'
        cells = (f"<tr><th {left}>{n}</th><td {left}>{t}</td></tr>" for n, t in self.rows())
        return f"<table>{''.join(cells)}</table>"


@dataclass(slots=True)
class _Session:
    """What the dialogues of one `collect` share, and what they come to.

    Attributes:
        stopped: why no other call is made: "" (go on), "interrupted" or "error".
        closing: why no other dialogue is begun, while those under way may go on: "" or "budget".
    """

    ledger: Ledger
    teacher: Teacher
    settings: Settings
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
            self._count_dialogue(record)

    def count_call(self, reply: Reply) -> None:
        self.calls += 1
        self.usage += reply.usage
        self.usd += reply.cost_usd
        self.uncertain_usd += reply.uncertain_usd

    def _count_dialogue(self, record: Mapping[str, Any]) -> None:
        status = record["status"]
        self.lines += 1
        self.statuses[status] += 1
        self.replies += len(record["finish_reasons"])
        self.cut += record["finish_reasons"].count("length")
        if self.meter:
            self.meter.add(record)
        self.failures_in_a_row = self.failures_in_a_row + 1 if status == "failed" else 0
        if self.failures_in_a_row >= FAILURES_IN_A_ROW:
            raise BaizeError(
                f"{FAILURES_IN_A_ROW} dialogues in a row failed, the last one with: "
                f"{record['reason']}. Nothing is lost: when the cause is mended, go on with "
                "collect(..., retry_failed=True)"
            )

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
    settings: Settings | None = None,
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
    settings, path, began = settings or Settings(), Path(ledger), time.monotonic()
    seeds = seeds if isinstance(seeds, Collection) else tuple(seeds)
    with Ledger(path) as opened:
        claim(path, seeds, teacher.model, settings)
        session = _Session(opened, teacher, settings, meter)
        session.read_ledger()
        try:
            await session.work(
                _todo(seeds, opened, retry_failed), concurrency or teacher.max_concurrency
            )
        finally:
            session.remember_counted()
            if session.stopped:
                print(
                    f"stopped: {len(opened.done):,} dialogues and every answered call are kept in "
                    f"{path.name}; run the same again to go on"
                )
        return session.receipt(seeds, time.monotonic() - began)


def _todo(seeds: Iterable[Seed], ledger: Ledger, retry_failed: bool) -> Iterator[tuple[Seed, int]]:
    """(seed, number of the attempt) for each seed that is still to be done."""
    earlier = dict(ledger.failed)
    for seed in seeds:
        if seed.id not in ledger.done and (retry_failed or seed.id not in earlier):
            yield seed, earlier.get(seed.id, 0) + 1


def claim(path: Path, seeds: Collection[Seed], model: str, settings: Settings) -> None:
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


# ---- what it will cost, what it did cost


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a collection is likely to cost, before it starts, and the rule behind it."""

    num_dialogues: int
    calls: int
    usage: Usage
    usd: float
    rule: str

    def __str__(self) -> str:
        return (
            f"{self.num_dialogues:,} dialogues, {self.calls:,} calls, {self.usage.input:,} tokens "
            f"in, {self.usage.output:,} out: ${self.usd:,.4f}\n({self.rule})"
        )


FORECAST_RULE = (
    "a token is 4 characters (1 in Chinese) and 4 more a message; replies fill 70% of max_tokens, "
    "follow-up questions take 14 tokens, every dialogue has all its turns, nothing is cached"
)


def forecast(
    seeds: Collection[Seed], price: Price, settings: Settings | None = None, *, batch: bool = False
) -> Forecast:
    """Predict tokens and USD by a stated rule, to hold against the receipt.

    Args:
        price: USD per million tokens, as `teacher.price`.
        batch: at the price of the Batch API.
    """
    settings, usage, calls = settings or Settings(), Usage(), 0
    for seed in seeds:
        for more in _predicted_calls(seed, settings):
            usage, calls = usage + more, calls + 1
    return Forecast(len(seeds), calls, usage, price.cost(usage, batch), FORECAST_RULE)


def _predicted_calls(seed: Seed, settings: Settings) -> Iterator[Usage]:
    reply, question = round(0.7 * settings.max_tokens), 14
    if settings.strategy == "transcript":
        shown = transcript_request(seed, settings)["messages"]
        exchanges = settings.num_turns * (reply + question + 8)
        yield Usage(_tokens(shown), 0, min(exchanges, settings.transcript_tokens))
        return
    system = [{"role": "system", "content": system_prompt(seed, settings)}]
    task = prompts.question_messages([], settings.language)
    history = _tokens([{"role": "user", "content": seed.text}])
    for turn in range(settings.num_turns):
        yield Usage(_tokens(system) + history, 0, reply)
        history += reply + 4
        if turn + 1 < settings.num_turns:
            yield Usage(_tokens(task) + history, 0, question)
            history += question + 4


def _tokens(messages: Iterable[Mapping[str, str]]) -> int:
    """Tokens of messages by the forecast's rule."""
    total = 0
    for message in messages:
        chinese = sum("\u4e00" <= c <= "\u9fff" for c in message["content"])
        total += 4 + chinese + (len(message["content"]) - chinese) // 4
    return total


def bill_by_role_and_turn(ledger: Path | str) -> list[dict[str, Any]]:
    """The bill split by who was played and when: input grows with the history each call repeats.

    Returns:
        Rows of role, turn (from 1), calls, input, cached_input, output (tokens), cost_usd and
        input_per_call, in order of turns; failed dialogues are counted too.
    """
    split: dict[tuple[int, str], dict[str, Any]] = {}
    for record in read_jsonl(ledger, torn_tail_ok=True):
        whole = {"role": record["strategy"], "turn": 0} | record
        for call in record.get("calls") or [whole]:
            key = (call["turn"] + 1, call["role"])
            row = split.setdefault(
                key, {"role": key[1], "turn": key[0], "calls": 0, "input": 0, "cached_input": 0,
                      "output": 0, "cost_usd": 0.0},
            )  # fmt: skip
            row["calls"] += 1
            row["cost_usd"] += call["cost_usd"]
            for name in ("input", "cached_input", "output"):
                row[name] += call["usage"][name]
    order = {"user": 0, "assistant": 1}
    rows = [split[key] for key in sorted(split, key=lambda k: (k[0], order.get(k[1], 2)))]
    return [row | {"input_per_call": row["input"] / row["calls"]} for row in rows]
