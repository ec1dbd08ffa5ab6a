"""What a collection will cost, what it did cost, and where the money went.

A forecast is made by a stated rule, to be held against the receipt afterwards.

>>> from baize_lib.teacher.prices import price_of
>>> seeds = [Seed("1", "What is LoRA?", "me")]
>>> print(forecast(seeds, price_of("gpt-3.5-turbo", year=2023), SelfChatSettings(num_turns=1)))
1 calls, 28 tokens in, 84 out: $0.0002
(a token is 4 characters ...
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from baize_lib.seeds.seed import Seed, as_seeds
from baize_lib.selfchat import prompts
from baize_lib.selfchat.prompts import SelfChatSettings
from baize_lib.teacher.budget import money
from baize_lib.teacher.calls import Calls
from baize_lib.teacher.prices import Price, Usage

__all__ = ["forecast", "bill_by_role_and_turn"]


@dataclass(frozen=True, slots=True, repr=False)
class Receipt:
    """What one `collect` did. Calls, tokens, USD and seconds are of this time alone."""

    ok: int = 0
    failed: int = 0
    rejected: int = 0
    already: int = 0  # dialogues there were before
    left: int = 0  # seeds not finished, to go on with
    replies: int = 0
    cut: int = 0  # replies that `max_tokens` cut
    calls: int = 0
    input: int = 0
    output: int = 0
    usd: float = 0.0
    total_usd: float = 0.0  # the bill of all times, doubtful calls included
    doubtful: int = 0  # calls of all times that may have been billed though no answer came
    doubtful_usd: float = 0.0  # the most they cost
    reasons: Counter[str] = field(default_factory=Counter)  # why dialogues came to nothing
    stopped: str = ""  # why it ended early: "" (it did not), "budget", "interrupted" or "error"
    seconds: float = 0.0
    rate: str = ""  # the pace at the end, in words

    def __repr__(self) -> str:
        go_on = f"stopped: {self.stopped}" if self.stopped else "retry_failed=True tries them again"
        unseen = f"{self.doubtful:,} calls billed unseen, {money(self.doubtful_usd)} at most"
        return "\n".join([
            f"dialogues {self.ok:,} made, {self.already:,} before",
            f"in vain   {self.failed:,} failed, {self.rejected:,} rejected",
            *(f"because   {why[:160]} ({n:,})" for why, n in self.reasons.most_common(3)),
            *([f"left      {self.left:,} seeds ({go_on})"] if self.left else []),
            f"replies   {self.replies:,}, {self.cut:,} of them cut by max_tokens",
            f"calls     {self.calls:,}: {self.input:,} tokens in, {self.output:,} out",
            f"spent     {money(self.usd)} ({money(self.total_usd)} on self-chat in all)",
            *([f"perhaps   {unseen}"] if self.doubtful else []),
            f"time      {self.seconds:,.1f} s; {self.rate}",
        ])  # fmt: skip


def spent(calls: Calls) -> dict[str, Any]:
    """What the table holds for self-chat: those fields of a `Receipt` that it knows."""
    [row] = calls.query(
        "SELECT count(*) AS calls, ifnull(sum(input), 0) AS input,"
        " ifnull(sum(output), 0) AS output, total(owed) / 1e12 AS usd,"
        " count(*) FILTER (WHERE state = 'doubtful') AS doubtful,"
        " total(owed) FILTER (WHERE state = 'doubtful') / 1e12 AS doubtful_usd"
        " FROM bill WHERE purpose = 'self-chat' AND state != 'begun'"
    )
    return row


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a collection is likely to cost, before it starts, and the rule behind it."""

    calls: int
    usage: Usage
    usd: float

    def __str__(self) -> str:
        tokens = f"{self.usage.input:,} tokens in, {self.usage.output:,} out"
        return f"{self.calls:,} calls, {tokens}: ${self.usd:,.4f}\n({RULE})"


QUESTION = 14  # tokens
RULE = (
    "a token is 4 characters (1 in Chinese), a message 4 tokens more; replies fill 70% of "
    f"max_tokens, questions take {QUESTION} tokens and one try, all turns are taken"
)


def forecast(
    seeds: Iterable[Seed | str], price: Price, settings: SelfChatSettings, *, weak: bool = False
) -> Forecast:
    """Predict tokens and USD by `RULE`; a `weak` teacher is sent worked examples."""
    calls, usage = 0, Usage()
    for seed in as_seeds(seeds):
        for messages, written in _predicted_calls(seed, settings, weak):
            sent = sum(4 + _tokens(message["content"]) for message in messages)
            calls, usage = calls + 1, usage + Usage(sent, 0, written)
    return Forecast(calls, usage, price.cost(usage))


def _predicted_calls(
    seed: Seed, settings: SelfChatSettings, weak: bool
) -> Iterator[tuple[prompts.Messages, int]]:
    """(request, tokens written) of each call."""
    reply, turns = round(0.7 * settings.max_tokens), settings.num_turns
    if settings.strategy != "turns":
        written = min(turns * (reply + QUESTION + 8), settings.transcript_tokens)
        yield prompts.transcript_messages(seed, settings), written
    said = [{"role": "user", "content": seed.text}]
    for turn in range(turns if settings.strategy != "transcript" else 0):
        if turn:
            if settings.strategy == "turns":
                yield prompts.question_messages(seed, said, settings, weak), QUESTION
            said.append({"role": "user", "content": QUESTION * "word"})
        yield prompts.reply_messages(seed, said, settings), reply
        said.append({"role": "assistant", "content": reply * "word"})


def _tokens(text: str) -> int:
    chinese = 0 if text.isascii() else len(re.findall("[\u4e00-\u9fff]", text))
    return chinese + (len(text) - chinese) // 4


def bill_by_role_and_turn(calls: Calls) -> list[dict[str, str | int | float]]:
    """The self-chat bill split by who was played and when: input grows with the history.

    Rows of role, turn (from 1), calls, input, cached_input, output (tokens), cost_usd and
    input_per_call, in order of turns; failed dialogues are counted too.
    """
    return calls.query(
        "WITH parts AS (SELECT *, instr(part || ' ', ' ') AS space FROM bill"
        " WHERE purpose = 'self-chat' AND state = 'answered')"
        " SELECT substr(part, 1, space - 1) AS role,"
        " max(1, CAST(substr(part, space) AS INTEGER)) AS turn, count(*) AS calls,"
        " sum(input) AS input, sum(cached_input) AS cached_input, sum(output) AS output,"
        " sum(owed) / 1e12 AS cost_usd, avg(input) AS input_per_call"
        " FROM parts GROUP BY part ORDER BY turn, role DESC"
    )
