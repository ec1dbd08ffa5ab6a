"""A base model, ready to be trained or asked, in a precision chosen with its reason.

It comes from the table of `weights`, from the Hugging Face hub or from a folder, and works here or
is refused by name, before its weights are read where that can be known.

    load_base("smollm2-135m")    # prints: SmolLM2-135M-Instruct in float32: there is no GPU here
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baize_lib.config import BaizeError
from baize_lib.models.shapes import Shape
from baize_lib.models.weights import MODELS, quiet, refusing, student_dir

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Base", "load_base"]

PRECISIONS = ("auto", "float32", "bfloat16", "float16", "int8", "nf4")


@dataclass(frozen=True, slots=True)
class Base:
    """A base model ready to be trained or asked."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"  # it has an end token
    name: str  # as given to `load_base`
    precision: str  # one of PRECISIONS, not "auto"
    reason: str  # why this precision
    attached: dict[str, Any] = field(default_factory=dict, repr=False)  # adapters, see `lora`

    def fingerprint(self) -> str:
        """A hash of the configuration and every weight, adapters left out; about a second a GB."""
        import torch

        passing = ("_name_or_path", "transformers_version", "dtype", "architectures")
        config = {k: v for k, v in self.model.config.to_dict().items() if k not in passing}
        digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
        for name, weight in self.model.named_parameters():
            if "lora_" not in name:
                digest.update(name.replace("base_layer.", "").encode())
                flat = weight.detach().cpu().contiguous().reshape(-1)
                digest.update(flat.view(torch.uint8).numpy())
        return digest.hexdigest()[:16]


def load_base(name: str | Path = "smollm2-135m", precision: str = "auto") -> Base:
    """Load a base model, on the GPU when there is one; prints the precision and its reason.

    `name` is a key of `MODELS`, a name on the Hugging Face hub, a folder or a GGUF file. A
    BaizeError names a model that cannot be reached, is damaged or no causal language model, or
    needs memory that is not here.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    name = str(name)
    precision, reason = _choose_precision(precision)
    path = str(student_dir(name)) if name in MODELS or name.endswith(".gguf") else name
    device = f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"
    remedy = (
        "check the name and the network (a gated model needs `hf auth login`), that the folder is "
        "whole and the model needs no code of its own, or use 'smollm2-135m'"
    )
    with quiet(), refusing(f"base model {name!r} could not be loaded", remedy):
        safe = {"trust_remote_code": False}  # nobody would see what a hub's code does
        config = AutoConfig.from_pretrained(path, **safe)
        _need_memory(name, Shape.of(config), precision, device)
        tokenizer = AutoTokenizer.from_pretrained(path, **safe)
        where = {"device_map": device, "output_loading_info": True} | _loading(precision)
        model, found = AutoModelForCausalLM.from_pretrained(path, **where, **safe)
    for module in model.modules():
        # bitsandbytes 0.50 would repack nf4 weights at the first evaluation on a CPU with
        # AVX512-BF16, and packed layers have no backward: later gradients would be wrong
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    if missing := sorted(found["missing_keys"]):
        raise BaizeError(f"{name} has no weights for {missing[0]}: choose another base model")
    known, end = model.get_input_embeddings().weight.shape[0], tokenizer.eos_token_id
    if end is None or end >= known:
        raise BaizeError(
            f"the end token of {name} is number {end}, and the model knows only {known} tokens: "
            "its tokenizer is unfinished or another model's; put its own beside the weights"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.name_or_path = MODELS[name].original if name in MODELS else name
    print(f"{MODELS[name].title if name in MODELS else name} in {precision}: {reason}")
    return Base(model.eval(), tokenizer, name, precision, reason)


def _choose_precision(precision: str) -> tuple[str, str]:
    import torch

    if precision not in PRECISIONS:
        raise BaizeError(f"precision {precision!r} is unknown: use one of {', '.join(PRECISIONS)}")
    if precision != "auto":
        return precision, "as asked"
    if not torch.cuda.is_available():
        return "float32", "there is no GPU here"
    if _unpacked() == "bfloat16":
        return "bfloat16", "this GPU computes in it, at half the memory of float32"
    return "float32", "this GPU has no bfloat16; float16 is faster, for models that bear it"


def _unpacked() -> str:
    """The precision of what int8 and nf4 do not pack: bfloat16 where a GPU computes in it."""
    import torch

    there = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if there else "float32"


def _loading(precision: str) -> dict[str, Any]:
    """The keyword arguments of `from_pretrained`."""
    from transformers import BitsAndBytesConfig

    dtype = _unpacked()
    nf4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
    packed = {"int8": {"load_in_8bit": True}, "nf4": nf4}
    if precision not in packed:
        return {"dtype": precision}
    return {"dtype": dtype, "quantization_config": BitsAndBytesConfig(**packed[precision])}


def _need_memory(name: str, shape: Shape, precision: str, device: str) -> None:
    import psutil
    import torch

    size = f"{name} has {shape.num_parameters / 1e9:.1f} billion parameters"
    if device == "cpu" and shape.num_parameters > 3e9:
        raise BaizeError(
            f"{size} and this machine has no GPU: use one (Colab: Runtime > Change runtime type), "
            "or 'smollm2-135m'"
        )
    needed = shape.gigabytes(precision, 2 if _unpacked() == "bfloat16" else 4)
    free = psutil.virtual_memory().available if device == "cpu" else torch.cuda.mem_get_info()[0]
    if needed > free / 1e9:
        raise BaizeError(
            f"{size}: {needed:.1f} GB in {precision}, and this {device} has {free / 1e9:.1f} GB "
            "free: use precision='nf4' or a smaller base model, or end what else is using it"
        )
