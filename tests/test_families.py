"""Every base trains as transformers and PEFT themselves would train it, or is refused by name.

FAMILIES is the table of what was tried: random models a few thousand weights large. The settings
beside a family make it differ from LLaMA: heads that are scaled, capped or biased, hidden states
that are scaled, other names for layers, mixtures of experts, text halves of models of pictures.
"""

from dataclasses import replace

import pytest
import torch
from test_train import FAST, TOKENIZER
from transformers import AutoConfig, AutoModelForCausalLM

from baize_lib.config import BaizeError
from baize_lib.models.base import Base
from baize_lib.training.lora import add_adapter, bare_weights
from baize_lib.training.loss import backward, fast_loss, plain_loss
from baize_lib.training.step import trainee
from baize_lib.training.tokens import IGNORED, Encoded, micro_batches

SMALL = {
    "vocab_size": 199, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    "initializer_range": 0.1,
}  # fmt: skip
EXPERTS = {
    "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24,
}  # fmt: skip
FAMILIES = {  # name: (model_type, what makes it differ, how the loss is computed)
    "llama": ("llama", {}, fast_loss),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}, fast_loss),
    "llama, long rotation": (
        "llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
        fast_loss,
    ),
    "mistral": ("mistral", {"sliding_window": None}, fast_loss),
    "mistral, sliding": ("mistral", {"sliding_window": 8}, fast_loss),
    "qwen2": ("qwen2", {}, fast_loss),
    "qwen3": ("qwen3", {}, fast_loss),
    "olmo2": ("olmo2", {}, fast_loss),
    "olmo3": ("olmo3", {}, fast_loss),
    "smollm3": ("smollm3", {}, fast_loss),
    "starcoder2": ("starcoder2", {}, fast_loss),
    "stablelm": ("stablelm", {}, fast_loss),
    "phi3, fused layers": ("phi3", {}, fast_loss),
    "phi, biased head": ("phi", {}, plain_loss),
    "gpt2, no .model": (
        "gpt2", {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}, fast_loss,
    ),
    "gpt_neox (Pythia), no .model": ("gpt_neox", {}, fast_loss),
    "opt": ("opt", {"word_embed_proj_dim": 32, "ffn_dim": 48, "dropout": 0.0}, fast_loss),
    "falcon": ("falcon", {"head_dim": None}, fast_loss),
    "bloom": ("bloom", {}, fast_loss),
    "mpt": ("mpt", {}, fast_loss),
    "gemma, scaled embeddings": ("gemma", {}, fast_loss),
    "gemma2, capped head": ("gemma2", {"final_logit_softcapping": 2.0}, plain_loss),
    "gemma3, text": ("gemma3_text", {}, fast_loss),
    "cohere, scaled head": ("cohere", {"logit_scale": 0.5}, plain_loss),
    "cohere2, scaled head": ("cohere2", {"logit_scale": 0.5}, plain_loss),
    "granite, divided head": (
        "granite", {"logits_scaling": 3.0, "embedding_multiplier": 2.0}, plain_loss,
    ),
    "nemotron": ("nemotron", {}, fast_loss),
    "glm4": ("glm4", {}, fast_loss),
    "ernie4_5": ("ernie4_5", {}, fast_loss),
    "lfm2, convolutions": ("lfm2", {}, fast_loss),
    "mixtral": ("mixtral", EXPERTS, fast_loss),
    "qwen2_moe": ("qwen2_moe", EXPERTS, fast_loss),
    "qwen3_moe": ("qwen3_moe", EXPERTS, fast_loss),
    "olmoe": ("olmoe", EXPERTS, fast_loss),
    "gpt_oss": ("gpt_oss", EXPERTS, fast_loss),
    "granitemoe, divided head": ("granitemoe", {**EXPERTS, "logits_scaling": 3.0}, plain_loss),
    "phimoe, biased head": ("phimoe", {**EXPERTS, "lm_head_bias": True}, plain_loss),
    "gemma3 with pictures": ("gemma3", {}, fast_loss),
    "qwen3_5 with pictures": ("qwen3_5", {}, fast_loss),
}  # fmt: skip
REFUSED = {
    "mamba": "incompatible with Mamba",
    "bert": "later words",
    "roberta": "later words",
}


def random_rows(vocabulary=199):
    torch.manual_seed(1)
    lengths = (6, 9, 14, 23)
    ids = [torch.randint(3, vocabulary, (n,)).tolist() for n in lengths]
    return [Encoded(x, [IGNORED] * 3 + x[3:], str(i)) for i, x in enumerate(ids)]


