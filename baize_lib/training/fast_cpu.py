"""The same training in fewer passes over memory: inside one `with`, the same numbers, sooner.

    with fast(model, "bfloat16"):      # a PEFT model; afterwards it is what it was, to the bit
        ...

On a CPU most of the time of LoRA training goes into moving numbers, not into multiplying them. So
inside `fast` frozen weights are held in the precision that is multiplied in, and the functions
below, gradients written out, do in one pass what PyTorch's do in several. What is not of a kind
known here keeps its own code. This room loads torch; the others import it when they compute.
"""

import contextlib
import ctypes
import functools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import FunctionCtx as Context
from torch.nn import functional
from torch.utils.benchmark import Timer

from baize_lib.config import BaizeError

__all__: list[str] = []

_FAMILY = ("Llama", "Mistral", "Qwen2", "Qwen3", "Olmo2", "SmolLM3")  # one formula for their parts
_ROTATED = ("Llama", "Mistral", "Qwen2")  # nothing between the projections and the rotation
_BLOCK = 128  # queries that are attended from at once
_SLICE = 2048  # tokens of the vocabulary whose logits exist at once
Pair = tuple[Tensor, Tensor]


def compute_precision(precision: str, device: str, wanted: str = "auto") -> tuple[str, str]:
    """What training multiplies in, and why: the base's own `precision`, or bfloat16 for a base in
    float32 where this CPU has instructions for it, which are about twice as fast. A BaizeError
    where `wanted`, the `TrainingSettings.compute`, does not go with the base.
    """
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


def product_rate(precision: str) -> float:
    """Operations a second of plain matrix products of a small model's sizes, on this CPU."""
    x, w = (torch.randn(n, 576, dtype=getattr(torch, precision)) for n in (1024, 1536))
    timer = Timer("x @ w.T", globals={"x": x, "w": w}, num_threads=torch.get_num_threads())
    return 2 * x.numel() * len(w) / timer.blocked_autorange(min_run_time=0.5).median


@contextlib.contextmanager
def fast(model: nn.Module, precision: str = "") -> Iterator[None]:
    """Inside the `with`, a model of any family computes as told above; `precision` "bfloat16" holds
    its frozen float32 weights in that. Being fast twice is being fast once.
    """
    frozen = [p for p in model.parameters() if not p.requires_grad and p.dtype == torch.float32]
    wide = [(p, p.data) for p in frozen if precision == "bfloat16"]
    try:
        for weight, data in wide:
            weight.data = data.to(torch.bfloat16)
        mine = (m for m in model.modules() if "forward" not in vars(m))  # else somebody else's
        known = [(module, _fast_forward(module, model.device.type)) for module in mine]
        with computing_by([(m, functools.partial(way, m)) for m, way in known if way]):
            yield
    finally:
        for weight, data in wide:
            weight.data = data
        with contextlib.suppress(AttributeError, OSError, TypeError):  # it is there on Linux
            ctypes.CDLL(None).malloc_trim(0)  # else gigabytes of freed memory stay with us


@contextlib.contextmanager
def computing_by(forwards: Sequence[tuple[nn.Module, Callable[..., object]]]) -> Iterator[None]:
    """Let each module compute by the function beside it inside the `with`."""
    try:
        for module, forward in forwards:
            vars(module)["forward"] = forward  # sooner than PyTorch's own way to set it
        yield
    finally:
        for module, _ in forwards:
            vars(module).pop("forward", None)


def _fast_forward(module: nn.Module, device: str) -> Callable[..., object] | None:
    kind = type(module).__name__
    if kind.removesuffix("RMSNorm") in _FAMILY and not module.weight.requires_grad:
        return _norm
    if kind.removesuffix("MLP") in _FAMILY and module.config.hidden_act == "silu":
        return _mlp
    if kind.removesuffix("Attention") in _ROTATED and device == "cpu":
        whole = not getattr(module.config, "sliding_window", None)
        return _attention if whole and not module.attention_dropout else None
    return _lora if _is_plain(module) else None


def _is_plain(module: nn.Module) -> bool:
    """A LoRA layer over an ordinary linear one: no DoRA or dropout, nothing packed or merged."""
    from peft.tuners.lora import Linear

    return (
        type(module) is Linear
        and all(type(dropout) is nn.Identity for dropout in module.lora_dropout.values())
        and type(module.base_layer) is nn.Linear
        and not module.lora_variant
        and not module.disable_adapters
        and not module.merged
        and len(module.active_adapters) == 1
    )


def _norm(module: nn.Module, x: Tensor) -> Tensor:
    return RMSNorm.apply(x, module.weight, module.variance_epsilon)


def _mlp(module: nn.Module, x: Tensor) -> Tensor:
    return module.down_proj(Gated.apply(*_together((module.gate_proj, module.up_proj), x)))


def _attention(module: nn.Module, hidden_states: Tensor, position_embeddings: Pair, **_: object):
    qkv = _together((module.q_proj, module.k_proj, module.v_proj), hidden_states)
    mixed = Attention.apply(*qkv, *position_embeddings, module.head_dim, module.scaling)
    return module.o_proj(mixed), None


