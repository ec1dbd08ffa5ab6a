"""A language model as judge, with its own bias measured first.

A judge is shown two answers, in both orders, and counts only when it names the same one twice; or
it gives each answer 1 to 100 points, as ChatGPT did for Baize's second version (paper, section 3).
First try it on pairs whose better answer is known:

    judgements = await compare(teacher, pairs)      # good answers as `a`, bad ones as `b`
    bias_table(judgements)     # does it decide? is it right? or does it just like the first answer?

Position and length bias: Zheng et al. 2023, arXiv 2306.05685; the mean of several draws as a finer
score: Liu et al. 2023, arXiv 2303.16634.
"""

import itertools
import re
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import TYPE_CHECKING, Any

from baize_lib.config import BaizeError
from baize_lib.evaluation.attempts import together
from baize_lib.evaluation.statistics import compare_arms, interval
from baize_lib.files import written

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


_TOLD = written(__file__, "judge.toml")


async def compare(teacher: "Teacher", pairs: Iterable[Pair]) -> list[Judgement]:
    """Have each pair judged in both orders. Raises what the teacher raises."""

    async def judged(pair: Pair) -> Judgement:
        named = []
        for order in ("ab", "ba"):
            first, second = (getattr(pair, side) for side in order)
            case = {"question": pair.question, "first": first, "second": second}
            found = re.search(r"[012]", await _ask(teacher, "compare", case))
            named.append({"0": "tie", "1": order[0], "2": order[1]}[found[0]] if found else "")
        return Judgement(pair, *named)

    return await _one_before_the_others(map(judged, pairs))


async def score(
    teacher: "Teacher", questions: Sequence[str], answers: Sequence[str], draws: int = 1
) -> list[float | None]:
    """1 to 100 points for each answer; None where no reply of the judge holds such a number.

    With one draw the judge's likeliest reply counts; with more, the mean of so many sampled ones,
    which tells apart answers that get the same round number in the likeliest reply.
    """

    async def points(asked: tuple[str, str]) -> float | None:
        case, warmth = dict(zip(("question", "answer"), asked, strict=True)), float(draws > 1)
        given = []
        for seed in range(draws):
            found = re.search(r"\d+", await _ask(teacher, "score", case, warmth, seed))
            given += [int(found[0])] if found and 1 <= int(found[0]) <= 100 else []
        return mean(given) if given else None

    return await _one_before_the_others(map(points, zip(questions, answers, strict=True)))


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
    readable = [bool(j.a_first and j.b_first) for j in judgements]
    decided = [j.winner in ("a", "b") for j in judgements]
    rows = [
        (name, len(seen), mean(map(float, seen)), *interval(sum(seen), len(seen)), None)
        for name, seen in (("readable", readable), ("decides", decided))
    ]
    for name, seen in (
        ("right", [_points(j, "aa") for j in judgements]),
        ("first", [_points(j, "ab") for j in judgements]),
        ("longer", [_points(j, "ab"[len(j.pair.a) < len(j.pair.b)] * 2) for j in uneven]),
    ):
        if seen:
            gap = compare_arms(seen, [0.5] * len(seen))
            rows.append((name, len(seen), mean(seen), 0.5 + gap.low, 0.5 + gap.high, gap.p))
    return pd.DataFrame(rows, columns=["measure", "pairs", "share", "low", "high", "p"])


def _points(judgement: Judgement, sides: str) -> float:
    """How far it named these sides in the two orders, 0 to 1; a tie is half."""
    named = zip((judgement.a_first, judgement.b_first), sides, strict=True)
    return mean(0.5 if each in ("tie", "") else float(each == side) for each, side in named)


async def _ask(
    teacher: "Teacher", task: str, case: dict[str, str], temperature: float = 0.0, seed: int = 0
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


async def _one_before_the_others(work: Iterator[Coroutine[Any, Any, Any]]) -> list[Any]:
    """All results; a server that keeps what it has read then has the rule and the examples."""
    return await together(itertools.islice(work, 1)) + await together(work)
