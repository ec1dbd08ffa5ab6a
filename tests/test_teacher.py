"""The teacher over real HTTP: every fault, every cent, no key in sight; and the embedded model."""

import asyncio
import gc
import json
import logging
import os
import random
import socket
import subprocess
import sys
import traceback
import urllib.error
import urllib.request

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stub_server import StubServer

from baize_lib.config import BaizeError
from baize_lib.teacher.budget import Budget, BudgetExceeded
from baize_lib.teacher.calls import Calls
from baize_lib.teacher.client import Teacher, as_key, find_key, token_bound
from baize_lib.teacher.errors import (
    LONGEST_WAIT,
    RunStopped,
    TeacherError,
    read_answer,
    read_refusal,
)
from baize_lib.teacher.local import local_teacher, teacher_for
from baize_lib.teacher.pace import Pace
from baize_lib.teacher.prices import Price, Usage

PRICE = Price("stub", 1.0, 2.0)
HELLO = [{"role": "user", "content": "Hello there, what is LoRA?"}]
MARKED = "sk-MARKED0123456789secret"


@pytest.fixture
def stub():
    with StubServer() as server:
        yield server


def teacher_at(stub, **settings):
    defaults = {"api_key": "sk-test", "price": PRICE, "budget": Budget(usd=1), "backoff": 0.002}
    return Teacher("stub", base_url=stub.url, **{"timeout": 10} | defaults | settings)


def ask(teacher, num_calls=1, **settings):
    async def go():
        async with teacher:
            options = {"max_tokens": 20} | settings
            calls = [teacher.chat(HELLO, **options, attempt=n) for n in range(1, num_calls + 1)]
            return await asyncio.gather(*calls, return_exceptions=True)

    outcomes = asyncio.run(go())
    return outcomes[0] if num_calls == 1 else outcomes


def worst_case():
    return (token_bound(HELLO) * PRICE.input + 20 * PRICE.output) / 1e6


def answered_usd(stub):
    return (stub.input * PRICE.input + stub.output * PRICE.output) / 1e6


def test_a_reply_carries_its_text_usage_and_cost(stub):
    teacher = teacher_at(stub)
    reply = ask(teacher)
    assert reply.text.startswith("Message 1: Hello there") and reply.finish_reason == "stop"
    assert reply.cost_usd == teacher.budget.spent_usd == answered_usd(stub) > 0
    assert (reply.found, reply.estimated, teacher.budget.uncertain_usd) == (False, False, 0)


def test_the_settings_of_a_call_reach_the_server_and_none_leaves_them_out(stub):
    ask(teacher_at(stub), temperature=0.3, top_p=None, seed=7, stop=("[AI]",), extra={"min_p": 0.1})
    [(body, _)] = stub.log
    assert body["temperature"] == 0.3 and "top_p" not in body
    assert (body["seed"], body["stop"], body["min_p"]) == (7, ["[AI]"], 0.1)
    assert body["max_tokens"] == 20 and body["messages"] == HELLO


@pytest.mark.parametrize(
    "fault, kind",
    [
        ("429", "429"), ("429 retry-after=0", "429"), ("429 retry-after-ms=5", "429"),
        ("429 retry-after-date=0", "429"), ("500", "500"), ("503", "503"), ("409", "409"),
    ],
)  # fmt: skip
def test_what_is_surely_unbilled_is_tried_again_for_nothing(stub, fault, kind):
    stub.script(fault, fault)
    teacher = teacher_at(stub)
    reply = ask(teacher)
    assert stub.outcomes.total() == 3 and teacher.errors == {kind: 2}
    assert teacher.budget.spent_usd == reply.cost_usd == answered_usd(stub)


@pytest.mark.parametrize(
    "fault, kind",
    [
        ("reset", "dropped"), ("reset-after", "dropped"), ("hang", "timeout"),
        ("malformed", "malformed answer"), ("html", "malformed answer"),
        ("no-choices", "malformed answer"), ("502", "502"), ("504", "504"),
    ],
)  # fmt: skip
def test_what_may_have_been_billed_is_counted_at_its_worst_case_and_tried_again(stub, fault, kind):
    stub.script(fault)
    teacher = teacher_at(stub, timeout=0.3 if fault == "hang" else 10)
    reply = ask(teacher)
    assert stub.outcomes.total() == 2 and teacher.errors == {kind: 1}
    assert teacher.budget.uncertain_usd == pytest.approx(worst_case())
    assert teacher.budget.spent_tokens == reply.usage.total + token_bound(HELLO) + 20
    assert teacher.budget.spent_usd == pytest.approx(reply.cost_usd + worst_case())
    assert teacher.budget.spent_usd >= answered_usd(stub)
    assert teacher.budget.reserved_usd == 0


