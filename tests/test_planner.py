"""The planner's estimates follow from stated rules, and what is unknown stays unknown."""

from dataclasses import replace

import pytest
import torch
from test_train import FAST, TALKS, TOKENIZER, tiny_base

from baize_lib.config import BaizeError
from baize_lib.course.tiers import TIERS
from baize_lib.models.shapes import Shape
from baize_lib.training.lora import trainable_parameters
from baize_lib.training.planner import (
    DEVICES,
    Corpus,
    Device,
    Measured,
    device_called,
    measure,
    plan,
    this_machine,
)
from baize_lib.training.settings import PRESETS, TrainingSettings
from baize_lib.training.tokens import encode_all

LLAMA = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100,
    "tie_word_embeddings": True,
}  # fmt: skip
SMALL = Shape.of(LLAMA)
ROWS = encode_all(TALKS, TOKENIZER, FAST)[0]


def measured(device, rate=1000.0):
    return Measured(rate, 0.1, 20, 4 * SMALL.num_parameters * rate, device)


def test_time_and_cost_follow_from_a_measured_rate():
    rented = replace(DEVICES["A100-80"], usd=2)
    found = plan(SMALL, Corpus(36_000, 100), rented, measured=measured("A100-80"))
    assert (found.hours, found.usd) == (1, 2)
    assert "20 steps measured" in found.basis
    assert "estimate" in str(found)


def test_a_measured_share_of_the_peak_carries_over_to_another_size_on_the_same_device():
    larger = Shape.of(LLAMA | {"num_hidden_layers": 20})
    ratio = larger.num_parameters / SMALL.num_parameters
    found = plan(larger, Corpus(1, 100), "L4", measured=measured("L4"))
    assert found.tokens_per_second == pytest.approx(1000 / ratio)
    checkpointed = TrainingSettings(gradient_checkpointing=True)
    again = plan(SMALL, Corpus(1, 100), "L4", checkpointed, measured=measured("L4"))
    assert again.tokens_per_second == pytest.approx(1000 * 4 / 6)


def test_steps_measured_on_one_device_say_nothing_of_another():
    with pytest.raises(BaizeError, match="measured on this CPU and the plan is for H100"):
        plan(SMALL, Corpus(1, 100), "H100", measured=measured("this CPU"))


def test_the_share_of_the_peak_is_told_where_the_peak_is_known():
    share = 4 * SMALL.num_parameters * 1e9 / (DEVICES["L4"].tflops * 1e12)
    told = plan(SMALL, Corpus(1, 100), "L4", measured=measured("L4", rate=1e9)).basis
    assert f", {share:.0%} of the peak" in told
    unknown = plan(SMALL, Corpus(1, 100), "TPU v9", measured=measured("TPU v9"))
    assert unknown.tokens_per_second == pytest.approx(1000)
    assert "peak" not in unknown.basis


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
    found = Corpus.of(ROWS, replace(FAST, num_epochs=3))
    assert found.num_tokens == 3 * sum(len(row.input_ids) for row in ROWS)
    assert 0 <= found.padding < 0.2
    alone = Corpus.of(ROWS, replace(FAST, batch_size=1))
    assert alone.padding == 0
    with pytest.raises(BaizeError, match="no dialogue to plan for"):
        Corpus.of([], FAST)
    with pytest.raises(BaizeError, match="no dialogue to measure with"):  # it would never end
        measure(tiny_base(), [], FAST)


@pytest.mark.parametrize("size", ["7B", "13B", "30B"])
def test_the_published_recipe_takes_the_memory_that_was_published(size):
    found = plan(size, Corpus(10, 450), "A100-80", precision="int8")
    assert found.fits
    published = PRESETS[size].published["gigabytes"]
    assert found.gigabytes_padded == pytest.approx(published, rel=0.06)
    assert found.gigabytes < found.gigabytes_padded


def test_30b_in_bfloat16_does_not_fit_a_t4():
    assert plan("30B", Corpus(1, 1), "T4", precision="bfloat16").fits is False


def test_every_part_of_memory_shrinks_with_what_it_depends_on():
    usual = plan("7B", Corpus(1, 450), "H100")
    settings = replace(PRESETS["7B"].settings, micro_tokens=1024, rank=4)
    smaller = plan("7B", Corpus(1, 450), "H100", settings, precision="nf4")
    for part in ("weights", "adapter", "optimizer", "activations", "logits"):
        assert smaller.memory[part] < usual.memory[part]
    more = replace(PRESETS["7B"].settings, targets="all-linear")
    assert plan("7B", Corpus(1, 1), "H100", more).num_trainable > usual.num_trainable
    stored = replace(PRESETS["7B"].settings, gradient_checkpointing=False)
    without = plan("7B", Corpus(1, 450), "H100", stored)
    assert without.memory["activations"] > usual.memory["activations"]
    assert without.tokens_per_second == pytest.approx(1.5 * usual.tokens_per_second)


def test_a_card_without_bfloat16_is_planned_in_float32_as_it_would_be_loaded():
    found = plan("7B", Corpus(1, 450), "T4")
    assert (found.precision, found.fits) == ("float32", False)  # float16 only when asked for
    thrifty = replace(PRESETS["7B"].settings, micro_tokens=2048)
    small, other = (
        plan("7B", Corpus(1, 450), card, thrifty, precision="nf4") for card in ("T4", "L4")
    )
    assert small.fits
    assert small.memory["activations"] > 1.5 * other.memory["activations"]
    assert "unpacking nf4 takes longer" in small.basis


