"""Quantised bases: smaller, and trained with the gradients of the numbers they stand for."""

import pytest
import torch

from baize_lib.corpus.formats import read_sample
from baize_lib.models.base import load_base
from baize_lib.training.lora import add_adapter
from baize_lib.training.loss import backward
from baize_lib.training.settings import TrainingSettings
from baize_lib.training.step import held_out_loss
from baize_lib.training.tokens import encode_all, micro_batches

pytest.importorskip("bitsandbytes")
SETTINGS = TrainingSettings(targets=("q_proj", "down_proj"))
SAMPLE = read_sample()[:2]


@pytest.fixture(scope="module")
def whole():
    return load_base("smollm2-135m", "float32")


def weight_of(precision, layer):
    from bitsandbytes.functional import dequantize_4bit

    if precision == "nf4":
        return dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
    scale = layer.state.SCB if layer.weight.SCB is None else layer.weight.SCB
    return layer.weight.data.float() * scale.float()[:, None] / 127


def gradients(base):
    model = add_adapter(base, SETTINGS).train()
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            generator = torch.Generator().manual_seed(1)
            torch.nn.init.normal_(weight, std=0.02, generator=generator)
    rows, _ = encode_all(SAMPLE, base.tokenizer, SETTINGS)
    num_labels = sum(row.num_labels for row in rows)
    loss = backward(model, micro_batches(rows, 10**6), num_labels)
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.unload()
    base.model.requires_grad_(False).eval()
    return loss / num_labels, grads


@pytest.mark.parametrize(("precision", "most"), [("bfloat16", 270), ("int8", 221), ("nf4", 167)])
def test_a_base_takes_the_memory_its_precision_promises(precision, most):
    base = load_base("smollm2-135m", precision)
    assert base.model.get_memory_footprint() / 1e6 < most
    assert base.precision == precision


@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_gradients_are_those_of_the_dequantised_weights_after_an_evaluation_too(precision, whole):
    base = load_base("smollm2-135m", precision)
    rows, _ = encode_all(SAMPLE, base.tokenizer, SETTINGS)
    held_out_loss(base.model, rows)  # on some CPUs bitsandbytes would repack its weights here
    layers = dict(base.model.named_modules())
    with torch.no_grad():
        for name, layer in whole.model.named_modules():
            if isinstance(layer, torch.nn.Linear) and name != "lm_head":
                layer.weight.copy_(weight_of(precision, layers[name]))
    loss, found = gradients(base)
    expected_loss, expected = gradients(whole)
    assert loss == pytest.approx(expected_loss, rel=1e-4)
    for name, grad in found.items():
        torch.testing.assert_close(grad, expected[name], rtol=0.02, atol=1e-5)
