"""LoRA training in which every token counts.

A dialogue becomes tokens and a *loss mask*: the model learns what the assistant says, and the end
token after it, and nothing of what the human says. Batches hold dialogues of similar length, the
output head is computed only where there is something to learn, and each step's loss is divided by
the number of learnt tokens in it, so that batch size and padding change the speed and nothing else.

    fit(load_base(), train, validation, run.adapter_dir, Settings(num_epochs=2), on_step=print)

or, from a run file and on as many devices as there are:

    accelerate launch -m baize_lib.train run.yaml

>>> print(Step(12, 20, 1, 1.4321, 2e-4, 0.5, 181.0, 35.2))
step 12/20  loss 1.432  181 tokens/s  35 s left
"""

import contextlib
import io
import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from baize_lib.config import BaizeError
from baize_lib.corpus.formats import read_dialogues
from baize_lib.dialogue import TEMPLATE, Dialogue
from baize_lib.files import read_jsonl, text_hash, write_atomic, write_jsonl
from baize_lib.models.base import Base, compute_precision, computing_in, load_base
from baize_lib.models.weights import quiet
from baize_lib.training.batches import encode_all, epoch_steps
from baize_lib.training.fast_cpu import lean
from baize_lib.training.lora import detach
from baize_lib.training.loss import backward, held_out_loss, lane_tokens, lanes
from baize_lib.training.settings import RunFile, TrainingSettings, read_run_file
from baize_lib.training.several import Team, join, shard
from baize_lib.training.tokens import Encoded, chat_template

__all__ = [
    "Step",
    "Fit",
    "fit",
    "add_adapter",
    "main",
]


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
    settings: TrainingSettings | None = None,
    on_step: Callable[[Step], Any] | None = None,
    about: dict[str, Any] | None = None,
    *,
    sharded: bool = False,
) -> Fit:
    """Train a LoRA adapter and save it, checked, to `adapter_dir`; the base is left as it was.

    A killed run goes on from its last checkpoint (`<adapter_dir>.checkpoint`) when called again,
    with the same losses as if it had never stopped; a finished one is not trained again. An
    adapter of another corpus or other settings is moved aside, never overwritten.

    Args:
        about: more entries for the adapter's card, `baize_run.json` (for example the tier).
        sharded: spread the base over the processes that `accelerate launch` started; it is not
            put together again afterwards.

    Raises:
        BaizeError: bad settings or dialogues, out of memory or disk, a loss that is not a number,
            or a checkpoint of another run; each says what to do, and keeps the last checkpoint.
    """
    settings, adapter_dir = settings or TrainingSettings(), Path(adapter_dir)
    rows, counts = encode_all(train, base.tokenizer, settings)
    held_out, _ = encode_all(validation, base.tokenizer, settings)
    if len(rows) < 2:
        raise BaizeError(
            f"{len(rows)} of {len(train)} dialogues can be trained on ({dict(counts)}): collect at "
            "least 2, or raise max_length"
        )
    team, model = join(in_step=sharded), add_adapter(base, settings)
    try:
        if sharded:
            shard(base, [p for p in model.parameters() if p.requires_grad])
        run = _Run(base, model, rows, settings, adapter_dir, team)
        if finished := _finished(run):
            run.say(f"{adapter_dir.name}/ holds this very run already: nothing is trained again")
            return finished
        before = held_out_loss(model, held_out, team=team) if held_out else None
        with computing_in(model, run.compute), lean(model):
            run.train(on_step)
        after = held_out_loss(model, held_out, team=team) if held_out else None
        tokens = settings.num_epochs * sum(len(row.input_ids) for row in rows)
        result = Fit(
            adapter_dir, tuple(run.history), before, after, len(rows), dict(counts), tokens,
            settings.num_epochs * sum(row.num_labels for row in rows),
            sum(p.numel() for p in run.weights), run.seconds, tokens / run.seconds,
        )  # fmt: skip
        if team.is_first:
            _save(run, result, about or {})
        team.wait()
    finally:
        with quiet():
            model.unload()
            base.model.requires_grad_(False).eval().gradient_checkpointing_disable()
    return result


