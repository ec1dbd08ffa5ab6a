"""The Batch API: every strategy at half the price, every row once, whatever is killed when."""

import asyncio
import itertools

import pytest
from kill_run import question_of, seeds_of
from stub_server import BAD_KEY, StubServer
from typer.testing import CliRunner

from baize_lib.config import BaizeError
from baize_lib.course.cli import app
from baize_lib.files import read_jsonl
from baize_lib.selfchat.bill import bill_by_role_and_turn
from baize_lib.selfchat.collect import collect
from baize_lib.selfchat.prompts import SelfChatSettings
from baize_lib.teacher import batch as batch_room
from baize_lib.teacher.batch import BatchTeacher
from baize_lib.teacher.calls import Calls
from baize_lib.teacher.client import Teacher
from baize_lib.teacher.errors import RunStopped, TeacherError, Waiting
from baize_lib.teacher.prices import Price, Usage

PRICE = Price("stub", 1.0, 2.0, batch_factor=0.5)
SETTINGS = SelfChatSettings(strategy="transcript", num_turns=3)
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def stub():
    with StubServer() as server:
        server.batch_polls = 2
        yield server


def teacher_of(stub, kind=BatchTeacher, **options):
    options = {"price": PRICE, "api_key": "sk-test", "backoff": 0.001} | options
    poll = {"poll_seconds": 0.005} if kind is BatchTeacher else {}
    return kind("stub", base_url=stub.url, **poll, **options)


def run(stub, path, number=6, *, settings=SETTINGS, kind=BatchTeacher, retry_failed=False,
        cap=None, **options):  # fmt: skip
    async def main():
        calls = Calls(path.with_name("calls.sqlite"), cap)
        async with teacher_of(stub, kind, calls=calls, **options) as teacher:
            return await collect(
                seeds_of(number), teacher, settings, path, retry_failed=retry_failed
            )

    return asyncio.run(main())


def table_of(path):
    return Calls(path.with_name("calls.sqlite"))


def states(path):
    rows = table_of(path).query("SELECT state, count(*) AS n FROM bill GROUP BY state")
    return {row["state"]: row["n"] for row in rows}


def under_way(path):
    return table_of(path).query("SELECT * FROM batches")


def statuses(path):
    return [row["status"] for row in read_jsonl(path)]


def batches(stub):
    return len(stub._batches)


def bill_of(stub):
    return PRICE.cost(Usage(stub.input, 0, stub.output), batch=True)


# ---- rounds


@pytest.mark.parametrize(("strategy", "calls"), [("transcript", 1), ("turns", 5), ("rewritten", 4)])
def test_every_strategy_goes_through_it_at_the_batch_price(stub, tmp_path, strategy, calls):
    if strategy == "turns":
        stub.reply = question_of
    settings = SelfChatSettings(strategy=strategy, num_turns=3)
    receipt = run(stub, tmp_path / "b" / "l.jsonl", settings=settings)
    assert (receipt.ok, receipt.left, receipt.stopped) == (6, 0, "")
    assert receipt.calls == stub.answered == 6 * calls
    assert receipt.usd == receipt.total_usd == pytest.approx(bill_of(stub))
    assert stub.calls["POST /chat"] == 0 and under_way(tmp_path / "b" / "l.jsonl") == []
    for row in read_jsonl(tmp_path / "b" / "l.jsonl"):
        assert len(row["messages"]) == 6
    run(stub, tmp_path / "o" / "l.jsonl", settings=settings, kind=Teacher)
    same = [
        {row["id"]: row["messages"] for row in read_jsonl(tmp_path / name / "l.jsonl")}
        for name in "bo"
    ]
    assert same[0] == same[1]  # as online, at half the price


def test_the_command_collects_through_a_batch(stub, tmp_path, monkeypatch):
    stub.batch_polls = 1
    settings = {
        "OPENAI_BASE_URL": stub.url, "OPENAI_API_KEY": "sk-test", "BAIZE_RUNS": str(tmp_path),
        "BAIZE_TIER": "ci", "BAIZE_TEACHER": "stub", "BAIZE_TEACHER_PRICE": "1/2",
        "BAIZE_RUN": "mine",
    }  # fmt: skip
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "q.txt").write_text("Why do cats purr when they sleep?\n", encoding="utf-8")
    told = CliRunner().invoke(app, ["collect", str(tmp_path / "q.txt"), "--batch"])
    assert told.exit_code == 0, told.output
    assert len(list(read_jsonl(tmp_path / "mine" / "self_chat.jsonl"))) == 1
    assert stub.answered > 0 and stub.calls["POST /chat"] == 0


