"""LoRA adapters on a base: put on, chosen, taken off.

All adapters share one copy of the base's weights; files and parameters are PEFT's.

    name = attach(base, "runs/laptop/adapter")
    select(base, name)      # the adapter speaks
    select(base, None)      # the base itself
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from baize_lib.config import BaizeError
from baize_lib.dialogue import TEMPLATE
from baize_lib.files import sha256_of
from baize_lib.models.base import Base
from baize_lib.models.weights import quiet

__all__ = [
    "read_card",
    "attach",
    "select",
    "detach",
]


def read_card(folder: Path | str) -> dict[str, Any]:
    """What an adapter says about itself, its `baize_run.json`.

    Raises:
        BaizeError: the folder is missing, is no adapter, or was made without a card.
    """
    folder = Path(folder)
    for name in ("adapter_config.json", "adapter_model.safetensors", "baize_run.json"):
        if not (folder / name).is_file():
            raise BaizeError(
                f"adapter folder {folder} has no {name}: train one with notebook "
                "04_lora_training, or use the recorded one in data/adapter"
            )
    try:
        return json.loads((folder / "baize_run.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise BaizeError(f"{folder / 'baize_run.json'} is not JSON ({error})") from error


def attach(base: Base, folder: Path | str) -> str:
    """Put the adapter in `folder` on the base, unless it is there already; returns its name.

    Raises:
        BaizeError: no adapter there, or one trained on another base model or template.
    """
    card = read_card(folder)
    for key, ours in (("base_model", base.name), ("template", TEMPLATE)):
        if card.get(key) != ours:
            raise BaizeError(
                f"the adapter in {folder} was trained with {key} {card.get(key)!r} and this is "
                f"{ours!r}: load the matching one, or train again"
            )
    name = sha256_of(Path(folder) / "adapter_model.safetensors")[:16]
    with quiet(), _readable(folder):
        from peft import PeftModel

        if "peft" not in base.attached:
            peft = PeftModel.from_pretrained(base.model, folder, adapter_name=name)
            base.attached.update(peft=peft.eval(), selected=name)
        elif name not in base.attached["peft"].peft_config:
            base.attached["peft"].load_adapter(folder, adapter_name=name)
    return name


@contextlib.contextmanager
def _readable(folder: Path | str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError, TypeError, OSError) as error:
        first = str(error).strip().splitlines()[0]
        raise BaizeError(
            f"the adapter in {folder} does not fit or is damaged ({first}): train it again"
        ) from error


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
