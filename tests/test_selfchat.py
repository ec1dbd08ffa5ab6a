"""Self-chat: what is asked, what is kept, and that no failure loses a dialogue or a cent."""

import asyncio
import json
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
from baize_lib.selfchat import collect as selfchat
from baize_lib.selfchat import prompts
from baize_lib.selfchat.bill import bill_by_role_and_turn, forecast
from baize_lib.selfchat.collect import collect, self_chat
from baize_lib.selfchat.prompts import SelfChatSettings
from baize_lib.teacher.budget import Budget
from baize_lib.teacher.client import Teacher
from baize_lib.teacher.errors import KeyRejected
from baize_lib.teacher.ledger import journal_file
from baize_lib.teacher.local import local_teacher
from baize_lib.teacher.meter import CostMeter
from baize_lib.teacher.prices import FREE, Usage

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
    return body["messages"][0]["content"] == prompts.question_messages([], "en")[0]["content"]


class TestTurns:
    def test_the_seed_comes_first_and_the_roles_alternate(self, stub):
        line = one(stub, SelfChatSettings(num_turns=3))
        assert line["messages"][0] == {"role": "user", "content": SEED.text}
        assert [m["role"] for m in line["messages"]] == ["user", "assistant"] * 3
        assert (line["status"], line["finish_reasons"]) == ("ok", ["stop"] * 3)

    def test_the_assistant_sees_all_that_was_said_and_the_human_a_transcript(self, stub):
        line = one(stub)
        answer1, question, answer2 = asked(stub)
        assert [m["role"] for m in answer1["messages"]] == ["system", "user"]
        assert answer2["messages"][1:] == line["messages"][:3]
        shown = question["messages"][-1]["content"]
        assert shown == f"Human: {SEED.text}\nAI: {line['messages'][1]['content']}"

    def test_the_bill_is_kept_by_call(self, stub):
        line = one(stub)
        assert [(c["role"], c["turn"]) for c in line["calls"]] == [
            ("assistant", 0), ("user", 1), ("assistant", 1)
        ]  # fmt: skip
        assert line["usage"] == {"input": stub.input, "cached_input": 0, "output": stub.output}
        assert line["cost_usd"] == pytest.approx(PRICE.cost(Usage(stub.input, 0, stub.output)))
        assert sum(c["usage"]["input"] for c in line["calls"]) == stub.input

    def test_a_grammar_goes_to_the_embedded_teacher_alone(self, stub):
        one(stub)
        assert not any("grammar" in body or "repeat_penalty" in body for body in asked(stub))
        stub.log.clear()

        async def main():
            async with Teacher("smollm2-135m", base_url=stub.url, api_key="k", price=FREE) as teacher:
                await self_chat(SEED, teacher, TWO_TURNS)

        asyncio.run(main())
        grammars = {is_question(body): body["grammar"] for body in asked(stub)}
        assert grammars == {
            True: prompts.QUESTION_GRAMMAR["en"], False: prompts.reply_grammar("general", "en")
        }  # fmt: skip

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
        assert [c["role"] for c in line["calls"]] == ["assistant"] + ["user"] * 4
        heat = [body["temperature"] for body in asked(stub)[1:]]
        assert heat == pytest.approx([0.8, 1.0, 1.2, 1.4])

    def test_replies_cut_by_max_tokens_are_marked(self, stub):
        stub.script("ok", "ok", "length")
        line = one(stub)
        assert (line["finish_reason"], line["finish_reasons"]) == ("length", ["stop", "length"])

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
        assert system.startswith(prompts.DOMAINS["medical"]["en"])
        assert "unlawful" in system
        one(stub, SelfChatSettings(num_turns=1, system="Be a pirate."))
        assert asked(stub)[1]["messages"][0]["content"] == "Be a pirate."

    def test_chinese_prompts(self, stub):
        stub.reply = lambda body: (
            "END" if "质数" in str(body["messages"][:-1]) else "蜂蜜来自花蜜。"
        )
        line = one(stub, SelfChatSettings(language="zh"), Seed("z", "蜜蜂怎样酿蜜？", "tests"))
        answer, question = asked(stub)
        assert answer["messages"][0]["content"] == prompts.DOMAINS["general"]["zh"]
        assert question["messages"][-1]["content"].startswith("人类：蜜蜂怎样酿蜜？\n助手：")
        assert line["ended"] == "no more questions"

    def test_sampling_depends_on_the_seed_alone(self, stub, tmp_path):
        run(stub, tmp_path / "one.jsonl", concurrency=1)
        run(stub, tmp_path / "many.jsonl", concurrency=6)
        first, second = (
            {row["id"]: row["messages"] for row in rows_of(tmp_path / name)}
            for name in ("one.jsonl", "many.jsonl")
        )
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
        assert (line["status"], line["text"]) == ("rejected", "I would rather not.")
        assert "no tags" in line["reason"]


