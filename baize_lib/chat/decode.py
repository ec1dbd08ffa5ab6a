"""One more token for each of several replies: the part of chatting that takes the time.

Prompts are padded on the left and their keys and values kept, as everywhere. Two things make it
faster than `model.generate` on a CPU: a reply that has ended leaves the batch, and the products
use weights packed once for oneDNN, with the adapter already added to them.

    decoder = Decoder(base, adapter, prompts, packs={})
    decoder.next_logits([0, 1, 2])                  # after the prompts: (3, vocabulary)
    decoder.next_logits([0, 2], [[17], [305]])      # reply 1 has ended

The speed beside transformers' own `generate` is measured by `tests/benchmarks/bench_chat.py`.
"""

from collections.abc import Callable, Sequence
from typing import Any

from baize_lib.models.base import Base
from baize_lib.training.lora import select

__all__ = []

_MOST_PACKED = 3_000_000_000  # bytes of weights that are packed, one copy for each adapter


class Decoder:
    """Next-token logits for several prompts at once."""

    def __init__(
        self, base: Base, adapter: str | None, prompts: Sequence[list[int]], packs: dict
    ) -> None:
        """`adapter`: the name `lora.attach` gave; `packs`: packed weights, kept by the caller."""
        import torch
        from transformers import DynamicCache

        self.base, self.adapter, self.cache = base, adapter, DynamicCache(config=base.model.config)
        width, device = max(map(len, prompts)), base.model.device
        self.ids = torch.tensor([[0] * (width - len(ids)) + ids for ids in prompts], device=device)
        starts = torch.tensor([width - len(ids) for ids in prompts], device=device)
        self.mask = (torch.arange(width, device=device) >= starts[:, None]).long()
        self.rows = list(range(len(prompts)))
        self.products = _products(base.model, adapter, packs)

    def next_logits(self, rows: list[int], ids: list[list[int]] | None = None) -> Any:
        """Logits (len(rows), vocabulary), on the CPU.

        `rows` are the prompts whose replies go on (one left out never comes back), `ids` the token
        that each of them wrote last; None at the beginning.
        """
        import torch

        from baize_lib.training.fast_cpu import computing_by

        if ids is not None:
            device = self.mask.device
            if len(rows) < len(self.rows):
                keep = torch.tensor([self.rows.index(row) for row in rows], device=device)
                self.cache.batch_select_indices(keep)
                self.mask, self.rows = self.mask[keep], rows
            self.ids = torch.tensor(ids, device=device)
            self.mask = torch.cat([self.mask, torch.ones_like(self.ids)], dim=1)
        positions = (self.mask.cumsum(1) - 1).clamp(min=0)[:, -self.ids.shape[1] :]
        if not self.products:
            select(self.base, self.adapter)
        with torch.inference_mode(), computing_by(self.products):
            output = self.base.model(
                input_ids=self.ids, attention_mask=self.mask, position_ids=positions,
                past_key_values=self.cache, use_cache=True, logits_to_keep=1,
            )  # fmt: skip
        return output.logits[:, -1].float().cpu()


def _products(model: Any, adapter: str | None, packs: dict) -> list[tuple[Any, Callable]]:
    """The linear layers of a float32 model on a CPU, each with the product that replaces its own.

    None are replaced where that would not be the same model: another device or precision, or an
    adapter that is more than two matrices beside a linear layer.
    """
    import psutil
    import torch
    from peft.tuners.lora.layer import Linear
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    layers: dict[str, Any] = {}
    inside: tuple[str, ...] = ()
    for name, layer in model.named_modules():
        adapted = isinstance(layer, BaseTunerLayer | AuxiliaryTrainingWrapper)
        if name.startswith(inside) or not (adapted or type(layer) is torch.nn.Linear):
            continue
        if adapted:
            inside = (*inside, f"{name}.")
            plain = type(layer) is Linear and type(layer.base_layer) is torch.nn.Linear
            if not plain or layer.lora_variant.get(adapter) or layer.lora_bias.get(adapter):
                return []
        layers[name] = layer
    weights = [getattr(layer, "base_layer", layer).weight for layer in layers.values()]
    if not (
        hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and torch.backends.mkldnn.is_available()
        and all(w.device.type == "cpu" and w.dtype == torch.float32 for w in weights)
        and (size := sum(w.nbytes for w in weights)) < _MOST_PACKED
        and (packs or psutil.virtual_memory().available > 3 * size)  # else no room for two copies
    ):
        return []
    if len({adapter for *_, adapter in packs} | {adapter}) > 3:  # base and two adapters at a time
        packs.clear()
    return [(layer, _product(name, layer, adapter, packs)) for name, layer in layers.items()]


def _product(name: str, layer: Any, adapter: str | None, packs: dict) -> Callable:
    import torch

    plain, scaling = getattr(layer, "base_layer", layer), getattr(layer, "scaling", {})
    own = adapter if adapter in scaling else None
    key = (name, plain.weight.data_ptr(), plain.weight._version, own)
    if key not in packs:
        with torch.no_grad():
            weight = plain.weight + layer.get_delta_weight(own) if own else plain.weight.detach()
            packs[key] = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), 16)
    packed, multiply = packs[key], torch.ops.mkldnn._linear_pointwise
    return lambda x: multiply(x, packed, plain.bias, "none", [], "")
