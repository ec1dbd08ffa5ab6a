"""Self-chat: what is asked, what is kept, and that no failure loses a dialogue or a cent."""

import asyncio
import signal
import subprocess
import sys
import time
from pathlib import Path

import kill_run
import pytest
from kill_run import PRICE, question_of, seeds_of
from stub_server import BAD_KEY, StubServer

from baize_lib.config import BaizeError
from baize_lib.files import read_jsonl
from baize_lib.seeds.seed import Seed
from baize_lib.selfchat import prompts
from baize_lib.selfchat.bill import bill_by_role_and_turn, forecast
from baize_lib.selfchat.collect import collect
from baize_lib.selfchat.prompts import SelfChatSettings
from baize_lib.selfchat.questions import clean_question
from baize_lib.selfchat.strategies import self_chat
from baize_lib.teacher.budget import Budget
from baize_lib.teacher.calls import Calls
from baize_lib.teacher.client import Teacher
from baize_lib.teacher.errors import RunStopped
from baize_lib.teacher.local import local_teacher
from baize_lib.teacher.meter import CostMeter
from baize_lib.teacher.prices import Usage

ROOT = Path(__file__).parent.parent
SEED = Seed("s-1", "How do bees make honey?", "tests")
TWO_TURNS = SelfChatSettings(num_turns=2)


@pytest.fixture
def stub():
    with StubServer(reply=question_of) as server:
        yield server


def teacher_of(stub, **options):
    options = {"price": PRICE, "api_key": "sk-test", "backoff": 0.001} | options
    return Teacher("stub", base_url=stub.url, **options)


def one(stub, settings=TWO_TURNS, seed=SEED, **options):
    async def main():
        async with teacher_of(stub, **options) as teacher:
            return await self_chat(seed, teacher, settings)

    return asyncio.run(main())


def run(stub, path, seeds=6, settings=TWO_TURNS, *, teacher=None, **options):
    """Collect with a fresh teacher; returns its receipt."""

    async def main():
        async with teacher or teacher_of(stub) as used:
            chosen = seeds_of(seeds) if isinstance(seeds, int) else seeds
            return await collect(chosen, used, settings, path, **options)

    return asyncio.run(main())


def rows_of(path):
    return list(read_jsonl(path))


def asked(stub):
    return [body for body, _ in stub.log]


def is_question(body):
    return body["max_tokens"] == SelfChatSettings().question_tokens


def answered_usd(stub):
    return PRICE.cost(Usage(stub.input, 0, stub.output))


def table_of(path, budget=None):
    return Calls(path.with_name("calls.sqlite"), budget)


def states(path):
    rows = table_of(path).query("SELECT state, count(*) AS n FROM bill GROUP BY state")
    return {row["state"]: row["n"] for row in rows}


