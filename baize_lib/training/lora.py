"""LoRA adapters on a base: new ones put on for training, trained ones put on, chosen, taken off.

All adapters share one copy of the base's weights; files and parameters are PEFT's.

    name = attach(base, "runs/laptop/adapter")
    select(base, name)      # the adapter speaks
    select(base, None)      # the base itself
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baize_lib.config import BaizeError
from baize_lib.dialogue import TEMPLATE
from baize_lib.files import sha256_of
from baize_lib.models.base import Base
from baize_lib.models.shapes import Shape, empty_model
from baize_lib.models.weights import quiet, refusing
from baize_lib.training.settings import TrainingSettings

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import nn
    from transformers import PreTrainedModel

__all__ = ["trainable_parameters", "read_card", "attach", "select"]


# --- a new adapter


def add_adapter(base: Base, settings: TrainingSettings) -> "PeftModel":
    """The base with a new adapter on it, as a PEFT model; the adapter alone is trained."""
    import torch

    for name in ("rank", "lr", "num_epochs", "batch_size", "max_grad_norm"):
        value = getattr(settings, name)
        if not value > 0:  # nor is "not a number"
            raise BaizeError(f"{name}={value}: nothing would be learnt; use a number above 0")
    detach(base)
    if settings.gradient_checkpointing:
        base.model.gradient_checkpointing_enable({"use_reentrant": False})
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        return _with_lora(base.model, settings, base.name)


def _with_lora(model: "PreTrainedModel", settings: TrainingSettings, name: str) -> "PeftModel":
    with quiet():
        from peft import LoraConfig, get_peft_model

        lora = LoraConfig(
            r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout,
            target_modules=_target_names(model, settings.targets, name), task_type="CAUSAL_LM",
            use_rslora=settings.rslora, use_dora=settings.dora,
        )  # fmt: skip
        with refusing(f"no adapter fits {settings.targets} of {name}", "choose other targets"):
            return get_peft_model(model, lora)


def inner_model(model: "nn.Module") -> "PreTrainedModel":
    """The transformers model, without PEFT's around it."""
    return getattr(model, "get_base_model", lambda: model)()


def text_model(model: "nn.Module") -> "PreTrainedModel":
    """The part that turns tokens into hidden states: of a model of pictures too, its text half."""
    return inner_model(model).get_decoder()


def _target_names(model: "PreTrainedModel", wanted: Sequence[str] | str, name: str) -> list[str]:
    """Names for PEFT of the layers that get an adapter: short ones where they say the same."""
    head, inside = model.get_output_embeddings(), {*text_model(model).modules()}
    modules = {n: m for n, m in model.named_modules() if m in inside or m is head}
    chosen = {n for n, m in modules.items() if _is_linear(m) and m is not head}
    if wanted != "all-linear":
        wanted = [wanted] if isinstance(wanted, str) else wanted
        matched = {t: {n for n in modules if f".{n}".endswith(f".{t}")} for t in wanted}
        if missing := [target for target, found in matched.items() if not found]:
            there = sorted({n.rpartition(".")[2] for n in chosen})
            raise BaizeError(
                f"targets {', '.join(missing)} match no layer of {name}: its linear layers are "
                f"{', '.join(there)}; 'all-linear' takes them all"
            )
        chosen = set().union(*matched.values())
    short = {n.rpartition(".")[2] for n in chosen}
    meant = {n for n, _ in model.named_modules() if n.rpartition(".")[2] in short}
    return sorted(short if meant == chosen else chosen)


def _is_linear(module: "nn.Module") -> bool:
    """A linear layer, as it is or packed; a router that is a kind of one is something else."""
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D

    named = "Linear" in type(module).__name__  # Falcon has a kind of its own, bitsandbytes two
    return type(module) is Conv1D or (named and isinstance(module, Linear))


def bare_weights(model: "PeftModel") -> list[str]:
    """The kinds of weight matrices in the text model that got no adapter, embeddings aside."""
    from torch.nn import Embedding

    bare: Counter[str] = Counter()
    for name, module in text_model(model).named_modules():
        if isinstance(module, Embedding) or "lora_" in name or name.endswith("base_layer"):
            continue
        kind = name.rpartition("layers.")[2].partition(".")[2] or name
        for weight, value in module.named_parameters(recurse=False):
            bare[kind if weight == "weight" else f"{kind}.{weight}"] += value.dim() > 1
    return [f"{kind} ({count})" for kind, count in (+bare).items()]


def trainable_parameters(
    shape: Shape, rank: int = 8, targets: Sequence[str] | str = "all-linear"
) -> int:
    """How many parameters LoRA trains, counted by PEFT itself on weights that take no memory.

    >>> baize = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj")
    >>> llama = {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008}
    >>> round(trainable_parameters(Shape.of(llama), 8, baize) / 1e6, 1)  # as published for 7B
    17.9
    """
    return lora_counts(shape, TrainingSettings(rank=rank, targets=targets))[0]


def lora_counts(shape: Shape, settings: TrainingSettings) -> tuple[int, int]:
    """The parameters an adapter trains, and the summed widths of what its layers read."""
    import torch

    with torch.device("meta"):
        model = _with_lora(empty_model(shape.config), settings, shape.config.model_type)
    trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    read = sum(count for name, count in trained.items() if "lora_A" in name)
    return sum(trained.values()), read // settings.rank


# --- trained adapters


def read_card(folder: Path | str) -> dict[str, Any]:
    """What an adapter says about itself, its `baize_run.json`.

    A BaizeError where a file of it is missing or is not what was written.
    """
    folder, told = Path(folder), Path(folder) / "baize_run.json"
    for name in ("adapter_config.json", "adapter_model.safetensors", told.name):
        if not (folder / name).is_file():
            raise BaizeError(
                f"adapter folder {folder} has no {name}: train one with notebook "
                "04_lora_training, or use the recorded one in data/adapter"
            )
    with refusing(f"{told} is damaged", "train it again"):
        card = dict(json.loads(told.read_text(encoding="utf-8")))
    for name, checksum in card.get("checksums", {}).items():
        if sha256_of(folder / name) != checksum:
            raise BaizeError(f"{folder / name} is damaged (its checksum differs): train it again")
    return card


def attach(base: Base, folder: Path | str) -> str:
    """Put the adapter in `folder` on the base, unless it is there already; returns its name.

    A BaizeError as `read_card`, or where it was trained on another base or template.
    """
    card, peft = read_card(folder), base.attached.get("peft")
    name = sha256_of(Path(folder) / "adapter_model.safetensors")[:16]
    if peft and name in peft.peft_config:
        return name
    theirs, ours = card.get("base_model"), base.name
    if card.get("precision") == base.precision and "weights" in card:
        theirs, ours = card["weights"], base.fingerprint()  # whatever the two are called
    for what, there, here in (("base", theirs, ours), ("template", card.get("template"), TEMPLATE)):
        if there != here:
            raise BaizeError(
                f"the adapter in {folder} was trained with {what} {there!r} and this is {here!r}: "
                "load the matching one, or train again"
            )
    with quiet(), refusing(f"the adapter in {folder} is damaged or does not fit", "train it again"):
        from peft import PeftModel

        if peft:
            peft.load_adapter(folder, adapter_name=name)
        else:
            peft = PeftModel.from_pretrained(base.model, folder, adapter_name=name)
            base.attached.update(peft=peft.eval(), selected=name)
    return name


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
