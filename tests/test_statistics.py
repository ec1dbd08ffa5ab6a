"""Few answers, the same prompts, checks that err: does each cure do what it says?"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from baize_lib.config import BaizeError
from baize_lib.evaluation.checks import Verdict
from baize_lib.evaluation.prompts import load_prompts
from baize_lib.evaluation.statistics import (
    compare_arms,
    interval,
    true_shares,
    visible_difference,
)


@given(st.integers(0, 200), st.integers(0, 200))
def test_an_interval_holds_its_share_and_stays_between_0_and_1(count, more):
    low, high = interval(count, count + more)
    share = count / (count + more) if count + more else 0.5
    assert 0 <= low <= share + 1e-9 and share - 1e-9 <= high <= 1


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_marks_on_unrelated_prompts_are_compared_by_mcnemars_exact_test(marks):
    one, other = zip(*marks, strict=True)
    won, lost = sum(a > b for a, b in marks), sum(a < b for a, b in marks)
    found = compare_arms(one, other)
    assert (found.won, found.lost, found.clusters) == (won, lost, len(marks))
    expected = binomtest(won, won + lost).pvalue if won + lost else 1
    assert found.p == pytest.approx(expected)
    assert found.low <= found.difference <= found.high


def test_pairing_sees_what_two_overlapping_intervals_do_not():
    one, other = [1] * 60 + [0] * 40, [1] * 50 + [0] * 50  # ten prompts more, none fewer
    assert interval(60, 100)[0] < interval(50, 100)[1]
    assert compare_arms(one, other).p < 0.01


def test_twins_and_translations_count_once():
    prompts = load_prompts(category="unsafe") + load_prompts(category="harmless")
    alone = compare_arms([1] * len(prompts), [0] * len(prompts))
    twins = compare_arms([1] * len(prompts), [0] * len(prompts), prompts)
    assert alone.clusters == len(prompts) and twins.clusters <= len(prompts) // 2 + 2
    assert twins.p >= alone.p
    code = [p for p in prompts + load_prompts(category="code") if p.id.startswith("code-json")]
    assert compare_arms([1, 0], [0, 1], code).clusters == 1


@pytest.mark.parametrize("other", [[0], [0, 0], []])
def test_arms_that_are_not_of_the_same_prompts_are_refused(other):
    with pytest.raises(BaizeError, match="compare those that both answered"):
        compare_arms([1, 0, 1], other)
    with pytest.raises(BaizeError, match="compare those that both answered"):
        compare_arms([1, 0, 1], [1, 1, 1], FACTS[: len(other)])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("prompts", [None, []])
def test_a_comparison_of_nothing_is_refused(prompts):
    with pytest.raises(BaizeError, match="the arms are of no prompts"):
        compare_arms([], [], prompts)


def test_one_pair_shows_nothing_whatever_its_marks():
    for one, other in ([1.0], [0.0]), ([1.0], [0.5]), ([0.2], [3.1]):
        found = compare_arms(one, other)
        assert (found.p, found.clusters) == (1.0, 1)
        assert found.low == found.difference == found.high == one[0] - other[0]


def test_losses_are_compared_pair_by_pair():
    rng = np.random.default_rng(1)
    hard = rng.normal(2, 1, 40)  # the prompts differ much, the arms little but always
    found = compare_arms(hard, hard + 0.1 + rng.normal(0, 0.05, 40))
    assert found.high < 0 and found.p < 0.01
    assert -0.13 < found.low < found.difference < found.high < -0.07


def test_the_interval_of_a_difference_holds_the_truth_about_19_times_of_20():
    rng, held = np.random.default_rng(0), 0
    for _ in range(120):
        other = rng.random(40) < 0.4
        one = np.where(rng.random(40) < 0.3, rng.random(40) < 0.8, other)
        truth = 0.3 * (0.8 - 0.4)
        found = compare_arms(one, other)
        held += found.low <= truth <= found.high
    assert held >= 106  # 88%: a percentile bootstrap of 40 is a little narrow


def test_more_questions_show_smaller_differences_and_few_show_none():
    seen = [visible_difference(n) for n in (5, 12, 40, 120)]
    assert seen == sorted(seen, reverse=True) and seen[0] == 1
    rng = np.random.default_rng(0)  # and 4 times out of 5 it is so
    shown = 0
    for _ in range(400):
        gained, lost, _ = rng.multinomial(40, (seen[2] + 0.05, 0.05, 0.9 - seen[2]))
        shown += binomtest(int(gained), int(gained + lost)).pvalue < 0.05
    assert 0.74 <= shown / 400 <= 0.88


# ---- Checks that err


def gold(rng, recall, false_alarms, size):
    """Labelled facts and what a check of that quality said of them."""
    return [
        {"check": "fact", "language": language, "label": label,
         "grade": "good" if rng.random() < rate else "bad"}
        for language in ("en", "zh")
        for label, rate in (("good", recall), ("bad", false_alarms))
        for _ in range(size)
    ]  # fmt: skip


def verdicts(rng, truth, recall, false_alarms):
    rates = {p.id: recall if rng.random() < truth else false_alarms for p in FACTS}
    return {
        (i, "m"): Verdict("good" if rng.random() < rate else "bad", "") for i, rate in rates.items()
    }


FACTS = load_prompts(category="fact") * 1


@pytest.mark.parametrize("truth", [0.1, 0.5, 0.9])
def test_the_corrected_share_holds_the_truth_where_the_counted_one_does_not(truth):
    rng, held, naive = np.random.default_rng(2), 0, 0
    for _ in range(200):
        graded = verdicts(rng, truth, 0.7, 0.2)
        row = true_shares(FACTS, graded, gold(rng, 0.7, 0.2, 30)).iloc[0]
        held += row["low"] <= truth <= row["high"]
        low, high = interval(round(row["called good"] * len(FACTS)), len(FACTS))
        naive += low <= truth <= high
    assert held >= 180  # 90%
    assert held >= naive


def test_a_perfect_check_changes_little_and_a_useless_one_says_nothing():
    rng = np.random.default_rng(3)
    graded = {(p.id, "m"): Verdict("good" if i % 2 else "bad", "") for i, p in enumerate(FACTS)}
    sure = true_shares(FACTS, graded, gold(rng, 1.0, 0.0, 200)).iloc[0]
    assert abs(sure["share"] - sure["called good"]) < 0.05
    blind = true_shares(FACTS, graded, gold(rng, 0.5, 0.5, 200)).iloc[0]
    assert blind["high"] - blind["low"] > 1.4 * (sure["high"] - sure["low"])


def test_what_is_left_to_look_at_widens_the_interval():
    rng = np.random.default_rng(4)
    known = gold(rng, 0.95, 0.05, 60)
    graded = {(p.id, "m"): Verdict("good", "") for p in FACTS}
    unsure = {key: Verdict("look", "") if i % 2 else v for i, (key, v) in enumerate(graded.items())}
    one, other = (true_shares(FACTS, each, known).iloc[0] for each in (graded, unsure))
    assert other["to look at"] == 0.5 and other["share"] < one["share"]
    assert other["high"] - other["low"] > one["high"] - one["low"]