class TestResume:
    def test_what_is_done_is_not_done_again(self, stub, tmp_path):
        path = tmp_path / "l.jsonl"
        assert (run(stub, path, 4).ok, run(stub, path, 4).ok) == (4, 0)
        receipt = run(stub, path, 6)  # more seeds at the end are welcome
        assert (receipt.ok, receipt.already, receipt.left) == (2, 4, 0)
        assert [row["id"] for row in rows_of(path)].count("s-0") == 1

    @pytest.mark.parametrize(
        ("changed", "named"),
        [
            ({"settings": SelfChatSettings(strategy="transcript")}, '"turns" -> "transcript"'),
            ({"settings": SelfChatSettings(num_turns=5)}, "num_turns: 2 -> 5"),
            ({"seeds": seeds_of(6)[1:]}, "num_seeds: 6 -> 5"),
            ({"seeds": [Seed(s.id, s.text + "!", "") for s in seeds_of(6)]}, "seeds: "),
        ],
    )
    def test_a_changed_run_is_refused_with_the_difference(self, stub, tmp_path, changed, named):
        path = tmp_path / "l.jsonl"
        run(stub, path)
        calls = stub.answered
        with pytest.raises(BaizeError, match="begun with other settings") as refusal:
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

    def test_the_budget_is_rebuilt_from_the_ledger(self, stub, tmp_path):
        path, first, second = tmp_path / "l.jsonl", Budget(usd=1), Budget(usd=1)
        run(stub, path, teacher=teacher_of(stub, budget=first))
        receipt = run(stub, path, teacher=teacher_of(stub, budget=second))
        assert second.spent_usd == first.spent_usd > 0
        assert receipt.total_usd == pytest.approx(first.spent_usd)
        assert receipt.usd == 0

    def test_a_budget_used_twice_counts_the_ledger_once(self, stub, tmp_path):
        path, budget = tmp_path / "l.jsonl", Budget(usd=1)
        run(stub, path, 3, teacher=teacher_of(stub, budget=budget))
        run(stub, path, 6, teacher=teacher_of(stub, budget=budget))
        assert budget.spent_usd == pytest.approx(PRICE.cost(Usage(stub.input, 0, stub.output)))

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
        meter = CostMeter(target=6)
        run(stub, path, 6, meter=meter)
        assert meter.dialogues == 6
        assert meter.spent_usd == pytest.approx(PRICE.cost(Usage(stub.input, 0, stub.output)))