@pytest.mark.parametrize("there", [True, False])
def test_on_a_cpu_the_plan_counts_what_bfloat16_takes_and_saves(monkeypatch, there):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: there)
    base, cpu = tiny_base(), Device("this CPU", 16, 0.2, 0.2, bfloat16=False, source="measured")
    memory = plan(base, Corpus(100, 200), cpu, TrainingSettings()).memory
    exact = plan(base, Corpus(100, 200), cpu, TrainingSettings(compute="float32")).memory
    assert ("bfloat16 copy" in memory) == there
    assert memory["activations"] == exact["activations"] / (2 if there else 1)
    card = plan(base, Corpus(100, 200), "L4", TrainingSettings()).memory
    assert "bfloat16 copy" not in card
    assert card["activations"] < exact["activations"]


def test_what_is_unknown_is_named():
    with pytest.raises(BaizeError, match=r"preset '66B' is unknown: use one of 135M, .*30B"):
        plan("66B", Corpus(1, 1), "H100")
    with pytest.raises(BaizeError, match="precision 'int3' is unknown"):
        plan("7B", Corpus(1, 1), "H100", precision="int3")


def test_a_preset_brings_its_own_precision():
    assert plan("65B", Corpus(1, 1), "H100").precision == "nf4"
    assert plan("7B", Corpus(1, 1), "H100").precision == "bfloat16"
    assert plan("Qwen2.5-1.5B", Corpus(1, 1), "T4").precision == "float16"


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("Tesla T4", "T4"), ("NVIDIA L4", "L4"), ("NVIDIA L40S", "L40S"), ("NVIDIA L40", None),
        ("NVIDIA A10G", "A10G"), ("NVIDIA A10", None), ("NVIDIA RTX A6000", "RTX A6000"),
        ("NVIDIA RTX 6000 Ada Generation", None), ("NVIDIA GeForce RTX 3090", "RTX 3090"),
        ("NVIDIA GeForce RTX 3090 Ti", None), ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None), ("NVIDIA GeForce RTX 5090", "RTX 5090"),
        ("NVIDIA A100-SXM4-40GB", "A100-40"), ("NVIDIA A100-PCIE-40GB", "A100-40"),
        ("NVIDIA A100-SXM4-80GB", "A100-80"), ("NVIDIA A100 80GB PCIe", "A100-80"),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None), ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None), ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H100 NVL", "H100 NVL"), ("NVIDIA H200", "H200"), ("NVIDIA H200 NVL", "H200 NVL"),
        ("NVIDIA GH200 480GB", None), ("NVIDIA H20", None), ("NVIDIA B200", "B200"),
        ("NVIDIA GB200", None), ("a100-80", "A100-80"), ("A100 80GB", "A100-80"), ("A100", None),
        ("h100", "H100"), ("rtx 4090", "RTX 4090"), ("4090", "RTX 4090"), ("TPU v4", None),
    ],
)  # fmt: skip
def test_a_card_is_known_by_its_whole_name_or_not_at_all(said, meant):
    found = device_called(said)
    assert found.name == (meant or said)
    assert (found.tflops is None) == (meant is None)


def test_a_card_is_planned_at_the_peak_of_the_precision_it_multiplies_in():
    fast, slow = (
        plan(SMALL, Corpus(1, 100), "A100-80", precision=p) for p in ("bfloat16", "float32")
    )
    assert fast.tokens_per_second / slow.tokens_per_second == pytest.approx(312 / 19.5)


def test_an_expert_that_no_token_passes_takes_memory_and_no_time():
    experts = {"num_local_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 128}
    mixed = Shape.of(LLAMA | experts | {"model_type": "mixtral"})
    dense = Shape.of(LLAMA | {"model_type": "mistral"})
    assert mixed.num_parameters > 4 * dense.num_parameters
    assert mixed.num_active < 2.2 * dense.num_parameters
    assert mixed.gigabytes("nf4") > 3 * dense.gigabytes("bfloat16")  # experts are not packed


def test_the_a100_tier_fits_the_card_it_is_named_after():
    tier = TIERS["a100"]
    needed = plan(PRESETS["7B"].shape, Corpus(1, 1), "A100-80", tier.training)
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
    shown = str(plan(base, ROWS, settings=FAST, measured=found))
    assert "5 steps measured" in shown


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("135M", 0.135), ("360M", 0.362), ("Qwen2.5-0.5B", 0.494), ("Qwen2.5-1.5B", 1.544),
        ("Qwen3-8B", 8.191), ("OLMo-2-1B", 1.485), ("OLMo-2-7B", 7.299), ("TinyLlama-1.1B", 1.100),
        ("Llama-3.2-1B", 1.236), ("Llama-3.2-3B", 3.213), ("7B", 6.738), ("13B", 13.016),
        ("30B", 32.529), ("65B", 65.286),
    ],
)  # fmt: skip
def test_a_preset_has_the_parameters_its_authors_count(name, billions):
    assert PRESETS[name].shape.num_parameters / 1e9 == pytest.approx(billions, abs=6e-4)


def test_every_preset_is_counted():
    (mark,) = test_a_preset_has_the_parameters_its_authors_count.pytestmark
    assert [name for name, _ in mark.args[1]] == list(PRESETS)


@pytest.mark.parametrize(("size", "trained"), [("7B", 17.9), ("13B", 28.0), ("30B", 54.6)])
def test_the_published_counts_of_trained_parameters_come_out(size, trained):
    preset = PRESETS[size]
    found = trainable_parameters(preset.shape, preset.settings.rank, preset.settings.targets)
    assert round(found / 1e6, 1) == trained