def test_a_call_is_not_billed_uncertainly_more_than_three_times(stub):
    stub.script(*["malformed"] * 9)
    teacher = teacher_at(stub)
    error = ask(teacher)
    assert isinstance(error, TeacherError) and error.kind == "malformed answer"
    assert stub.outcomes.total() == 3 and teacher.budget.reserved_usd == 0
    assert teacher.budget.spent_usd == pytest.approx(3 * worst_case())


def test_a_server_that_is_not_there_costs_nothing(stub):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    teacher = Teacher("m", base_url=url, price=PRICE, max_attempts=2, backoff=0.002)
    error = ask(teacher)
    assert error.kind == "no connection" and "check the network" in str(error)
    assert teacher.errors == {"no connection": 2} and teacher.budget.spent_usd == 0


def test_attempts_end_and_say_what_to_do(stub):
    stub.script(*["500"] * 4)
    error = ask(teacher_at(stub, max_attempts=4))
    assert "after 4 attempts" in str(error) and "run again to go on" in str(error)
    assert stub.outcomes == {"500": 4}


def test_a_server_that_only_has_too_much_to_do_is_asked_four_times_as_often(stub):
    stub.script(*["503", "429", {"status": 529, "body": ""}] * 5)
    assert ask(teacher_at(stub, max_attempts=4)).text
    stub.script(*["503"] * 16)
    assert "after 16 attempts" in str(ask(teacher_at(stub, max_attempts=4)))


@pytest.mark.parametrize(
    "fault, error, remedy",
    [
        ("401", RunStopped, "check OPENAI_API_KEY"),
        ("403", RunStopped, "this key, project or country"),
        ("404", RunStopped, "check the model's name"),
        ("quota", RunStopped, "has no money left"),
    ],
)
def test_what_no_call_can_survive_stops_the_run_at_the_first_call(stub, fault, error, remedy):
    stub.script(*[fault] * 100)
    outcomes = ask(teacher_at(stub), num_calls=50)
    assert all(type(outcome) is error and remedy in str(outcome) for outcome in outcomes)
    assert stub.outcomes.total() == 1


@pytest.mark.parametrize("fault", ["400", "context"])
def test_a_refused_request_fails_alone_and_at_once(stub, fault):
    stub.script(fault)
    outcomes = ask(teacher_at(stub), num_calls=5)
    failed = [outcome for outcome in outcomes if isinstance(outcome, TeacherError)]
    assert len(failed) == 1 and not isinstance(failed[0], RunStopped)
    assert stub.outcomes.total() == 5


def test_an_answer_without_usage_is_kept_and_counted_at_its_worst_case(stub):
    stub.script("no-usage")
    teacher = teacher_at(stub)
    reply = ask(teacher)
    assert reply.text and reply.estimated and stub.outcomes.total() == 1
    assert reply.cost_usd == teacher.budget.spent_usd == pytest.approx(worst_case())


@pytest.mark.parametrize(
    "fault, reason", [("length", "length"), ("filter", "content_filter"), ("empty", "stop")]
)
def test_the_finish_reason_is_kept(stub, fault, reason):
    stub.script(fault)
    assert ask(teacher_at(stub)).finish_reason == reason


def test_retry_after_holds_back_every_call(stub, monkeypatch):
    slept, real = [], asyncio.sleep

    async def sleep(seconds):
        slept.append(seconds)
        await real(min(seconds, 0.01))

    clock = iter(range(10**6))
    monkeypatch.setattr("baize_lib.teacher.client.asyncio.sleep", sleep)
    monkeypatch.setattr("baize_lib.teacher.pace.time.monotonic", lambda: next(clock) / 50)
    stub.script("429 retry-after=2")
    ask(teacher_at(stub), num_calls=2)
    assert sum(slept) >= 3.5  # the refused call waits 2 s by itself; the other was held back too


@pytest.mark.parametrize(
    "headers, wait",
    [
        ({"retry-after": "3"}, 3), ({"retry-after": "0.5"}, 0.5), ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0), ({"retry-after": "soon"}, None),
        ({"retry-after": "-1"}, None), ({"retry-after-ms": "nan"}, None), ({}, None),
    ],
)  # fmt: skip
def test_retry_after_is_read_in_all_its_forms(headers, wait):
    assert read_refusal(429, None, headers).wait == wait


