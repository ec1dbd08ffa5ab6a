"""Prices carry a date, the cap holds under any interleaving, and the meter adds up."""

import math
import random
import sys
import threading
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baize_lib.config import BaizeError
from baize_lib.teacher.budget import Budget, BudgetExceeded
from baize_lib.teacher.client import Teacher
from baize_lib.teacher.meter import CostMeter
from baize_lib.teacher.prices import (
    FREE,
    SHADOW_TEACHERS,
    Price,
    Usage,
    price_of,
    shadow_cost,
)

USD = st.floats(0, 5, allow_nan=False)
TOKENS = st.integers(0, 5000)


def test_a_price_shows_its_source_and_date():
    price = price_of("gpt-4.1-nano")
    assert 0 < price.input < price.output
    assert price.source.startswith("genai-prices ")
    assert price.as_of.startswith("20") and price.as_of in str(price)


def test_the_batch_price_is_half_and_cached_input_is_cheaper():
    price = price_of("gpt-4o-mini")
    assert price.batch_factor == 0.5
    assert price.cached_input < price.input
    usage = Usage(input=1_000_000, cached_input=400_000, output=0)
    assert price.cost(usage) == pytest.approx(0.6 * price.input + 0.4 * price.cached_input)
    assert price.cost(usage, batch=True) == pytest.approx(price.cost(usage) / 2)


def test_cached_input_costs_as_much_as_other_input_when_no_discount_is_known():
    price = Price("m", 2.0, 3.0)
    assert price.cost(Usage(100, 100, 0)) == price.cost(Usage(100, 0, 0))


def test_the_2023_price_gives_back_what_baize_cost():
    price = price_of("gpt-3.5-turbo", year=2023)
    per_thousand = 1000 * price.cost(Usage(input=248, output=200))
    assert per_thousand == pytest.approx(0.896)  # 448 tokens a dialogue; published: $0.90
    assert price.as_of.startswith("2023")
    assert price_of("gpt-3.5-turbo").input != price.input


@pytest.mark.parametrize("model", ["no-such-model", "gpt-99", ""])
def test_an_unknown_model_is_an_error_that_asks_for_a_price(model):
    with pytest.raises(BaizeError, match="BAIZE_TEACHER_PRICE=.* or give Price"):
        price_of(model)


def test_only_one_price_of_the_past_is_known():
    with pytest.raises(BaizeError, match="in 2019"):
        price_of("gpt-3.5-turbo", year=2019)


def test_the_embedded_model_is_free_and_its_shadow_price_is_not():
    usage = Usage(input=100_000, cached_input=90_000, output=50_000)
    assert price_of("smollm2-135m").cost(usage) == FREE.cost(usage) == 0
    shadows = shadow_cost(usage)
    assert len(shadows) == len(SHADOW_TEACHERS)
    assert all(shadow.usd > 0 and shadow.as_of for shadow in shadows)
    [given_price] = shadow_cost(usage, [Price("mine", 1.0, 2.0)])
    assert given_price.usd == pytest.approx(0.2)  # cached input in full: an estimate from above


@given(st.lists(st.tuples(TOKENS, TOKENS, TOKENS), max_size=20))
def test_usage_adds_up(rows):
    total = sum((Usage(*row) for row in rows), Usage())
    assert total == Usage(*(sum(row[i] for row in rows) for i in range(3)))


@settings(max_examples=300, deadline=None)
@given(cap=USD, token_cap=st.none() | TOKENS, seed=st.integers(), steps=st.integers(1, 60))
def test_spent_and_reserved_never_pass_the_cap_under_any_interleaving(cap, token_cap, seed, steps):
    rng = random.Random(seed)
    budget, open_calls, closed = Budget(cap, token_cap), [], []
    for _ in range(steps):
        if open_calls and rng.random() < 0.5:
            held, usd, tokens = open_calls.pop(rng.randrange(len(open_calls)))
            what = rng.random()
            if what < 0.2:
                budget.settle(held, 0, 0)
            elif what < 0.4:
                budget.settle(held, usd, tokens, uncertain=True)
                closed.append((round(usd * 10**12), round(usd * 10**12), tokens))
            else:
                paid, used = rng.random() * usd, rng.randint(0, tokens)
                budget.settle(held, paid, used)
                closed.append((round(paid * 10**12), 0, used))
        else:
            usd, tokens = rng.random() * rng.choice([0.001, 1]), rng.randint(0, 500)
            try:
                open_calls.append((budget.reserve(usd, tokens), usd, tokens))
            except BudgetExceeded as error:
                assert error.final or open_calls
        assert budget._spent + budget._reserved <= budget._cap <= cap * 10**12
        if token_cap is not None:
            assert budget.spent_tokens + budget.reserved_tokens <= token_cap
    rebuilt = Budget(cap, token_cap)
    for row in closed:
        rebuilt.take_over(*row)
    assert rebuilt._spent == budget._spent
    assert rebuilt.spent_tokens == budget.spent_tokens
    assert rebuilt.uncertain_usd == budget.uncertain_usd