class TestTurns:
    def test_the_seed_comes_first_and_the_roles_alternate(self, stub):
        line = one(stub, SelfChatSettings(num_turns=3))
        assert line["messages"][0] == {"role": "user", "content": SEED.text}
        assert [m["role"] for m in line["messages"]] == ["user", "assistant"] * 3
        assert (line["status"], line["finish_reasons"]) == ("ok", ["stop"] * 3)

    def test_a_strong_teacher_goes_on_with_the_conversation_it_has(self, stub):
        line = one(stub)
        answer1, question, answer2 = (body["messages"] for body in asked(stub))
        assert [m["role"] for m in answer1] == ["system", "user"]
        assert answer2[1:] == line["messages"][:3]
        assert question[:3] == answer2[:3]  # so that nothing is read twice
        assert question[3]["role"] == "user" and "next" in question[3]["content"]

    def test_a_weak_one_is_sent_worked_examples_a_transcript_and_a_grammar(self, stub):
        stub.reply = lambda body: f"Why is {question_of(body)[4:8]} honey?"
        line = one(stub, weak=True)
        answer1, question, answer2 = asked(stub)
        assert answer2["messages"][1:] == line["messages"][:3]
        shown = question["messages"][-1]["content"]
        assert shown == f"Human: {SEED.text}\nAI: {line['messages'][1]['content']}"
        assert question["grammar"] == prompts.grammar("question", "en")
        assert answer1["grammar"] == prompts.grammar("general", "en")

    def test_the_bill_is_kept_by_call(self, stub):
        async def main():
            async with teacher_of(stub) as teacher:
                line = await self_chat(SEED, teacher, TWO_TURNS)
                return line, teacher.calls.query("SELECT part, subject, input FROM bill")

        line, rows = asyncio.run(main())
        assert [row["part"] for row in rows] == ["assistant 1", "user 2", "assistant 2"]
        assert {row["subject"] for row in rows} == {SEED.id}
        assert line["usage"] == {"input": stub.input, "cached_input": 0, "output": stub.output}
        assert line["cost_usd"] == pytest.approx(answered_usd(stub))
        assert sum(row["input"] for row in rows) == stub.input

    @pytest.mark.parametrize("said", ["END", " end.\n", '"END"'])
    def test_it_ends_early_when_the_human_has_no_more_questions(self, stub, said):
        stub.reply = lambda body: said if is_question(body) else "It is so."
        line = one(stub, SelfChatSettings(num_turns=5))
        assert (line["status"], line["ended"]) == ("ok", "no more questions")
        assert len(line["messages"]) == 2

    def test_a_question_asked_before_is_not_asked_again(self, stub):
        stub.reply = lambda body: "How do the bees make honey?" if is_question(body) else "So."
        line = one(stub, SelfChatSettings(num_turns=3))
        assert line["ended"] == "no more questions"
        assert line["num_calls"] == 5 and not is_question(asked(stub)[0])
        heat = [body["temperature"] for body in asked(stub)[1:]]
        assert heat == pytest.approx([0.8, 1.0, 1.2, 1.4])

    def test_replies_cut_by_max_tokens_are_marked(self, stub):
        stub.script("ok", "ok", "length")
        line = one(stub)
        assert line["finish_reasons"] == ["stop", "length"]

    def test_an_empty_reply_ends_it_and_whole_exchanges_are_kept(self, stub):
        stub.script("ok", "ok", "filter")
        line = one(stub)
        assert (line["status"], len(line["messages"])) == ("ok", 2)
        stub.script("empty")
        line = one(stub)
        assert (line["status"], line["reason"]) == ("rejected", "empty reply (stop)")
        assert line["cost_usd"] > 0

    def test_the_domain_follows_the_seed_and_the_guardrail_is_told(self, stub):
        one(
            stub,
            SelfChatSettings(num_turns=1, guardrail=True),
            Seed("m", "What is flu?", "medquad"),
        )
        system = asked(stub)[0]["messages"][0]["content"]
        assert system.startswith("You are a careful medical assistant")
        assert "unlawful" in system
        one(stub, SelfChatSettings(num_turns=1, system="Be a pirate."))
        assert asked(stub)[1]["messages"][0]["content"] == "Be a pirate."

    def test_chinese_prompts(self, stub):
        stub.reply = lambda body: "结束" if is_question(body) else "蜂蜜来自花蜜。"
        seed, settings = Seed("z", "蜜蜂怎样酿蜜？", "tests"), SelfChatSettings(language="zh")
        line = one(stub, settings, seed, weak=True)
        answer, question = asked(stub)
        assert answer["messages"][0]["content"] == prompts.system_prompt(seed, settings)
        assert question["messages"][-1]["content"].startswith("人类：蜜蜂怎样酿蜜？\n助手：")
        assert line["ended"] == "no more questions"

    def test_sampling_depends_on_the_seed_alone(self, stub, tmp_path):
        run(stub, tmp_path / "one" / "l.jsonl", teacher=teacher_of(stub, max_concurrency=1))
        run(stub, tmp_path / "many" / "l.jsonl", teacher=teacher_of(stub, max_concurrency=6))
        first, second = (
            {row["id"]: row["messages"] for row in rows_of(tmp_path / name / "l.jsonl")}
            for name in ("one", "many")
        )
        assert stub.answered == 2 * 18
        assert first == second

    def test_the_embedded_teacher_talks_to_itself(self):
        async def main():
            async with local_teacher() as teacher:
                return await self_chat(SEED, teacher, SelfChatSettings(num_turns=2, max_tokens=24))

        line = asyncio.run(main())
        assert line["status"] == "ok"
        assert line["messages"][0]["content"] == SEED.text
        questions = [m["content"] for m in line["messages"][2::2]]
        assert all(question.endswith("?") for question in questions)