def test_what_a_batch_answered_is_found_by_a_teacher_online_too(stub, tmp_path):
    run(stub, tmp_path / "l.jsonl")
    (tmp_path / "l.jsonl").unlink()
    receipt = run(stub, tmp_path / "l.jsonl", kind=Teacher)
    assert (receipt.ok, receipt.usd, stub.answered) == (6, 0, 6)
    [row] = bill_by_role_and_turn(table_of(tmp_path / "l.jsonl"))
    assert (row["role"], row["calls"]) == ("transcript", 6)


def test_nothing_is_left_behind_and_nothing_is_bought_again(stub, tmp_path):
    path = tmp_path / "l.jsonl"
    run(stub, path)
    assert run(stub, path).calls == 0
    assert batches(stub) == 1
    assert {p.name for p in tmp_path.iterdir()} == {"l.jsonl", "calls.sqlite", "calls.lock"}


def test_whatever_asks_a_teacher_can_ask_through_a_batch(stub, tmp_path):
    async def main():
        async with teacher_of(stub, calls=Calls(tmp_path / "calls.sqlite")) as teacher:
            for _ in range(3):
                jobs = [teacher.chat(HELLO, max_tokens=9, attempt=n) for n in (1, 2, 2)]
                outcomes = await asyncio.gather(*jobs, return_exceptions=True)
                if not await teacher.next_round():
                    return outcomes, teacher
                assert all(isinstance(outcome, Waiting) for outcome in outcomes)
            raise AssertionError("it never ends")

    outcomes, teacher = asyncio.run(main())
    assert all(reply.text and reply.found for reply in outcomes)
    assert stub.answered == 2  # the same question asked twice at once is bought once
    assert teacher.budget.reserved_usd == 0


def test_a_long_list_goes_in_several_batches(stub, tmp_path, monkeypatch):
    monkeypatch.setattr(batch_room, "MOST_ROWS", 4)
    receipt = run(stub, tmp_path / "l.jsonl", 10)
    assert (receipt.ok, batches(stub)) == (10, 3)


def test_the_budget_holds_and_the_rest_waits(stub, tmp_path):
    path, cap = tmp_path / "l.jsonl", 0.004
    receipt = run(stub, path, 30, cap=cap)
    assert receipt.stopped == "budget"
    assert 0 < receipt.ok < 30 and bill_of(stub) <= cap
    receipt = run(stub, path, 30, cap=1)
    assert (receipt.left, stub.answered) == (0, 30)
    assert len({row["id"] for row in read_jsonl(path)}) == 30


def test_money_of_a_batch_under_way_is_held_by_whoever_opens_the_table(stub, tmp_path):
    path, stub.batch_polls = tmp_path / "l.jsonl", 10**9

    async def main():
        async with teacher_of(stub, calls=Calls(tmp_path / "calls.sqlite", 1)) as teacher:
            work = asyncio.create_task(collect(seeds_of(6), teacher, SETTINGS, path))
            while not batches(stub):
                await asyncio.sleep(0.005)
            held = teacher.budget.reserved_usd
            await asyncio.sleep(0.02)
            work.cancel()
            await asyncio.wait([work])
            return held

    held = asyncio.run(main())
    table = table_of(path)
    for _ in range(2):  # and held once, however often it is opened
        with table.held():
            assert table.budget.reserved_usd == held > 0
    assert table.budget.reserved_usd == 0


# ---- rows that fail


def test_failed_rows_are_sent_again_and_only_those(stub, tmp_path):
    stub.script_rows("ok", "500", "unsent", "expired", "429", "ok")
    receipt = run(stub, tmp_path / "l.jsonl")
    assert (receipt.ok, batches(stub), stub.answered) == (6, 2, 6)


def test_a_row_that_cannot_succeed_is_recorded_with_its_reason(stub, tmp_path):
    path = tmp_path / "l.jsonl"
    stub.script_rows("ok", "context", "ok")
    receipt = run(stub, path, 3)
    assert (receipt.ok, receipt.failed, batches(stub)) == (2, 1, 1)
    [failed] = [row for row in read_jsonl(path) if row["status"] == "failed"]
    assert "maximum context length" in failed["reason"]
    receipt = run(stub, path, 3, retry_failed=True)
    assert (receipt.ok, receipt.left) == (1, 0)
    assert list(read_jsonl(path))[-1]["attempt"] == 2


def test_a_row_that_fails_again_and_again_is_tried_three_times(stub, tmp_path):
    path = tmp_path / "l.jsonl"
    stub.script_rows(*["500"] * 90)
    receipt = run(stub, path, 10)
    assert (receipt.failed, batches(stub), statuses(path)) == (10, 3, ["failed"] * 10)
    assert run(stub, path, 10, retry_failed=True).failed == 10  # once more, and it ends
    assert batches(stub) == 6 and states(path) == {}


