"""Self-chat through the Batch API: half price, every row once, whatever is killed when."""

import asyncio
import itertools
import json

import pytest
from kill_run import seeds_of
from stub_server import BAD_KEY, StubServer

from baize_lib.config import BaizeError
from baize_lib.files import read_jsonl
from baize_lib.selfchat import batch as batch_room
from baize_lib.selfchat.batch import collect_batch, state_file
from baize_lib.selfchat.bill import bill_by_role_and_turn
from baize_lib.selfchat.prompts import SelfChatSettings
from baize_lib.teacher.budget import Budget
from baize_lib.teacher.client import Teacher
from baize_lib.teacher.errors import KeyRejected
from baize_lib.teacher.prices import Price, Usage

PRICE = Price("stub", 1.0, 2.0, batch_factor=0.5)
SETTINGS = SelfChatSettings(strategy="transcript", num_turns=3)


@pytest.fixture
def stub():
    with StubServer() as server:
        server.batch_polls = 2
        yield server


def run(stub, path, number=6, *, budget=None, api_key="sk-test", **options):
    async def main():
        async with Teacher(
            "stub", base_url=stub.url, api_key=api_key, price=PRICE, budget=budget, backoff=0.001
        ) as teacher:
            return await collect_batch(
                seeds_of(number), teacher, SETTINGS, path, poll_seconds=0.005, **options
            )

    return asyncio.run(main())


def statuses(path):
    return [row["status"] for row in read_jsonl(path)]


def batches(stub):
    return len(stub._batches)


def bill_of(stub):
    return PRICE.cost(Usage(stub.input, 0, stub.output), batch=True)


def test_every_seed_gets_its_dialogue_at_the_batch_price(stub, tmp_path):
    path, budget = tmp_path / "l.jsonl", Budget(usd=1)
    receipt = run(stub, path, budget=budget)
    assert (receipt.ok, receipt.left, receipt.stopped) == (6, 0, "")
    assert budget.spent_usd == pytest.approx(bill_of(stub))
    assert receipt.usd == pytest.approx(bill_of(stub))
    assert budget.reserved_usd == 0
    row = next(iter(read_jsonl(path)))
    assert len(row["messages"]) == 6 and row["batch"]
    assert bill_by_role_and_turn(path)[0]["calls"] == 6


def test_nothing_is_left_behind_and_nothing_is_bought_again(stub, tmp_path):
    path = tmp_path / "l.jsonl"
    run(stub, path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "l.calls.jsonl", "l.jsonl", "l.settings.json"
    ]  # fmt: skip
    assert run(stub, path).calls == 0
    assert batches(stub) == 1


def test_failed_rows_are_submitted_again_and_only_those(stub, tmp_path):
    path = tmp_path / "l.jsonl"
    stub.script_rows("ok", "500", "ok", "expired", "429", "ok")
    receipt = run(stub, path)
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


def test_a_row_that_always_fails_is_given_up_after_the_last_round(stub, tmp_path):
    path = tmp_path / "l.jsonl"
    stub.script_rows(*["500"] * 90)
    receipt = run(stub, path, 30, max_rounds=3)
    assert (receipt.failed, batches(stub), statuses(path)) == (30, 3, ["failed"] * 30)


def test_cut_and_malformed_rows_are_what_they_are(stub, tmp_path):
    path = tmp_path / "l.jsonl"
    stub.script_rows("length", "empty", "no-usage")
    run(stub, path, 3)
    assert sorted(statuses(path)) == ["ok", "ok", "rejected"]
    assert "length" in [row["finish_reason"] for row in read_jsonl(path)]


@pytest.mark.parametrize("end", ["expired", "cancelled"])
def test_what_an_expired_batch_has_done_is_kept(stub, tmp_path, end):
    path = tmp_path / "l.jsonl"
    stub.batch_end = end
    stub.script_rows("ok", "expired", "ok", "expired", "ok", "ok")
    receipt = run(stub, path)
    assert (receipt.ok, stub.answered, batches(stub)) == (6, 6, 2)


