"""Base models load with the reason of their precision, or say what to do instead."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from baize_lib.config import BaizeError
from baize_lib.models import base as models
from baize_lib.models.base import load_base
from baize_lib.models.shapes import Shape
from baize_lib.training.settings import PRESETS


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


def saved(folder, config, tokenizer):
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return str(folder)


def small(model_type="llama", **more):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "vocab_size": 400}
    sizes |= {"num_attention_heads": 2, "bos_token_id": 1, "eos_token_id": 2, "head_dim": 16}
    return AutoConfig.for_model(model_type, **sizes | more)


@pytest.fixture(scope="module")
def words():
    """A tokenizer of 400 words with an end token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    entries = {f"w{i}": i for i in range(398)} | {"[UNK]": 398, "</s>": 399}
    made = Tokenizer(models.WordLevel(entries, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", unk_token="[UNK]")


def test_a_large_model_without_a_gpu_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    PRESETS["7B"].shape.config.save_pretrained(tmp_path)
    with pytest.raises(BaizeError, match=r"6.7 billion.*no GPU"):
        load_base(str(tmp_path))


def test_the_experts_of_a_mixture_count_before_it_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    AutoConfig.for_model("mixtral").save_pretrained(tmp_path)
    with pytest.raises(BaizeError, match=r"46.7 billion.*no GPU"):
        load_base(str(tmp_path))


def test_memory_that_others_use_is_not_free(tmp_path, monkeypatch, words):
    folder = saved(tmp_path, small(), words)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=1e12, available=1e4))
    with pytest.raises(BaizeError, match=r"this cpu has 0.0 GB free.*nf4"):
        load_base(folder, "float32")


@pytest.mark.parametrize("family", ["gpt2", "opt", "falcon", "gpt_neox", "bloom", "mixtral"])
def test_families_with_other_names_for_their_sizes_load(tmp_path, family, words):
    more = {"head_dim": None} if family == "falcon" else {}
    more |= {"word_embed_proj_dim": 32} if family == "opt" else {}
    config = small(family, **more) if family != "falcon" else AutoConfig.for_model(
        "falcon", hidden_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=400
    )  # fmt: skip
    base = load_base(saved(tmp_path, config, words), "float32")
    assert Shape.of(base.model.config).num_parameters == base.model.num_parameters()


@pytest.mark.parametrize("family", ["t5", "clip", "llava"])
def test_what_is_no_causal_language_model_is_refused_by_name(tmp_path, family, words):
    AutoConfig.for_model(family).save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    with pytest.raises(BaizeError, match=f"{family}.*choose another base model"):
        load_base(str(tmp_path))


def test_an_end_token_that_the_model_does_not_know_is_refused(tmp_path, words):
    folder = saved(tmp_path, small(vocab_size=399), words)
    with pytest.raises(BaizeError, match=r"end token .* is number 399, and .* only 399 tokens"):
        load_base(folder, "float32")


def test_weights_that_are_missing_are_not_made_up(tmp_path, words):
    folder = saved(tmp_path, small(tie_word_embeddings=False), words)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(BaizeError, match=r"no weights for model.layers.0.mlp.up_proj.weight"):
        load_base(folder, "float32")


@pytest.mark.parametrize("keep", [0, 100, 0.5])
def test_a_truncated_file_of_weights_is_named_as_damaged(tmp_path, words, keep):
    folder = saved(tmp_path, small(), words)
    whole = (tmp_path / "model.safetensors").read_bytes()
    size = int(keep * len(whole)) if isinstance(keep, float) else keep
    (tmp_path / "model.safetensors").write_bytes(whole[:size])
    with pytest.raises(BaizeError, match="could not be loaded.*folder is whole"):
        load_base(folder, "float32")


def test_code_from_a_hub_is_never_run(tmp_path, words, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    saved(tmp_path, small(), words)
    said = json.loads((tmp_path / "config.json").read_text())
    said |= {"model_type": "own", "auto_map": {
        "AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own",
    }}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(said))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(BaizeError, match="could not be loaded"):
        load_base(str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_two_models_of_one_name_have_different_fingerprints(tmp_path, words):
    folder = saved(tmp_path, small(), words)
    one, same = load_base(folder, "float32"), load_base(Path(folder), "float32")
    assert one.fingerprint() == same.fingerprint()
    with torch.no_grad():
        same.model.model.layers[0].mlp.up_proj.weight[3, 4] += 1e-3
    assert one.fingerprint() != same.fingerprint()