def test_the_cap_holds_between_threads():
    budget = Budget(usd=1.0)
    granted = []

    def spend() -> None:
        for _ in range(200):
            try:
                held = budget.reserve(0.01, 1)
            except BudgetExceeded:
                return
            granted.append(held)
            budget.settle(held, 0.01, 1)

    threads = [threading.Thread(target=spend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(granted) == 100 and budget.spent_usd == 1.0 and budget.left_usd == 0


def test_a_refusal_says_whether_calls_in_flight_could_still_free_the_money():
    budget = Budget(usd=1.0)
    held = budget.reserve(0.8, 10)
    with pytest.raises(BudgetExceeded) as waiting:
        budget.reserve(0.5, 10)
    assert not waiting.value.final
    budget.settle(held, 0.7, 10)
    with pytest.raises(BudgetExceeded, match=r"\$1\.00 does not allow .* up to \$0\.5000") as gone:
        budget.reserve(0.5, 10)
    assert gone.value.final


def test_a_bill_above_its_reservation_is_recorded_and_stops_what_follows():
    budget = Budget(usd=1.0)
    budget.settle(budget.reserve(0.1, 1), 1.5, 10)
    assert budget.spent_usd == 1.5
    with pytest.raises(BudgetExceeded):
        budget.reserve(0.0, 1)


@pytest.mark.parametrize("cap", [-1, math.nan, math.inf])
def test_a_cap_that_is_no_amount_is_refused(cap):
    with pytest.raises(BaizeError, match="budget usd"):
        Budget(usd=cap)


def test_a_budget_without_a_cap_only_counts():
    budget = Budget()
    budget.settle(budget.reserve(1e6, 10**9), 12.5, 100)
    assert budget.spent_usd == 12.5 and budget.left_usd == math.inf


def test_a_budget_of_zero_allows_what_is_free():
    budget = Budget(usd=0)
    budget.settle(budget.reserve(0.0, 100), 0.0, 90)
    assert budget.spent_tokens == 90
    with pytest.raises(BudgetExceeded):
        budget.reserve(1e-9, 1)


# ---- prices by name, address and hour (T5, T6)


def test_a_price_that_depends_on_the_hour_is_that_of_the_dearest(monkeypatch):
    """DeepSeek's is half at night: a run that goes on into the day must not be metered at half."""
    from genai_prices import Usage as Tokens
    from genai_prices import calc_price

    address = "https://api.deepseek.com/v1"
    by_hour = {
        calc_price(
            Tokens(input_tokens=1000), "deepseek-chat", provider_api_url=address,
            genai_request_timestamp=datetime.now(UTC).replace(hour=hour, minute=30),
        ).total_price
        for hour in range(24)
    }  # fmt: skip
    assert price_of("deepseek-chat", base_url=address).input == float(max(by_hour) * 1000)


def test_no_name_in_the_whole_table_gives_anything_but_a_price_or_unknown_price():
    from genai_prices.data_snapshot import get_snapshot

    names = {model.id for provider in get_snapshot().providers for model in provider.models}
    refused = []
    for name in sorted(names)[::3] + [n for n in sorted(names) if ":" in n]:
        try:
            price = price_of(name)
        except BaizeError as error:
            refused.append(str(error))
        else:
            assert price.input >= 0 and price.output >= 0 and 0 < price.batch_factor <= 1
    assert all("BAIZE_TEACHER_PRICE" in text for text in refused)


@pytest.mark.parametrize(
    "name",
    [
        "Qwen/Qwen3-4B-Instruct-2507",
        "mistralai/mistral-nemo:free",
        "mistral-nemo:free",
        "no-such-model",
        "a/b/c:d@e",
        "",
        "  ",
    ],
)
@pytest.mark.parametrize("address", [None, "https://api.deepinfra.com/v1/openai",
                                     "https://openrouter.ai/api/v1", "http://127.0.0.1:8000/v1",
                                     "https://router.huggingface.co/v1"])  # fmt: skip
def test_a_name_gives_a_price_or_says_how_to_give_one(name, address):
    try:
        price = price_of(name, base_url=address)
    except BaizeError as error:
        assert "BAIZE_TEACHER_PRICE" in str(error)
    else:
        assert price.output >= price.input * 0 and price.source.startswith("genai-prices")


def test_the_table_knows_more_models_when_told_the_address():
    name = "Qwen/Qwen3-4B-Instruct-2507"
    with pytest.raises(BaizeError, match="no price is known"):
        price_of(name)
    price = price_of(name, base_url="https://router.huggingface.co/nscale/v1")
    assert 0 < price.input <= price.output
    there = "https://router.huggingface.co/nscale/v1"
    assert Teacher(name, base_url=there, api_key="sk-test").price == price


def test_a_models_name_at_another_server_is_not_given_openais_price_for_less():
    assert price_of("gpt-4o-mini", base_url="https://api.openai.com/v1") == price_of("gpt-4o-mini")
    at_gateway = price_of("gpt-4o-mini", base_url="https://gateway.example/v1")
    assert at_gateway.input == price_of("gpt-4o-mini").input


# ---- the meter


def spending(meter, usd, **options):
    """Spend and tell the meter of the dialogue it was spent on."""
    held = meter.budget.reserve(usd, 10)
    meter.budget.settle(held, usd, 10)
    meter.add(line(usd, **options))


def line(usd, status="ok", tokens=100):
    usage = {"input": tokens, "cached_input": 0, "output": tokens}
    return {"cost_usd": usd, "usage": usage, "status": status}


def test_the_meter_in_a_file_shows_only_its_last_state(capsys):
    with CostMeter(Budget(), target=4) as meter:
        for usd in (0.001, 0.003):
            spending(meter, usd)
        meter.errors["429"] += 2
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    for part in ("spent $0.004000", "dialogues 2 of 4", "per 1,000 dialogues $2.00", "429 2"):
        assert part in out


def test_the_meter_rewrites_one_line_in_a_terminal_a_few_times_a_second(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with CostMeter(Budget()) as meter:
        meter._drawn = math.inf  # as if just drawn
        for _ in range(1000):
            meter.add(line(0.001))
        assert capsys.readouterr().out == ""
        meter._drawn = 0
        meter.add(line(0.001))
    out = capsys.readouterr().out
    assert out.count("\r") == 2 and out.count("\n") == 1


def test_the_projection_counts_failed_lines():
    meter = CostMeter(Budget(), target=100)
    for usd in (0.010, 0.012, 0.008, 0.010):
        spending(meter, usd)
    spending(meter, 0.004, status="failed")
    assert meter.rows()["at 100 dialogues"] == "$1.10"  # 0.044 for four of them
    meter.target = 4
    assert "at 4 dialogues" not in meter.rows()


def test_lines_of_an_earlier_session_count_but_not_in_the_rates():
    meter = CostMeter(Budget())
    meter.add(line(0.5), fresh=False)
    shown = meter.rows()
    assert shown["dialogues"] == "1" and shown["tokens/s"] == "0"


def test_the_meter_reads_its_budget_and_shows_the_shadow_price():
    budget = Budget(usd=2)
    meter = CostMeter(budget, shadow=price_of("gpt-4.1-nano"))
    held = budget.reserve(0.5, 10)
    budget.settle(budget.reserve(0.25, 10), 0.25, 10, uncertain=True)
    meter.add(line(0.0))
    shown = meter.rows()
    assert shown["reserved"] == "$0.5000" and shown["cap"] == "$2.00"
    assert shown["spent"] == shown["of it uncertain"] == "$0.2500"
    assert "would cost at gpt-4.1-nano" in shown
    budget.settle(held, 0, 0)


def test_a_notebook_shows_one_table_that_is_updated_in_place():
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    source = (
        "from baize_lib.teacher import Budget, CostMeter, meter as room\n"
        "room.INTERVAL = 0\n"
        "line = {'cost_usd': 0.001, 'status': 'ok', 'usage': {'input': 5, 'output': 5}}\n"
        "with CostMeter(Budget(), target=3) as meter:\n"
        "    for _ in range(3):\n"
        "        meter.add(line)"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    nbclient.NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    [shown] = notebook.cells[0].outputs
    assert shown.output_type == "display_data"
    assert "<td" in shown.data["text/html"] and "3 of 3" in shown.data["text/plain"]
    assert "widgets" not in notebook.metadata
