"""The planner's estimates follow from stated rules, and what is unknown stays unknown."""

from dataclasses import replace

import pytest
import torch
from test_train import FAST, TALKS, TOKENIZER, tiny_base

from baize_lib.config import BaizeError
from baize_lib.course.tiers import TIERS
from baize_lib.models.shapes import ALL_LINEAR, ARTICLE_TARGETS, Shape
from baize_lib.training.batches import encode_all
from baize_lib.training.planner import (
    ARTICLE_RUNS,
    DEVICES,
    Corpus,
    Device,
    Measured,
    corpus_of,
    measure,
    plan,
    this_machine,
)
from baize_lib.training.settings import PRESETS, TrainingSettings

SMALL = Shape(64, 128, 2, 4, 2, 100, tied=True)
ROWS = encode_all(TALKS, TOKENIZER, FAST)[0]


def measured(device, rate=1000.0):
    return Measured(rate, 0.1, 20, SMALL, False, device)


def test_time_and_cost_follow_from_a_measured_rate():
    found = plan(
        SMALL, Corpus(36_000, 100), "A100-80", measured=measured("A100-80"), usd_per_hour=2
    )
    assert (found.hours, found.usd) == (1, 2)
    assert "20 steps measured" in found.basis
    assert "estimate" in str(found)


def test_a_measured_share_of_the_peak_carries_over_to_another_size_on_the_same_device():
    larger = replace(SMALL, num_layers=20)
    ratio = larger.num_parameters / SMALL.num_parameters
    found = plan(larger, Corpus(1, 100), "L4", measured=measured("L4"))
    assert found.tokens_per_second == pytest.approx(1000 / ratio)
    checkpointed = TrainingSettings(gradient_checkpointing=True)
    again = plan(SMALL, Corpus(1, 100), "L4", checkpointed, measured=measured("L4"))
    assert again.tokens_per_second == pytest.approx(1000 * 4 / 6)


def test_steps_measured_on_one_device_say_nothing_of_another():
    with pytest.raises(BaizeError, match="measured on this CPU and the plan is for H100"):
        plan(SMALL, Corpus(1, 100), "H100", measured=measured("this CPU"))


def test_the_share_of_the_peak_is_known_where_the_peak_is():
    found = measured("L4", rate=1e9)
    share = 4 * SMALL.num_parameters * 1e9 / (DEVICES["L4"].tflops * 1e12)
    assert found.share_of_peak(DEVICES["L4"]) == pytest.approx(share)
    assert found.share_of_peak(replace(DEVICES["L4"], tflops=None)) is None


def test_an_unknown_device_stays_unknown():
    found = plan(SMALL, Corpus(10, 100), "TPU v9")
    assert (found.hours, found.usd, found.fits, found.tokens_per_second) == (None,) * 4
    assert "unknown" in str(found)


def test_padding_every_row_to_512_costs_as_much_longer_as_it_adds_tokens():
    found = plan(SMALL, Corpus(1000, 128), "L4")
    assert found.hours_padded == pytest.approx(4 * found.hours)
    wasteful = plan(SMALL, Corpus(1000, 128, padding=0.5), "L4")
    assert wasteful.hours == pytest.approx(2 * found.hours)
    assert wasteful.hours_padded == pytest.approx(found.hours_padded)


def test_the_size_of_a_corpus_is_counted_from_its_rows_and_batches():
    found = corpus_of(ROWS, replace(FAST, num_epochs=3))
    assert found.num_tokens == 3 * sum(len(row.input_ids) for row in ROWS)
    assert 0 <= found.padding < 0.2
    alone = corpus_of(ROWS, replace(FAST, batch_size=1))
    assert alone.padding == 0
    with pytest.raises(BaizeError, match="no dialogue to plan for"):
        corpus_of([], FAST)


@pytest.mark.parametrize("size", ["7B", "13B", "30B"])
def test_the_article_fits_its_a100_as_published(size):
    settings = replace(PRESETS[size].settings, micro_tokens=4096)
    found = plan(size, Corpus(10, 450), "A100-80", settings, precision="int8")
    assert found.fits
    assert found.gigabytes < ARTICLE_RUNS[size]["gigabytes"]


def test_30b_in_bfloat16_does_not_fit_a_t4():
    assert plan("30B", Corpus(1, 1), "T4", precision="bfloat16").fits is False


