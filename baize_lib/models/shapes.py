"""The size of a model, counted by transformers itself on weights that take no memory.

On PyTorch's *meta device* tensors have shapes and no numbers: a model of 30 billion parameters is
there in a second, whatever its family.

>>> llama = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
>>> Shape.of({"model_type": "llama", **llama}).num_parameters  # LLaMA-7B
6738415616
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from baize_lib.config import BaizeError
from baize_lib.models.weights import quiet, refusing

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

__all__ = ["Shape"]

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1, "nf4": 0.5 + 4 / 64}  # a weight
_COUNTED: dict[str, "Shape"] = {}


@dataclass(frozen=True, slots=True)
class Shape:
    """The configuration of a causal language model, and its parameters counted."""

    config: "PreTrainedConfig" = field(repr=False, compare=False)
    num_parameters: int
    num_active: int  # those that one token passes: fewer than all in a mixture of experts
    num_packed: int  # those that int8 and nf4 pack: linear layers, the head left out

    @classmethod
    def of(cls, config: "PreTrainedConfig | Mapping[str, Any]") -> "Shape":
        """The shape of a transformers configuration, or of its fields with their `model_type`.

        A BaizeError where transformers has no causal language model for it.
        """
        if isinstance(config, Mapping):
            from transformers import AutoConfig

            config = AutoConfig.for_model(**config)
        key = json.dumps(config.to_dict(), sort_keys=True, default=str)
        if key not in _COUNTED:
            _COUNTED[key] = cls(config, *_counts(config))
        return _COUNTED[key]

    def gigabytes(self, precision: str, full: int = 2) -> float:
        """Memory of the weights in GB; `full`: bytes of a weight that int8 and nf4 do not pack."""
        if precision not in _BYTES:
            raise BaizeError(f"precision {precision!r} is unknown: use one of {', '.join(_BYTES)}")
        packed = self.num_packed if precision in ("int8", "nf4") else self.num_parameters
        return (packed * _BYTES[precision] + (self.num_parameters - packed) * full) / 1e9


def empty_model(config: "PreTrainedConfig") -> "PreTrainedModel":
    import torch
    from transformers import AutoModelForCausalLM

    what = f"{config.name_or_path} ({config.model_type}) is no causal language model known here"
    with quiet(), refusing(what, "choose another base model"), torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def _counts(config: "PreTrainedConfig") -> tuple[int, int, int]:
    """Parameters in all, those active for one token, and those that can be packed."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    model, text = empty_model(config), config.get_text_config()
    total = model.num_parameters()
    experts = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    names = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    there = first_of(text, *names) or 1
    used = first_of(text, "num_experts_per_tok", "moe_topk", "moe_k") or there
    linear = (m for m in model.modules() if isinstance(m, nn.Linear | Conv1D))
    packed = sum(m.weight.numel() for m in linear if m is not model.get_output_embeddings())
    return total, total - experts + experts * used // there, packed


def first_of(config: "PreTrainedConfig", *names: str) -> int | None:
    """The first size that the configuration has under one of the names its family may use."""
    values = (getattr(config, name, None) for name in names)
    found = next((value for value in values if value), None)
    return max(found) if isinstance(found, list | tuple) else found
