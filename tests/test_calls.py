"""The table of paid calls: noted before, kept before it is seen, found for nothing, never lost."""

import asyncio
import errno
import fcntl
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stub_server import StubServer

from baize_lib.config import BaizeError
from baize_lib.teacher.budget import PICO, Budget, BudgetExceeded
from baize_lib.teacher.calls import Call, Calls
from baize_lib.teacher.client import Teacher
from baize_lib.teacher.errors import Reply, TeacherError
from baize_lib.teacher.prices import Price, Usage

PRICE = Price("stub", 1.0, 2.0)
STATES = "SELECT state, count(*) AS n FROM bill GROUP BY state ORDER BY state"


@pytest.fixture
def stub():
    with StubServer() as server:
        yield server


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "calls.sqlite"


def hello(number=0):
    return [{"role": "user", "content": f"Hello number {number}"}]


def teacher_at(stub, calls, **options):
    options = {"api_key": "sk-test", "price": PRICE, "backoff": 0.001, "timeout": 2} | options
    return Teacher("stub", base_url=stub.url, calls=calls, **options)


def ask(stub, calls, numbers=(0,), **options):
    async def go():
        async with teacher_at(stub, calls, **options) as teacher:
            jobs = [teacher.chat(hello(n), max_tokens=20) for n in numbers]
            return await asyncio.gather(*jobs, return_exceptions=True)

    return asyncio.run(go())


def note(calls, key="k", usd=0.5, tokens=10, **options):
    return asyncio.run(calls.begin(Call(key, "tests"), usd, tokens, **options))


def said(text, usd=0.0):
    return Reply(text, "stop", Usage(1, 0, 1), cost_usd=usd)


def states(calls):
    return {row["state"]: row["n"] for row in calls.query(STATES)}


def in_another_process(code, *arguments, **options):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True,
        timeout=60, cwd=Path(__file__).parent, **options,
    )  # fmt: skip


# ---- before and after a call


def test_a_row_is_on_disk_before_its_call_is_made(stub, path):
    seen = []

    def reply(body):
        with closing(sqlite3.connect(path)) as table:  # what another process would see of it now
            seen.append(table.execute("SELECT state, bound_pico > 0 FROM calls").fetchall())
        return "Hello."

    stub.reply = reply
    calls = Calls(path)
    ask(stub, calls)
    assert seen == [[("begun", 1)]]
    assert states(calls) == {"answered": 1}


def test_an_answer_is_on_disk_before_it_is_seen(stub, path):
    async def go():
        calls = Calls(path)
        async with teacher_at(stub, calls) as teacher:
            with calls.held():
                reply = await teacher.chat(hello(), max_tokens=20)
                with closing(sqlite3.connect(path)) as table:
                    return reply, table.execute("SELECT text, state FROM calls").fetchall()

    reply, rows = asyncio.run(go())
    assert rows == [(reply.text, "answered")]


def test_what_was_answered_is_found_and_costs_nothing(stub, path):
    first = ask(stub, Calls(path), range(3))
    calls = Calls(path)
    again = ask(stub, calls, range(4))
    assert stub.answered == 4
    assert [reply.found for reply in again] == [True, True, True, False]
    assert [reply.text for reply in again[:3]] == [reply.text for reply in first]
    assert [reply.cost_usd for reply in again[:3]] == [reply.cost_usd for reply in first]
    assert calls.budget.spent_usd == pytest.approx(PRICE.cost(Usage(stub.input, 0, stub.output)))


@pytest.mark.parametrize("other", [
    {"max_tokens": 21}, {"temperature": 0.5}, {"seed": 1}, {"attempt": 2}, {"stop": ["x"]},
    {"extra": {"grammar": "x"}},
])  # fmt: skip
def test_another_question_another_way_or_another_attempt_is_another_call(stub, path, other):
    async def go():
        async with teacher_at(stub, Calls(path)) as teacher:
            await teacher.chat(hello(), **({"max_tokens": 20}))
            return await teacher.chat(hello(), **({"max_tokens": 20} | other))

    assert not asyncio.run(go()).found
    assert stub.answered == 2


def test_a_server_on_this_machine_is_the_same_one_at_another_port(path):
    for _ in range(2):
        with StubServer() as stub:
            [reply] = ask(stub, Calls(path))
    assert reply.found


