"""Hand the chatbot on: merged into one ordinary model, with a card that says what it is, pushed.

A reader of a model must learn what it was trained on, with which teacher, what it cannot do, and
whether it may be passed on. The cards are written from the run's own files; nothing is typed.

    merged = merge(base, run.adapter_dir, run.path / "merged")
    print(model_card(merged, run))
    push(merged, "you/your-chatbot")
"""

import copy
import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from baize_lib.config import BaizeError, Run
from baize_lib.dialogue import Message, render
from baize_lib.files import read_jsonl, template, write_atomic
from baize_lib.models.base import Base
from baize_lib.models.weights import MODELS, quiet
from baize_lib.training.lora import read_card
from baize_lib.training.tokens import save_layout

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["merge", "model_card", "dataset_card", "push"]

_HERE = Path(__file__).parent
_HUB = None  # the hub's address; None is the real one


def merge(base: Base, adapter_dir: Path | str, out: Path | str) -> Path:
    """Write a copy of the base with the adapter added to it, one ordinary model, into `out`.

    The base in memory is not touched: the copy is made in main memory, also where the base is on a
    GPU. The folder carries our layout as its chat template. A BaizeError where there is no adapter
    of this base, or the base is quantised, whose lost digits a merge would keep for ever.
    """
    from peft import PeftModel
    from torch import nn

    card, out = read_card(adapter_dir), Path(out)
    if base.name != card["base_model"] and card.get("weights") != base.fingerprint():
        raise BaizeError(f"the adapter is for {card['base_model']!r}, not {base.name!r}")
    if base.precision in ("int8", "nf4"):
        first = f"load it in full precision first, load_base({base.name!r}, 'bfloat16')"
        raise BaizeError(f"cannot merge into a base in {base.precision}: {first}")
    if out.exists() and any(out.iterdir()) and not (out / "baize_run.json").is_file():
        raise BaizeError(f"{out} holds other files: choose a new folder")
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    need_room(out, sum(p.nbytes for p in base.model.parameters()))
    try:
        with quiet():
            model, peft = base.model, base.attached.get("peft")
            # deepcopy takes a tensor from here where it would copy it on its own device
            here = {id(b): b.to("cpu", copy=True) for b in model.buffers()}
            here |= {id(p): nn.Parameter(p.to("cpu", copy=True)) for p in model.parameters()}
            alone = copy.deepcopy(peft, here).unload() if peft else copy.deepcopy(model, here)
            PeftModel.from_pretrained(alone, adapter_dir).merge_and_unload().save_pretrained(part)
        told = card.get("settings", {}).get("end_token", True)
        save_layout(part, base.tokenizer, card.get("language", "en"), told)
        write_atomic(part / "baize_run.json", json.dumps(card, indent=1))
        shutil.rmtree(out, ignore_errors=True)
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return out


def need_room(out: Path, num_bytes: float) -> None:
    """Raise a BaizeError unless the disk that `out` will be on has room for so many bytes."""
    free = shutil.disk_usage(out.parent).free
    if free < 1.05 * num_bytes:
        what = f"{out} takes {num_bytes / 1e6:,.0f} MB and its disk has {free / 1e6:,.0f} free"
        raise BaizeError(f"{what}: make room or choose another disk; nothing was changed")


def model_card(
    folder: Path | str, run: Run | None = None, *, scores: "pd.DataFrame | None" = None
) -> str:
    """Write the README.md of an adapter or a merged model, the hub's model card; returns it.

    The files of `run` tell the teacher and the corpus; `scores` is a table to show, such as
    `evaluation.score_table` gives.
    """
    folder = Path(folder)
    is_adapter = (folder / "adapter_config.json").is_file()
    card = read_card(folder) if is_adapter else _read(folder / "baize_run.json")
    if not card:
        raise BaizeError(f"{folder} holds neither an adapter nor a merged model")
    eos = _read(folder / "tokenizer_config.json").get("eos_token", "<end token>")
    talk = [Message("user", "What is LoRA?"), Message("assistant", "Two small matrices.")]
    return _write_card(
        folder, "model_card", _told(run, card.get("teacher", ""), card["base_model"]), card=card,
        library="peft" if is_adapter else "transformers",
        scores=[] if scores is None else scores.to_dict("records"),
        example=render(talk, eos=eos, language=card.get("language", "en")),
    )  # fmt: skip


def dataset_card(run: Run) -> str:
    """Write `corpus/README.md`, the hub's dataset card, from the run's own files; returns it."""
    told = _told(run, "", "")
    if not told["corpus"]:
        raise BaizeError(f"run {run.path.name} has no corpus yet: notebook 03 makes one")
    files = {"train": run.train_file, "validation": run.validation_file}
    counts = {name: sum(1 for _ in read_jsonl(path)) for name, path in files.items()}
    return _write_card(run.corpus_dir, "dataset_card", told, counts=counts)


def _write_card(folder: Path, form: str, told: dict[str, Any], **more: Any) -> str:
    text = template(_HERE / f"{form}.jinja", escape=False).render(**told, **more) + "\n"
    write_atomic(folder / "README.md", text)
    return text


def push(folder: Path | str, repository: str, *, kind: str = "model", private: bool = True) -> str:
    """Upload a folder and its card to the Hugging Face hub; returns its address.

    Args:
        folder: an adapter, a merged model, or with kind="dataset" a run's corpus.
        repository: "you/name"; it is made if it is not there.
        private: only you can see it; change that when you have read what its card says.
    """
    from huggingface_hub import HfApi

    if not (Path(folder) / "README.md").is_file():
        raise BaizeError(f"{folder} has no README.md: write it with model_card or dataset_card")
    try:
        api = HfApi(endpoint=_HUB)
        address = api.create_repo(repository, repo_type=kind, exist_ok=True, private=private)
        api.upload_folder(folder_path=str(folder), repo_id=repository, repo_type=kind)
    except Exception as error:  # noqa: BLE001 - the hub's client raises many unrelated kinds
        raise BaizeError(
            f"{repository} was not uploaded ({type(error).__name__}): run `hf auth login` with a "
            "write token, and check the name and the connection"
        ) from None
    return str(address)


def _told(run: Run | None, teacher: str, student: str) -> dict[str, Any]:
    """What the run's files say of teacher, corpus and licences."""
    tier = _read(run.path / "run.json").get("tier", {}) if run else {}
    teacher = teacher or tier.get("teacher", "a teacher that was not noted")
    rows = read_jsonl(run.train_file) if run and run.train_file.is_file() else ()
    sources = Counter(str(row.get("source") or "not noted") for row in rows)
    rules = yaml.safe_load((_HERE / "licences.yaml").read_text(encoding="utf-8"))
    named = [("teacher", teacher), ("student", student), *(("seeds", s) for s in sources)]
    licences = [
        {**next(rule for rule in rules[part] if re.search(rule["match"], name)), "part": part,
         "name": name}
        for part, name in named if name
    ]  # fmt: skip
    return {
        "teacher": teacher, "licences": licences,
        "base": MODELS[student].original if student in MODELS else student,
        "corpus": _read(run.corpus_dir / "card.json") if run else {},
    }  # fmt: skip


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
