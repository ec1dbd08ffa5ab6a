"""The same training in fewer passes over memory: LoRA layers, norms, LLaMA's blocks, lean.

A LoRA layer computes y = W x + s B A drop(x). PEFT writes that as eight operations forward and a
dozen backward, most of which only move numbers, and on a CPU moving is what takes the time. Here it
is one operation: the low-rank part is added in place, backward is written out, layers that read the
same x share its passes, and dropout draws eight mask entries from one random number (so its rate is
a multiple of 1/256).

    g = s B' dy        dx = W' dy + drop'(A' g)        dA = g drop(x)'        dB = s dy (A drop(x))'
"""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

__all__ = [
    "lean",
    "attend",
]


@contextlib.contextmanager
def lean(model: Any) -> Iterator[int]:
    """Make a PEFT model's plain LoRA layers, norms and blocks lean inside the `with`; gives how
    many modules that is.

    Layers with DoRA, a bias or quantised weights, and norms that are trained, keep their own code,
    and so does attention on a GPU, which has fast kernels of its own.
    """
    changed = []
    for module in model.modules():
        if "forward" in vars(module):  # somebody else's, or made lean already
            continue
        if lean_forward := _lean_forward(module, model.device.type):
            module.forward = functools.partial(lean_forward, module)
            changed.append(module)
    try:
        yield len(changed)
    finally:
        for module in changed:
            del module.forward


def _lean_forward(module: Any, device: str) -> Any:
    kind = type(module).__name__
    if kind in _NORMS and not module.weight.requires_grad:
        return _norm
    if kind == "LlamaMLP" and module.config.hidden_act == "silu":
        return _mlp
    if kind == "LlamaAttention" and device == "cpu" and not module.attention_dropout:
        return _attention
    return _lora if _is_plain(module) else None


_NORMS = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm")  # one formula


def _is_plain(module: Any) -> bool:
    import torch
    from peft.tuners.lora import Linear

    return (
        type(module) is Linear
        and type(module.base_layer) is torch.nn.Linear
        and module.base_layer.bias is None
        and not module.lora_variant
        and not module.disable_adapters
        and not module.merged
    )


def _norm(module: Any, x: Any) -> Any:
    return _operations().norm.apply(x, module.weight, module.variance_epsilon)


def _mlp(module: Any, x: Any) -> Any:
    gate, up = _together((module.gate_proj, module.up_proj), x)
    return module.down_proj(_operations().gated.apply(gate, up))


def _attention(module: Any, hidden_states: Any, position_embeddings: Any, **_: Any) -> Any:
    q, k, v = _together((module.q_proj, module.k_proj, module.v_proj), hidden_states)
    out = attend(q, k, v, *position_embeddings, module.head_dim, module.scaling)
    return module.o_proj(out), None


def _lora(layer: Any, x: Any) -> Any:
    return _apply((layer,), x)[0]


def _together(layers: Sequence[Any], x: Any) -> Sequence[Any]:
    """What each of the layers makes of the same x."""
    if all(map(_is_plain, layers)) and len({_dropout(layer) for layer in layers}) == 1:
        return _apply(layers, x)
    return [layer(x) for layer in layers]


def _dropout(layer: Any) -> int:
    (name,) = layer.active_adapters
    return round(256 * getattr(layer.lora_dropout[name], "p", 0.0)) if layer.training else 0


def _apply(layers: Sequence[Any], x: Any) -> Sequence[Any]:
    weights, scales = [], []
    for layer in layers:
        (name,) = layer.active_adapters
        low = layer.lora_A[name].weight, layer.lora_B[name].weight
        weights += [layer.base_layer.weight, *low]
        scales.append(layer.scaling[name])
    ys = _operations().lora.apply(x.flatten(0, -2), scales, _dropout(layers[0]), *weights)
    return [y.view(*x.shape[:-1], -1) for y in ys]


class _Operations(NamedTuple):
    lora: Any
    norm: Any
    gated: Any


