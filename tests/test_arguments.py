"""What people pass instead of the right thing: it works, or the error says what to pass."""

import asyncio

import pytest
from stub_server import StubServer

from baize_lib.chat.model import _messages
from baize_lib.config import BaizeError
from baize_lib.course import bubbles, check_environment, open_run
from baize_lib.dialogue import Message, as_messages, render
from baize_lib.evaluation import check, grade, health
from baize_lib.selfchat import collect, forecast, self_chat
from baize_lib.selfchat.prompts import SelfChatSettings
from baize_lib.teacher.budget import Budget
from baize_lib.teacher.client import Teacher
from baize_lib.teacher.prices import Price

HELLO = ("Hi?", [{"role": "user", "content": "Hi?"}], [Message("user", "Hi?")])
PRICE = Price("stub", 1, 10)


@pytest.mark.parametrize("said", HELLO)
def test_a_question_may_be_a_text_a_dict_or_a_message(said):
    assert as_messages(said) == [Message("user", "Hi?")] == _messages(said)
    assert render(said, open_reply=True).endswith("[|Human|] Hi?\n[|AI|]")
    assert "Hi?" in str(bubbles(said))
    with StubServer() as stub:
        asyncio.run(asked(stub, lambda who: who.chat(said, max_tokens=9)))
        assert stub.answered == 1


async def asked(stub, job):
    settings = {"api_key": "sk-x", "price": PRICE, "backoff": 0.002, "budget": 1.0}
    async with Teacher("stub", base_url=stub.url, **settings) as who:
        return await job(who)


@pytest.mark.parametrize(
    "said", [None, 7, b"Hi?", ["Hi?"], [None], {"role": "user"}, [{"content": "Hi?"}],
             [("user", "Hi?")], [Message("user", None)]],
)  # fmt: skip
@pytest.mark.parametrize("use", [as_messages, render, bubbles, _messages])
def test_what_is_no_question_is_told_what_one_is(use, said):
    with pytest.raises(BaizeError, match=r"a question is a text or a list of Message"):
        use(said)


def test_plain_questions_are_collected_and_forecast(tmp_path):
    settings = SelfChatSettings(num_turns=1)
    with StubServer() as stub:
        made = asyncio.run(
            asked(stub, lambda who: collect(["What is LoRA?"], who, settings, tmp_path / "a.jsonl"))
        )
        line = asyncio.run(asked(stub, lambda who: self_chat("What is LoRA?", who, settings)))
    assert made.ok == 1 and line["messages"][0]["content"] == "What is LoRA?"
    assert forecast(["What is LoRA?"], PRICE, settings).calls == 1


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: asyncio.run(collect(["What is LoRA?"], "qwen-1.5b")), "teacher='qwen-1.5b': make"),
        (lambda: asyncio.run(collect("What is LoRA?", None)), "put it in brackets"),
        (lambda: forecast("What is LoRA?", PRICE, SelfChatSettings()), "put it in brackets"),
        (lambda: forecast([{"text": "Why?"}], PRICE, SelfChatSettings()), "item 1 of the list"),
        (lambda: check("facts", {}, ["Dodoma."]), "no check of kind 'facts': use one of"),
        (lambda: Budget(usd="1"), "budget usd='1': use a number"),
        (lambda: open_run("desktop"), "BAIZE_TIER='desktop' is not a tier"),
        (lambda: check_environment("desktop"), "BAIZE_TIER='desktop' is not a tier"),
    ],
)
def test_an_error_says_what_to_pass(wrong, says):
    with pytest.raises(BaizeError, match=says):
        wrong()


def test_a_tier_may_be_named_a_budget_a_number_and_one_reply_a_text(tmp_path, monkeypatch):
    monkeypatch.setenv("BAIZE_RUNS", str(tmp_path))
    monkeypatch.delenv("BAIZE_RUN", raising=False)
    assert open_run("ci").path.name == "ci"
    assert "Python" in str(check_environment("ci"))
    spec = {"says": ["Dodoma"], "rivals": []}
    assert check("fact", spec, "Dodoma.") == check("fact", spec, ["Dodoma."])


def test_nothing_asked_is_an_empty_table():
    assert health([]).empty and "stops" in health([]).columns
    assert grade([], []) == {}
