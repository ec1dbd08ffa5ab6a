"""LoRA training in which every token counts, and a planner for machines you do not have.

A dialogue becomes tokens and a *loss mask*: the model learns what the assistant says, and the end
token after it, and nothing of what the human says. Batches hold dialogues of similar length, the
output head is computed only where there is something to learn, and each step's loss is divided by
the number of learnt tokens in it, so that batch size and padding change the speed and nothing else.

    fit(load_base(), train, validation, run.adapter_dir, Settings(num_epochs=2), on_step=print)

>>> print(Step(12, 20, 1, 1.4321, 2e-4, 0.5, 181.0, 35.2))
step 12/20  loss 1.432  181 tokens/s  35 s left
"""

import contextlib
import io
import json
import math
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from baize_lib.config import BaizeError
from baize_lib.dialogue import TEMPLATE, Dialogue
from baize_lib.files import read_jsonl, text_hash, write_atomic, write_jsonl
from baize_lib.lora import detach, lean
from baize_lib.models import ALL_LINEAR, ARTICLE_TARGETS, Base, quiet
from baize_lib.planner import plan
from baize_lib.tokens import IGNORED, Encoded, encode, mask_html, prompt_ids

__all__ = [
    "Settings", "ARTICLE_SETTINGS", "Encoded", "encode", "encode_all", "prompt_ids", "mask_html",
    "Step", "Fit", "fit", "held_out_loss", "backward", "padding_waste",
    "plan",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Settings:
    """How to train. The defaults suit the embedded model; `ARTICLE_SETTINGS` holds Baize's own.

    Attributes:
        dropout: of LoRA's input; the article's 0.05 costs a fifth of the speed on a CPU.
        targets: names of the linear layers that get an adapter, or "all-linear".
        batch_size: dialogues per optimiser step.
        micro_tokens: padded tokens computed at once; less saves memory and changes nothing else.
        max_length: tokens of one dialogue; longer ones are cut at a turn.
        loss_on: "replies", or "all" as in Baize v1.
        end_token: end each reply with the end token, which is learnt too; Baize v1 had none.
        warmup: optimiser steps until `lr` is reached, at most a tenth of all.
        schedule: "cosine" or "linear", both down to zero.
        checkpoint_every: optimiser steps between checkpoints; 0 for none.
    """

    rank: int = 8
    alpha: float = 16
    dropout: float = 0.0
    targets: tuple[str, ...] | str = ALL_LINEAR
    rslora: bool = False
    dora: bool = False
    lr: float = 1e-3
    num_epochs: int = 2
    batch_size: int = 8
    micro_tokens: int = 1536
    max_length: int = 512
    loss_on: str = "replies"
    end_token: bool = True
    warmup: int = 100
    schedule: str = "cosine"
    max_grad_norm: float = 1.0
    seed: int = 0
    language: str = "en"
    gradient_checkpointing: bool = False
    checkpoint_every: int = 10


_ARTICLE = Settings(
    dropout=0.05, targets=ARTICLE_TARGETS, num_epochs=1, batch_size=64, micro_tokens=16_384,
    loss_on="all", schedule="linear", gradient_checkpointing=True, checkpoint_every=100,
)  # fmt: skip
ARTICLE_SETTINGS = {
    "7B": replace(_ARTICLE, lr=2e-4),
    "13B": replace(_ARTICLE, lr=1e-4, micro_tokens=8192),
    "30B": replace(_ARTICLE, lr=5e-5, micro_tokens=4096),
}


def encode_all(
    dialogues: Sequence[Dialogue], tokenizer: Any, settings: Settings
) -> tuple[list[Encoded], Counter[str]]:
    """Encode a corpus. Returns the rows, and counts of dialogues dropped or cut, by reason.

    Raises:
        BaizeError: a dialogue is malformed; it is named.
    """
    rows, reasons = [], Counter()
    for number, dialogue in enumerate(dialogues, start=1):
        try:
            row = encode(
                dialogue, tokenizer, settings.max_length, settings.loss_on, settings.language,
                settings.end_token,
            )  # fmt: skip
        except BaizeError as error:
            name = getattr(dialogue, "id", "") or number
            raise BaizeError(f"dialogue {name}: {error}") from error
        if not row.num_labels:
            reasons[f"dropped: first turn longer than {settings.max_length} tokens"] += 1
            continue
        reasons["cut at a turn"] += row.num_cut > 0
        rows.append(replace(row, id=row.id or str(number)))
    return rows, +reasons


def padding_waste(rows: Sequence[Encoded], settings: Settings | None = None) -> float:
    """Share of computed tokens that are padding, in [0, 1): ours, or 512-padded without settings.

    Args:
        rows: the corpus; settings: how it would be batched, or None for Baize's fixed 512.
    """
    real = sum(len(row.input_ids) for row in rows)
    if settings is None:
        return 1 - real / (512 * len(rows))
    batches = [batch for step in _steps(rows, settings, 0) for batch in step]
    return 1 - real / sum(len(batch) * max(len(r.input_ids) for r in batch) for batch in batches)


# --- batches and loss


def _steps(rows: Sequence[Encoded], settings: Settings, epoch: int) -> list[list[list[Encoded]]]:
    """One epoch: optimiser steps of micro-batches of rows, shuffled, yet alike in length."""
    shuffled = list(rows)
    random.Random(f"{settings.seed} {epoch}").shuffle(shuffled)
    window, size = 16 * settings.batch_size, settings.batch_size
    steps = []
    for start in range(0, len(shuffled), window):
        near = sorted(shuffled[start : start + window], key=lambda row: len(row.input_ids))
        steps += [near[i : i + size] for i in range(0, len(near), size)]
    random.Random(f"{settings.seed} {epoch} steps").shuffle(steps)
    return [list(_micro_batches(step, settings.micro_tokens)) for step in steps]


def _micro_batches(rows: Sequence[Encoded], micro_tokens: int) -> Iterator[list[Encoded]]:
    batch: list[Encoded] = []
    for row in sorted(rows, key=lambda row: len(row.input_ids)):
        if batch and len(row.input_ids) * (len(batch) + 1) > micro_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


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
    ids, labels = ids.to(model.device), labels[:, 1:].to(model.device)
    inner = getattr(model, "get_base_model", lambda: model)()
    hidden = inner.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    return hidden[labels != IGNORED], labels[labels != IGNORED]


def _head_loss(head: Any, hidden: Any, targets: Any, slope: Any = None) -> float:
    """Sum of the losses of (labels, width) hidden states, in nats; fills `slope` with its gradient.

    The head is frozen, so the gradient with respect to `hidden` is all there is to keep, and the
    logits exist for a few hundred positions at a time.
    """
    import torch

    total = torch.zeros((), dtype=torch.float64)
    for start in range(0, len(targets), 256):
        part = slice(start, start + 256)
        logits = head(hidden[part]).float()
        top = logits.amax(-1, keepdim=True)
        chosen = logits.gather(1, targets[part, None])
        raised = logits.sub_(top).exp_()  # in place: the logits are the largest thing there is
        norm = raised.sum(-1, keepdim=True)
        total += (norm.log() + top - chosen).double().sum().cpu()
        if slope is not None:
            mean = raised.to(hidden.dtype) @ head.weight / norm
            slope[part] = mean - head.weight[targets[part]]
    return total.item()


def backward(model: Any, batch: Sequence[Encoded], num_labels: int) -> float:
    """Add the gradients of the batch's loss over `num_labels` tokens; returns its sum, in nats.

    `num_labels` is the whole optimiser step's, so micro-batches of any size add up to one gradient.
    """
    import torch

    hidden, targets = _hidden_and_targets(model, batch)
    slope = torch.empty_like(hidden)
    with torch.no_grad():
        loss = _head_loss(model.get_output_embeddings(), hidden.detach(), targets, slope)
    if math.isfinite(loss):
        hidden.backward(slope / num_labels)
    return loss


def held_out_loss(model: Any, rows: Sequence[Encoded], micro_tokens: int = 2048) -> float:
    """Mean loss per learnt token over `rows`, in nats; dropout off.

    Raises:
        BaizeError: no rows.
    """
    import torch

    if not rows:
        raise BaizeError("no dialogue to measure the loss on: put some into the validation set")
    was_training = model.training
    model.eval()
    total = 0.0
    with torch.no_grad():
        for batch in _micro_batches(rows, micro_tokens):
            total += _head_loss(model.get_output_embeddings(), *_hidden_and_targets(model, batch))
    model.train(was_training)
    return total / sum(row.num_labels for row in rows)


# --- the run


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
    """What training gave. Losses are per learnt token, in nats; `seconds` is training alone.

    `loss_before` and `loss_after` are held-out, None without validation dialogues. `counts` says
    how many dialogues were dropped or cut, by reason.
    """

    adapter_dir: Path
    history: tuple[Step, ...]
    loss_before: float | None
    loss_after: float | None
    num_dialogues: int
    counts: dict[str, int]
    num_tokens: int
    num_labels: int
    num_trainable: int
    seconds: float
    tokens_per_second: float


def fit(
    base: Base,
    train: Sequence[Dialogue],
    validation: Sequence[Dialogue],
    adapter_dir: Path | str,
    settings: Settings | None = None,
    on_step: Callable[[Step], Any] | None = None,
    about: dict[str, Any] | None = None,
) -> Fit:
    """Train a LoRA adapter and save it, checked, to `adapter_dir`; the base is left as it was.

    A killed run goes on from its last checkpoint (`<adapter_dir>.checkpoint`) when called again,
    with the same losses as if it had never stopped; a finished one is not trained again. An
    adapter of another corpus or other settings is moved aside, never overwritten.

    Args:
        about: more entries for the adapter's card, `baize_run.json` (for example the tier).

    Raises:
        BaizeError: bad settings or dialogues, out of memory or disk, a loss that is not a number,
            or a checkpoint of another run; each says what to do, and keeps the last checkpoint.
    """
    settings, adapter_dir = settings or Settings(), Path(adapter_dir)
    rows, counts = encode_all(train, base.tokenizer, settings)
    held_out, _ = encode_all(validation, base.tokenizer, settings)
    if len(rows) < 2:
        raise BaizeError(
            f"{len(rows)} of {len(train)} dialogues can be trained on ({dict(counts)}): collect at "
            "least 2, or raise max_length"
        )
    model = _add_adapter(base, settings)
    try:
        run = _Run(base, model, rows, settings, adapter_dir)
        if finished := _finished(run):
            print(f"{adapter_dir.name}/ holds this very run already: nothing is trained again")
            return finished
        before = held_out_loss(model, held_out) if held_out else None
        with lean(model):
            run.train(on_step)
        after = held_out_loss(model, held_out) if held_out else None
        tokens = settings.num_epochs * sum(len(row.input_ids) for row in rows)
        result = Fit(
            adapter_dir, tuple(run.history), before, after, len(rows), dict(counts), tokens,
            settings.num_epochs * sum(row.num_labels for row in rows),
            sum(p.numel() for p in run.weights), run.seconds, tokens / run.seconds,
        )  # fmt: skip
        _save(run, result, about or {})
    finally:
        with quiet():
            model.unload()
            base.model.requires_grad_(False).eval().gradient_checkpointing_disable()
    return result


def _add_adapter(base: Base, settings: Settings) -> Any:
    import torch

    if settings.rank < 1 or settings.num_epochs < 1 or settings.batch_size < 1:
        raise BaizeError(
            f"rank={settings.rank}, num_epochs={settings.num_epochs}, "
            f"batch_size={settings.batch_size}: each must be at least 1"
        )
    detach(base)
    with quiet(), torch.random.fork_rng():
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(settings.seed)
        targets = settings.targets
        lora = LoraConfig(
            r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout,
            target_modules=targets if isinstance(targets, str) else list(targets),
            use_rslora=settings.rslora, use_dora=settings.dora, task_type="CAUSAL_LM",
        )  # fmt: skip
        if settings.gradient_checkpointing:
            base.model.gradient_checkpointing_enable({"use_reentrant": False})
        try:
            model = get_peft_model(base.model, lora)
        except ValueError as error:
            linear = {
                n.split(".")[-1] for n, m in base.model.named_modules() if hasattr(m, "in_features")
            }
            raise BaizeError(
                f"targets {settings.targets} match no layer of {base.name}: "
                f"its linear layers are {', '.join(sorted(linear))}"
            ) from error
    return model


class _Run:
    """The state of one training run: what a checkpoint holds, and how to go on from it."""

    def __init__(
        self, base: Base, model: Any, rows: list[Encoded], settings: Settings, adapter_dir: Path
    ) -> None:
        import torch

        self.base, self.model, self.settings, self.adapter_dir = base, model, settings, adapter_dir
        self.file = adapter_dir.with_name(f"{adapter_dir.name}.checkpoint")
        self.weights = [p for p in model.parameters() if p.requires_grad]
        self.initial = [p.detach().clone() for p in self.weights]
        self.optimizer = torch.optim.AdamW(self.weights, lr=settings.lr, weight_decay=0, fused=True)
        epochs = [_steps(rows, settings, epoch) for epoch in range(settings.num_epochs)]
        self.steps = [(epoch, step) for epoch, steps in enumerate(epochs) for step in steps]
        self.history: list[Step] = []
        self.seconds = 0.0
        self.identity = {
            "base model": base.name, "precision": base.precision, "template": TEMPLATE,
            "corpus": text_hash(json.dumps([row.input_ids for row in rows])),
            **{k: v for k, v in asdict(settings).items() if k not in _FREE_TO_CHANGE},
        }  # fmt: skip

    def train(self, on_step: Callable[[Step], Any] | None) -> None:
        import torch

        self._resume()
        self.model.train()
        begun, done_before = time.perf_counter() - self.seconds, len(self.history)
        devices = range(torch.cuda.device_count())
        with torch.random.fork_rng(devices), _out_of_memory(self.settings):
            for number in range(done_before + 1, len(self.steps) + 1):
                step = self._step(number, begun)
                self.history.append(step)
                self.seconds = time.perf_counter() - begun
                every = self.settings.checkpoint_every
                if every and number % every == 0 and number < len(self.steps):
                    self._checkpoint()
                if on_step:
                    on_step(step)

    def _step(self, number: int, begun: float) -> Step:
        import torch

        epoch, batches = self.steps[number - 1]
        torch.manual_seed(self.settings.seed * 1_000_003 + number)  # so a resumed run drops alike
        num_labels = sum(row.num_labels for batch in batches for row in batch)
        loss = sum(backward(self.model, batch, num_labels) for batch in batches) / num_labels
        if not math.isfinite(loss):
            names = ", ".join(row.id for batch in batches for row in batch)
            raise BaizeError(
                f"the loss of step {number} is {loss}: look at dialogues {names}, or lower lr "
                f"(now {self.settings.lr:g}); the last checkpoint is kept"
            )
        norm = torch.nn.utils.clip_grad_norm_(self.weights, self.settings.max_grad_norm).item()
        lr = _learning_rate(number, len(self.steps), self.settings)
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()
        sizes = [sum(len(r.input_ids) for b in step for r in b) for _, step in self.steps]
        done, seconds = sum(sizes[:number]), time.perf_counter() - begun
        left = seconds * (sum(sizes) - done) / done
        return Step(
            number, len(self.steps), epoch + 1, loss, lr, norm, done / seconds, left
        )  # fmt: skip

    def _checkpoint(self) -> None:
        import torch

        buffer = io.BytesIO()
        torch.save(
            {
                "identity": self.identity, "history": [asdict(step) for step in self.history],
                "seconds": self.seconds, "weights": [p.detach().cpu() for p in self.weights],
                "optimizer": self.optimizer.state_dict(),
            },
            buffer,
        )  # fmt: skip
        write_atomic(self.file, buffer.getvalue())

    def _resume(self) -> None:
        import torch

        if not self.file.is_file():
            return
        try:
            saved = torch.load(self.file, weights_only=True, map_location="cpu")
            then = saved["identity"]
        except Exception as error:  # whatever a foreign file makes the reader raise
            raise BaizeError(f"{self.file} is not a checkpoint ({error}): delete it") from error
        changed = [
            f"{key}: {then.get(key)!r} -> {value!r}"
            for key, value in self.identity.items()
            if then.get(key) != value
        ]
        if changed:
            raise BaizeError(
                f"{self.file} is a checkpoint of another run ({'; '.join(changed)}): go back to "
                "those settings to finish it, or delete that file to start anew"
            )
        with torch.no_grad():
            for weight, value in zip(self.weights, saved["weights"], strict=True):
                weight.copy_(value)
        self.optimizer.load_state_dict(saved["optimizer"])
        self.history = [Step(**step) for step in saved["history"]]
        self.seconds = saved["seconds"]
        print(f"going on after step {len(self.history)} of {len(self.steps)}, from {self.file}")


_FREE_TO_CHANGE = ("micro_tokens", "checkpoint_every", "gradient_checkpointing")


def _learning_rate(number: int, total: int, settings: Settings) -> float:
    warmup = max(1, min(settings.warmup, total // 10))
    if number <= warmup:
        return settings.lr * number / warmup
    left = (total - number + 1) / (total - warmup + 1)
    if settings.schedule == "linear":
        return settings.lr * left
    return settings.lr * (1 - math.cos(math.pi * left)) / 2


@contextlib.contextmanager
def _out_of_memory(settings: Settings) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "memory" not in str(error):
            raise
        raise BaizeError(
            f"out of memory: halve micro_tokens (now {settings.micro_tokens}) or set "
            "gradient_checkpointing=True, then run again: it goes on from the last checkpoint"
        ) from error


def _finished(run: _Run) -> Fit | None:
    """The result in the adapter's folder, if it is of the same corpus, base and settings."""
    try:
        card = json.loads((run.adapter_dir / "baize_run.json").read_text(encoding="utf-8"))
        if card["identity"] != json.loads(json.dumps(run.identity)):
            return None
        history = tuple(Step(**row) for row in read_jsonl(run.adapter_dir / "history.jsonl"))
        known = {name: card[name] for name in _KEPT}
    except (OSError, ValueError, KeyError, TypeError, BaizeError):
        return None
    return Fit(adapter_dir=run.adapter_dir, history=history, **known)


_KEPT = tuple(field.name for field in fields(Fit) if field.name not in ("adapter_dir", "history"))


def _set_aside(adapter_dir: Path) -> None:
    """Rename what stands where an adapter is to be written: it cost somebody an afternoon."""
    if not adapter_dir.exists():
        return
    number = 1
    while (aside := adapter_dir.with_name(f"{adapter_dir.name}.{number}")).exists():
        number += 1
    adapter_dir.rename(aside)
    print(f"an earlier adapter, of another corpus or other settings, is kept in {aside.name}/")


def _save(run: _Run, result: Fit, about: dict[str, Any]) -> None:
    """Write the adapter beside its place, read it back, compare, and only then put it there."""
    import torch
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    if all(torch.equal(p, p0) for p, p0 in zip(run.weights, run.initial, strict=True)):
        raise BaizeError("the adapter equals its initial value: nothing was learnt; raise lr")
    part, target = result.adapter_dir.with_name(f".{result.adapter_dir.name}.new"), run.adapter_dir
    shutil.rmtree(part, ignore_errors=True)
    try:
        with quiet():
            run.model.save_pretrained(part, save_embedding_layers=False)
        (part / "README.md").unlink(missing_ok=True)  # an empty form with a path of this machine
        write_jsonl(part / "history.jsonl", map(asdict, result.history))
        write_atomic(part / "baize_run.json", json.dumps(_card(run, result) | about, indent=1))
        saved = load_file(part / "adapter_model.safetensors")
    except OSError as error:
        raise BaizeError(
            f"the adapter was not written to {part} ({error}): free some disk space and run again"
        ) from error
    meant = get_peft_model_state_dict(run.model, save_embedding_layers=False)
    if saved.keys() != meant.keys() or any(
        not torch.equal(saved[name], value.cpu()) for name, value in meant.items()
    ):
        raise BaizeError(f"{part} does not read back as it was written: check the disk")
    _set_aside(target)
    part.rename(target)
    run.file.unlink(missing_ok=True)


def _card(run: _Run, result: Fit) -> dict[str, Any]:
    from importlib.metadata import version

    return {
        "base_model": run.base.name,
        "template": TEMPLATE,
        "language": run.settings.language,
        "precision": run.base.precision,
        "corpus": run.identity["corpus"],
        "identity": run.identity,
        "settings": asdict(run.settings),
        **{name: getattr(result, name) for name in _KEPT},
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
    }