def _lora(layer: nn.Module, x: Tensor) -> Tensor:
    return _apply((layer,), x)[0]


def _together(layers: Sequence[nn.Module], x: Tensor) -> Sequence[Tensor]:
    """What each of the layers makes of the same x."""
    return _apply(layers, x) if all(map(_is_plain, layers)) else [layer(x) for layer in layers]


def _apply(layers: Sequence[nn.Module], x: Tensor) -> Sequence[Tensor]:
    weights, scales = [], []
    for layer in layers:
        (name,) = layer.active_adapters
        base, a, b = layer.base_layer, layer.lora_A[name].weight, layer.lora_B[name].weight
        weights += [base.weight, base.bias, a, b]
        scales.append(layer.scaling[name])
    ys = LoraLinears.apply(x.flatten(0, -2), scales, *weights)
    return [y.view(*x.shape[:-1], -1) for y in ys]


# --- the functions, each with its gradient


class LoraLinears(Function):
    """y = W x + bias + s B A x, for each of the layers that read the same x.

    g = s B' dy        dx = W' dy + A' g        dA = g x'        dB = s dy (A x)'
    """

    @staticmethod
    def forward(ctx: Context, x: Tensor, scales: list[float], *weights: Tensor | None):
        layers = _fours(weights)  # w (out, in), bias (out,) or None, a (rank, in), b (out, rank)
        down = torch.cat([a for _, _, a, _ in layers]).to(x.dtype)  # (all ranks, in)
        low = down @ x.T  # (all ranks, tokens): this way round the product is fast
        ctx.save_for_backward(x, low, *weights)
        ctx.scales, ys = scales, []
        lows = low.split([len(a) for _, _, a, _ in layers])
        for (w, bias, _, b), part, scale in zip(layers, lows, scales, strict=True):
            y = functional.linear(x, w, bias)  # (tokens, out)
            ys.append(y.addmm_(part.T, b.T.to(x.dtype), alpha=scale))
        return tuple(ys)

    @staticmethod
    def backward(ctx: Context, *dys: Tensor):
        x, low, *weights = ctx.saved_tensors
        layers = _fours(weights)
        ranks, gs, dbs = [len(a) for _, _, a, _ in layers], [], []
        for dy, (*_, b), part, scale in zip(dys, layers, low.split(ranks), ctx.scales, strict=True):
            gs.append((b.T.to(dy.dtype) @ dy.T).mul_(scale))  # (rank, tokens)
            dbs.append(((part @ dy).T * scale).to(b.dtype))  # (out, rank)
        g = torch.cat(gs)
        das = (g @ x).to(dbs[0].dtype).split(ranks)  # (rank, in)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = dys[0] @ layers[0][0]  # (tokens, in)
            for dy, (w, *_) in zip(dys[1:], layers[1:], strict=True):
                dx.addmm_(dy, w)
            dx.addmm_(g.T, torch.cat([a for _, _, a, _ in layers]).to(g.dtype))
        grads = ((None, None, da, db) for da, db in zip(das, dbs, strict=True))
        return dx, None, *(grad for four in grads for grad in four)


def _fours(weights: Sequence[Tensor | None]) -> list[Sequence[Tensor | None]]:
    return [weights[i : i + 4] for i in range(0, len(weights), 4)]


