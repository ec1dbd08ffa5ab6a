"""The same training in fewer passes over memory: LoRA layers, norms and attention, lean.

A LoRA layer computes y = W x + s B A drop(x). PEFT writes that as eight operations forward and a
dozen backward, most of which only move numbers, and on a CPU moving is what takes the time. Here it
is one operation: the low-rank part is added in place, backward is written out, and dropout draws
eight mask entries from one random number (so its rate is a multiple of 1/256).

    g = s B' dy        dx = W' dy + drop'(A' g)        dA = g drop(x)'        dB = s dy (A drop(x))'

Attention on a CPU takes the queries 64 at a time, each with the keys up to its last one only: the
half of the square that causality leaves empty is hardly computed, and the weights are kept for
backward instead of computed again. (A GPU has kernels for all that.)
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

__all__ = ["lean"]


@contextlib.contextmanager
def lean(model: Any) -> Iterator[int]:
    """Make a PEFT model's plain LoRA layers and norms lean inside the `with`; gives how many.

    Layers with DoRA, a bias or quantised weights, and norms that are trained, keep their own code;
    so does attention on a GPU or in another precision than float32.
    """
    import torch
    from peft.tuners.lora import Linear
    from transformers import AttentionInterface

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
    config = model.config
    attention = config._attn_implementation
    if attention == "sdpa":
        AttentionInterface.register("baize_lean", _attention)
        config._attn_implementation = "baize_lean"
    try:
        yield len(changed)
    finally:
        config._attn_implementation = attention
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


def _attention(
    module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float, **options: Any
) -> tuple[Any, None]:
    """transformers' attention function: (batch, heads, tokens, size) -> (batch, tokens, heads…)."""
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    length, is_plain = query.shape[2], mask is None and key.shape[2] == query.shape[2]
    on_cpu = query.device.type == "cpu" and query.dtype == torch.float32
    if not (on_cpu and is_plain and length <= _LONGEST and not options.get("dropout")):
        return sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, **options)
    return _operations()[2].apply(query, key, value, scaling).transpose(1, 2), None


_LONGEST = 1024  # tokens; the weights kept grow with the square
_QUERIES = 64


@functools.cache
def _operations() -> tuple[Any, Any, Any]:
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

    class LeanAttention(torch.autograd.Function):
        # q (batch, heads, tokens, size), k and v with fewer heads, each for a group of q's
        @staticmethod
        def forward(ctx: Any, q: Any, k: Any, v: Any, scale: float) -> Any:
            out, weights = torch.empty_like(q, memory_format=torch.contiguous_format), []
            ahead = torch.full((_QUERIES, _QUERIES), float("-inf")).triu_(1)
            for part, until in _parts(q):
                size = part.stop - part.start
                scores = _grouped(q, k, part).mul_(scale) @ _flat(k, until).mT
                scores = scores.view(scores.shape[0], -1, size, part.stop)
                scores[..., part] += ahead[:size, :size]
                weights.append(scores.softmax(-1))
                said = weights[-1].flatten(1, 2) @ _flat(v, until)
                out[:, :, part] = said.view(out[:, :, part].shape)
            ctx.save_for_backward(q, k, v, out, *weights)
            ctx.scale = scale
            return out

        @staticmethod
        def backward(ctx: Any, dout: Any) -> Any:
            q, k, v, out, *weights = ctx.saved_tensors
            dq = torch.empty_like(out)
            dk, dv = (torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (k, v))
            mean = (dout * out).sum(-1, keepdim=True)
            for (part, until), kept in zip(_parts(q), weights, strict=True):
                slope, flat = _grouped(dout, k, part), kept.flatten(1, 2)
                dv.flatten(0, 1)[:, until].baddbmm_(flat.mT, slope)
                ds = (slope @ _flat(v, until).mT).sub_(_grouped(mean, k, part)).mul_(flat)
                dq[:, :, part] = (ds @ _flat(k, until)).mul_(ctx.scale).view(dq[:, :, part].shape)
                dk.flatten(0, 1)[:, until].baddbmm_(ds.mT, _grouped(q, k, part), alpha=ctx.scale)
            return dq, dk, dv, None

    def _parts(q: Any) -> Iterator[tuple[slice, slice]]:
        for start in range(0, q.shape[2], _QUERIES):
            stop = min(start + _QUERIES, q.shape[2])
            yield slice(start, stop), slice(0, stop)

    def _flat(x: Any, tokens: slice) -> Any:  # (batch * kv heads, tokens, size)
        return x[:, :, tokens].flatten(0, 1)

    def _grouped(x: Any, k: Any, tokens: slice) -> Any:  # (batch * kv heads, group * tokens, size)
        heads = x[:, :, tokens].reshape(x.shape[0], k.shape[1], -1, *x[:, :, tokens].shape[2:])
        return heads.reshape(x.shape[0] * k.shape[1], -1, x.shape[3]).clone()

    def _keep(x: Any, drop: int) -> Any:
        words = torch.empty(-(-x.numel() // 8), dtype=torch.int64, device=x.device)
        octets = words.random_(-(2**63), None).view(torch.uint8)[: x.numel()]
        return (octets >= drop).view_as(x)

    def _apply(keep: Any, x: Any) -> Any:
        return x if keep is None else keep.to(x.dtype).mul_(x)  # faster than x * keep

    return LeanLora, LeanNorm, LeanAttention
