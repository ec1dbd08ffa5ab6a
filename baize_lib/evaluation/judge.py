"""A language model as judge, with its own bias measured first.

A judge is shown two answers, in both orders, and counts only when it names the same one twice; or
it gives each answer 1 to 100 points, as ChatGPT did for Baize's second version (paper, section 3).
Whatever it says about your models, look first at pairs whose better answer is known:

    judgements = await compare(teacher, pairs)      # good answers as `a`, bad ones as `b`
    bias_table(judgements)     # does it decide? is it right? or does it just like the first answer?

What it is told stands in `judge.toml`. Position and length bias: Zheng et al. 2023, arXiv
2306.05685; the mean of several draws as a finer score: Liu et al. 2023, arXiv 2303.16634.
"""

import asyncio
import itertools
import re
import tomllib
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from baize_lib.config import BaizeError
from baize_lib.evaluation.statistics import compare_arms, interval

if TYPE_CHECKING:
    import pandas as pd

    from baize_lib.teacher.client import Teacher

__all__ = ["Pair", "bias_table", "compare", "score", "score_pairs"]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one question, each one text."""

    question: str
    a: str
    b: str


@dataclass(frozen=True, slots=True)
class Judgement:
    """What was named with `a` shown first and with `b`: "a", "b", "tie", or "" (unreadable)."""

    pair: Pair
    a_first: str
    b_first: str

    @property
    def winner(self) -> str:
        """What was named both times, else "inconsistent"."""
        return (self.a_first == self.b_first and self.a_first) or "inconsistent"


_TOLD = tomllib.loads(Path(__file__).with_name("judge.toml").read_text(encoding="utf-8"))


async def compare(teacher: "Teacher", pairs: Iterable[Pair]) -> list[Judgement]:
    """Have each pair judged in both orders. Raises what the teacher raises."""

    async def named(pair: Pair, order: str) -> str:
        first, second = (getattr(pair, side) for side in order)
        case = {"question": pair.question, "first": first, "second": second}
        found = re.search(r"[012]", await _ask(teacher, "compare", case))
        return {"0": "tie", "1": order[0], "2": order[1]}[found[0]] if found else ""

    async def both(pair: Pair) -> Judgement:
        return Judgement(pair, await named(pair, "ab"), await named(pair, "ba"))

    return await _all(both(pair) for pair in pairs)


async def score(
    teacher: "Teacher", questions: Sequence[str], answers: Sequence[str], draws: int = 1
) -> list[float | None]:
    """1 to 100 points for each answer; None where no reply of the judge holds such a number.

    With one draw the judge's likeliest reply counts; with more, the mean of so many sampled ones,
    which tells apart answers that get the same round number in the likeliest reply.
    """

    async def points(question: str, answer: str, seed: int) -> int | None:
        case = {"question": question, "answer": answer}
        found = re.search(r"\d+", await _ask(teacher, "score", case, float(draws > 1), seed))
        return int(found[0]) if found and 1 <= int(found[0]) <= 100 else None

    asked = list(zip(questions, answers, strict=True))
    drawn = [await _all(points(*each, seed) for each in asked) for seed in range(draws)]
    readable = ([p for p in each if p is not None] for each in zip(*drawn, strict=True))
    return [mean(given) if given else None for given in readable]


async def score_pairs(teacher: "Teacher", pairs: Sequence[Pair], draws: int = 1) -> list[Judgement]:
    """Have both answers of each pair scored alone; the one with more points is the one named."""
    answers = [pair.a for pair in pairs] + [pair.b for pair in pairs]
    points = await score(teacher, [pair.question for pair in pairs] * 2, answers, draws)
    judgements = []
    for pair, a, b in zip(pairs, points, points[len(pairs) :], strict=False):
        named = "" if None in (a, b) else "tie" if a == b else "ab"[a < b]
        judgements.append(Judgement(pair, named, named))
    return judgements


def bias_table(judgements: Sequence[Judgement]) -> "pd.DataFrame":
    """Shares with their 95% intervals, a pair being the unit: its two choices belong together.

    readable: both replies named an answer or a tie. decides: both the same answer. right: `a` was
    named; ties and pairs named differently in the two orders are half. first: the one shown first;
    longer: the longer one. `p`: the chance of as large a distance from 1/2 if it were a coin.
    Raises a BaizeError when there is nothing to count.
    """
    import pandas as pd

    if not judgements:
        raise BaizeError("no judgements to count: have some pairs compared first")
    uneven = [j for j in judgements if len(j.pair.a) != len(j.pair.b)]
    longer, rows = ["ab"[len(j.pair.a) < len(j.pair.b)] for j in uneven], []
    for name, seen in {
        "readable": [bool(j.a_first and j.b_first) for j in judgements],
        "decides": [j.winner in ("a", "b") for j in judgements],
    }.items():
        rows.append((name, len(seen), sum(seen) / len(seen), *interval(sum(seen), len(seen)), None))
    for name, seen in {
        "right": [_points(j, "a", "a") for j in judgements],
        "first": [_points(j, "a", "b") for j in judgements],
        "longer": [_points(j, side, side) for j, side in zip(uneven, longer, strict=True)],
    }.items():
        if seen:
            gap = compare_arms(seen, [0.5] * len(seen))
            rows.append((name, len(seen), mean(seen), 0.5 + gap.low, 0.5 + gap.high, gap.p))
    return pd.DataFrame(rows, columns=["measure", "pairs", "share", "low", "high", "p"])


def _points(judgement: Judgement, *sides: str) -> float:
    """How far it named these sides in the two orders, 0 to 1; a tie is half."""
    named = zip((judgement.a_first, judgement.b_first), sides, strict=True)
    return mean(0.5 if each in ("tie", "") else float(each == side) for each, side in named)


async def _ask(
    teacher: "Teacher", task: str, case: Mapping[str, str], temperature: float = 0.0, seed: int = 0
) -> str:
    """One short reply. A weak teacher is held to the grammar; others are only asked."""
    told = _TOLD[task]
    messages = [{"role": "system", "content": told["rule"]}]
    for shown in (*told["examples"], case):
        messages.append({"role": "user", "content": told["case"].format(**shown)})
        messages.append({"role": "assistant", "content": shown.get("reply", "")})
    reply = await teacher.chat(
        messages[:-1], max_tokens=4, temperature=temperature, top_p=None, seed=seed,
        extra={"grammar": told["grammar"]} if teacher.weak else None, purpose="judge",
    )  # fmt: skip
    return reply.text


async def _all(work: Iterable[Coroutine[Any, Any, Any]]) -> list[Any]:
    """The results in order; the first failure stops the rest and is raised as it is. One runs
    alone before the others: a server that keeps what it has read then has the examples.
    """
    waiting = iter(work)
    first = [await each for each in itertools.islice(waiting, 1)]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each) for each in waiting]
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from failed
    return first + [task.result() for task in tasks]