def test_the_bill_names_what_a_call_was_for(stub, path):
    async def go():
        async with teacher_at(stub, Calls(path)) as teacher:
            about = {"purpose": "judge", "subject": "pair-7", "part": "order 2"}
            await teacher.chat(hello(), max_tokens=20, **about)
            return teacher.calls.query("SELECT purpose, subject, part, model, owed FROM bill")

    [row] = asyncio.run(go())
    assert row.pop("owed") > 0
    assert row == {"purpose": "judge", "subject": "pair-7", "part": "order 2", "model": "stub"}


def test_many_writers_share_a_commit_and_each_waits_for_one(path):
    calls, commits = Calls(path), []

    async def one(number):
        key = await calls.begin(Call(f"k{number}", "tests"), 0, 1)
        await calls.answered(key, said("x" * 200))
        assert calls.find(f"k{number}").text == "x" * 200

    async def go():
        with calls.held():
            calls._connection.set_trace_callback(lambda sql: commits.append(sql == "COMMIT"))
            await asyncio.gather(*(one(number) for number in range(300)))

    asyncio.run(go())
    assert states(calls) == {"answered": 300}
    assert sum(commits) < 100  # 600 writes


# ---- the sum is the budget

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["begin", "begin", "answer", "doubtful", "unbilled", "reopen", "batch"]),
        st.integers(0, 10**9), st.integers(0, 500),
    ), max_size=40,
)  # fmt: skip


@settings(max_examples=120, deadline=None)
@given(steps=STEPS, cap=st.sampled_from([None, 0.0005, 0.002]), on_disk=st.booleans())
def test_the_budget_is_the_sum_over_the_table_under_any_interleaving(steps, cap, on_disk):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "calls.sqlite" if on_disk else None
        asyncio.run(_interleave(path, steps, cap))


async def _interleave(path, steps, cap):
    calls, under_way, waiting = Calls(path, cap), [], []
    held = calls.held()
    held.__enter__()
    for what, pico, tokens in steps:
        if what in ("begin", "batch"):
            try:
                request = "{}" if what == "batch" else None
                number = await calls.begin(Call("k", "t"), pico / PICO, tokens, request)
                (waiting if request else under_way).append(number)
            except BudgetExceeded:
                pass
        elif what == "reopen" and path:
            held.__exit__(None, None, None)
            under_way = []  # whoever made them is gone: they are doubtful now
            held = calls.held()
            held.__enter__()
        elif under_way:
            number = under_way.pop(pico % len(under_way))
            if what == "answer":
                paid = pico % (calls._reserved[number].picodollars + 1)
                await calls.answered(
                    number, Reply("x", "stop", Usage(tokens, 0, 1), cost_usd=paid / PICO)
                )
            else:
                calls.failed(number, billed=what == "doubtful")
        _check_sum(calls, cap)
    held.__exit__(None, None, None)


def _check_sum(calls, cap):
    [row] = calls.query(
        "SELECT coalesce(sum(owed) FILTER (WHERE state != 'begun'), 0) AS spent,"
        " coalesce(sum(owed) FILTER (WHERE state = 'doubtful'), 0) AS doubtful,"
        " coalesce(sum(owed) FILTER (WHERE state = 'begun'), 0) AS open,"
        " coalesce(sum(tokens) FILTER (WHERE state != 'begun'), 0) AS tokens FROM bill"
    )
    budget = calls.budget
    assert row["spent"] == budget._spent and row["open"] == budget._reserved
    assert row["doubtful"] == budget._uncertain and row["tokens"] == budget.spent_tokens
    assert cap is None or budget._spent + budget._reserved <= cap * PICO


def test_one_budget_may_be_shared_by_several_tables(stub, tmp_path):
    budget = Budget(usd=1)
    tables = [Calls(tmp_path / "a.sqlite", budget), Calls(None, budget)]
    for table in (*tables, *tables):
        ask(stub, table)
    assert stub.answered == 2
    assert budget.spent_usd == pytest.approx(PRICE.cost(Usage(stub.input, 0, stub.output)))


def test_a_server_that_claims_an_absurd_price_does_not_break_the_table(stub):
    for cost in (1e300, float("inf"), -1, "much"):
        usage = {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10, "cost": cost}
        stub.script({"usage": usage})
    calls = Calls(None)
    replies = ask(stub, calls, range(4))
    assert all(reply.cost_usd == PRICE.cost(Usage(5, 0, 5)) for reply in replies)


# ---- cancelled, killed, restarted


