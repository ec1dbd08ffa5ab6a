"""Arms are compared by the same held-out tokens, and with what a seed alone does."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_train import FAST, TALKS, TOKENIZER, talk, tiny_base

from baize_lib.config import BaizeError
from baize_lib.evaluation.ablation import held_out, usual_range
from baize_lib.training.batches import encode_all
from baize_lib.training.fit import fit
from baize_lib.training.lora import attach, select
from baize_lib.training.loss import held_out_loss

WITHOUT = replace(FAST, end_token=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A base and two adapters on it: with end tokens and without."""
    base, folder = tiny_base(), tmp_path_factory.mktemp("arms")
    fit(base, TALKS, [], folder / "with", FAST)
    fit(base, TALKS, [], folder / "without", WITHOUT)
    return base, folder


def loss_in_layout(base, adapter, settings):
    rows, _ = encode_all(TALKS[:4], TOKENIZER, settings)
    select(base, attach(base, adapter))
    loss = held_out_loss(base.model, rows)
    select(base, None)
    return loss


@pytest.mark.parametrize(("name", "settings"), [("with", FAST), ("without", WITHOUT)])
def test_every_arm_is_asked_for_the_replies_and_their_end_tokens(trained, name, settings):
    base, folder = trained
    measured = held_out(base, folder / name, TALKS[:4], settings)
    expected = loss_in_layout(base, folder / name, FAST)
    assert measured.replies == pytest.approx(expected, rel=1e-5)


def test_the_words_of_an_arm_without_end_tokens_are_asked_in_its_own_layout(trained):
    base, folder = trained
    measured = held_out(base, folder / "without", TALKS[:4], WITHOUT)
    expected = loss_in_layout(base, folder / "without", WITHOUT)
    assert measured.words == pytest.approx(expected, rel=1e-5)


def test_what_an_arm_was_trained_to_score_changes_nothing_in_the_yardstick(trained):
    base, folder = trained
    scored_all = replace(FAST, loss_on="all")
    assert held_out(base, folder / "with", TALKS, scored_all) == held_out(
        base, folder / "with", TALKS, FAST
    )


def test_words_and_end_tokens_make_up_the_replies(trained):
    base, folder = trained
    one = held_out(base, folder / "with", [talk("Capital?", "Dodoma.")], FAST)
    num_words = len(TOKENIZER(" Dodoma.").input_ids)
    assert one.replies == pytest.approx((num_words * one.words + one.end) / (num_words + 1))


def test_training_on_end_tokens_makes_stopping_likelier(trained):
    base, folder = trained
    learnt = held_out(base, folder / "with", TALKS, FAST).end
    assert learnt < held_out(base, None, TALKS, FAST).end
    assert learnt < held_out(base, folder / "without", TALKS, WITHOUT).end


def test_measuring_an_adapter_leaves_the_base_as_it_was(trained):
    base, folder = trained
    before = held_out(base, None, TALKS, FAST)
    assert held_out(base, folder / "with", TALKS, FAST) != before
    assert held_out(base, None, TALKS, FAST) == before


def test_nothing_to_measure_on_is_said(trained):
    with pytest.raises(BaizeError, match="no dialogue to measure"):
        held_out(trained[0], None, [], FAST)


@pytest.mark.parametrize("num_seeds", [2, 3, 6, 12])
def test_one_more_run_falls_into_the_usual_range_19_times_out_of_20(num_seeds):
    draw = random.Random(num_seeds)
    inside, trials = 0, 4000
    for _ in range(trials):
        *seen, new = (draw.gauss(1.0, 0.02) for _ in range(num_seeds + 1))
        low, high = usual_range(seen)
        inside += low <= new <= high
    assert inside / trials == pytest.approx(0.95, abs=0.015)


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=15))
def test_the_usual_range_holds_the_mean_of_what_was_seen(values):
    low, high = usual_range(values)
    mean = sum(values) / len(values)
    assert low <= mean + 1e-9
    assert high >= mean - 1e-9


def test_one_seed_shows_no_spread():
    with pytest.raises(BaizeError, match="at least two seeds"):
        usual_range([1.0])
