"""The planner's estimates follow from stated rules, and what is unknown stays unknown."""

import pytest

from baize_lib.models import ALL_LINEAR, Shape
from baize_lib.planner import ARTICLE_RUNS, DEVICES, plan

SMALL = Shape(64, 128, 2, 4, 2, 100, tied=True)


def test_time_and_cost_follow_from_the_rate():
    found = plan(SMALL, 3_600_000, "A100-80", tokens_per_second=1000, usd_per_hour=2)
    assert (found.hours, found.usd) == (1, 2)
    assert "measured" in found.basis
    assert "estimate" in str(found)


def test_an_unknown_device_stays_unknown():
    found = plan(SMALL, 1000, "TPU v9")
    assert (found.hours, found.usd, found.fits, found.tokens_per_second) == (None,) * 4
    assert "unknown" in str(found)


def test_padding_every_row_to_512_costs_as_much_longer_as_it_adds_tokens():
    found = plan(SMALL, 1000 * 128, "L4", num_rows=1000)
    assert found.hours_padded == pytest.approx(4 * found.hours)


@pytest.mark.parametrize("size", ["7B", "13B", "30B"])
def test_the_article_fits_its_a100_as_published(size):
    found = plan(size, 10**8, "A100-80", precision="int8", micro_tokens=4096)
    assert found.fits
    assert found.gigabytes < ARTICLE_RUNS[size]["gigabytes"]


def test_30b_in_bfloat16_does_not_fit_a_t4():
    assert plan("30B", 1000, "T4").fits is False


def test_every_part_of_memory_shrinks_with_what_it_depends_on():
    usual = plan("7B", 1000, "H100")
    smaller = plan("7B", 1000, "H100", precision="nf4", micro_tokens=1024, rank=4)
    for part in ("weights", "adapter", "optimizer", "activations"):
        assert smaller.memory[part] < usual.memory[part]
    assert plan("7B", 1, "H100", targets=ALL_LINEAR).num_trainable > usual.num_trainable
    without = plan("7B", 1000, "H100", gradient_checkpointing=False)
    assert without.memory["activations"] > usual.memory["activations"]
    assert without.tokens_per_second == pytest.approx(1.5 * usual.tokens_per_second)


def test_every_device_names_its_source():
    assert set(DEVICES) == {"T4", "L4", "RTX 4090", "A100-40", "A100-80", "H100"}
    assert all("NVIDIA" in device.source for device in DEVICES.values())


def test_the_a100_tier_fits_the_card_it_is_named_after():
    from baize_lib.config import TIERS

    tier = TIERS["a100"]
    needed = plan(
        "7B", 1, "A100-80", micro_tokens=tier.micro_tokens, gradient_checkpointing=False,
        rank=tier.rank,
    )  # fmt: skip
    assert needed.fits
    assert needed.gigabytes <= tier.gigabytes
