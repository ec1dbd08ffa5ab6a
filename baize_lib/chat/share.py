"""Hand the chatbot on: a model card that says what it is, and the adapter merged into its base.

A reader of a model must learn what it was trained on, with which teacher, and what it cannot do.
`model_card` writes that from `baize_run.json`; nothing in it is typed by hand.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from baize_lib.config import BaizeError
from baize_lib.files import write_atomic
from baize_lib.models.weights import MODELS
from baize_lib.training.lora import read_card

__all__ = [
    "model_card",
    "merge",
    "push",
]


if TYPE_CHECKING:
    from baize_lib.models import Base


def model_card(adapter_dir: Path | str, *, teacher: str) -> str:
    """Write the adapter's README.md (the hub's model-card format) and return it."""
    card = read_card(adapter_dir)
    name = card["base_model"]
    base = MODELS[name].original if name in MODELS else name
    held_out = "not measured"
    if card["loss_after"] is not None:
        held_out = f"{card['loss_before']:.3f} before, {card['loss_after']:.3f} after"
    text = f"""---
base_model: {base}
library_name: peft
pipeline_tag: text-generation
tags: [lora, self-chat, baize-course]
---
# A chatbot trained on self-chat

LoRA adapter for `{base}`, trained by the Baize course on dialogues that
`{teacher}` had with itself.

| | |
|---|---|
| training tokens | {card["num_tokens"]:,} in {card["seconds"]:.0f} s |
| held-out loss, nats a token | {held_out} |
| corpus (hash) | `{card["corpus"]}` |
| template | `{card["template"]}` |

**Use.** Ask it in the course's template; every reply ends with the end token.

**Limits.** It imitates its teacher's dialogues: it repeats the teacher's mistakes, states false
things fluently, and refuses nothing its data did not teach it to refuse. Not for advice on health,
law or money. Output of a paid teacher falls under that teacher's terms of use.
"""
    write_atomic(Path(adapter_dir) / "README.md", text)
    return text


def merge(base: "Base", adapter_dir: Path | str, out: Path | str) -> Path:
    """Add the adapter's matrices to the base's and save one ordinary model in `out`.

    Raises:
        BaizeError: the base is quantised (merge into the full-precision one), or another base.
    """
    from peft import PeftModel

    card = read_card(adapter_dir)
    if base.name != card["base_model"]:
        raise BaizeError(f"the adapter is for {card['base_model']!r}, not {base.name!r}")
    if base.precision in ("int8", "nf4"):
        raise BaizeError(f"cannot merge into a {base.precision} base: load it in bfloat16 first")
    merged = PeftModel.from_pretrained(base.model, str(adapter_dir)).merge_and_unload()
    merged.save_pretrained(out)
    base.tokenizer.save_pretrained(out)
    return Path(out)


def push(adapter_dir: Path | str, repository: str) -> str:
    """Upload the adapter folder to the Hugging Face hub as a private model; returns its address.

    Raises:
        BaizeError: no token, or the hub cannot be reached.
    """
    from huggingface_hub import HfApi

    read_card(adapter_dir)
    try:
        api = HfApi()
        address = api.create_repo(repository, exist_ok=True, private=True)
        api.upload_folder(folder_path=str(adapter_dir), repo_id=repository)
    except Exception as error:  # noqa: BLE001 - the hub's client raises many unrelated kinds
        raise BaizeError(
            f"{repository} was not uploaded ({type(error).__name__}): run `hf auth login` with a "
            "write token, and check the connection"
        ) from None
    return str(address)
