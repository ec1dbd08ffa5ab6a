"""The judge, over real HTTP: judges of known bias must be seen to have it."""

import asyncio
import re

import pytest
from stub_server import StubServer

from baize_lib.config import BaizeError
from baize_lib.evaluation.attempts import Attempt
from baize_lib.evaluation.judge import (  # fmt: skip
    Pair,
    bias_table,
    compare,
    judge_forecast,
    labelled_pairs,
    pairs_of,
    score,
)
from baize_lib.evaluation.prompts import load_prompts
from baize_lib.teacher.client import Teacher
from baize_lib.teacher.errors import TeacherError
from baize_lib.teacher.local import local_teacher
from baize_lib.teacher.prices import Price

PAIRS = [Pair(f"p{i}", "Why?", f"short {i}", f"a longer answer {i}") for i in range(20)]
PAIRS += [Pair(f"q{i}", "Why?", f"a longer answer {i}", f"short {i}") for i in range(20)]


def judged_by(choose, pairs=PAIRS):
    """The judgements of a judge that maps (answer 1, answer 2) to its reply."""

    def reply(body):
        text = body["messages"][-1]["content"]
        return choose(*re.search(r"\[Answer 1\]\n(.*)\n\n\[Answer 2\]\n(.*)\n\n", text).groups())

    async def run(address):
        price = Price("judge", 1.0, 1.0)
        async with Teacher("judge", base_url=address, api_key="k", price=price) as teacher:
            return await compare(teacher, pairs)

    with StubServer(reply=reply) as stub:
        return asyncio.run(run(stub.url))


def shares(judgements):
    table = bias_table(judgements).set_index("measure")
    return table["share"].to_dict()


def test_a_judge_that_loves_the_first_answer_is_never_consistent():
    seen = shares(judged_by(lambda first, second: "1"))
    assert seen["consistent"] == 0 and seen["prefers the first"] == 1
    assert seen["prefers the longer"] == 0.5 and seen["a wins"] != seen["a wins"]  # nothing decided
    assert seen["names a"] == 0.5  # right half the time, as any coin is


def test_a_judge_that_loves_length_is_consistent_and_still_found_out():
    judgements = judged_by(lambda first, second: "1" if len(first) > len(second) else "2")
    seen = shares(judgements)
    assert (seen["consistent"], seen["prefers the longer"], seen["prefers the first"]) == (
        1,
        1,
        0.5,
    )
    assert seen["a wins"] == 0.5
    assert [j.winner for j in judgements] == ["b"] * 20 + ["a"] * 20


def test_ties_and_unreadable_replies_are_no_wins():
    ties = judged_by(lambda first, second: "0")
    assert {j.winner for j in ties} == {"tie"} and shares(ties)["consistent"] == 1
    silent = judged_by(lambda first, second: "I cannot say.")
    assert {j.winner for j in silent} == {"inconsistent"} and shares(silent)["readable"] == 0
    with pytest.raises(BaizeError, match="no judgements"):
        bias_table([])


def test_points_are_read_or_missing():
    replies = iter(["87", "Score: 100", "none", "0", "250"])

    async def run(address):
        price = Price("judge", 1.0, 1.0)
        options = {"api_key": "k", "price": price, "max_concurrency": 1}
        async with Teacher("judge", base_url=address, **options) as teacher:
            return await score(teacher, ["Why?"] * 5, ["Because."] * 5)

    with StubServer(reply=lambda body: next(replies)) as stub:
        assert asyncio.run(run(stub.url)) == [87, 100, None, None, None]


def test_a_failing_judge_raises_what_went_wrong_itself():
    async def run(address):
        price = Price("judge", 1.0, 1.0)
        async with Teacher("judge", base_url=address, api_key="k", price=price) as teacher:
            await compare(teacher, PAIRS)

    with StubServer() as stub, pytest.raises(TeacherError):
        stub.script("401")
        asyncio.run(run(stub.url))


def test_the_forecast_prices_both_orders():
    teacher = Teacher("m", base_url="http://x", api_key="k", price=Price("m", 2.0, 4.0))
    tokens, usd = judge_forecast(teacher, PAIRS[:1])
    twice, _ = judge_forecast(teacher, PAIRS[:1] * 2)
    assert twice == 2 * tokens and usd == pytest.approx(((tokens - 2) * 2 + 2 * 4) / 1e6)


def test_labelled_pairs_put_the_good_answer_first():
    pairs = labelled_pairs()
    assert len(pairs) >= 60 and len({p.id for p in pairs}) > 30
    assert Pair("fact-tanzania-en 0", "What is the capital of Tanzania?",
                "The capital of Tanzania is Dodoma.", "The capital of Tanzania is Dar es Salaam."
                ) in pairs  # fmt: skip


def test_pairs_are_made_of_the_prompts_both_models_answered():
    prompts = load_prompts(category="code")[:2]
    said = lambda p, m: Attempt(p.id, m, "", 1, 1, ({"text": "one"}, {"text": "two"}))  # noqa: E731
    attempts = [said(prompts[0], "base"), said(prompts[0], "tuned"), said(prompts[1], "base")]
    (pair,) = pairs_of(prompts, attempts, "base", "tuned")
    assert pair.id == prompts[0].id and pair.a == "one\n\ntwo"


def test_the_embedded_judge_is_not_told_from_chance_and_its_cost_was_foreseen():
    pairs = labelled_pairs()[::10]

    async def run():
        async with local_teacher() as teacher:
            expected = judge_forecast(teacher, pairs)
            judgements = await compare(teacher, pairs)
            return expected, judgements, teacher.budget.spent_tokens

    (tokens, usd), judgements, spent = asyncio.run(run())
    table = bias_table(judgements).set_index("measure")
    assert table.loc["names a", "low"] < 0.5 < table.loc["names a", "high"]
    assert table.loc["readable", "share"] == 1  # the grammar sees to that
    assert usd == 0 and 0.6 < tokens / spent < 1.6
