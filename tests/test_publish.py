"""Handing a chatbot on: a card from measured facts, and a merged model that answers the same."""

import pytest
import torch
from test_train import FAST, TALKS, fit, replace, tiny_base
from transformers import AutoModelForCausalLM

from baize_lib.chat.share import merge, model_card, push
from baize_lib.config import BaizeError
from baize_lib.training.batches import encode_all


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "adapter"
    fit(tiny_base(), TALKS, TALKS[:2], folder, FAST)
    return folder


def test_the_model_card_states_what_training_measured(adapter):
    card = model_card(adapter, teacher="SmolLM2-135M-Instruct")
    assert "base_model: tiny" in card
    assert "`SmolLM2-135M-Instruct` had with itself" in card
    assert " before, " in card
    assert (adapter / "README.md").read_text(encoding="utf-8") == card


def test_a_merged_model_gives_the_tuned_models_logits(adapter, tmp_path):
    from peft import PeftModel

    ids = torch.tensor([encode_all(TALKS[:1], tiny_base().tokenizer, FAST)[0][0].input_ids])
    tuned = PeftModel.from_pretrained(tiny_base().model, adapter).eval()
    with torch.no_grad():
        expected = tuned(ids).logits
        merged = AutoModelForCausalLM.from_pretrained(merge(tiny_base(), adapter, tmp_path))
        assert torch.allclose(merged(ids).logits, expected, atol=1e-4)


def test_merging_into_another_base_or_a_quantised_one_is_refused(adapter, tmp_path):
    with pytest.raises(BaizeError, match="for 'tiny', not 'other'"):
        merge(tiny_base("other"), adapter, tmp_path)
    with pytest.raises(BaizeError, match="cannot merge into a nf4 base"):
        merge(replace(tiny_base(), precision="nf4"), adapter, tmp_path)


def test_a_folder_without_an_adapter_is_refused(tmp_path):
    with pytest.raises(BaizeError, match="adapter_config.json"):
        model_card(tmp_path, teacher="t")


def test_an_upload_that_fails_says_what_to_do_and_shows_no_token(adapter, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_TOKEN", "marked-token")
    with pytest.raises(BaizeError, match="hf auth login") as refused:
        push(adapter, "someone/chatbot")
    assert "marked-token" not in str(refused.value)