class RMSNorm(Function):
    """y = w x / sqrt(mean(x^2) + eps), over the last dimension."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, w: Tensor, eps: float):
        wide = x.float()  # (..., width)
        size = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)  # (..., 1)
        root = torch.rsqrt(size**2 / x.shape[-1] + eps)
        ctx.save_for_backward(x, w, root)
        return w * (wide * root).to(x.dtype)

    @staticmethod
    def backward(ctx: Context, dy: Tensor):
        x, w, root = ctx.saved_tensors
        slope, wide = (dy * w).float(), x.float()  # (..., width)
        shared = torch.linalg.vecdot(slope, wide)[..., None] * root**2 / x.shape[-1]
        return slope.addcmul_(wide, shared, value=-1).mul_(root).to(x.dtype), None, None


class Gated(Function):
    """y = silu(gate) * up, without keeping silu(gate); all of one shape."""

    @staticmethod
    def forward(ctx: Context, gate: Tensor, up: Tensor):
        ctx.save_for_backward(gate, up)
        return functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Context, dy: Tensor):
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(dy * up, gate), functional.silu(gate).mul_(dy)


class Attention(Function):
    """softmax(rotated q . rotated k * scale) v, each query seeing itself and what is before it.

    Queries go in blocks, and a block looks only at the keys up to its end: nearly half of the
    square is never computed. Each of `shared` heads of keys serves several heads of queries.
    """

    @staticmethod
    def forward(ctx: Context, q, k, v: Tensor, cos, sin: Tensor, width: int, scale: float):
        rows, length, shared = *k.shape[:2], k.shape[-1] // width  # k, v (rows, T, shared * width)
        cos, sin = cos[:, None, None], sin[:, None, None]  # (rows or 1, 1, 1, T, width)
        heads = (rows, length, shared, -1, width)
        q, k = (x.view(heads).permute(0, 2, 3, 1, 4) for x in (q, k))  # (rows, shared, -1, T, w)
        q = _rotate(q, cos * scale, sin * scale).flatten(0, 1)  # (pairs, heads of each, T, width)
        k = _rotate(k, cos, sin).reshape(-1, length, width)  # (pairs, T, width)
        v = v.view(rows, length, shared, width).transpose(1, 2).reshape(-1, length, width)
        out = q.new_empty(rows, length, shared, q.shape[1], width)
        above = torch.full((_BLOCK, _BLOCK), -torch.inf, dtype=q.dtype).triu_(1)
        kept = []
        for start, stop in _blocks(length):
            queries = q[:, :, start:stop].flatten(1, 2)  # (pairs, heads * block, width)
            scores = queries @ k[:, :stop].mT  # (pairs, heads * block, stop)
            square = scores.view(*q.shape[:2], stop - start, stop)[..., start:]
            square += above[: stop - start, : stop - start]
            kept.append(torch.softmax(scores, -1))
            part = (kept[-1] @ v[:, :stop]).view(rows, shared, -1, stop - start, width)
            out[:, start:stop] = part.permute(0, 3, 1, 2, 4)
        ctx.save_for_backward(q, k, v, cos, sin, *kept)
        ctx.scale = scale
        return out.view(rows, length, -1)  # (rows, T, heads * width)

    @staticmethod
    def backward(ctx: Context, dout: Tensor):
        q, k, v, cos, sin, *kept = ctx.saved_tensors
        (rows, length, _), shared, width = dout.shape, len(k) // len(dout), k.shape[-1]
        dout = dout.reshape(rows, length, shared, -1, width).permute(0, 2, 3, 1, 4)
        dout = dout.reshape(q.shape)  # (pairs, heads of each, T, width)
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for (start, stop), p in zip(_blocks(length), kept, strict=True):
            part = dout[:, :, start:stop].flatten(1, 2)  # (pairs, heads*block, width)
            dv[:, :stop] += p.mT @ part
            ds = torch._softmax_backward_data(part @ v[:, :stop].mT, p, -1, p.dtype)
            dq[:, :, start:stop] = (ds @ k[:, :stop]).view(*q.shape[:2], -1, width)
            dk[:, :stop] += ds.mT @ q[:, :, start:stop].flatten(1, 2)
        dq = _rotate(dq.unflatten(0, (rows, shared)), cos * ctx.scale, -sin * ctx.scale)
        dk = _rotate(dk.view(rows, shared, 1, length, width), cos, -sin)
        dv = dv.view(rows, shared, 1, length, width)
        return *(d.permute(0, 3, 1, 2, 4).flatten(2) for d in (dq, dk, dv)), *4 * [None]


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Each pair of numbers, one from either half of the last dimension, turned by its angle."""
    y, half = torch.mul(x, cos, out=torch.empty(x.shape, dtype=x.dtype)), x.shape[-1] // 2
    y[..., :half].addcmul_(x[..., half:], sin[..., half:], value=-1)
    y[..., half:].addcmul_(x[..., :half], sin[..., :half])
    return y


def _blocks(length: int) -> list[tuple[int, int]]:
    return [(start, min(start + _BLOCK, length)) for start in range(0, length, _BLOCK)]


class HeadLoss(Function):
    """The sum of cross_entropy(hidden @ weight.T, targets), in nats, with a frozen `weight`.

    The vocabulary passes by a slice at a time. Of the softmax three running sums are kept, rescaled
    whenever a larger logit comes (Milakov and Gimelshein 2018). The gradient is made on the way: of
    `hidden` it is softmax @ weight - weight[target].
    """

    @staticmethod
    def forward(ctx: Context, hidden: Tensor, weight: Tensor, targets: Tensor):
        # hidden (tokens, width), weight (vocabulary, width), targets (tokens,)
        largest = torch.full((len(hidden), 1), -math.inf, device=hidden.device)  # logit so far
        total = torch.zeros_like(largest)  # of exp(logit - largest)
        mixed = torch.zeros(hidden.shape, device=hidden.device)  # of exp(logit - largest) * row
        for rows in weight.split(_SLICE):  # (_SLICE, width), the last one shorter
            logits = (hidden @ rows.T).float()  # (tokens, _SLICE)
            higher = torch.maximum(largest, logits.amax(-1, keepdim=True))
            shrunk, largest = (largest - higher).exp_(), higher
            raised = logits.sub_(largest).exp_()
            total.mul_(shrunk).add_(raised.sum(-1, keepdim=True))
            if ctx.needs_input_grad[0]:
                mixed.mul_(shrunk).add_(raised.to(rows.dtype) @ rows)
        chosen = weight[targets]  # (tokens, width)
        logit = (hidden * chosen).sum(-1, keepdim=True, dtype=torch.float32)
        ctx.save_for_backward(mixed.div_(total).sub_(chosen).to(hidden.dtype))
        return (total.log() + largest - logit).double().sum()

    @staticmethod
    def backward(ctx: Context, slope: Tensor):
        return ctx.saved_tensors[0] * slope.to(ctx.saved_tensors[0].dtype), None, None
