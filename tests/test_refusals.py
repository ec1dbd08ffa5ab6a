"""Refusals: taken from a teacher that declines, else written by hand; and what those are like."""

import asyncio
import re
from collections import Counter
from itertools import combinations
from statistics import mean

import pytest
from stub_server import StubServer

from baize_lib.config import BaizeError
from baize_lib.evaluation.refusals import (  # fmt: skip
    answers,
    ask_guarded,
    declines,
    read_refusals,
    refusal_lesson,
)
from baize_lib.files import read_jsonl
from baize_lib.seeds.clean import load_seeds
from baize_lib.selfchat.prompts import GUARDRAIL
from baize_lib.teacher.budget import Budget
from baize_lib.teacher.client import Teacher
from baize_lib.teacher.prices import Price
from baize_lib.text import jaccard

UNSAFE = {seed.text: seed.id for seed in load_seeds("unsafe")}
HARMLESS = {seed.text: seed.id for seed in load_seeds("harmless")}
PRICE = Price("stub", 1.0, 1.0, 1.0, as_of="2026-01-01")
TOO_WILLING = {"unsafe-003", "unsafe-020", "unsafe-041"}  # the stub answers these all the same
TOO_SHY = {"harmless-001", "harmless-046"}  # and declines these


def strict(body):
    """A teacher that declines what is unsafe, with a few mistakes of both kinds."""
    asked = body["messages"][-1]["content"]
    if asked in UNSAFE and UNSAFE[asked] not in TOO_WILLING:
        return f"I can't help with that ({UNSAFE[asked]}), since somebody would be hurt."
    if HARMLESS.get(asked) in TOO_SHY:
        return "I'm sorry, I cannot help with such a request."
    return "Here is what to do: begin at the left, and go on to the right."


def lesson_of(stub, folder, budget=None, **options):
    async def main():
        settings = {"price": PRICE, "api_key": "sk-test", "backoff": 0.001, "budget": budget}
        async with Teacher("stub", base_url=stub.url, **settings) as teacher:
            return await refusal_lesson(teacher, folder, **options)

    return asyncio.run(main())


def first_words(text, count):
    return " ".join(re.findall(r"[\w']+", text.lower())[:count])


# ---- Whose refusals


def test_a_teacher_that_declines_is_asked_for_all_and_only_proper_dialogues_are_kept(tmp_path):
    with StubServer(reply=strict) as stub:
        lesson = lesson_of(stub, tmp_path)
        assert stub.answered == len(UNSAFE) + len(HARMLESS)
        assert all(GUARDRAIL["en"] in body["messages"][0]["content"] for body, _ in stub.log)
    assert {d.id for d in lesson.refusals} == set(UNSAFE.values()) - TOO_WILLING
    assert {d.id for d in lesson.answers} == set(HARMLESS.values()) - TOO_SHY
    assert all(declines(d.messages[-1].content) for d in lesson.refusals)
    assert all(d.num_turns == 1 for d in (*lesson.refusals, *lesson.answers))
    assert lesson.dropped == {"unsafe, not declined": 3, "harmless, declined": 2}
    assert lesson.origin == "collected: teacher stub declined 11 of 12 unsafe requests asked first"


def test_a_teacher_that_declines_nothing_is_not_asked_on_and_the_written_pairs_are_taken(tmp_path):
    with StubServer(reply=lambda body: "Sure, here is how.") as stub:
        lesson = lesson_of(stub, tmp_path, num_probed=6)
        assert stub.answered == 6
    assert lesson.refusals == read_refusals().refusals
    assert "written by hand: teacher stub declined 0 of 6 unsafe requests" in str(lesson)


def test_nothing_is_paid_for_twice(tmp_path):
    with StubServer(reply=strict) as stub:
        first = lesson_of(stub, tmp_path)
        answered = stub.answered
        assert lesson_of(stub, tmp_path) == first
        assert stub.answered == answered


def test_the_budget_holds_and_what_was_collected_until_then_counts(tmp_path):
    budget = Budget(usd=0.007)
    with StubServer(reply=strict) as stub:
        lesson = lesson_of(stub, tmp_path, budget)
        assert 12 < stub.answered < len(UNSAFE) + len(HARMLESS)
        short = lesson.refusals + lesson.answers
    assert budget.spent_usd <= 0.007
    assert len(short) + lesson.dropped.total() == stub.answered


def test_a_teacher_that_declines_everything_is_refused_with_what_to_do(tmp_path):
    with (
        StubServer(reply=lambda body: "I can't help with that.") as stub,
        pytest.raises(BaizeError, match=r"(?s)0 answers.*read_refusals"),
    ):
        lesson_of(stub, tmp_path)


def test_a_cut_reply_and_a_failed_dialogue_teach_nothing(tmp_path):
    with StubServer(reply=strict) as stub:
        stub.script("length", "400")
        lesson = lesson_of(stub, tmp_path)
    assert lesson.dropped["cut by max_tokens"] == 1
    assert len(lesson.refusals) + len(lesson.answers) + lesson.dropped.total() == 93


def test_the_ledger_is_the_ordinary_one_with_one_turn_a_seed(tmp_path):
    async def main(url):
        async with Teacher("stub", base_url=url, api_key="sk-test", price=PRICE) as teacher:
            return await ask_guarded(load_seeds("unsafe", 3), teacher, tmp_path / "probe.jsonl")

    with StubServer(reply=strict) as stub:
        dialogues = asyncio.run(main(stub.url))
    rows = list(read_jsonl(tmp_path / "probe.jsonl"))
    assert [row["id"] for row in rows] == [d.id for d in dialogues]  # in the order they came back
    assert {d.id for d in dialogues} == set(sorted(UNSAFE.values())[:3])
    assert all(row["cost_usd"] > 0 and len(row["messages"]) == 2 for row in rows)


# ---- The ones written by hand


def test_there_are_sixty_refusals_each_beside_its_harmless_twin():
    lesson = read_refusals()
    assert len(lesson.refusals) == len(lesson.answers) >= 60
    for refusal, answer in zip(lesson.refusals, lesson.answers, strict=True):
        assert refusal.id.replace("refusal", "answer") == answer.id
    assert not [d.id for d in lesson.answers if not answers(d.messages[-1].content)]


def test_the_written_refusals_follow_no_template():
    said = [d.messages[-1].content for d in read_refusals().refusals]
    assert max(Counter(first_words(text, 5) for text in said).values()) <= 2
    assert max(Counter(first_words(text, 2) for text in said).values()) <= 6
    runs = Counter(
        run
        for text in said
        for words in [re.findall(r"[\w']+", text.lower())]
        for run in {tuple(words[i : i + 5]) for i in range(len(words) - 4)}
    )
    assert max(runs.values()) <= 3
    assert mean(jaccard(a, b, width=1) for a, b in combinations(said, 2)) < 0.16


def test_the_written_refusals_are_short_and_say_more_than_no():
    said = [d.messages[-1].content for d in read_refusals().refusals]
    assert all(15 <= len(text.split()) <= 50 for text in said)
    assert all(len(re.findall(r"[.;:!?](\s|$)", text)) >= 2 for text in said)


def test_a_template_would_be_caught():
    """The measures above, on refusals all built alike, are far beyond their limits."""
    said = [f"I'm sorry, but I can't help with that because {w} is illegal." for w in UNSAFE]
    assert max(Counter(first_words(text, 5) for text in said).values()) == len(said)
    assert mean(jaccard(a, b, width=1) for a, b in combinations(said[:20], 2)) > 0.3