class TestTranscript:
    SETTINGS = SelfChatSettings(strategy="transcript")

    def test_one_call_gives_a_whole_dialogue(self, stub):
        stub.reply = lambda body: "[Human] Why?\n[AI] So.\n[Human] And then?\n[AI] No more."
        line = one(stub, self.SETTINGS)
        assert stub.answered == 1
        assert [m["content"] for m in line["messages"]] == ["Why?", "So.", "And then?", "No more."]
        assert SEED.text in asked(stub)[0]["messages"][0]["content"]

    def test_defects_are_recorded_and_a_cut_reply_is_marked(self, stub):
        stub.reply = lambda body: "Why?\n[AI] So.\n[Human] And?\n[AI] " + "word " * 999
        line = one(stub, self.SETTINGS)
        assert line["defects"] == ["missing first tag"]
        assert line["finish_reasons"] == ["stop", "length"]

    def test_a_cut_in_a_question_spares_the_last_whole_reply(self, stub):
        stub.reply = lambda body: "[Human] Why?\n[AI] So.\n[Human] " + "word " * 999
        line = one(stub, self.SETTINGS)
        assert (line["finish_reasons"], line["ended"]) == (["stop"], "length")

    def test_a_text_without_an_exchange_is_rejected_and_kept(self, stub):
        stub.reply = lambda body: "I would rather not."
        line = one(stub, self.SETTINGS)
        assert (line["status"], line["messages"]) == ("rejected", [])
        assert "no tags" in line["reason"]