@pytest.mark.parametrize("said", ["overloaded", ["overloaded"], {"msg": "odd"}, 7, ""])
def test_a_rows_error_of_any_shape_is_a_reason_and_the_row_is_sent_again(stub, tmp_path, said):
    stub.script_rows({"row_error": said}, "ok", {"row_error": said})
    receipt = run(stub, tmp_path / "l.jsonl", 3)
    assert (receipt.ok, receipt.failed, batches(stub)) == (3, 0, 2)


def test_what_a_row_was_billed_for_in_vain_counts_at_its_bound(stub, tmp_path):
    path = tmp_path / "l.jsonl"
    stub.script_rows({"choices": [{}]}, {"finish_reason": "error"}, "ok")
    receipt = run(stub, path, 3)
    assert (receipt.ok, receipt.failed, receipt.doubtful) == (1, 1, 1)
    assert receipt.doubtful_usd > 0 and stub.answered == 3


def test_cut_and_malformed_rows_are_what_they_are(stub, tmp_path):
    path = tmp_path / "l.jsonl"
    stub.script_rows("length", "empty", "no-usage")
    run(stub, path, 3)
    assert sorted(statuses(path)) == ["ok", "ok", "rejected"]
    assert "length" in [row["ended"] for row in read_jsonl(path)]


def test_a_field_the_model_does_not_take_is_learnt_from_a_row(stub, tmp_path):
    stub.rule = lambda body: {"status": 400, "body": {"error": {
        "message": "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.",
        "param": "max_tokens"}}} if "max_tokens" in body else None  # fmt: skip
    receipt = run(stub, tmp_path / "l.jsonl")
    assert (receipt.ok, batches(stub)) == (6, 2)


def test_a_refusal_of_one_row_in_words_of_its_own_fails_that_dialogue_only(stub, tmp_path):
    stub.script_rows("ok", {"status": 403, "body": {"detail": "Not this one."}}, "ok")
    receipt = run(stub, tmp_path / "l.jsonl", 3)
    assert (receipt.ok, receipt.failed, batches(stub)) == (2, 1, 1)


def test_a_row_that_means_the_end_stops_the_run(stub, tmp_path):
    stub.rule = lambda body: {"status": 429, "body": {"error": {"code": "insufficient_quota"}}}
    with pytest.raises(RunStopped, match="no money"):
        run(stub, tmp_path / "l.jsonl")
    stub.rule = None
    assert run(stub, tmp_path / "l.jsonl").ok == 6


# ---- batches that end otherwise


def test_what_an_expired_batch_has_done_is_kept_and_the_rest_goes_again(stub, tmp_path):
    stub.batch_end = "expired"
    stub.script_rows("ok", "expired", "ok", "expired", "unsent", "ok")
    receipt = run(stub, tmp_path / "l.jsonl")
    assert (receipt.ok, stub.answered, batches(stub)) == (6, 6, 2)


def test_a_batch_cancelled_in_the_console_is_a_persons_decision(stub, tmp_path):
    path = tmp_path / "l.jsonl"
    stub.batch_end = "cancelled"
    stub.script_rows("ok", "unsent", "ok", "unsent", "unsent", "unsent")
    with pytest.raises(RunStopped, match="was cancelled in the provider's console"):
        run(stub, path)
    assert batches(stub) == 1 and stub.answered == 2  # taken, and nothing was bought again
    assert states(path) == {"answered": 2}
    stub.batch_end = "completed"
    receipt = run(stub, path)  # a person runs it again
    assert (receipt.ok, stub.answered, batches(stub)) == (6, 6, 2)


def test_a_refused_batch_names_the_line_and_can_be_begun_anew(stub, tmp_path):
    path = tmp_path / "l.jsonl"
    stub.batch_end = "failed"
    with pytest.raises(BaizeError, match="line 1: This line is not valid"):
        run(stub, path)
    assert states(path) == {} and table_of(path).budget.spent_usd == 0
    stub.batch_end = "completed"
    assert run(stub, path).ok == 6


def test_a_bad_key_stops_before_anything_is_bought(stub, tmp_path):
    with pytest.raises(RunStopped, match="check OPENAI_API_KEY"):
        run(stub, tmp_path / "l.jsonl", api_key=BAD_KEY)
    assert batches(stub) == 0
    assert run(stub, tmp_path / "l.jsonl").ok == 6


def test_a_batch_of_another_account_is_named(stub, tmp_path):
    stub.batch_polls = 10**9
    interrupted(stub, tmp_path / "l.jsonl")
    stub._batches.clear()
    with pytest.raises(RunStopped, match="batch is not known .* use the key of the account"):
        run(stub, tmp_path / "l.jsonl")


