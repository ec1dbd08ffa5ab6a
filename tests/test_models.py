"""Base models load with the reason of their precision, or say what to do instead."""

import pytest

from baize_lib.config import BaizeError
from baize_lib.models import base as models
from baize_lib.models.base import load_base
from baize_lib.models.shapes import ARTICLE_SHAPES, Shape, trainable_parameters


def test_the_small_base_loads_quietly_with_its_reason(capfd):
    base = load_base("smollm2-135m", "float32")
    out, err = capfd.readouterr()
    assert out == "SmolLM2-135M-Instruct in float32: as asked\n"
    assert err == ""
    assert Shape.of(base.model.config).num_parameters == base.model.num_parameters()


def test_automatic_precision_gives_its_reason():
    precision, reason = models._choose_precision("auto")
    assert precision in models.PRECISIONS[1:]
    assert reason


def test_an_unknown_precision_is_refused_with_the_known_ones():
    with pytest.raises(BaizeError, match="float8.*nf4"):
        load_base("smollm2-135m", "float8")


def test_a_model_that_cannot_be_reached_is_named_with_a_way_out(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BaizeError, match="'nobody/nothing'.*smollm2-135m"):
        load_base("nobody/nothing")


def test_a_large_model_without_a_gpu_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    ARTICLE_SHAPES["7B"].config().save_pretrained(tmp_path)
    with pytest.raises(BaizeError, match=r"6.7 billion.*no GPU"):
        load_base(str(tmp_path))


@pytest.mark.parametrize(("size", "trained"), [("7B", 17.9), ("13B", 28.0), ("30B", 54.6)])
def test_the_published_counts_of_trained_parameters_come_out(size, trained):
    assert round(trainable_parameters(size) / 1e6, 1) == trained