def add_adapter(base: Base, settings: TrainingSettings) -> Any:
    """The base with a new adapter on it, as a PEFT model; the adapter alone is trained.

    Raises:
        BaizeError: settings that cannot work, or targets that match no layer.
    """
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
        self, base: Base, model: Any, rows: list[Encoded], settings: TrainingSettings, adapter_dir: Path,
        team: Team,
    ) -> None:  # fmt: skip
        import torch

        self.base, self.model, self.settings, self.adapter_dir = base, model, settings, adapter_dir
        self.team = team
        self.compute, self.reason = compute_precision(
            base.precision, base.model.device.type, settings.compute
        )
        if team.in_step:
            self.compute, self.reason = base.precision, "a sharded base stays as it was loaded"
        self.lanes = 1 if team.in_step else lanes(model, settings)
        self.file = adapter_dir.with_name(f"{adapter_dir.name}.checkpoint")
        self.weights = [p for p in model.parameters() if p.requires_grad]
        self.initial = [p.detach().clone() for p in self.weights]
        self.optimizer = torch.optim.AdamW(self.weights, lr=settings.lr, weight_decay=0, fused=True)
        epochs = [epoch_steps(rows, settings, epoch) for epoch in range(settings.num_epochs)]
        self.steps = [(epoch, step) for epoch, steps in enumerate(epochs) for step in steps]
        self.history: list[Step] = []
        self.seconds = 0.0
        self.identity = {
            "base model": base.name, "precision": base.precision, "template": TEMPLATE,
            "corpus": text_hash(json.dumps([row.input_ids for row in rows])),
            **{k: v for k, v in asdict(settings).items() if k not in _FREE_TO_CHANGE},
        }  # fmt: skip

    def say(self, text: str) -> None:
        if self.team.is_first:
            print(text)

    def train(self, on_step: Callable[[Step], Any] | None) -> None:
        import torch

        if self.compute != self.base.precision:
            self.say(f"training multiplies in {self.compute}: {self.reason}")
        self._resume()
        self.team.wait()
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
                if on_step and self.team.is_first:
                    on_step(step)

    def _step(self, number: int, begun: float) -> Step:
        import torch

        epoch, batches = self.steps[number - 1]
        team = self.team
        # so that a resumed run drops alike, and no two processes do
        torch.manual_seed((self.settings.seed * 1_000_003 + number) * team.size + team.rank)
        rows = [row for batch in batches for row in batch]
        num_labels = sum(row.num_labels for row in rows)
        batches = team.batches(rows, lane_tokens(self.settings.micro_tokens, self.lanes))
        loss = backward(self.model, batches, num_labels, self.lanes)
        team.add_up([p.grad for p in self.weights])
        loss = team.total(loss, self.weights[0].device) / num_labels
        if not math.isfinite(loss):
            names = ", ".join(row.id for row in rows)
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

        if not self.team.is_first:
            return

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
        self.say(f"going on after step {len(self.history)} of {len(self.steps)}, from {self.file}")


_FREE_TO_CHANGE = ("micro_tokens", "checkpoint_every", "gradient_checkpointing")


def _learning_rate(number: int, total: int, settings: TrainingSettings) -> float:
    warmup = max(1, min(settings.warmup, total // 10))
    if number <= warmup:
        return settings.lr * number / warmup
    left = (total - number + 1) / (total - warmup + 1)
    if settings.schedule == "linear":
        return settings.lr * left
    return settings.lr * (1 - math.cos(math.pi * left)) / 2


@contextlib.contextmanager
def _out_of_memory(settings: TrainingSettings) -> Iterator[None]:
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
        layout = chat_template(run.base.tokenizer, run.settings.language, run.settings.end_token)
        write_atomic(part / "chat_template.jinja", layout)
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
        "compute": run.compute,
        "corpus": run.identity["corpus"],
        "identity": run.identity,
        "settings": asdict(run.settings),
        **{name: getattr(result, name) for name in _KEPT},
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as a run file says: `python -m baize_lib.train run.yaml`; several processes of it
    started by `accelerate launch` train as one. Only the first prints.
    """
    chosen = sys.argv[1:] if arguments is None else list(arguments)
    if len(chosen) != 1:
        print("usage: python -m baize_lib.train RUN.yaml (baize_lib/runfile.py says what is in it)")
        return 2
    first = join().is_first
    try:
        with contextlib.nullcontext() if first else contextlib.redirect_stdout(io.StringIO()):
            result = _train_as_said(read_run_file(chosen[0]))
    except BaizeError as error:
        if first:
            print(error, file=sys.stderr)
        return 1
    if first:
        print(
            f"{result.num_tokens:,} tokens in {result.seconds:.0f} s, "
            f"{result.tokens_per_second:.0f} tokens/s; held-out loss {_shown(result.loss_before)} "
            f"before, {_shown(result.loss_after)} after; adapter in {result.adapter_dir}"
        )
    return 0


def _shown(loss: float | None) -> str:
    return "unknown" if loss is None else f"{loss:.4f}"


def _train_as_said(file: RunFile) -> Fit:
    train = list(read_dialogues(file.train))
    validation = list(read_dialogues(file.validation)) if file.validation else []
    base = load_base(file.base, file.precision, on_cpu=file.shard)
    return fit(
        base, train, validation, file.adapter, file.settings, on_step=print, sharded=file.shard
    )


if __name__ == "__main__":
    sys.exit(main())
