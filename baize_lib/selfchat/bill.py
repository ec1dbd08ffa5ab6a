"""What a collection will cost, what it did cost, and where the money went.

A forecast is made by a stated rule before a call is paid for, so that it can be held against the
receipt afterwards; the bill splits the table of calls by who was played and by turn.

>>> from baize_lib.teacher.prices import price_of
>>> seeds = [Seed("1", "What is LoRA?", "me")]
>>> print(forecast(seeds, price_of("gpt-3.5-turbo", year=2023), SelfChatSettings(num_turns=1)))
1 dialogues, 1 calls, 28 tokens in, 84 out: $0.0002
(a token is 4 characters ...
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from baize_lib.seeds.seed import Seed
from baize_lib.selfchat import prompts
from baize_lib.selfchat.prompts import SelfChatSettings
from baize_lib.teacher.budget import PICO, money
from baize_lib.teacher.calls import Calls
from baize_lib.teacher.prices import Price, Usage

__all__ = ["forecast", "bill_by_role_and_turn"]


@dataclass(frozen=True, slots=True, repr=False)
class Receipt:
    """What one `collect` did. Tokens, USD and seconds are of this time alone.

    Attributes:
        already: dialogues there were before; `left`: seeds not finished, to go on with.
        replies, cut: replies made, and how many `max_tokens` cut.
        doubtful, doubtful_usd: calls of all times that may have been billed though no answer came,
            and the most they cost.
        total_usd: what the table holds for self-chat, all times, doubtful calls included.
        reasons: why dialogues failed or were rejected -> how many.
        stopped: why it ended early: "" (it did not), "budget", "interrupted" or "error".
        rate: the pace at the end, in words.
    """

    ok: int
    failed: int
    rejected: int
    already: int
    left: int
    replies: int
    cut: int
    calls: int
    doubtful: int
    input: int
    cached_input: int
    output: int
    usd: float
    doubtful_usd: float
    total_usd: float
    seconds: float
    reasons: Mapping[str, int] = field(default_factory=dict)
    stopped: str = ""
    rate: str = ""

    @property
    def usage(self) -> Usage:
        return Usage(self.input, self.cached_input, self.output)

    @property
    def tokens_per_second(self) -> float:
        """Tokens written by the teacher, per second of wall time."""
        return self.output / self.seconds if self.seconds else 0.0

    def rows(self) -> list[tuple[str, str]]:
        """(name, text) pairs, as shown."""
        before = f" + {self.already:,} before" if self.already else ""
        rows = [("dialogues", f"{self.ok:,}{before}")]
        if self.failed or self.rejected:
            rows.append(("failed, rejected", f"{self.failed:,}, {self.rejected:,}"))
        often = sorted(self.reasons.items(), key=lambda item: -item[1])
        rows += [(f"because ({count:,})", reason[:160]) for reason, count in often[:3]]
        if self.left:
            why = f" (stopped: {self.stopped})" if self.stopped else " (retry_failed=True)"
            rows.append(("seeds left", f"{self.left:,}{why}"))
        rows += [
            ("calls", f"{self.calls:,}"),
            ("tokens in, out", f"{self.input:,}, {self.output:,}"),
            ("spent", money(self.usd)),
        ]
        if self.doubtful:
            text = f"{self.doubtful:,} calls, at most {money(self.doubtful_usd)}, counted as spent"
            rows.append(("billed perhaps, unseen", text))
        return [
            *rows,
            ("spent on self-chat in all", money(self.total_usd)),
            ("replies cut by max_tokens", f"{self.cut:,} of {self.replies:,}"),
            ("time", f"{self.seconds:,.1f} s, {self.tokens_per_second:,.0f} tokens/s written"),
            ("pace", self.rate),
        ]

    def __str__(self) -> str:
        width = max(len(name) for name, _ in self.rows())
        return "\n".join(f"{name:<{width}}  {text}" for name, text in self.rows())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        import pandas as pd

        table = pd.DataFrame(self.rows(), columns=["receipt", ""]).set_index("receipt")
        return table.to_html(header=False, index_names=False)


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
    seeds: Collection[Seed], price: Price, settings: SelfChatSettings | None = None, *,
    batch: bool = False, weak: bool = False,
) -> Forecast:  # fmt: skip
    """Predict tokens and USD by a stated rule, to hold against the receipt.

    Args:
        price: USD per million tokens, as `teacher.price`.
        batch: at the price of the Batch API.
        weak: the teacher is sent worked examples, as `teacher.weak` says.
    """
    settings, usage, calls = settings or SelfChatSettings(), Usage(), 0
    for seed in seeds:
        for more in _predicted_calls(seed, settings, weak):
            usage, calls = usage + more, calls + 1
    return Forecast(len(seeds), calls, usage, price.cost(usage, batch), FORECAST_RULE)


def _predicted_calls(seed: Seed, settings: SelfChatSettings, weak: bool) -> Iterator[Usage]:
    reply, question, turns = round(0.7 * settings.max_tokens), 14, settings.num_turns
    if settings.strategy != "turns":
        shown = prompts.transcript_messages(seed, settings)
        exchanges = turns * (reply + question + 8)
        yield Usage(_tokens(shown), 0, min(exchanges, settings.transcript_tokens))
    if settings.strategy == "transcript":
        return
    system = [{"role": "system", "content": prompts.system_prompt(seed, settings)}]
    asks = [{"role": "user", "content": seed.text}]
    task = _tokens(prompts.question_messages(seed, asks, settings, weak))
    said = _tokens(asks)
    for turn in range(turns):
        yield Usage(_tokens(system) + said, 0, reply)
        said += reply + 4
        if turn + 1 < turns:
            if settings.strategy == "turns":
                yield Usage(task + said - _tokens(asks), 0, question)
            said += question + 4


def _tokens(messages: Iterable[Mapping[str, str]]) -> int:
    """Tokens of messages by the forecast's rule."""
    total = 0
    for message in messages:
        text = message["content"]
        chinese = sum("\u4e00" <= character <= "\u9fff" for character in text)
        total += 4 + chinese + (len(text) - chinese) // 4
    return total


def bill_by_role_and_turn(calls: Calls) -> list[dict[str, str | int | float]]:
    """The self-chat bill split by who was played and when: input grows with the history.

    Returns:
        Rows of role, turn (from 1), calls, input, cached_input, output (tokens), cost_usd and
        input_per_call, in order of turns; failed dialogues are counted too.
    """
    rows = calls.query(
        "SELECT part, count(*) AS calls, sum(input) AS input, sum(cached_input) AS cached_input,"
        " sum(output) AS output, sum(owed) AS owed FROM bill"
        " WHERE purpose = 'self-chat' AND state = 'answered' GROUP BY part"
    )
    made = []
    for row in rows:
        role, _, turn = row.pop("part").partition(" ")
        cost = row.pop("owed") / PICO
        made.append({"role": role, "turn": int(turn or 1), **row, "cost_usd": cost,
                     "input_per_call": row["input"] / row["calls"]})  # fmt: skip
    order = {"user": 0, "assistant": 1}
    return sorted(made, key=lambda row: (row["turn"], order.get(row["role"], 2)))
