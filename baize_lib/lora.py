"""LoRA adapters on a base: put on, chosen, taken off; and trained in fewer passes over memory.

All adapters share one copy of the base's weights; files and parameters are PEFT's.

A LoRA layer computes y = W x + s B A drop(x). PEFT writes that as eight operations forward and a
dozen backward, most of which only move numbers, and on a CPU moving is what takes the time. Here it
is one operation: the low-rank part is added in place, backward is written out, and dropout draws
eight mask entries from one random number (so its rate is a multiple of 1/256).

    g = s B' dy        dx = W' dy + drop'(A' g)        dA = g drop(x)'        dB = s dy (A drop(x))'
"""

import contextlib
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from baize_lib.config import BaizeError
from baize_lib.dialogue import TEMPLATE
from baize_lib.files import sha256_of
from baize_lib.models import Base, quiet

__all__ = ["read_card", "attach", "select", "detach", "lean"]


def read_card(folder: Path | str) -> dict[str, Any]:
    """What an adapter says about itself, its `baize_run.json`.

    Raises:
        BaizeError: the folder is missing, is no adapter, or was made without a card.
    """
    folder = Path(folder)
    for name in ("adapter_config.json", "adapter_model.safetensors", "baize_run.json"):
        if not (folder / name).is_file():
            raise BaizeError(
                f"adapter folder {folder} has no {name}: train one with notebook "
                "04_lora_training, or use the recorded one in data/adapter"
            )
    try:
        return json.loads((folder / "baize_run.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise BaizeError(f"{folder / 'baize_run.json'} is not JSON ({error})") from error


def attach(base: Base, folder: Path | str) -> str:
    """Put the adapter in `folder` on the base, unless it is there already; returns its name.

    Raises:
        BaizeError: no adapter there, or one trained on another base model or template.
    """
    card = read_card(folder)
    for key, ours in (("base_model", base.name), ("template", TEMPLATE)):
        if card.get(key) != ours:
            raise BaizeError(
                f"the adapter in {folder} was trained with {key} {card.get(key)!r} and this is "
                f"{ours!r}: load the matching one, or train again"
            )
    name = sha256_of(Path(folder) / "adapter_model.safetensors")[:16]
    with quiet(), _readable(folder):
        from peft import PeftModel

        if "peft" not in base.attached:
            peft = PeftModel.from_pretrained(base.model, folder, adapter_name=name)
            base.attached.update(peft=peft.eval(), selected=name)
        elif name not in base.attached["peft"].peft_config:
            base.attached["peft"].load_adapter(folder, adapter_name=name)
    return name


@contextlib.contextmanager
def _readable(folder: Path | str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError, TypeError, OSError) as error:
        first = str(error).strip().splitlines()[0]
        raise BaizeError(
            f"the adapter in {folder} does not fit or is damaged ({first}): train it again"
        ) from error


def select(base: Base, name: str | None) -> None:
    """Let the attached adapter `name` speak, or with None the base itself."""
    if "peft" not in base.attached or base.attached["selected"] == name:
        return
    peft = base.attached["peft"].base_model
    if name is None:
        peft.disable_adapter_layers()
    else:
        peft.enable_adapter_layers()
        peft.set_adapter(name)
    base.attached["selected"] = name


def detach(base: Base) -> None:
    """Take all adapters off; the base is as it was loaded."""
    if "peft" in base.attached:
        base.attached.pop("peft").unload()
        base.attached.clear()


@contextlib.contextmanager
def lean(model: Any) -> Iterator[int]:
    """Make a PEFT model's plain LoRA layers and norms lean inside the `with`; gives how many.

    Layers with DoRA, a bias or quantised weights, and norms that are trained, keep their own code.
    """
    import torch
    from peft.tuners.lora import Linear

    changed = []
    for module in model.modules():
        if type(module).__name__ in _NORMS and not module.weight.requires_grad:
            module.forward = functools.partial(_norm, module)
        elif (
            type(module) is Linear
            and type(module.base_layer) is torch.nn.Linear
            and module.base_layer.bias is None
            and not module.lora_variant
        ):
            module.forward = functools.partial(_forward, module)
        else:
            continue
        changed.append(module)
    try:
        yield len(changed)
    finally:
        for module in changed:
            del module.forward


_NORMS = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm")  # one formula


def _norm(module: Any, x: Any) -> Any:
    return _operations()[1].apply(x, module.weight, module.variance_epsilon)


def _forward(layer: Any, x: Any) -> Any:
    if not layer.training or layer.disable_adapters or layer.merged:
        return type(layer).forward(layer, x)
    (name,) = layer.active_adapters
    rate = getattr(layer.lora_dropout[name], "p", 0.0)
    y = _operations()[0].apply(
        x.reshape(-1, x.shape[-1]), layer.base_layer.weight, layer.lora_A[name].weight,
        layer.lora_B[name].weight, layer.scaling[name], round(256 * rate),
    )  # fmt: skip
    return y.view(*x.shape[:-1], -1)


@functools.cache
def _operations() -> tuple[Any, Any]:
    """The autograd functions; made on first use, so that importing this module stays light."""
    import torch

    class LeanLora(torch.autograd.Function):
        # x (tokens, in), w (out, in), a (rank, in), b (out, rank); drop in 256ths
        @staticmethod
        def forward(ctx: Any, x: Any, w: Any, a: Any, b: Any, scale: float, drop: int) -> Any:
            scale = scale * 256 / (256 - drop)
            keep = _keep(x, drop) if drop else None
            low = _apply(keep, x) @ a.T.to(x.dtype)
            ctx.save_for_backward(x, w, a, b, keep, low)
            ctx.scale = scale
            return (x @ w.T).addmm_(low, b.T.to(x.dtype), alpha=scale)

        @staticmethod
        def backward(ctx: Any, dy: Any) -> Any:
            x, w, a, b, keep, low = ctx.saved_tensors
            g = (dy @ b.to(dy.dtype)).mul_(ctx.scale)
            da = g.T @ _apply(keep, x)
            db = (low.T @ dy).T * ctx.scale  # in this order the product is three times as fast
            dx = None
            if ctx.needs_input_grad[0]:
                dx, a = dy @ w, a.to(dy.dtype)
                dx = dx.addmm_(g, a) if keep is None else dx.add_(_apply(keep, g @ a))
            return dx, None, da.to(a.dtype), db.to(b.dtype), None, None

    class LeanNorm(torch.autograd.Function):
        # y = w x / sqrt(mean(x^2) + eps); x (..., width), w (width,)
        @staticmethod
        def forward(ctx: Any, x: Any, w: Any, eps: float) -> Any:
            wide = x.float()
            size = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
            root = torch.rsqrt(size**2 / x.shape[-1] + eps)
            ctx.save_for_backward(x, w, root)
            return w * (wide * root).to(x.dtype)

        @staticmethod
        def backward(ctx: Any, dy: Any) -> Any:
            x, w, root = ctx.saved_tensors
            slope, wide = (dy * w).float(), x.float()
            shared = torch.linalg.vecdot(slope, wide)[..., None] * root**2 / x.shape[-1]
            return slope.addcmul_(wide, shared, value=-1).mul_(root).to(x.dtype), None, None

    def _keep(x: Any, drop: int) -> Any:
        words = torch.empty(-(-x.numel() // 8), dtype=torch.int64, device=x.device)
        octets = words.random_(-(2**63), None).view(torch.uint8)[: x.numel()]
        return (octets >= drop).view_as(x)

    def _apply(keep: Any, x: Any) -> Any:
        return x if keep is None else keep.to(x.dtype).mul_(x)  # faster than x * keep

    return LeanLora, LeanNorm
