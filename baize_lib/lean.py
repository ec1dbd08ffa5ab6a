"""The same training in fewer passes over memory: LoRA layers and norms, lean.

A LoRA layer computes y = W x + s B A drop(x). PEFT writes that as eight operations forward and a
dozen backward, most of which only move numbers, and on a CPU moving is what takes the time. Here it
is one operation: the low-rank part is added in place, backward is written out, and dropout draws
eight mask entries from one random number (so its rate is a multiple of 1/256).

    g = s B' dy        dx = W' dy + drop'(A' g)        dA = g drop(x)'        dB = s dy (A drop(x))'
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

__all__ = ["lean"]


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
            low = (a.to(x.dtype) @ _apply(keep, x).T).T  # in this order the thin product is fast
            ctx.save_for_backward(x, w, a, b, keep, low)
            ctx.scale = scale
            return (x @ w.T).addmm_(low, b.T.to(x.dtype), alpha=scale)

        @staticmethod
        def backward(ctx: Any, dy: Any) -> Any:
            x, w, a, b, keep, low = ctx.saved_tensors
            g = (b.T.to(dy.dtype) @ dy.T).T.mul_(ctx.scale)
            da = g.T @ _apply(keep, x)
            db = (low.T @ dy).T * ctx.scale
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