@pytest.mark.parametrize("on_disk", [True, False])
def test_a_cancellation_between_any_two_steps_leaves_nothing_reserved(stub, path, on_disk):
    calls, ends = Calls(path if on_disk else None, budget=1.0), set()

    async def go():
        async with teacher_at(stub, calls, max_concurrency=4) as teacher:
            for step in range(120):
                jobs = [
                    asyncio.create_task(teacher.chat(hello(n), max_tokens=20, attempt=step))
                    for n in range(2)
                ]
                for _ in range(step % 40):
                    await asyncio.sleep(0)
                await asyncio.sleep(step // 40 * step % 40 / 8000)
                for job in jobs:
                    job.cancel()
                ends.update(type(o) for o in await asyncio.gather(*jobs, return_exceptions=True))
                assert calls.budget.reserved_usd == 0 and teacher.pace.in_flight == 0
            _check_sum(calls, None)

    asyncio.run(go())
    assert asyncio.CancelledError in ends and len(ends) == 2  # some were cancelled, some not
    answered = PRICE.cost(Usage(stub.input, 0, stub.output))
    assert calls.budget.spent_usd >= answered  # what the server billed is never forgotten


KILLED = """
import asyncio, sys
from baize_lib.teacher.calls import Calls
from baize_lib.teacher.client import Teacher
from baize_lib.teacher.prices import Price

async def main():
    calls = Calls(sys.argv[2], budget=1)
    async with Teacher("stub", base_url=sys.argv[1], api_key="k", calls=calls,
                       price=Price("stub", 1.0, 2.0)) as teacher:
        with calls.held():
            await teacher.chat([{"role": "user", "content": "Hello number 0"}], max_tokens=20)
            print("answered", flush=True)
            await teacher.chat([{"role": "user", "content": "Hello number 1"}], max_tokens=20)

asyncio.run(main())
"""


def killed_in_its_second_call(stub, path):
    stub.script("ok", "hang")
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, stub.url, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "answered\n"
    while not stub.outcomes["hang"]:
        time.sleep(0.01)
    return process


def test_kill_9_keeps_the_answers_and_counts_the_call_in_flight_at_its_bound(stub, path):
    process = killed_in_its_second_call(stub, path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    calls = Calls(path, budget=1)
    assert states(calls) == {"answered": 1, "doubtful": 1}
    [row] = calls.query("SELECT owed, bound_pico, bound_tokens, tokens FROM bill ORDER BY id DESC")[
        :1
    ]
    assert row["owed"] == row["bound_pico"] > 0 and row["tokens"] == row["bound_tokens"]
    assert calls.budget.uncertain_usd == row["bound_pico"] / PICO
    replies = ask(stub, calls, range(2))
    assert [reply.found for reply in replies] == [True, False]
    assert stub.answered == 2


def test_a_second_process_is_refused_and_the_first_is_not_harmed(stub, path):
    process = killed_in_its_second_call(stub, path)
    before = path.read_bytes()
    [refused] = ask(stub, Calls(path))
    assert isinstance(refused, BaizeError)
    assert "calls.sqlite is being written by another process" in str(refused)
    with pytest.raises(BaizeError, match="another process"):
        Calls(path).query("SELECT * FROM bill")
    assert path.read_bytes() == before
    process.kill()
    process.wait()
    assert states(Calls(path)) == {"answered": 1, "doubtful": 1}


def test_a_second_table_of_the_same_process_is_refused_while_the_first_is_in_use(path):
    first = Calls(path)
    with first.held(), pytest.raises(BaizeError, match="another process"):
        Calls(path).query("SELECT 1")
    assert Calls(path).query("SELECT 1 AS one") == [{"one": 1}]


def test_two_event_loops_one_after_the_other_and_side_by_side(stub, path):
    calls = Calls(path)
    ask(stub, calls, range(5))
    ask(stub, calls, range(10))
    stub.latency = 0.005
    threads = [
        threading.Thread(target=ask, args=(stub, calls, range(start, start + 50)))
        for start in (10, 60)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert stub.answered == 110 and states(calls) == {"answered": 110}
    _check_sum(calls, None)
    assert calls.budget.reserved_usd == 0


# ---- faults of the file


def open_again(path):
    """The same process can use the table again: nothing was left locked."""
    assert note_in(Calls(path)) > 0


def note_in(calls):
    with calls.held():
        number = note(calls)
        asyncio.run(calls.answered(number, said("x", 0.1)))
        return number


def test_a_full_disk_is_said_and_the_same_process_goes_on_when_it_is_freed(stub, path):
    calls = Calls(path)
    ask(stub, calls)
    with pytest.raises(BaizeError, match="free some disk space"), calls.held():
        [size] = calls._connection.execute("PRAGMA page_count").fetchone()
        calls._connection.execute(f"PRAGMA max_page_count = {size}")
        for number in range(200):
            note(calls, f"key {number}" * 50)
    assert calls.budget.reserved_usd == 0
    open_again(path)
    replies = ask(stub, calls, range(2))  # the same table, too
    assert [reply.found for reply in replies] == [True, False]
    _check_sum(calls, None)


def test_an_answer_that_a_full_disk_refused_is_kept_once_there_is_room(path):
    calls = Calls(path)
    with calls.held():
        number = note(calls)
        [size] = calls._connection.execute("PRAGMA page_count").fetchone()
        calls._connection.execute(f"PRAGMA max_page_count = {size}")
        with pytest.raises(BaizeError, match="free some disk space"):
            asyncio.run(calls.answered(number, said("x" * 100_000, 0.1)))
        calls._connection.execute("PRAGMA max_page_count = 100000")
    assert states(calls) == {"answered": 1}
    _check_sum(calls, None)


@pytest.mark.parametrize("fault", ["_connect", "_read_the_past"])
def test_the_lock_is_let_go_whatever_fails_while_it_is_opened(path, monkeypatch, fault):
    def failing(self):
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(Calls, fault, failing)
        with pytest.raises(BaizeError, match="disk I/O error"):
            Calls(path).query("SELECT 1")
    open_again(path)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_told_from_a_lock_that_is_held(path, monkeypatch, code):
    def lacking(descriptor, operation):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", lacking)
        with pytest.raises(BaizeError, match="knows no locks.*BAIZE_RUNS"):
            Calls(path).query("SELECT 1")
    open_again(path)


def test_a_folder_that_cannot_be_made_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BaizeError, match="BAIZE_RUNS"):
        Calls(tmp_path / "file" / "calls.sqlite").query("SELECT 1")


@pytest.mark.parametrize("damage", ["no database", "torn", "scribbled", "other table"])
def test_a_damaged_file_is_named_with_the_way_out(path, damage):
    calls = Calls(path)
    with calls.held():
        for number in range(50):
            note(calls, f"key {number}" * 20)
    data = bytearray(path.read_bytes())
    if damage == "no database":
        data = b"{}" * 4000
    elif damage == "torn":
        data = data[: len(data) // 2]
    elif damage == "scribbled":
        data[4096:] = b"\x99" * (len(data) - 4096)
    path.write_bytes(data)
    if damage == "other table":
        path.unlink()
        with closing(sqlite3.connect(path)) as table:
            table.execute("CREATE TABLE calls (key TEXT)")
    with pytest.raises(BaizeError, match=r"is damaged .*BAIZE_RUN"):
        calls = Calls(path)
        with calls.held():
            for number in range(50):
                calls.find(f"key {number}" * 20)
    path.unlink()
    open_again(path)


def test_text_no_file_can_hold_does_not_stop_the_run(stub, path):
    async def go():
        async with teacher_at(stub, Calls(path)) as teacher:
            asked = [{"role": "user", "content": "half a pair: \ud83d"}]
            return await teacher.chat(asked, max_tokens=20, subject="\ud83d", purpose="x")

    assert asyncio.run(go()).text
    assert Calls(path).query("SELECT subject FROM bill") == [{"subject": "?"}]


# ---- settings


def test_other_settings_are_refused_with_the_difference(path):
    Calls(path).claim("self_chat.jsonl", {"strategy": "turns", "num_turns": 3, "system": None})
    calls = Calls(path)
    calls.claim("self_chat.jsonl", {"strategy": "turns", "num_turns": 3, "system": None})
    with pytest.raises(BaizeError, match="BAIZE_RUN") as refusal:
        calls.claim("self_chat.jsonl", {"strategy": "transcript", "num_turns": 3, "new": 1})
    assert '\n  strategy: "turns" -> "transcript"\n' in str(refusal.value)
    assert "new: null -> 1" in str(refusal.value) and "num_turns" not in str(refusal.value)
    calls.claim("probe.jsonl", {"strategy": "transcript"})  # another purpose, other settings


@pytest.mark.parametrize("name", ["self_chat.calls.jsonl", "self_chat.settings.json"])
def test_a_run_of_the_earlier_format_is_refused_with_the_way_out(tmp_path, name):
    (tmp_path / name).write_text("{}")
    with pytest.raises(BaizeError, match="earlier version .* can be read .*BAIZE_RUN"):
        Calls(tmp_path / "calls.sqlite")


def test_a_call_that_failed_for_good_is_not_found(stub, path):
    stub.script("context")
    calls = Calls(path)
    [error] = ask(stub, calls)
    assert isinstance(error, TeacherError) and states(calls) == {}
    [reply] = ask(stub, calls)
    assert not reply.found
