"""The judge, over real HTTP: judges of known bias must be seen to have it."""

import asyncio
import re

import pytest
from stub_server import StubServer

from baize_lib.config import BaizeError
from baize_lib.evaluation.checks import try_checks
from baize_lib.evaluation.judge import Pair, bias_table, compare, score, score_pairs
from baize_lib.evaluation.prompts import load_prompts
from baize_lib.teacher.client import Teacher
from baize_lib.teacher.errors import TeacherError
from baize_lib.teacher.local import local_teacher
from baize_lib.teacher.prices import Price

PAIRS = [Pair("Why?", f"short {i}", f"a longer answer {i}") for i in range(20)]
PAIRS += [Pair("Why?", f"a longer answer {i}", f"short {i}") for i in range(20)]


def judged_by(choose, pairs=PAIRS):
    """The judgements of a judge that maps (answer 1, answer 2) to its reply."""

    def reply(body):
        text = body["messages"][-1]["content"]
        return choose(*re.search(r"Answer 1: (.*)\n\nAnswer 2: (.*)\n\n", text).groups())

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
    judgements = judged_by(lambda first, second: "1")
    seen = shares(judgements)
    assert seen["decides"] == 0 and seen["first"] == 1
    assert seen["longer"] == seen["right"] == 0.5  # right half the time, as any coin is
    table = bias_table(judgements).set_index("measure")
    assert table.loc["first", "p"] < 0.001 and table.loc["right", "p"] == 1


def test_a_judge_that_loves_length_is_consistent_and_still_found_out():
    judgements = judged_by(lambda first, second: "1" if len(first) > len(second) else "2")
    seen = shares(judgements)
    assert (seen["decides"], seen["longer"], seen["first"], seen["right"]) == (1, 1, 0.5, 0.5)
    assert [j.winner for j in judgements] == ["b"] * 20 + ["a"] * 20


def test_a_pair_is_one_case_and_its_two_orders_are_not_two():
    rows = bias_table(judged_by(lambda first, second: "1" if first < second else "2", PAIRS[:12]))
    assert set(rows["pairs"]) == {12}
    right = rows.set_index("measure").loc["right"]
    assert right["share"] == 0 and right["p"] == pytest.approx(2 * 0.5**12)  # as of 12, not of 24


def test_ties_and_unreadable_replies_are_no_wins():
    ties = judged_by(lambda first, second: "0")
    assert {j.winner for j in ties} == {"tie"} and shares(ties)["decides"] == 0
    assert shares(ties)["right"] == 0.5
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
            return await score(teacher, ["Why?"] * 5, [f"Because {i}." for i in range(5)])

    with StubServer(reply=lambda body: next(replies)) as stub:
        assert asyncio.run(run(stub.url)) == [87, 100, None, None, None]


def scored_by(points, draws):
    """Both answers of `PAIRS` scored by a judge that maps (answer, seed) to its reply."""

    def reply(body):
        text = body["messages"][-1]["content"]
        return points(re.search(r"Answer: (.*)\n\n", text)[1], body["seed"])

    async def run(address):
        price = Price("judge", 1.0, 1.0)
        async with Teacher("judge", base_url=address, api_key="k", price=price) as teacher:
            return await score_pairs(teacher, PAIRS, draws)

    with StubServer(reply=reply) as stub:
        return asyncio.run(run(stub.url))


def test_the_answer_with_more_points_is_named_and_equal_points_are_a_tie():
    by_length = scored_by(lambda answer, seed: str(len(answer)), draws=1)
    assert [j.winner for j in by_length] == ["b"] * 20 + ["a"] * 20
    assert {j.winner for j in scored_by(lambda answer, seed: "80", draws=1)} == {"tie"}
    assert {j.winner for j in scored_by(lambda answer, seed: "?", draws=1)} == {"inconsistent"}


def test_the_mean_of_several_draws_tells_apart_what_one_reply_does_not():
    seldom = lambda answer, seed: "90" if seed == 2 and "longer" in answer else "80"  # noqa: E731
    assert shares(scored_by(seldom, draws=2))["decides"] == 0
    assert shares(scored_by(seldom, draws=3))["longer"] == 1


def test_a_failing_judge_raises_what_went_wrong_itself():
    async def run(address):
        price = Price("judge", 1.0, 1.0)
        async with Teacher("judge", base_url=address, api_key="k", price=price) as teacher:
            await compare(teacher, PAIRS)

    with StubServer() as stub, pytest.raises(TeacherError):
        stub.script("401")
        asyncio.run(run(stub.url))


def labelled_pairs(count):
    """Good answers beside bad ones to the same prompt, labelled by hand."""
    questions = {p.id: "\n\n".join(p.turns) for p in load_prompts()}
    said = {}
    for row in try_checks("make"):
        if not row["check"].startswith("code"):
            answers = said.setdefault(row["prompt"], {"good": [], "bad": []})
            answers[row["label"]].append("\n\n".join(row["replies"]))
    pairs = [
        Pair(questions[prompt], good, bad)
        for prompt, answers in said.items()
        for good, bad in zip(answers["good"], answers["bad"], strict=False)
    ]
    return pairs[:: len(pairs) // count][:count]


def test_the_small_judge_is_not_told_from_chance_and_its_bill_is_in_the_table():
    async def run():
        async with local_teacher() as teacher:
            judgements = await compare(teacher, labelled_pairs(10))
            return judgements, teacher.budget.spent_tokens

    judgements, spent = asyncio.run(run())
    table = bias_table(judgements).set_index("measure")
    assert table.loc["right", "p"] > 0.05
    assert table.loc["readable", "share"] == 1  # the grammar sees to that
    assert spent > 2000
