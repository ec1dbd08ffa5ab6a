"""LoRA training from dialogues to an adapter's folder; a killed run goes on where it was.

    fit(load_base(), train, validation, run.adapter_dir, TrainingSettings(num_epochs=2))

or, from a run file (see `settings`): `python -m baize_lib.training run.yaml`, and on as many
devices as there are `accelerate launch -m baize_lib.training run.yaml`.

>>> print(Step(12, 20, 1, 1.4321, 2e-4, 0.5, 181.0, 35.2))
step 12/20  loss 1.432  181 tokens/s  35 s left
"""

import hashlib
import io
import itertools
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from baize_lib.config import BaizeError
from baize_lib.dialogue import TEMPLATE, Dialogue
from baize_lib.files import read_jsonl, sha256_of, text_hash, write_atomic, write_jsonl
from baize_lib.models.base import Base
from baize_lib.models.weights import quiet, refusing
from baize_lib.training.lora import bare_weights, read_card
from baize_lib.training.loss import plain_loss
from baize_lib.training.settings import TrainingSettings
from baize_lib.training.step import Trainee, held_out_loss, join, trainee
from baize_lib.training.tokens import Encoded, encode_all, epoch_steps, save_layout

__all__ = ["fit"]


@dataclass(frozen=True, slots=True)
class Step:
    """One optimiser step: mean loss per learnt token in nats, real tokens/s, seconds left."""

    number: int
    total: int
    epoch: int
    loss: float
    lr: float
    grad_norm: float
    tokens_per_second: float
    eta_seconds: float

    def __str__(self) -> str:
        return (
            f"step {self.number}/{self.total}  loss {self.loss:.3f}  "
            f"{self.tokens_per_second:.0f} tokens/s  {self.eta_seconds:.0f} s left"
        )


@dataclass(frozen=True, slots=True)
class Fit:
    """What training gave. Losses are held-out ones per learnt token in nats, None without any."""

    adapter_dir: Path
    history: tuple[Step, ...]
    loss_before: float | None
    loss_after: float | None
    num_dialogues: int
    counts: dict[str, int]  # dialogues dropped or cut, by reason
    num_tokens: int
    num_trainable: int
    seconds: float  # of training alone
    tokens_per_second: float


def fit(
    base: Base,
    train: Sequence[Dialogue],
    validation: Sequence[Dialogue],
    adapter_dir: Path | str,
    settings: TrainingSettings | None = None,
    on_step: Callable[[Step], Any] | None = None,
    about: dict[str, Any] | None = None,
) -> Fit:
    """Train a LoRA adapter and save it to `adapter_dir`; the base is left as it was.

    A killed run, called again, goes on from its last checkpoint (`<adapter_dir>.checkpoint`) with
    the losses of one that never stopped; a finished one is not trained again. An adapter of
    another base, corpus or other settings is moved aside, never overwritten.

    `about` is more entries for the adapter's card, `baize_run.json` (for example the tier).
    """
    settings, adapter_dir = settings or TrainingSettings(), Path(adapter_dir)
    rows, counts = _readable(base, train, settings)
    held_out, _ = _readable(base, validation, settings)
    if len(rows) < 2:
        found = f"{len(rows)} of {len(train)} dialogues can be trained on ({counts})"
        raise BaizeError(f"{found}: collect at least 2, or raise max_length")
    identity = _identity(base, rows, settings)
    if finished := _finished(adapter_dir, identity):
        print(f"{adapter_dir.name}/ holds this very run already: nothing is trained again")
        return finished
    team = join()
    with trainee(base, settings, team) as student:
        asked = (student.model, held_out, settings.micro_tokens, team)
        before = held_out_loss(*asked) if held_out else None
        checkpoint = adapter_dir.with_name(f"{adapter_dir.name}.checkpoint")
        history = _train(student, rows, checkpoint, identity, on_step)
        after = held_out_loss(*asked) if held_out else None
        tokens, rate = settings.num_epochs * _num_tokens(rows), history[-1].tokens_per_second
        result = Fit(
            adapter_dir, tuple(history), before, after, len(rows), counts, tokens,
            sum(p.numel() for p in student.weights), tokens / rate, rate,
        )  # fmt: skip
        if team.rank == 0:
            _save(student, result, identity, about or {})
            checkpoint.unlink(missing_ok=True)
        team.total(0, base.model.device)  # the others wait for the files
    return result


def _readable(
    base: Base, dialogues: Sequence[Dialogue], settings: TrainingSettings
) -> tuple[list[Encoded], dict[str, int]]:
    """Rows and counts of `encode_all`; refused are tokens and lengths beyond the base's tables."""
    rows, counts = encode_all(dialogues, base.tokenizer, settings)
    known = base.model.get_input_embeddings().weight.shape[0]
    longest = getattr(base.model.config.get_text_config(), "max_position_embeddings", None)
    for row in rows:
        largest, length = max(row.input_ids), len(row.input_ids)
        if largest >= known:
            what = f"dialogue {row.id} has token {largest}, and {base.name} knows only {known}"
            raise BaizeError(f"{what}: put the base's own tokenizer beside its weights")
        if longest and length > longest:
            what = f"dialogue {row.id} has {length} tokens, and {base.name} reads {longest} at most"
            raise BaizeError(f"{what}: set max_length={longest}")
    return rows, dict(counts)


def _identity(base: Base, rows: Sequence[Encoded], settings: TrainingSettings) -> dict[str, Any]:
    """What makes a run this very run; the rest changes the speed and nothing else."""
    free = ("micro_tokens", "checkpoint_every", "gradient_checkpointing")
    told = {key: value for key, value in asdict(settings).items() if key not in free}
    corpus = text_hash(json.dumps([row.input_ids for row in rows]))
    told |= {"base's weights": base.fingerprint(), "precision": base.precision}
    return json.loads(json.dumps(told | {"template": TEMPLATE, "corpus": corpus}))