@functools.cache
def _operations() -> _Operations:
    """The autograd functions; made on first use, so that importing this module stays light."""
    import torch

    class LeanLora(torch.autograd.Function):
        # x (tokens, in); for each layer w (out, in), a (rank, in), b (out, rank); drop in 256ths
        @staticmethod
        def forward(ctx: Any, x: Any, scales: list[float], drop: int, *weights: Any) -> Any:
            w, a, b = weights[::3], weights[1::3], weights[2::3]
            ctx.scales = [scale * 256 / (256 - drop) for scale in scales]
            keep = _keep(x, drop) if drop else None
            low = torch.cat(a).to(x.dtype) @ _dropped(keep, x).T  # this way the product is fast
            ctx.save_for_backward(x, keep, low, *weights)
            lows = low.split([len(each) for each in a])
            return tuple(
                (x @ w.T).addmm_(low.T, b.T.to(x.dtype), alpha=scale)
                for w, b, low, scale in zip(w, b, lows, ctx.scales, strict=True)
            )

        @staticmethod
        def backward(ctx: Any, *dys: Any) -> Any:
            x, keep, low, *weights = ctx.saved_tensors
            w, a, b = weights[::3], weights[1::3], weights[2::3]
            ranks = [len(each) for each in a]
            parts = list(zip(dys, b, low.split(ranks), ctx.scales, strict=True))
            g = torch.cat([(b.T.to(dy.dtype) @ dy.T).mul_(scale) for dy, b, _, scale in parts])
            das = (g @ _dropped(keep, x)).split(ranks)
            dbs = [(low @ dy).T * scale for dy, _, low, scale in parts]
            dx = None
            if ctx.needs_input_grad[0]:
                dx = dys[0] @ w[0]
                for dy, each in zip(dys[1:], w[1:], strict=True):
                    dx.addmm_(dy, each)
                stacked = torch.cat(a).to(g.dtype)
                dx = (
                    dx.addmm_(g.T, stacked)
                    if keep is None
                    else dx.add_(_dropped(keep, g.T @ stacked))
                )
            grads = [
                (None, da.to(a.dtype), db.to(b.dtype))
                for da, db, a, b in zip(das, dbs, a, b, strict=True)
            ]
            return dx, None, None, *(grad for three in grads for grad in three)

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

    class LeanGated(torch.autograd.Function):
        # y = silu(gate) * up, without keeping silu(gate)
        @staticmethod
        def forward(ctx: Any, gate: Any, up: Any) -> Any:
            ctx.save_for_backward(gate, up)
            return torch.nn.functional.silu(gate).mul_(up)

        @staticmethod
        def backward(ctx: Any, dy: Any) -> Any:
            gate, up = ctx.saved_tensors
            dup = torch.nn.functional.silu(gate).mul_(dy)
            return torch.ops.aten.silu_backward(dy * up, gate), dup

    def _keep(x: Any, drop: int) -> Any:
        words = torch.empty(-(-x.numel() // 8), dtype=torch.int64, device=x.device)
        octets = words.random_(-(2**63), None).view(torch.uint8)[: x.numel()]
        return (octets >= drop).view_as(x)

    def _dropped(keep: Any, x: Any) -> Any:
        return x if keep is None else keep.to(x.dtype).mul_(x)  # faster than x * keep

    return _Operations(LeanLora, LeanNorm, LeanGated)


# from attention

_BLOCK = 128  # queries


def attend(q: Any, k: Any, v: Any, cos: Any, sin: Any, width: int, scale: float) -> Any:
    """Attention of one layer, before its output projection.

    Args:
        q: (rows, T, heads * width), not yet rotated.
        k, v: (rows, T, fewer heads * width).
        cos, sin: (1 or rows, T, width), both halves alike.

    Returns:
        (rows, T, heads * width).
    """
    return _operation().apply(q, k, v, cos, sin, width, scale)


@functools.cache
def _operation() -> Any:
    import torch

    class Blocks(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx: Any, q: Any, k: Any, v: Any, cos: Any, sin: Any, width: int, scale: float
        ) -> Any:
            rows, length, _ = q.shape
            shared = k.shape[-1] // width
            views = [x.view(rows, length, shared, -1, width).permute(0, 2, 3, 1, 4) for x in (q, k)]
            cos, sin = cos[:, None, None], sin[:, None, None]  # (rows, heads, heads, T, width)
            q = _rotate(views[0], cos * scale, sin * scale).flatten(0, 1)
            k = _rotate(views[1], cos, sin).reshape(-1, length, width)
            v = v.view(rows, length, shared, width).transpose(1, 2).reshape(-1, length, width)
            out = q.new_empty(rows, length, shared, q.shape[1], width)
            above = torch.full((_BLOCK, _BLOCK), -torch.inf, dtype=q.dtype).triu_(1)
            kept = []
            for start, stop in _blocks(length):
                scores = q[:, :, start:stop].flatten(1, 2) @ k[:, :stop].mT
                square = scores.view(*q.shape[:2], stop - start, stop)[..., start:]
                square += above[: stop - start, : stop - start]
                kept.append(torch.softmax(scores, -1))
                part = (kept[-1] @ v[:, :stop]).view(rows, shared, -1, stop - start, width)
                out[:, start:stop] = part.permute(0, 3, 1, 2, 4)
            ctx.save_for_backward(q, k, v, cos, sin, *kept)
            ctx.scale = scale
            return out.view(rows, length, -1)

        @staticmethod
        def backward(ctx: Any, dout: Any) -> Any:
            q, k, v, cos, sin, *kept = ctx.saved_tensors
            (rows, length, _), shared, width = dout.shape, len(k) // len(dout), k.shape[-1]
            dout = dout.reshape(rows, length, shared, -1, width).permute(0, 2, 3, 1, 4)
            dout = dout.reshape(q.shape)
            dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
            for (start, stop), p in zip(_blocks(length), kept, strict=True):
                part = dout[:, :, start:stop].flatten(1, 2)
                dv[:, :stop] += p.mT @ part
                ds = torch._softmax_backward_data(part @ v[:, :stop].mT, p, -1, p.dtype)
                dq[:, :, start:stop] = (ds @ k[:, :stop]).view(*q.shape[:2], -1, width)
                dk[:, :stop] += ds.mT @ q[:, :, start:stop].flatten(1, 2)
            dq = _rotate(dq.unflatten(0, (rows, shared)), cos * ctx.scale, -sin * ctx.scale)
            dk = _rotate(dk.view(rows, shared, 1, length, width), cos, -sin)
            dv = dv.view(rows, shared, 1, length, width)
            return *(d.permute(0, 3, 1, 2, 4).flatten(2) for d in (dq, dk, dv)), *4 * [None]

    def _rotate(x: Any, cos: Any, sin: Any) -> Any:
        y, half = torch.mul(x, cos, out=torch.empty(x.shape, dtype=x.dtype)), x.shape[-1] // 2
        y[..., :half].addcmul_(x[..., half:], sin[..., half:], value=-1)
        y[..., half:].addcmul_(x[..., :half], sin[..., :half])
        return y

    return Blocks


def _blocks(length: int) -> list[tuple[int, int]]:
    return [(start, min(start + _BLOCK, length)) for start in range(0, length, _BLOCK)]
