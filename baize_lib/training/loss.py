"""The loss and its gradient: right padding without a mask, and the head only where it is learnt.

Each step's loss is divided by the number of learnt tokens in the whole step, so that micro-batches,
padding, order and processes change the speed and nothing else.

    batches = micro_batches(rows, 512)
    loss = backward(model, batches, num_labels, lanes(model, settings)) / num_labels

On a CPU several micro-batches are computed side by side, each by its own share of the cores: small
ones stay in a core's cache, and no core waits for another after every operation.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from baize_lib.config import BaizeError
from baize_lib.training.fast_cpu import lean
from baize_lib.training.settings import TrainingSettings
from baize_lib.training.several import Team
from baize_lib.training.tokens import IGNORED, Encoded

__all__ = [
    "backward",
    "held_out_loss",
    "lanes",
    "lane_tokens",
    "SLICE",
]


def _hidden_and_targets(model: Any, batch: Sequence[Encoded]) -> tuple[Any, Any]:
    """Last hidden states (labels, width) where the next token is learnt, and those tokens.

    Rows are padded on the right: with causal attention no real token sees the padding, so no
    attention mask is needed and the fast kernels apply.
    """
    import torch

    width = max(len(row.input_ids) for row in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    labels = torch.full((len(batch), width), IGNORED)
    for i, row in enumerate(batch):
        ids[i, : len(row.input_ids)] = torch.tensor(row.input_ids)
        labels[i, : len(row.labels)] = torch.tensor(row.labels)
    inner = getattr(model, "get_base_model", lambda: model)()
    device = inner.get_output_embeddings().weight.device  # never sharded, unlike the layers
    ids, labels = ids.to(device), labels[:, 1:].to(device)
    hidden = inner.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    return hidden[labels != IGNORED], labels[labels != IGNORED]


def _head_loss(head: Any, hidden: Any, targets: Any, slope: Any = None) -> float:
    """Sum of the losses of (labels, width) hidden states, in nats; fills `slope` with its gradient.

    The head is frozen, so the gradient with respect to `hidden` is all there is to keep. The
    vocabulary passes by a slice at a time, which stays in the processor's cache, and the softmax is
    put together on the way (Milakov and Gimelshein 2018): all the logits never exist.
    """
    import torch

    weight, count = head.weight, len(targets)
    top = torch.full((count, 1), -math.inf, device=hidden.device)
    norm = torch.zeros_like(top)
    mean = torch.zeros(hidden.shape, device=hidden.device)  # of the head's rows, not yet / norm
    narrow = hidden.new_empty(count * SLICE)  # the same memory for each slice
    wide = narrow if hidden.dtype == torch.float32 else narrow.float()
    for rows in weight.split(SLICE):
        size = count, len(rows)
        logits, raised = narrow[: math.prod(size)].view(size), wide[: math.prod(size)].view(size)
        raised.copy_(torch.mm(hidden, rows.T, out=logits))
        higher = torch.maximum(top, raised.amax(-1, keepdim=True))
        shrunk, top = (top - higher).exp_(), higher
        raised.sub_(top).exp_()
        norm = norm.mul_(shrunk).add_(raised.sum(-1, keepdim=True))
        if slope is not None:
            mean.mul_(shrunk).add_(logits.copy_(raised) @ rows)
    chosen = weight[targets]
    logit = (hidden * chosen).sum(-1, keepdim=True, dtype=torch.float32)
    if slope is not None:
        slope.copy_(mean.div_(norm).sub_(chosen))
    return (norm.log() + top - logit).double().sum().item()


SLICE = 2048  # tokens of the vocabulary


def lanes(model: Any, settings: TrainingSettings | None = None) -> int:
    """How many micro-batches to compute side by side: up to four on a CPU, for the memory of four.

    Dropout keeps to one, for its masks come from one stream of random numbers, and so do quantised
    layers, which note down what they do.
    """
    import torch

    inner = getattr(model, "get_base_model", lambda: model)()
    if inner.device.type != "cpu" or getattr(inner, "is_quantized", False):
        return 1
    return 1 if settings and settings.dropout else min(4, torch.get_num_threads())


def lane_tokens(micro_tokens: int, at_once: int) -> int:
    """Padded tokens of a micro-batch when `at_once` of them share `micro_tokens`; at most 512, for
    large ones leave a core's cache.
    """
    return micro_tokens if at_once == 1 else min(512, micro_tokens // at_once)


def _side_by_side(
    work: Callable[[Any], Any], batches: Iterable[Sequence[Encoded]], at_once: int
) -> Iterator[Any]:
    """What `work` makes of each batch, in an order that depends on nothing but the batches."""
    import torch

    # the longest first, so that no lane is left with much to do when the others have finished
    order = sorted(batches, key=lambda batch: -sum(len(row.input_ids) for row in batch))
    if at_once == 1 or len(order) == 1:
        yield from map(work, order)
        return
    threads = torch.get_num_threads()
    share = max(1, threads // at_once)
    pool = ThreadPoolExecutor(at_once, initializer=torch.set_num_threads, initargs=(share,))
    try:
        yield from pool.map(work, order)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # the lanes changed what new threads would get


def backward(
    model: Any, batches: Iterable[Sequence[Encoded]], num_labels: int, at_once: int = 1
) -> float:
    """Add the gradients of the batches' loss over `num_labels` tokens; returns its sum, in nats.

    `num_labels` is the whole optimiser step's, so micro-batches of any size add up to one gradient.

    Args:
        at_once: micro-batches computed side by side, see `lanes`; the result is the same, bit for
            bit, from run to run, and the same to rounding for any number.
    """
    import torch

    weights = [weight for weight in model.parameters() if weight.requires_grad]

    def loss_of(batch: Sequence[Encoded]) -> tuple[float, Any, Any]:
        hidden, targets = _hidden_and_targets(model, batch)
        slope = torch.empty_like(hidden)
        with torch.no_grad():
            loss = _head_loss(model.get_output_embeddings(), hidden.detach(), targets, slope)
        return loss, hidden, slope / num_labels

    def alone(batch: Sequence[Encoded]) -> float:
        loss, hidden, slope = loss_of(batch)
        hidden.backward(slope)
        return loss

    def beside_others(batch: Sequence[Encoded]) -> tuple[float, Sequence[Any]]:
        loss, hidden, slope = loss_of(batch)
        return loss, torch.autograd.grad(hidden, weights, slope)

    if at_once == 1:
        return sum(map(alone, batches))
    total = 0.0
    for loss, gradients in _side_by_side(beside_others, batches, at_once):
        total += loss
        for weight, gradient in zip(weights, gradients, strict=True):
            if weight.grad is None:  # laid out in memory like the weight, as optimisers expect
                weight.grad = torch.zeros_like(weight)
            weight.grad += gradient
    return total


def held_out_loss(
    model: Any, rows: Sequence[Encoded], micro_tokens: int = 2048, team: Team | None = None
) -> float:
    """Mean loss per learnt token over `rows`, in nats; dropout off.

    Args:
        team: processes that share the rows; each gets the mean over all of them.

    Raises:
        BaizeError: no rows.
    """
    import torch

    if not rows:
        raise BaizeError("no dialogue to measure the loss on: put some into the validation set")
    team, was_training = team or Team(), model.training
    at_once = 1 if team.in_step else lanes(model)

    def loss_of(batch: Sequence[Encoded]) -> float:
        with torch.no_grad():  # each thread has its own
            return _head_loss(model.get_output_embeddings(), *_hidden_and_targets(model, batch))

    model.eval()
    with lean(model):
        batches = team.batches(rows, lane_tokens(micro_tokens, at_once))
        total = sum(_side_by_side(loss_of, batches, at_once))
    model.train(was_training)
    device = model.get_output_embeddings().weight.device
    return team.total(total, device) / sum(row.num_labels for row in rows)
