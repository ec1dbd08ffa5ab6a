"""The loss: right padding without a mask, and the head only where something is learnt.

The loss of a batch is plain cross-entropy over its learnt tokens, as in `plain_loss`: a sum, for
each step divides by the number of learnt tokens in the whole step, so that micro-batches, padding,
order and processes change the speed and nothing else. `fast_loss` is the same without ever holding
all the logits, where a model's logits are its hidden states times its head and nothing more.

    backward(model, micro_batches(rows, 512), num_labels, loss_of(model))

On a CPU several micro-batches are computed side by side, each by its own share of the cores: small
ones stay in a core's cache, and no core waits for another after every operation.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from baize_lib.training.lora import inner_model, text_model
from baize_lib.training.settings import TrainingSettings
from baize_lib.training.tokens import IGNORED, Encoded

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__: list[str] = []

Batch = Sequence[Encoded]
Loss = Callable[["nn.Module", Batch], "Tensor"]


def plain_loss(model: "nn.Module", batch: Batch) -> "Tensor":
    """The sum of the losses of a batch's learnt tokens, in nats, right for every model."""
    from torch.nn.functional import cross_entropy

    ids, targets = _padded(model, batch)  # (rows, T) and (rows, T - 1)
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]  # (rows, T - 1, vocabulary)
    learnt = targets != IGNORED
    return cross_entropy(logits[learnt].float(), targets[learnt], reduction="sum").double()


def fast_loss(model: "nn.Module", batch: Batch) -> "Tensor":
    """The same sum where `loss_of` allows it."""
    from baize_lib.training.fast_cpu import HeadLoss

    ids, targets = _padded(model, batch)
    hidden = text_model(model)(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    learnt = targets != IGNORED  # hidden (rows, T - 1, width)
    return HeadLoss.apply(hidden[learnt], model.get_output_embeddings().weight, targets[learnt])


def _padded(model: "nn.Module", batch: Batch) -> tuple["Tensor", "Tensor"]:
    """Token ids (rows, T), and what each should be followed by (rows, T - 1).

    Padding stands on the right: with causal attention no real token sees it, so no attention mask
    is needed and the fast kernels apply.
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    device = inner_model(model).device
    ids = pad_sequence([torch.tensor(row.input_ids) for row in batch], True)
    labels = pad_sequence([torch.tensor(row.labels) for row in batch], True, IGNORED)
    return ids.to(device), labels[:, 1:].to(device)


def loss_of(model: "nn.Module") -> Loss:
    """`fast_loss` where it is right, and `plain_loss` where logits are biased, scaled, capped or
    made by a head with an adapter: a short row decides, compared to the bit.
    """
    import torch

    inner = inner_model(model.eval())
    head, ids = inner.get_output_embeddings(), torch.arange(1, 17, device=inner.device)[None]
    if type(head) is not torch.nn.Linear:
        return plain_loss
    try:
        with torch.no_grad():
            hidden = text_model(model)(input_ids=ids, use_cache=False).last_hidden_state
            logits = inner(input_ids=ids, use_cache=False).logits
            by_hand = torch.nn.functional.linear(hidden, head.weight).to(logits.dtype)
    except (AttributeError, RuntimeError):  # no hidden states, or of another size
        return plain_loss
    return fast_loss if torch.equal(by_hand, logits) else plain_loss


# --- side by side


def lanes(model: "nn.Module", settings: TrainingSettings | None = None) -> int:
    """How many micro-batches to compute side by side: up to four on a CPU, which share its tokens.

    One where modules keep something between their calls: random numbers (dropout), packed weights,
    mixtures of experts, rotations that depend on the length, and families not tried here.
    """
    import torch

    inner = inner_model(model)
    known = inner.config.model_type in ("llama", "mistral", "qwen2", "qwen3", "olmo2", "gpt2")
    rotation = getattr(inner.config, "rope_parameters", None) or {}
    steady = rotation.get("rope_type", "default") in ("default", "linear", "llama3", "yarn")
    alone = inner.device.type != "cpu" or getattr(inner, "is_quantized", False)
    if alone or not known or not steady or (settings and settings.dropout):
        return 1
    return min(4, torch.get_num_threads())


def lane_tokens(micro_tokens: int, at_once: int) -> int:
    """Padded tokens of a micro-batch when `at_once` of them share `micro_tokens`; at most 512, for
    large ones leave a core's cache.
    """
    return micro_tokens if at_once == 1 else min(512, micro_tokens // at_once)


def in_lanes(work: Callable[[Batch], Any], batches: Iterable[Batch], at_once: int) -> Iterator[Any]:
    """What `work` makes of each batch, in an order that depends on nothing but the batches."""
    import torch

    # the longest first, so that no lane is left with much to do when the others have finished
    order = sorted(batches, key=lambda batch: -sum(len(row.input_ids) for row in batch))
    if at_once == 1 or len(order) < 2:
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
    model: "nn.Module",
    batches: Iterable[Batch],
    num_labels: int,
    loss: Loss = plain_loss,
    at_once: int = 1,
    scale: float = 1.0,
) -> float:
    """Set the gradients of the batches' loss over `num_labels` tokens, those of the whole step;
    returns its sum, in nats.

    `at_once` micro-batches are computed side by side, see `lanes`: the result is the same, bit for
    bit, from run to run, and to rounding for any number. Gradients come `scale` times too large, as
    float16 needs.
    """
    import torch

    weights = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in weights:  # laid out in memory like the weight, as optimisers expect
        weight.grad = torch.zeros_like(weight)

    def gradients(batch: Batch) -> tuple[float, Sequence["Tensor"]]:
        found = loss(model, batch)
        # an expert that no token went to has no gradient
        unused = {"allow_unused": True, "materialize_grads": True}
        return found.item(), torch.autograd.grad(found * (scale / num_labels), weights, **unused)

    total = 0.0
    for found, parts in in_lanes(gradients, batches, at_once):
        total += found
        for weight, part in zip(weights, parts, strict=True):
            weight.grad += part
    return total