def test_every_part_of_memory_shrinks_with_what_it_depends_on():
    usual = plan("7B", Corpus(1, 450), "H100")
    settings = replace(PRESETS["7B"].settings, micro_tokens=1024, rank=4)
    smaller = plan("7B", Corpus(1, 450), "H100", settings, precision="nf4")
    for part in ("weights", "adapter", "optimizer", "activations", "logits"):
        assert smaller.memory[part] < usual.memory[part]
    more = replace(PRESETS["7B"].settings, targets=ALL_LINEAR)
    assert plan("7B", Corpus(1, 1), "H100", more).num_trainable > usual.num_trainable
    stored = replace(PRESETS["7B"].settings, gradient_checkpointing=False)
    without = plan("7B", Corpus(1, 450), "H100", stored)
    assert without.memory["activations"] > usual.memory["activations"]
    assert without.tokens_per_second == pytest.approx(1.5 * usual.tokens_per_second)


def test_a_card_without_bfloat16_is_planned_in_float32_as_it_would_be_loaded():
    found = plan("7B", Corpus(1, 450), "T4")
    assert (found.precision, found.fits) == ("float32", False)
    thrifty = replace(PRESETS["7B"].settings, micro_tokens=2048)
    small, other = (
        plan("7B", Corpus(1, 450), card, thrifty, precision="nf4") for card in ("T4", "L4")
    )
    assert small.fits
    assert small.memory["activations"] > 1.9 * other.memory["activations"]
    assert "unpacking nf4 takes longer" in small.basis


@pytest.mark.parametrize("there", [True, False])
def test_on_a_cpu_the_plan_counts_what_bfloat16_takes_and_saves(monkeypatch, there):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: there)
    base, cpu = tiny_base(), Device("this CPU", 16, 0.2, 0, "measured", bfloat16=False)
    memory = plan(base, Corpus(100, 200), cpu, TrainingSettings()).memory
    exact = plan(base, Corpus(100, 200), cpu, TrainingSettings(compute="float32")).memory
    assert ("bfloat16 copy" in memory) == there
    assert memory["activations"] == exact["activations"] / (2 if there else 1)
    card = plan(base, Corpus(100, 200), "L4", TrainingSettings()).memory
    assert "bfloat16 copy" not in card
    assert card["activations"] < exact["activations"]


def test_what_is_unknown_is_named():
    with pytest.raises(BaizeError, match=r"preset '65B' is unknown: use one of 135M, .*30B"):
        plan("65B", Corpus(1, 1), "H100")
    with pytest.raises(BaizeError, match="precision 'int3' is unknown"):
        plan("7B", Corpus(1, 1), "H100", precision="int3")


def test_every_device_names_its_source_and_where_its_rent_was_seen():
    assert set(DEVICES) == {"T4", "L4", "RTX 4090", "A100-40", "A100-80", "H100"}
    assert all("NVIDIA" in device.source for device in DEVICES.values())
    assert all(" at " in device.rent or "VM" in device.rent for device in DEVICES.values())


def test_the_a100_tier_fits_the_card_it_is_named_after():
    tier = TIERS["a100"]
    settings = TrainingSettings(
        rank=tier.training.rank,
        micro_tokens=tier.training.micro_tokens,
        targets=ARTICLE_TARGETS,
        dropout=0.05,
    )
    needed = plan(PRESETS["7B"].shape, Corpus(1, 1), "A100-80", settings)
    assert needed.fits
    assert needed.gigabytes <= tier.gigabytes


def test_this_machine_has_a_peak_that_was_measured():
    found = this_machine()
    assert found.memory > 1
    assert found.tflops is None or found.tflops > 0.001


def test_measuring_leaves_the_base_as_it_was_and_counts_the_tokens_it_trained():
    base = tiny_base()
    before = {name: p.clone() for name, p in base.model.named_parameters()}
    found = measure(base, ROWS, FAST, num_steps=5)
    assert found.tokens_per_second > 0
    assert found.num_steps == 5
    after = dict(base.model.named_parameters())
    assert after.keys() == before.keys()
    assert all((after[name] == before[name]).all() for name in before)
    shown = str(plan(base, corpus_of(ROWS, FAST), this_machine(), FAST, measured=found))
    assert "5 steps measured" in shown


@pytest.mark.parametrize("name", PRESETS)
def test_the_parameters_of_a_preset_are_those_of_the_model_transformers_makes(name):
    from transformers import LlamaForCausalLM

    shape = PRESETS[name].shape
    with torch.device("meta"):
        model = LlamaForCausalLM(shape.config())
    assert model.num_parameters() == shape.num_parameters