class TestResume:
    def test_what_is_done_is_not_done_again(self, stub, tmp_path):
        path = tmp_path / "l.jsonl"
        assert (run(stub, path, 4).ok, run(stub, path, 4).ok) == (4, 0)
        receipt = run(stub, path, seeds_of(6)[::-1])  # others, and another order, are welcome
        assert (receipt.ok, receipt.already, receipt.left) == (2, 4, 0)
        assert run(stub, path, seeds_of(6)[3:]).calls == 0
        assert [row["id"] for row in rows_of(path)].count("s-0") == 1

    @pytest.mark.parametrize(
        ("changed", "named"),
        [
            ({"settings": SelfChatSettings(strategy="transcript")}, '"turns" -> "transcript"'),
            ({"settings": SelfChatSettings(num_turns=5)}, "num_turns: 2 -> 5"),
            ({"seeds": [Seed("s-3", "What else?", "")]}, "another question called 's-3'"),
        ],
    )
    def test_a_changed_run_is_refused_with_the_difference(self, stub, tmp_path, changed, named):
        path = tmp_path / "l.jsonl"
        run(stub, path)
        calls = stub.answered
        with pytest.raises(BaizeError, match="begun with (an)?other") as refusal:
            run(stub, path, **changed)
        assert named in str(refusal.value)
        assert stub.answered == calls

    def test_another_teacher_is_refused(self, stub, tmp_path):
        run(stub, tmp_path / "l.jsonl")
        other = Teacher("other", base_url=stub.url, api_key="sk-test", price=PRICE)
        with pytest.raises(BaizeError, match='teacher: "stub" -> "other"'):
            run(stub, tmp_path / "l.jsonl", teacher=other)

    def test_two_seeds_of_one_id_are_refused(self, stub, tmp_path):
        with pytest.raises(BaizeError, match="two seeds have the id 's-1'"):
            run(stub, tmp_path / "l.jsonl", [SEED, SEED])

    def test_the_file_is_made_again_from_the_table_for_nothing(self, stub, tmp_path):
        path = tmp_path / "l.jsonl"
        run(stub, path)
        before, calls = rows_of(path), stub.answered
        path.unlink()
        receipt = run(stub, path)
        assert (receipt.ok, receipt.usd, stub.answered) == (6, 0, calls)
        assert [row["messages"] for row in sorted(rows_of(path), key=lambda row: row["id"])] == [
            row["messages"] for row in sorted(before, key=lambda row: row["id"])
        ]
        assert receipt.total_usd == pytest.approx(answered_usd(stub))

    def test_a_teacher_without_a_table_gets_one_beside_the_dialogues(self, stub, tmp_path):
        teacher = teacher_of(stub, budget=1.0)
        run(stub, tmp_path / "l.jsonl", teacher=teacher)
        assert teacher.calls.path == tmp_path / "calls.sqlite"
        assert teacher.budget.usd == 1.0 and teacher.budget.spent_usd > 0

    def test_two_collections_of_a_run_share_its_table(self, stub, tmp_path):
        calls = Calls(tmp_path / "calls.sqlite")
        for name, settings in (("a.jsonl", TWO_TURNS), ("b.jsonl", SelfChatSettings(num_turns=1))):
            run(stub, tmp_path / name, settings=settings, teacher=teacher_of(stub, calls=calls))
        assert calls.budget.spent_usd == pytest.approx(answered_usd(stub))
        with pytest.raises(BaizeError, match="begun with other settings"):
            run(stub, tmp_path / "b.jsonl", teacher=teacher_of(stub, calls=calls))

    def test_what_was_spent_is_read_from_the_table(self, stub, tmp_path):
        path, calls = tmp_path / "l.jsonl", Calls(tmp_path / "calls.sqlite", 1)
        run(stub, path, 3, teacher=teacher_of(stub, calls=calls))
        run(stub, path, 6, teacher=teacher_of(stub, calls=calls))
        assert calls.budget.spent_usd == pytest.approx(answered_usd(stub))
        again = Calls(tmp_path / "calls.sqlite", 1)
        receipt = run(stub, path, 6, teacher=teacher_of(stub, calls=again))
        assert receipt.total_usd == again.budget.spent_usd == calls.budget.spent_usd
        assert receipt.usd == 0

    def test_failures_are_kept_and_retried_alone(self, stub, tmp_path):
        path = tmp_path / "l.jsonl"
        stub.script("ok", "context", "context")
        receipt = run(stub, path, 6)
        assert (receipt.ok, receipt.failed, receipt.left) == (4, 2, 2)
        failed = [row for row in rows_of(path) if row["status"] == "failed"]
        assert all("maximum context length" in row["reason"] for row in failed)
        calls = stub.answered
        assert run(stub, path, 6).calls == 0
        receipt = run(stub, path, 6, retry_failed=True)
        assert (receipt.ok, receipt.left) == (2, 0)
        assert stub.answered == calls + 2 * 3
        assert [row["attempt"] for row in rows_of(path)[-2:]] == [2, 2]

    def test_a_meter_shows_both_sessions(self, stub, tmp_path):
        path = tmp_path / "l.jsonl"
        run(stub, path, 3)
        teacher = teacher_of(stub)
        meter = CostMeter(teacher.budget, target=6)
        run(stub, path, 6, meter=meter, teacher=teacher)
        assert meter.dialogues == 6
        assert teacher.budget.spent_usd == pytest.approx(answered_usd(stub))


