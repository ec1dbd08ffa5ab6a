"""The loss and its gradient: right padding without a mask, and the head only where it is learnt.

Each step's loss is divided by the number of learnt tokens in the whole step, so that micro-batches,
padding, order and processes change the speed and nothing else.

    loss = sum(backward(model, batch, num_labels) for batch in micro_batches) / num_labels
"""

import math
from collections.abc import Sequence
from typing import Any

from baize_lib.config import BaizeError
from baize_lib.parallel import Team
from baize_lib.tokens import IGNORED, Encoded

__all__ = ["backward", "held_out_loss"]


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
    for rows in weight.split(_SLICE):
        logits = (hidden @ rows.T).float()
        higher = torch.maximum(top, logits.amax(-1, keepdim=True))
        shrunk, top = (top - higher).exp_(), higher
        raised = logits.sub_(top).exp_()
        norm = norm.mul_(shrunk).add_(raised.sum(-1, keepdim=True))
        if slope is not None:
            mean.mul_(shrunk).add_(raised.to(hidden.dtype) @ rows)
    chosen = weight[targets]
    logit = (hidden * chosen).sum(-1, keepdim=True, dtype=torch.float32)
    if slope is not None:
        slope.copy_(mean.div_(norm).sub_(chosen))
    return (norm.log() + top - logit).double().sum().item()


_SLICE = 4096  # tokens of the vocabulary


def backward(model: Any, batch: Sequence[Encoded], num_labels: int) -> float:
    """Add the gradients of the batch's loss over `num_labels` tokens; returns its sum, in nats.

    `num_labels` is the whole optimiser step's, so micro-batches of any size add up to one gradient.
    """
    import torch

    hidden, targets = _hidden_and_targets(model, batch)
    slope = torch.empty_like(hidden)
    with torch.no_grad():
        loss = _head_loss(model.get_output_embeddings(), hidden.detach(), targets, slope)
    hidden.backward(slope / num_labels)
    return loss


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
    model.eval()
    total = 0.0
    with torch.no_grad():
        for batch in team.batches(rows, micro_tokens):
            total += _head_loss(model.get_output_embeddings(), *_hidden_and_targets(model, batch))
    model.train(was_training)
    device = model.get_output_embeddings().weight.device
    return team.total(total, device) / sum(row.num_labels for row in rows)
