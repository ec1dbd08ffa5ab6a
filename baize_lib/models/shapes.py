"""The sizes of a model, enough to count its parameters without its weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from baize_lib.models.weights import quiet

__all__ = [
    "Shape",
    "ARTICLE_SHAPES",
    "ARTICLE_TARGETS",
    "ALL_LINEAR",
    "trainable_parameters",
    "BYTES_PER_WEIGHT",
]


ARTICLE_TARGETS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj")
ALL_LINEAR = (*ARTICLE_TARGETS, "o_proj")


BYTES_PER_WEIGHT = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1, "nf4": 0.5}


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a LLaMA-like model: enough to count its parameters without its weights."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int
    tied: bool = False

    @classmethod
    def of(cls, config: Any) -> "Shape":
        """The shape of a transformers configuration."""
        heads = config.num_attention_heads
        return cls(
            config.hidden_size, config.intermediate_size, config.num_hidden_layers, heads,
            getattr(config, "num_key_value_heads", None) or heads, config.vocab_size,
            bool(config.tie_word_embeddings),
        )  # fmt: skip

    @property
    def num_parameters(self) -> int:
        """All weights; norms included, biases not."""
        width, kv = self.hidden_size, self.hidden_size // self.num_heads * self.num_kv_heads
        layer = 2 * width * (width + kv) + 3 * width * self.intermediate_size + 2 * width
        return (1 if self.tied else 2) * self.vocab_size * width + self.num_layers * layer + width

    def config(self) -> Any:
        """A transformers LlamaConfig of this shape."""
        from transformers import LlamaConfig

        return LlamaConfig(
            hidden_size=self.hidden_size, intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_layers, num_attention_heads=self.num_heads,
            num_key_value_heads=self.num_kv_heads, vocab_size=self.vocab_size,
            tie_word_embeddings=self.tied,
        )  # fmt: skip


ARTICLE_SHAPES = {  # LLaMA, Touvron et al. 2023, table 2
    "7B": Shape(4096, 11008, 32, 32, 32, 32000),
    "13B": Shape(5120, 13824, 40, 40, 40, 32000),
    "30B": Shape(6656, 17920, 60, 52, 52, 32000),
}


def trainable_parameters(
    shape: Shape | str, rank: int = 8, targets: Sequence[str] | str = ARTICLE_TARGETS
) -> int:
    """How many parameters LoRA trains, counted by PEFT itself on weights that take no memory.

    Args:
        shape: a Shape, or a key of `ARTICLE_SHAPES`.
        rank: LoRA's r.
        targets: names of the linear layers that get an adapter.
    """
    import torch
    from transformers import LlamaForCausalLM

    shape = ARTICLE_SHAPES[shape] if isinstance(shape, str) else shape
    with quiet(), torch.device("meta"):  # the meta device: shapes without numbers
        from peft import LoraConfig, get_peft_model

        named = targets if isinstance(targets, str) else list(targets)
        lora = LoraConfig(r=rank, target_modules=named, task_type="CAUSAL_LM")
        model = get_peft_model(LlamaForCausalLM(shape.config()), lora)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