class TestStops:
    def test_a_budget_ends_the_run_without_an_error_and_a_larger_one_goes_on(self, stub, tmp_path):
        path, cap = tmp_path / "l.jsonl", 0.0015
        receipt = run(stub, path, 12, teacher=teacher_of(stub, budget=Budget(usd=cap)))
        assert receipt.stopped == "budget"
        assert "stopped: budget" in str(receipt)
        assert PRICE.cost(Usage(stub.input, 0, stub.output)) <= cap
        receipt = run(stub, path, 12, teacher=teacher_of(stub, budget=Budget(usd=1)))
        assert (receipt.stopped, receipt.left, receipt.doubtful) == ("", 0, 0)
        assert stub.answered == 12 * 3  # every call was paid once
        assert receipt.total_usd == pytest.approx(PRICE.cost(Usage(stub.input, 0, stub.output)))

    def test_a_refused_key_stops_at_the_first_call(self, stub, tmp_path, capsys):
        path = tmp_path / "l.jsonl"
        with pytest.raises(RunStopped, match="OPENAI_API_KEY"):
            run(stub, path, 50, teacher=teacher_of(stub, api_key=BAD_KEY))
        assert stub.calls["POST /chat"] == 1
        assert rows_of(path) == []
        assert run(stub, path, 50).ok == 50

    def test_twenty_failures_in_a_row_stop_the_run(self, stub, tmp_path):
        path = tmp_path / "l.jsonl"
        stub.script("ok", *["context"] * 200)
        with pytest.raises(BaizeError, match="20 dialogues in a row came to nothing"):
            run(stub, path, 100, teacher=teacher_of(stub, max_concurrency=5))
        assert 20 <= len(rows_of(path)) <= 26
        stub._script.clear()
        assert run(stub, path, 100, retry_failed=True).left == 0

    def test_a_cancelled_run_keeps_every_answer_and_pays_none_again(self, stub, tmp_path, capsys):
        path = tmp_path / "l.jsonl"
        stub.latency = 0.02

        async def main():
            async with teacher_of(stub) as teacher:
                work = asyncio.create_task(collect(seeds_of(40), teacher, TWO_TURNS, path))
                while stub.answered < 30:
                    await asyncio.sleep(0.005)
                work.cancel()
                await work

        with pytest.raises(asyncio.CancelledError):
            asyncio.run(main())
        assert "run the same again to go on" in capsys.readouterr().out
        assert stub.answered < 120
        receipt = run(stub, path, 40)
        assert (receipt.left, receipt.doubtful, stub.answered) == (0, 0, 120)

    def test_a_call_given_up_is_counted_as_perhaps_billed(self, stub, tmp_path, monkeypatch):
        monkeypatch.setattr(sys.modules["baize_lib.selfchat.collect"], "GRACE", 0.05)
        path = tmp_path / "l.jsonl"
        stub.script("ok", "hang")

        async def main():
            async with teacher_of(stub) as teacher:
                work = asyncio.create_task(collect(seeds_of(1), teacher, TWO_TURNS, path))
                while stub.outcomes["hang"] == 0:
                    await asyncio.sleep(0.005)
                work.cancel()
                await work

        with pytest.raises(asyncio.CancelledError):
            asyncio.run(main())
        teacher = teacher_of(stub, budget=1)
        receipt = run(stub, path, 1, teacher=teacher)
        assert (receipt.ok, receipt.doubtful) == (1, 1)
        assert receipt.doubtful_usd == teacher.budget.uncertain_usd > 0
        assert receipt.total_usd == teacher.budget.spent_usd
        assert "1 calls billed unseen" in str(receipt)

    def test_control_c_ends_cleanly(self, stub, tmp_path):
        path = tmp_path / "l.jsonl"
        stub.latency = 0.03
        code = f"import kill_run; kill_run.life({stub.url!r}, {str(path)!r}, 60, 8)"
        process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT / "tests", stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, env={"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        while stub.answered < 40:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=20)
        assert "every answered call" in out
        assert states(path) == {"answered": stub.answered}

    @pytest.mark.parametrize("content", [
        "id,text\n1,Why do cats purr?", '{"id": "1"}\n{"id": "2', "Why do cats purr?", '[{"id": 1}]'
    ])  # fmt: skip
    def test_a_file_that_is_no_collection_is_refused_and_left_as_it_is(
        self, stub, tmp_path, content
    ):
        (tmp_path / "seeds.csv").write_text(content)
        with pytest.raises(BaizeError, match=r"is not a JSON object|is no collection"):
            run(stub, tmp_path / "seeds.csv")
        assert (tmp_path / "seeds.csv").read_text() == content

    def test_a_second_collection_on_the_same_table_is_refused(self, stub, tmp_path):
        async def main():
            async with teacher_of(stub) as teacher:
                jobs = [collect(seeds_of(5), teacher, TWO_TURNS, tmp_path / "l") for _ in range(2)]
                return await asyncio.gather(*jobs, return_exceptions=True)

        first, second = asyncio.run(main())
        assert first.ok == 5
        assert "is being collected already" in str(second)


FAULTS = [
    "429", "429 retry-after=0.01", "500", "503", "502", "reset", "reset-after", "malformed", "html",
    "no-choices", "no-usage", "length", "empty", "filter", "400", "context", "hang",
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_no_fault_loses_a_dialogue_or_a_cent(stub, tmp_path, fault):
    path = tmp_path / "l.jsonl"
    stub.script("ok", "ok", fault, "ok", fault, fault)
    run(stub, path, teacher=teacher_of(stub, budget=1, timeout=0.2 if fault == "hang" else 10))
    run(stub, path, retry_failed=True)
    rows = rows_of(path)
    assert sorted(row["id"] for row in rows if row["status"] == "ok") == [
        f"s-{i}" for i in range(6)
    ]
    table = table_of(path)
    with table.held():
        counted = table.budget
    assert counted.spent_usd >= answered_usd(stub) - 1e-9
    assert counted.spent_usd - counted.uncertain_usd <= (
        answered_usd(stub) + 1e-9 + (fault == "no-usage") * 1
    )


def test_kill_9_loses_nothing_doubles_nothing_and_pays_at_most_the_calls_in_flight(tmp_path):
    found = kill_run.kill_run(tmp_path, kills=8, num_seeds=80, longest=0.4)
    assert (found.dialogues, found.lost, found.doubled) == (80, 0, 0)
    assert 0 <= found.paid_again <= found.at_most <= found.kills * 16
    assert found.usd_recorded <= found.usd_answered <= found.usd_recorded + found.usd_uncertain


class TestCosts:
    def test_the_forecast_counts_the_calls_and_is_near_the_bill(self, stub, tmp_path):
        stub.reply = lambda body: question_of(body) + " word" * (0 if is_question(body) else 60)
        settings = SelfChatSettings(num_turns=3, max_tokens=120)
        expected = forecast(seeds_of(6), PRICE, settings)
        receipt = run(stub, tmp_path / "l.jsonl", 6, settings)
        assert expected.calls == receipt.calls == 6 * 5
        assert expected.usd == pytest.approx(receipt.usd, rel=0.25)
        assert "70% of max_tokens" in str(expected)

    def test_the_bill_adds_up_and_its_input_grows_with_history(self, stub, tmp_path):
        run(stub, tmp_path / "l.jsonl", 5, SelfChatSettings(num_turns=3))
        rows = bill_by_role_and_turn(table_of(tmp_path / "l.jsonl"))
        assert sum(row["input"] for row in rows) == stub.input
        assert sum(row["calls"] for row in rows) == stub.answered
        growth = [row["input_per_call"] for row in rows if row["role"] == "assistant"]
        assert growth == sorted(growth)
        assert [(row["turn"], row["role"]) for row in rows][:3] == [
            (1, "assistant"), (2, "user"), (2, "assistant")
        ]  # fmt: skip

    def test_a_transcript_is_one_row_of_the_bill(self, stub, tmp_path):
        stub.reply = lambda body: "[Human] Why?\n[AI] So."
        run(stub, tmp_path / "l.jsonl", 5, SelfChatSettings(strategy="transcript"))
        [row] = bill_by_role_and_turn(table_of(tmp_path / "l.jsonl"))
        assert (row["role"], row["calls"], row["input"]) == ("transcript", 5, stub.input)

    def test_the_receipt_says_what_was_cut(self, stub, tmp_path):
        stub.script("length")
        receipt = run(stub, tmp_path / "l.jsonl", 2)
        assert (receipt.cut, receipt.replies) == (1, 4)
        assert "4, 1 of them cut by max_tokens" in str(receipt)


@pytest.mark.parametrize(
    "wrong", [{"strategy": "v1"}, {"language": "fr"}, {"domain": "law"}, {"num_turns": 0}]
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(BaizeError, match=next(iter(wrong))):
        SelfChatSettings(**wrong)


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("Human: Why is that?\nAI: So.", "Why is that?"), ('"Why is that?"', "Why is that?"),
        ("[Human] Why?", "Why?"), ("User stories, what are they?", "User stories, what are they?"),
        ("\n\n", ""), ("人类：为什么？", "为什么？"),
    ],
)  # fmt: skip
def test_questions_are_read_without_tags_and_quotes(text, question):
    assert clean_question(text) == question


def test_the_receipt_shows_the_rate_a_hosted_teacher_allowed(stub, tmp_path):
    receipt = run(stub, tmp_path / "l.jsonl", 6)
    assert "calls/s" in str(receipt)
    assert "in flight, slowed 0 times by the server" in str(receipt)