# ---- killed


class Killed(BaseException):
    """Stands for the end of the process at one point."""


def kill_at_request(monkeypatch, call, *, after):
    """Die before or after the request numbered `call` that the teacher makes."""
    numbers, real = itertools.count(), Teacher.request

    async def dying(self, *args, **options):
        number = next(numbers)
        if number == call and not after:
            raise Killed
        result = await real(self, *args, **options)
        if number == call:
            raise Killed
        return result

    monkeypatch.setattr(Teacher, "request", dying)


def kill_at(monkeypatch, point, call):
    """Die before the call numbered `call` of `point`, a way of writing into the table."""
    numbers, real = itertools.count(), getattr(Calls, point)

    def dying(*args, **options):
        if next(numbers) == call:
            raise Killed
        return real(*args, **options)

    monkeypatch.setattr(Calls, point, dying)


def bought_once(stub, path):
    """Resume after a death; every row was bought once and has one line."""
    receipt = run(stub, path, cap=1)
    assert (receipt.left, stub.answered, batches(stub)) == (0, 6, 1)
    assert sorted(row["id"] for row in read_jsonl(path)) == [f"s-{i}" for i in range(6)]
    assert receipt.total_usd == pytest.approx(bill_of(stub))
    assert states(path) == {"answered": 6} and under_way(path) == []


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("call", range(6))  # upload, list, create, twice ask, fetch
def test_a_death_at_any_request_buys_nothing_twice(stub, tmp_path, monkeypatch, call, after):
    path = tmp_path / "l.jsonl"
    kill_at_request(monkeypatch, call, after=after)
    with pytest.raises(Killed):
        run(stub, path)
    monkeypatch.undo()
    bought_once(stub, path)


@pytest.mark.parametrize(
    ("point", "call"),
    [("write_now", step) for step in range(3)]
    + [(point, row) for point in ("begin", "answered") for row in range(0, 6, 2)],
)
def test_a_death_at_any_row_buys_nothing_twice(stub, tmp_path, monkeypatch, point, call):
    path = tmp_path / "l.jsonl"
    kill_at(monkeypatch, point, call)
    with pytest.raises(Killed):
        run(stub, path)
    monkeypatch.undo()
    bought_once(stub, path)


def test_a_death_in_a_later_round_buys_nothing_twice(stub, tmp_path, monkeypatch):
    stub.reply, settings = question_of, SelfChatSettings(num_turns=2)
    for call in range(7, 16, 2):
        path = tmp_path / str(call) / "l.jsonl"
        kill_at_request(monkeypatch, call, after=True)
        with pytest.raises(Killed):
            run(stub, path, settings=settings)
        monkeypatch.undo()
        before = batches(stub)
        assert run(stub, path, settings=settings).left == 0
        assert states(path) == {"answered": 18}
        assert batches(stub) <= before + 3
    assert stub.answered == 5 * 18


def test_an_unclear_purchase_is_looked_for_by_its_tag(stub, tmp_path, monkeypatch):
    """The batch was created, and its answer got lost on the way."""
    path, real = tmp_path / "l.jsonl", StubServer._new_batch

    def lost(self, body):
        real(self, body)
        monkeypatch.undo()
        return {"status": 502}  # not a response: the server fails with a 500

    monkeypatch.setattr(StubServer, "_new_batch", lost)
    with pytest.raises(TeacherError):
        run(stub, path, max_attempts=1)
    bought_once(stub, path)


def interrupted(stub, path):
    async def main():
        async with teacher_of(stub, calls=Calls(path.with_name("calls.sqlite"))) as teacher:
            work = asyncio.create_task(collect(seeds_of(6), teacher, SETTINGS, path))
            while not batches(stub):
                await asyncio.sleep(0.005)
            await asyncio.sleep(0.05)
            work.cancel()
            await work

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())


def test_an_interrupted_wait_says_how_to_go_on(stub, tmp_path, capsys):
    stub.batch_polls = 10**9
    interrupted(stub, tmp_path / "l.jsonl")
    assert "go on without us" in capsys.readouterr().out
    stub.batch_polls = 1
    bought_once(stub, tmp_path / "l.jsonl")


def test_calls_wanted_and_never_sent_are_forgotten_with_their_process(stub, tmp_path):
    async def main():
        calls = Calls(tmp_path / "calls.sqlite", 1)
        teacher = teacher_of(stub, calls=calls)
        with pytest.raises(Waiting):
            await teacher.chat(HELLO, max_tokens=9)
        with calls.held():
            return calls.budget.reserved_usd

    assert asyncio.run(main()) > 0
    assert states(tmp_path / "l.jsonl") == {}