class TestStops:
    def test_a_budget_ends_the_run_without_an_error_and_a_larger_one_goes_on(self, stub, tmp_path):
        path, cap = tmp_path / "l.jsonl", 0.003
        receipt = run(stub, path, 12, teacher=teacher_of(stub, budget=Budget(usd=cap)))
        assert receipt.stopped == "budget"
        assert "stopped: budget" in str(receipt)
        assert PRICE.cost(Usage(stub.input, 0, stub.output)) <= cap
        receipt = run(stub, path, 12, teacher=teacher_of(stub, budget=Budget(usd=1)))
        assert (receipt.stopped, receipt.left, receipt.paid_again) == ("", 0, 0)
        assert stub.answered == 12 * 3  # every call was paid once
        assert receipt.total_usd == pytest.approx(PRICE.cost(Usage(stub.input, 0, stub.output)))

    def test_a_refused_key_stops_at_the_first_call(self, stub, tmp_path, capsys):
        path = tmp_path / "l.jsonl"
        with pytest.raises(KeyRejected, match="OPENAI_API_KEY"):
            run(stub, path, 50, teacher=teacher_of(stub, api_key=BAD_KEY))
        assert stub.calls["POST /chat"] == 1
        assert rows_of(path) == []
        assert run(stub, path, 50).ok == 50

    def test_twenty_failures_in_a_row_stop_the_run(self, stub, tmp_path):
        path = tmp_path / "l.jsonl"
        stub.script("ok", *["context"] * 200)
        with pytest.raises(BaizeError, match="20 dialogues in a row failed"):
            run(stub, path, 100, concurrency=5)
        assert 20 <= len(rows_of(path)) <= 25
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
        assert (receipt.left, receipt.paid_again, stub.answered) == (0, 0, 120)

    def test_a_journal_of_another_version_is_refused_and_kept(self, stub, tmp_path):
        path = tmp_path / "l.jsonl"
        run(stub, path, 1)
        bill = {"usage": {"input": 1}, "cost_usd": 0.0, "uncertain": [0, 0]}
        answer = {"role": "user", "turn": 0, "text": "?", "finish_reason": "stop"} | bill
        line = json.dumps({"id": "s-1", "attempt": 1, "call": 0, "answer": answer}) + "\n"
        journal_file(path).write_text(line)
        with pytest.raises(BaizeError, match="another version of the course"):
            run(stub, path, 2)
        assert journal_file(path).read_text() == line

    def test_a_call_given_up_is_counted_as_perhaps_billed(self, stub, tmp_path, monkeypatch):
        monkeypatch.setattr(selfchat, "GRACE", 0.05)
        path, budget = tmp_path / "l.jsonl", Budget(usd=1)
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
        receipt = run(stub, path, 1, teacher=teacher_of(stub, budget=budget))
        assert (receipt.ok, receipt.paid_again) == (1, 1)
        assert budget.uncertain_usd > 0
        assert rows_of(path)[0]["uncertain_usd"] == pytest.approx(budget.uncertain_usd)

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
        calls = sum(len(row["calls"]) for row in rows_of(path))
        unfinished = [json.loads(line) for line in journal_file(path).read_text().splitlines()]
        assert calls + sum("answer" in row for row in unfinished) == stub.answered

    def test_a_second_collection_on_the_same_ledger_is_refused(self, stub, tmp_path):
        async def main():
            async with teacher_of(stub) as teacher:
                jobs = [collect(seeds_of(5), teacher, TWO_TURNS, tmp_path / "l") for _ in range(2)]
                return await asyncio.gather(*jobs, return_exceptions=True)

        first, second = asyncio.run(main())
        assert first.ok == 5
        assert "written by another process" in str(second)


FAULTS = [
    "429", "429 retry-after=0.01", "500", "503", "502", "reset", "reset-after", "malformed", "html",
    "no-choices", "no-usage", "length", "empty", "filter", "400", "context", "hang",
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_no_fault_loses_a_dialogue_or_a_cent(stub, tmp_path, fault):
    path, budget = tmp_path / "l.jsonl", Budget(usd=1)
    stub.script("ok", "ok", fault, "ok", fault, fault)
    run(stub, path, teacher=teacher_of(stub, budget=budget, timeout=0.2))
    run(stub, path, retry_failed=True)
    rows = rows_of(path)
    assert sorted(row["id"] for row in rows if row["status"] == "ok") == [
        f"s-{i}" for i in range(6)
    ]
    counted = Budget().replay(rows)
    assert counted.spent_usd >= PRICE.cost(Usage(stub.input, 0, stub.output)) - 1e-9
    assert counted.spent_usd - counted.uncertain_usd <= (
        PRICE.cost(Usage(stub.input, 0, stub.output)) + 1e-9 + (fault == "no-usage") * 1
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
        rows = bill_by_role_and_turn(tmp_path / "l.jsonl")
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
        [row] = bill_by_role_and_turn(tmp_path / "l.jsonl")
        assert (row["role"], row["calls"], row["input"]) == ("transcript", 5, stub.input)

    def test_the_receipt_reads_as_a_table(self, stub, tmp_path):
        stub.script("length")
        receipt = run(stub, tmp_path / "l.jsonl", 2)
        assert receipt.cut_share == 1 / 4
        assert "replies cut by max_tokens  1 of 4" in str(receipt)
        assert "<table>" in receipt._repr_html_()


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
    assert prompts.clean_question(text) == question


def test_the_receipt_shows_the_rate_a_hosted_teacher_allowed(stub, tmp_path):
    receipt = run(stub, tmp_path / "l.jsonl", 6)
    assert "calls/s" in str(receipt)
    assert "in flight, slowed 0 times by 429" in str(receipt)
