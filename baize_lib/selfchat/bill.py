"""What a collection will cost, what it did cost, and where the money went.

A forecast is made by a stated rule before a call is paid for, so that it can be held against the
receipt afterwards; the bill splits what the ledger holds by who was played and by turn.

>>> from baize_lib.pricing import price_of
>>> seeds = [Seed("1", "What is LoRA?", "me")]
>>> print(forecast(seeds, price_of("gpt-3.5-turbo", year=2023), Settings(num_turns=1)))
1 dialogues, 1 calls, 28 tokens in, 84 out: $0.0002
(a token is 4 characters ...
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baize_lib.files import read_jsonl
from baize_lib.seeds.seed import Seed
from baize_lib.selfchat.prompts import (
    SelfChatSettings,
    question_messages,
    system_prompt,
    transcript_request,
)
from baize_lib.teacher.prices import Price, Usage

__all__ = [
    "Receipt",
    "Forecast",
    "forecast",
    "FORECAST_RULE",
    "bill_by_role_and_turn",
]


@dataclass(frozen=True, slots=True, repr=False)
class Receipt:
    """What one `collect` did. Tokens, USD and seconds are of this session alone.

    Attributes:
        already: dialogues the ledger held before; `left`: seeds not finished, to go on with.
        replies, cut: replies made, and how many `max_tokens` cut.
        uncertain_usd: part beyond `usd` that failed or lost calls may have cost.
        paid_again: calls an earlier session had begun whose answers were never recorded.
        total_usd: what the ledger holds, all sessions, doubtful calls included.
        stopped: why it ended early: "" (it did not), "budget" or "interrupted".
        rate: the pace a hosted teacher allowed at the end, in words; "" for the embedded one.
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
    rate: str = ""

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
        if self.rate:
            rows.append(("rate", self.rate))
        return [
            *rows,
            ("spent in all sessions", f"${self.total_usd:,.6f}"),
            ("replies cut by max_tokens", f"{self.cut:,} of {self.replies:,}"),
            ("time", f"{self.seconds:,.1f} s, {self.tokens_per_second:,.0f} tokens/s written"),
        ]

    def __str__(self) -> str:
        width = max(len(name) for name, _ in self.rows())
        return "\n".join(f"{name:<{width}}  {text}" for name, text in self.rows())

    def __repr__(self) -> str:  # what a notebook keeps beside the HTML: no paths in it
        return str(self)

    def _repr_html_(self) -> str:
        left = 'style="text-align:left"'
        cells = (f"<tr><th {left}>{n}</th><td {left}>{t}</td></tr>" for n, t in self.rows())
        return f"<table>{''.join(cells)}</table>"


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
    "follow-up questions take 14 tokens and one try; all turns are taken, nothing is cached"
)


def forecast(
    seeds: Collection[Seed],
    price: Price,
    settings: SelfChatSettings | None = None,
    *,
    batch: bool = False,
) -> Forecast:
    """Predict tokens and USD by a stated rule, to hold against the receipt.

    Args:
        price: USD per million tokens, as `teacher.price`.
        batch: at the price of the Batch API.
    """
    settings, usage, calls = settings or SelfChatSettings(), Usage(), 0
    for seed in seeds:
        for more in _predicted_calls(seed, settings):
            usage, calls = usage + more, calls + 1
    return Forecast(len(seeds), calls, usage, price.cost(usage, batch), FORECAST_RULE)


def _predicted_calls(seed: Seed, settings: SelfChatSettings) -> Iterator[Usage]:
    reply, question = round(0.7 * settings.max_tokens), 14
    if settings.strategy == "transcript":
        shown = transcript_request(seed, settings)["messages"]
        exchanges = settings.num_turns * (reply + question + 8)
        yield Usage(_tokens(shown), 0, min(exchanges, settings.transcript_tokens))
        return
    system = [{"role": "system", "content": system_prompt(seed, settings)}]
    task = question_messages([], settings.language)
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
