"""Causal attention for training on a CPU: by blocks of queries, as a few large matrix products.

PyTorch's fused CPU kernel saves memory by working in small tiles, and pays for it with time in the
backward pass. Here the probabilities are kept (about T * T / 2 numbers a head and row), nothing
above the diagonal is computed, query heads that share their keys are one product, and positions
are rotated in on the way (RoPE, Su et al. 2021).

    p = softmax(s q k')     o = p v         dv = p' do      dp = do v'
    ds = p (dp - sum(dp p))                 dq = s ds k     dk = s ds' q
"""

import functools
from typing import Any

__all__ = ["attend"]

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