def test_a_refused_batch_names_the_line_and_can_be_begun_anew(stub, tmp_path):
    path, budget = tmp_path / "l.jsonl", Budget(usd=1)
    stub.batch_end = "failed"
    with pytest.raises(BaizeError, match="line 1: This line is not valid"):
        run(stub, path, budget=budget)
    assert (budget.spent_usd, budget.reserved_usd) == (0, 0)
    stub.batch_end = "completed"
    assert run(stub, path).ok == 6


def test_a_bad_key_stops_before_anything_is_bought(stub, tmp_path):
    with pytest.raises(KeyRejected):
        run(stub, tmp_path / "l.jsonl", api_key=BAD_KEY)
    assert batches(stub) == 0
    assert run(stub, tmp_path / "l.jsonl").ok == 6


def test_the_budget_holds_and_the_rest_waits(stub, tmp_path):
    path, cap = tmp_path / "l.jsonl", 0.004
    receipt = run(stub, path, 30, budget=Budget(usd=cap))
    assert receipt.stopped == "budget"
    assert 0 < receipt.ok < 30
    assert bill_of(stub) <= cap
    receipt = run(stub, path, 30, budget=Budget(usd=1))
    assert (receipt.left, stub.answered) == (0, 30)
    assert len({row["id"] for row in read_jsonl(path)}) == 30


def test_a_long_list_goes_in_several_batches(stub, tmp_path, monkeypatch):
    monkeypatch.setattr(batch_room, "MOST_ROWS", 4)
    receipt = run(stub, tmp_path / "l.jsonl", 10)
    assert (receipt.ok, batches(stub)) == (10, 3)


def test_turns_need_answers_a_batch_does_not_have(stub, tmp_path):
    async def main():
        teacher = Teacher("stub", base_url=stub.url, api_key="k", price=PRICE)
        await collect_batch(seeds_of(1), teacher, SelfChatSettings(), tmp_path / "l.jsonl")

    with pytest.raises(BaizeError, match="follow-up"):
        asyncio.run(main())


class Killed(BaseException):
    """Stands for the end of the process at one point."""


def kill_at(monkeypatch, point, call):
    """Die before the call numbered `call` of `point`, a function of the batch room."""
    numbers, real = itertools.count(), getattr(batch_room, point)

    def dying(*args, **options):
        if next(numbers) == call:
            raise Killed
        return real(*args, **options)

    monkeypatch.setattr(batch_room, point, dying)


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


def bought_once(stub, path):
    """Resume after a death; every row was bought once and has one line."""
    budget = Budget(usd=1)
    receipt = run(stub, path, budget=budget)
    assert (receipt.left, stub.answered, batches(stub)) == (0, 6, 1)
    assert [row["id"] for row in read_jsonl(path)] == [f"s-{i}" for i in range(6)]
    assert budget.spent_usd == pytest.approx(bill_of(stub))
    assert not state_file(path).exists()


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
    [("write_jsonl", 0), ("write_atomic", 0), ("write_atomic", 1), ("write_atomic", 2)]
    + [("transcript_line", row) for row in range(6)],
)
def test_a_death_at_any_file_buys_nothing_twice(stub, tmp_path, monkeypatch, point, call):
    path = tmp_path / "l.jsonl"
    kill_at(monkeypatch, point, call)
    with pytest.raises(Killed):
        run(stub, path)
    monkeypatch.undo()
    bought_once(stub, path)


def test_an_interrupted_wait_says_how_to_go_on(stub, tmp_path, capsys):
    path = tmp_path / "l.jsonl"
    stub.batch_polls = 10**9

    async def main():
        async with Teacher("stub", base_url=stub.url, api_key="k", price=PRICE) as teacher:
            work = asyncio.create_task(
                collect_batch(seeds_of(6), teacher, SETTINGS, path, poll_seconds=0.005)
            )
            while not batches(stub):
                await asyncio.sleep(0.005)
            await asyncio.sleep(0.02)
            work.cancel()
            await work

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())
    assert "goes on without us" in capsys.readouterr().out
    stub.batch_polls = 1
    bought_once(stub, path)


def test_a_state_that_cannot_be_followed_is_named(stub, tmp_path):
    path = tmp_path / "l.jsonl"
    state_file(path).write_text(json.dumps({"step": "submitted", "requests": "gone.jsonl"}))
    with pytest.raises(BaizeError, match=r"gone\.jsonl is missing"):
        run(stub, path)