def random_base(model_type, more):
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        model_type, **{k: v for k, v in (SMALL | more).items() if v is not None}
    )
    if hasattr(config, "vision_config"):
        tiny = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
        tiny |= {"num_attention_heads": 2, "model_type": config.vision_config.model_type}
        config = AutoConfig.for_model(model_type, text_config=SMALL | more, vision_config=tiny)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weight, std=0.3)
    return Base(model, TOKENIZER, f"random {model_type}", "float32", "as made")


def trained_alike(base, settings=FAST):
    """Our loss and gradients beside those of the model's own logits; returns our `Trainee`."""
    rows = random_rows()
    with trainee(base, settings) as student:
        for name, weight in student.model.named_parameters():
            if "lora_" in name and weight.requires_grad and not weight.any():
                torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(1))
        student.optimizer.zero_grad()
        num = sum(row.num_labels for row in rows)
        with student.computing():
            ours = (
                backward(student.model, micro_batches(rows, 40), num, student.loss, student.lanes)
                / num
            )
        grads = [weight.grad.clone() for weight in student.weights]
        student.optimizer.zero_grad()
        total = 0.0
        for row in rows:
            ids, labels = torch.tensor([row.input_ids]), torch.tensor([row.labels])
            logits = student.model(input_ids=ids, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:], reduction="sum")
            (loss / num).backward()
            total += loss.item() / num
        assert ours == pytest.approx(total, rel=1e-4)
        for mine, weight in zip(grads, student.weights, strict=True):
            theirs = torch.zeros_like(mine) if weight.grad is None else weight.grad
            torch.testing.assert_close(mine, theirs, rtol=2e-3, atol=2e-5)
        return student


@pytest.mark.parametrize("name", FAMILIES)
def test_loss_and_gradients_are_those_of_transformers_and_peft(name):
    model_type, more, loss = FAMILIES[name]
    student = trained_alike(random_base(model_type, more))
    assert student.loss is loss
    assert student.lanes == 1 or not more.get("num_experts")
    names = [n for n, weight in student.model.named_parameters() if "lora_" in n]
    assert not [n for n in names if "vision" in n or "head" in n.split(".")]


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_trained_is_refused_by_name(name):
    base = random_base(name, {})
    with pytest.raises(BaizeError, match=REFUSED[name]) as refusal, trainee(base, FAST):
        pass
    assert f"random {name}" in str(refusal.value)


@pytest.mark.parametrize("name", ["llama", "phi, biased head", "gpt2, no .model"])
@pytest.mark.parametrize("targets", [("lm_head",), ("lm_head", "down_proj", "fc2", "c_proj")])
def test_an_adapter_on_the_head_is_learnt(name, targets):
    model_type, more, _ = FAMILIES[name]
    base = random_base(model_type, more)
    there = {n.rpartition(".")[2] for n, _ in base.model.named_modules()}
    chosen = tuple(target for target in targets if target in there)
    student = trained_alike(base, replace(FAST, targets=chosen))
    assert student.loss is plain_loss


def test_layers_without_an_adapter_are_named():
    model_type, more, _ = FAMILIES["mixtral"]
    with trainee(random_base(model_type, more), FAST) as student:
        bare = bare_weights(student.model)
    assert [kind.split(" ")[0] for kind in bare] == [
        "mlp.gate", "mlp.experts.gate_up_proj", "mlp.experts.down_proj",
    ]  # fmt: skip
    with trainee(random_base("phi3", {}), FAST) as student:
        assert bare_weights(student.model) == []
    wrong = replace(FAST, targets=("gate_proj", "down_proj"))
    with pytest.raises(BaizeError, match=r"gate_proj match no layer.*gate_up_proj.*qkv_proj"):
        add_adapter(random_base("phi3", {}), wrong)


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["qwen2", "gpt2, no .model", "gemma2, capped head", "mixtral"])
def test_a_step_in_either_precision_moves_the_adapter_and_leaves_the_base(name, compute):
    model_type, more, _ = FAMILIES[name]
    base = random_base(model_type, more)
    before = base.fingerprint()
    with trainee(base, replace(FAST, compute=compute)) as student, student.computing():
        first, _, _ = student.step(1, 10, random_rows())
        second, _, _ = student.step(2, 10, random_rows())
    assert second < first
    assert base.fingerprint() == before