def test_a_server_that_asks_for_hours_stops_the_run():
    failure = read_refusal(429, None, {"retry-after": str(LONGEST_WAIT + 1)})
    assert failure.error is RunStopped and "run again then" in failure.text


@given(st.binary() | st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(
        st.sampled_from(["choices", "message", "content", "usage", "prompt_tokens"]), inner
    ),
    max_leaves=8,
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_no_body_whatever_makes_the_reader_raise(body):
    outcome = read_answer(body, bound=Usage(1, 0, 1))
    assert outcome.__class__.__name__ in ("Reply", "Failure")


# ---- the budget, in flight


def test_the_cap_is_never_passed_with_many_calls_in_flight_and_faults_between(stub):
    rng = random.Random(1)
    faults = ["ok"] * 6 + ["429", "500", "reset-after", "malformed", "no-usage", "504", "length"]
    stub.script(*rng.choices(faults, k=400))
    stub.latency = 0.002
    budget = Budget(usd=150 * worst_case())
    teacher = teacher_at(stub, budget=budget, max_concurrency=32)
    seen, settle = [], budget.settle

    def watched(*args, **kwargs):
        settle(*args, **kwargs)
        seen.append(budget.spent_usd + budget.reserved_usd)

    budget.settle = watched
    outcomes = ask(teacher, num_calls=400)
    assert any(isinstance(outcome, BudgetExceeded) for outcome in outcomes)
    assert max(seen) <= budget.usd and budget.reserved_usd == 0
    assert answered_usd(stub) <= budget.spent_usd <= budget.usd
    told = sum(getattr(outcome, "cost_usd", 0) for outcome in outcomes)
    assert told == pytest.approx(budget.spent_usd - budget.uncertain_usd)
    [table] = teacher.calls.query("SELECT sum(owed) AS pico FROM bill")
    assert table["pico"] == budget._spent  # every cent is on some row of the table


def test_money_held_by_calls_in_flight_is_waited_for_and_used(stub):
    stub.latency = 0.005
    budget = Budget(usd=3 * worst_case())
    outcomes = ask(teacher_at(stub, budget=budget, max_concurrency=64), num_calls=100)
    replies = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
    assert len(replies) > 3  # three worst cases fit at once; real calls cost less
    assert budget.usd - budget.spent_usd < worst_case()


def test_a_cancelled_call_is_counted_as_perhaps_billed(stub):
    stub.latency = 5
    teacher = teacher_at(stub, timeout=10)

    async def go():
        async with teacher:
            task = asyncio.create_task(teacher.chat(HELLO, max_tokens=20))
            while not stub.in_flight:
                await asyncio.sleep(0.005)
            task.cancel()
            await asyncio.wait([task])

    asyncio.run(go())
    assert teacher.budget.uncertain_usd == pytest.approx(worst_case())
    assert teacher.budget.reserved_usd == 0 and teacher.pace.in_flight == 0


@given(st.lists(st.text(max_size=30), max_size=5))
def test_the_token_bound_is_at_least_the_bytes(texts):
    messages = [{"role": "user", "content": text} for text in texts]
    assert token_bound(messages) >= sum(len(text.encode()) + 8 for text in texts)


# ---- concurrency


def test_one_call_goes_first_then_many(stub):
    stub.latency = 0.2  # long beside what a busy machine needs to send 64 calls
    teacher = teacher_at(stub, max_concurrency=64)
    peaks = []
    reply, stub.reply = stub.reply, lambda body: peaks.append(stub.in_flight) or reply(body)
    ask(teacher, num_calls=200)
    assert peaks[0] == 1 and max(peaks) >= 32 and stub.peak <= 64


def test_the_pace_settles_near_what_the_server_allows(stub):
    stub.latency, stub.max_in_flight = 0.2, 20
    teacher = teacher_at(stub, max_concurrency=256, max_attempts=30)
    outcomes = ask(teacher, num_calls=200)
    assert not any(isinstance(outcome, BaseException) for outcome in outcomes)
    pace = teacher.pace
    assert 5 <= pace.limit <= 40 and pace.spells >= 1
    assert not str(pace).startswith("0.0 calls/s")
    assert stub.answered == 200


def test_a_spell_of_429s_halves_the_places_once():
    async def go():
        pace = Pace(64)
        pace.limit = 32.0
        started = [await pace.enter() for _ in range(32)]
        for spell in started:
            pace.slow_down(spell, None)
        return pace.limit, pace.spells

    assert asyncio.run(go()) == (16.0, 1)


def test_cancelled_waiters_leave_no_place_occupied(stub):
    async def go():
        places = Pace(4)
        await places.enter()
        waiting = [asyncio.create_task(places.enter()) for _ in range(6)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        places.leave()  # gives the place to the first who still waits
        waiting[1].cancel()  # who is cancelled before waking up
        await asyncio.wait(waiting, timeout=0.05)
        served = [task for task in waiting if task.done() and not task.cancelled()]
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        return len(served), places.in_flight

    assert asyncio.run(go()) == (1, 1)


def test_a_teacher_works_in_one_event_loop_after_another(stub):
    teacher = teacher_at(stub)
    assert ask(teacher, seed=1).text and ask(teacher, seed=2).text and stub.answered == 2


# ---- the key

ECHO = ["401", "echo-key", "403", "404", "400", "429", "quota", "500", "504", "reset", "hang",
        "malformed", "html", "no-usage", "ok"]  # fmt: skip


@pytest.mark.parametrize("fault", ECHO)
def test_the_key_appears_nowhere_on_any_path(stub, fault, caplog, capfd, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", MARKED)
    monkeypatch.setenv("OPENAI_BASE_URL", stub.url)
    caplog.set_level(logging.DEBUG)
    stub.script(*[fault] * 3)
    teacher = Teacher(
        "m", price=PRICE, budget=Budget(usd=1), max_attempts=2, backoff=0,
        timeout=0.2 if fault == "hang" else 10,
    )  # fmt: skip
    outcome = ask(teacher)
    assert stub.keys_seen == {MARKED}  # it was used, and yet:
    shown = [repr(teacher), repr(outcome), str(outcome), repr(teacher.budget), str(teacher.pace)]
    shown += [str(vars(outcome)) if isinstance(outcome, BaseException) else ""]
    if isinstance(outcome, BaseException):
        full = traceback.TracebackException.from_exception(outcome, capture_locals=True)
        shown += list(full.format())
    shown += [record.getMessage() for record in caplog.records] + [caplog.text, *capfd.readouterr()]
    assert not any("MARKED" in text for text in shown)


def test_a_cancelled_calls_traceback_shows_no_key(stub):
    stub.latency = 5
    teacher = teacher_at(stub, api_key=MARKED, timeout=10)

    async def go():
        try:
            await asyncio.wait_for(teacher.chat(HELLO, max_tokens=20), 0.2)
        except TimeoutError as error:
            full = traceback.TracebackException.from_exception(error, capture_locals=True)
            return "".join(full.format())
        finally:
            await teacher.aclose()

    assert "MARKED" not in asyncio.run(go())


def test_a_key_cannot_be_printed_or_formatted():
    key = as_key(f"  {MARKED}\n")
    assert key.get_secret_value() == MARKED
    assert "MARKED" not in f"{key!r}{key}{[key]}"


@pytest.mark.parametrize("pasted", ["", "  ", "sk-a b", "sk-ключ", "sk-a\nb"])
def test_a_key_that_cannot_be_one_is_refused_before_any_call(pasted):
    with pytest.raises(RunStopped, match="copy it again") as refused:
        as_key(pasted)
    assert not pasted.strip() or pasted not in str(refused.value)


def test_openais_key_is_not_sent_to_another_server_unasked(stub, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", MARKED)
    ask(Teacher("m", base_url=stub.url, price=PRICE))
    assert MARKED not in stub.keys_seen


def test_the_key_is_found_in_the_environment_or_colabs_secrets(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-from-environment")
    assert find_key().get_secret_value() == "sk-from-environment"
    monkeypatch.delenv("OPENAI_API_KEY")

    class userdata:  # noqa: N801
        SecretNotFoundError = NotebookAccessError = KeyError

        @staticmethod
        def get(name):
            return {"OPENAI_API_KEY": "sk-from-colab"}[name]

    colab = type(sys)("google.colab")
    colab.userdata = userdata
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    assert find_key().get_secret_value() == "sk-from-colab"


def test_without_a_key_and_nobody_to_type_one_the_remedy_is_given(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: PTH123, SIM115
    with pytest.raises(BaizeError, match="BAIZE_TIER=laptop"):
        find_key()


def test_a_key_is_typed_in_unseen_where_someone_can_type(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("getpass.getpass", lambda prompt: "sk-typed")
    assert find_key().get_secret_value() == "sk-typed"


def test_a_model_without_a_known_price_is_refused_before_any_call(stub):
    with pytest.raises(BaizeError, match="BAIZE_TEACHER_PRICE"):
        Teacher("no-such-model", base_url=stub.url)


# ---- the embedded model


@pytest.fixture(scope="module")
def local():
    return local_teacher(slots=2, context=512)


def test_the_embedded_model_answers_for_nothing_and_the_same_for_the_same_seed(local):
    # the stop changes no text, but makes it another call, so that it is not found in the table
    first, again = (ask(local, seed=1, stop=stop) for stop in (None, ["@@@"]))
    assert first.text == again.text and first.usage.output == 20
    assert first.cost_usd == 0 and first.finish_reason == "length"
    assert first.usage.input <= token_bound(HELLO)
    assert again.usage.cached_input > 0  # the prompt was kept: a long history is read once


def test_its_server_refuses_a_stranger_and_listens_on_this_machine_only(local):
    assert "127.0.0.1" in local.base_url
    request = urllib.request.Request(
        f"{local.base_url}/chat/completions", data=b"{}", headers={"Authorization": "Bearer no"}
    )
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(request, timeout=10)


def test_the_other_engine_answers_in_this_process_many_at_once_and_goes_on_after_a_fault():
    pytest.importorskip("openvino_genai")

    async def go():
        async with local_teacher(slots=4, context=256, engine="openvino") as teacher:
            options = {"max_tokens": 6, "temperature": 0.3}
            jobs = [teacher.chat(f"Say {n}.", seed=n, **options) for n in range(5)]
            replies = await asyncio.gather(*jobs)
            gone = asyncio.create_task(teacher.chat("Count to 100.", max_tokens=100))
            await asyncio.sleep(0.3)
            gone.cancel()
            with pytest.raises(TeacherError, match="outgrown the model's context"):
                await teacher.chat("word " * 300, max_tokens=5)
            last = await teacher.chat("Hi", stop=["@"], extra={"grammar": "x"}, **options)
            again = await teacher.chat("Say 0.", seed=0, stop=["@"], **options)
            return replies, last, again

    replies, last, again = asyncio.run(go())
    assert len({reply.text for reply in replies}) > 1 and again.text == replies[0].text
    assert all(0 < reply.usage.output <= 6 < reply.usage.input for reply in [*replies, last])
    assert asyncio.run(go())[2].text == again.text  # in another event loop


def test_a_prompt_longer_than_its_context_fails_alone(local):
    long = [{"role": "user", "content": "word " * 2000}]

    async def go():
        async with local:
            with pytest.raises(TeacherError, match="context size") as refused:
                await local.chat(long, max_tokens=5)
            return refused.value

    assert not isinstance(asyncio.run(go()), RunStopped)


def test_the_same_server_is_used_again():
    first, second = (local_teacher(slots=2, context=512) for _ in range(2))
    assert first.base_url == second.base_url


def test_the_server_is_silent_and_ends_with_its_process():
    code = (
        "import asyncio; from baize_lib.teacher import local_teacher\n"
        "async def go():\n"
        "    async with local_teacher(slots=1, context=256) as teacher:\n"
        "        await teacher.chat([{'role': 'user', 'content': 'Hi'}], max_tokens=2)\n"
        "        print(teacher.base_url)\n"
        "asyncio.run(go())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stderr == ""
    port = int(done.stdout.strip().rpartition(":")[2].removesuffix("/v1"))
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_a_teacher_is_named_by_its_weights_or_by_its_model_and_address(stub, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    paid = teacher_for("gpt-4.1-nano", budget=3.0, max_calls=7)
    assert (paid.model, paid.budget.usd, paid.max_concurrency) == ("gpt-4.1-nano", 3.0, 7)
    assert "$" in repr(paid) and paid.price.input > 0
    monkeypatch.setenv("OPENAI_BASE_URL", stub.url)
    own = teacher_for("some/model", price=PRICE)
    assert ask(own).text and own.price is PRICE
    assert teacher_for("smollm2-135m", max_calls=2).price.input == 0


def test_a_cap_is_given_once_to_the_table_that_counts_it(stub):
    with pytest.raises(BaizeError, match=r"Calls\(path, budget\)"):
        Teacher("stub", base_url=stub.url, price=PRICE, calls=Calls(None), budget=1.0)


def test_nothing_is_left_open(stub, recwarn):
    ask(teacher_at(stub))
    gc.collect()
    assert not [warning for warning in recwarn if "Unclosed" in str(warning.message)]