def _num_tokens(rows: Sequence[Encoded]) -> int:
    return sum(len(row.input_ids) for row in rows)


# --- the steps


def _train(
    student: Trainee,
    rows: Sequence[Encoded],
    checkpoint: Path,
    identity: dict[str, Any],
    on_step: Callable[[Step], Any] | None,
) -> list[Step]:
    if student.compute != student.base.precision:
        print(f"training multiplies in {student.compute}: {student.reason}")
    if student.loss is plain_loss:
        print("all logits are computed: this model's are more than hidden states times head")
    if bare := bare_weights(student.model):
        print(f"no adapter on {', '.join(bare)}")
    settings, history = student.settings, _resume(student, checkpoint, identity)
    epochs = range(settings.num_epochs)
    steps = [(epoch, part) for epoch in epochs for part in epoch_steps(rows, settings, epoch)]
    done, total = sum(_num_tokens(part) for _, part in steps[: len(history)]), len(steps)
    begun = time.perf_counter() - (done / history[-1].tokens_per_second if history else 0)
    every = settings.checkpoint_every if student.team.rank == 0 else 0
    with student.computing():
        for number in range(len(history) + 1, total + 1):
            epoch, part = steps[number - 1]
            found = student.step(number, total, part)
            done += _num_tokens(part)
            rate = done / (time.perf_counter() - begun)
            left = (settings.num_epochs * _num_tokens(rows) - done) / rate
            history.append(Step(number, total, epoch + 1, *found, rate, left))
            if every and number % every == 0 and number < total:
                _keep(student, checkpoint, identity, history)
            if on_step:
                on_step(history[-1])
    return history


def _keep(
    student: Trainee, checkpoint: Path, identity: dict[str, Any], history: Sequence[Step]
) -> None:
    """Write what `_resume` reads: a SHA-256, and after it everything else."""
    import torch

    state = {
        "identity": identity, "history": [asdict(step) for step in history],
        "scale": student.scale, "weights": [p.detach().cpu() for p in student.weights],
        "optimizer": student.optimizer.state_dict(),
    }  # fmt: skip
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(checkpoint, hashlib.sha256(buffer.getvalue()).digest() + buffer.getvalue())


def _resume(student: Trainee, checkpoint: Path, identity: dict[str, Any]) -> list[Step]:
    """The steps done, with the student as it was after them."""
    import torch

    if not checkpoint.is_file():
        return []
    stored = checkpoint.read_bytes()
    if hashlib.sha256(stored[32:]).digest() != stored[:32]:
        raise BaizeError(f"{checkpoint} is damaged or not a checkpoint: delete it to start anew")
    saved = torch.load(io.BytesIO(stored[32:]), weights_only=True, map_location="cpu")
    then = saved["identity"]
    changed = [f"{k}: {then.get(k)!r} -> {v!r}" for k, v in identity.items() if then.get(k) != v]
    if changed:
        raise BaizeError(
            f"{checkpoint} is a checkpoint of another run ({'; '.join(changed)}): go back to "
            "those settings to finish it, or delete that file to start anew"
        )
    with torch.no_grad():
        for weight, value in zip(student.weights, saved["weights"], strict=True):
            weight.copy_(value)
    student.optimizer.load_state_dict(saved["optimizer"])
    student.scale = saved["scale"]
    print(f"going on after step {len(saved['history'])}, from {checkpoint}")
    return [Step(**step) for step in saved["history"]]


# --- the adapter's folder

_KEPT = Fit.__slots__[2:]  # in its card


def _finished(adapter_dir: Path, identity: dict[str, Any]) -> Fit | None:
    """The result in the adapter's folder, if it is whole and of this very run."""
    try:
        card = read_card(adapter_dir)
        history = tuple(Step(**row) for row in read_jsonl(adapter_dir / "history.jsonl"))
        result = Fit(adapter_dir, history, **{name: card[name] for name in _KEPT})
    except (KeyError, TypeError, BaizeError):
        return None
    return result if card.get("identity") == identity else None


def _save(student: Trainee, result: Fit, identity: dict[str, Any], about: dict[str, Any]) -> None:
    """Write the adapter beside its place, and only when it is whole put it there."""
    target, settings = result.adapter_dir, student.settings
    part = target.with_name(f".{target.name}.new")
    shutil.rmtree(part, ignore_errors=True)
    with quiet(), refusing(f"the adapter was not written to {part}", "free some space, run again"):
        student.model.save_pretrained(part, save_embedding_layers=False)
        (part / "README.md").unlink(missing_ok=True)  # an empty form with a path of this machine
        save_layout(part, student.base.tokenizer, settings.language, settings.end_token)
        write_jsonl(part / "history.jsonl", map(asdict, result.history))
        files = ("adapter_model.safetensors", "adapter_config.json")
        card = {
            "base_model": student.base.name,
            "weights": identity["base's weights"],
            "template": TEMPLATE,
            "language": settings.language,
            "precision": student.base.precision,
            "compute": student.compute,
            "corpus": identity["corpus"],
            "identity": identity,
            "settings": asdict(settings),
            **{name: getattr(result, name) for name in _KEPT},
            "checksums": {name: sha256_of(part / name) for name in files},
            "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
        }
        write_atomic(part / "baize_run.json", json.dumps(card | about, indent=1))
    if target.exists():  # it cost somebody an afternoon
        names = (target.with_name(f"{target.name}.{n}") for n in itertools.count(1))
        aside = target.rename(next(name for name in names if not name.exists()))
        print(f"an earlier adapter, of another run, is kept in {aside.name}/")
    part.rename(target)
