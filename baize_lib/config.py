"""One dial for the whole course: the tier; and where its files live.

`BAIZE_TIER` is `ci`, `laptop` (the default) or `a100`. A tier is a small frozen record that every
notebook reads in its one parameters cell, so the same cells run on a laptop in minutes and rebuild
Baize on an A100 with a paid teacher.

>>> current_tier("laptop").num_seeds
48
"""

import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import platformdirs

__all__ = [
    "BaizeError",
    "Tier",
    "TIERS",
    "current_tier",
    "Run",
    "open_run",
    "data_dir",
    "runs_dir",
    "cache_dir",
]


class BaizeError(Exception):
    """An error a user can act on: its text says what is wrong, with what, and what to do."""


@dataclass(frozen=True, slots=True)
class Tier:
    """How big a run is. `minutes`, `usd` and `gigabytes` are estimates, shown before anything runs.

    Attributes:
        teacher: "smollm2-135m", or the name of a model behind an OpenAI-compatible address.
        base_model: the student: "smollm2-135m", or a model name on the Hugging Face hub.
        max_tokens: cap of one assistant reply, tokens.
        batch_size: dialogues an optimiser step; `micro_tokens`: padded tokens computed at once.
        max_length: cap of one training row, tokens.
        budget_usd: hard cap on what the whole run may spend on its teacher, USD.
        gigabytes: memory needed for training, GB.
    """

    name: str
    seed_mix: dict[str, float]
    num_seeds: int
    num_turns: int
    max_tokens: int
    teacher: str
    budget_usd: float
    base_model: str
    precision: str
    num_epochs: int
    lr: float
    batch_size: int
    micro_tokens: int
    rank: int
    max_length: int
    eval_max_tokens: int
    minutes: float
    usd: float
    gigabytes: float


TIERS = {
    tier.name: tier
    for tier in (
        Tier(
            name="ci", seed_mix={"general": 0.75, "medical": 0.25},
            num_seeds=8, num_turns=2, max_tokens=100, teacher="smollm2-135m", budget_usd=0.01,
            base_model="smollm2-135m", precision="float32", num_epochs=1, lr=1e-3,
            batch_size=4, micro_tokens=1024, rank=8, max_length=256,
            eval_max_tokens=32, minutes=3, usd=0, gigabytes=2,
        ),
        Tier(
            name="laptop", seed_mix={"general": 0.5, "programming": 0.35, "medical": 0.15},
            num_seeds=48, num_turns=3, max_tokens=120, teacher="smollm2-135m", budget_usd=1,
            base_model="smollm2-135m", precision="float32", num_epochs=3, lr=1e-3,
            batch_size=4, micro_tokens=1024, rank=8, max_length=512,
            eval_max_tokens=120, minutes=12, usd=0, gigabytes=4,
        ),
        Tier(
            name="a100", seed_mix={"hf:quora": 0.49, "hf:stackoverflow": 0.51},
            num_seeds=110_000, num_turns=3, max_tokens=256, teacher="gpt-4.1-nano", budget_usd=100,
            base_model="huggyllama/llama-7b", precision="auto", num_epochs=1, lr=2e-4,
            batch_size=64, micro_tokens=4096, rank=8, max_length=512,
            eval_max_tokens=512, minutes=900, usd=100, gigabytes=40,
        ),
    )
}  # fmt: skip


def current_tier(name: str | None = None) -> Tier:
    """The tier called `name`, else the one in `BAIZE_TIER`, else `laptop`.

    Raises:
        BaizeError: no tier has that name.
    """
    chosen = name or os.environ.get("BAIZE_TIER") or "laptop"
    if chosen not in TIERS:
        raise BaizeError(f"BAIZE_TIER={chosen!r} is not a tier: use one of {', '.join(TIERS)}")
    return TIERS[chosen]


def data_dir() -> Path:
    """The course's `data/` folder: in the clone, or inside the installed package."""
    package = Path(__file__).resolve().parent
    in_clone = package.parent / "data"
    return in_clone if in_clone.is_dir() else package / "_data"


def runs_dir() -> Path:
    """Where runs are written: `BAIZE_RUNS`, else `runs/` in the clone or the working folder."""
    if chosen := os.environ.get("BAIZE_RUNS"):
        return Path(chosen).expanduser().resolve()
    clone = Path(__file__).resolve().parent.parent
    return (clone if (clone / "pyproject.toml").is_file() else Path.cwd()) / "runs"


def cache_dir() -> Path:
    """Where the embedded model is kept: `BAIZE_CACHE`, else the user's cache folder."""
    if chosen := os.environ.get("BAIZE_CACHE"):
        return Path(chosen).expanduser().resolve()
    return Path(platformdirs.user_cache_dir("baize-course", appauthor=False))


@dataclass(frozen=True, slots=True)
class Run:
    """The files of one run, `runs/<name>/`: each notebook reads the one before it wrote."""

    path: Path
    tier: Tier

    @property
    def ledger(self) -> Path:
        return self.path / "self_chat.jsonl"

    @property
    def corpus_dir(self) -> Path:
        return self.path / "corpus"

    @property
    def train_file(self) -> Path:
        return self.corpus_dir / "train.jsonl"

    @property
    def validation_file(self) -> Path:
        return self.corpus_dir / "validation.jsonl"

    @property
    def adapter_dir(self) -> Path:
        return self.path / "adapter"

    @property
    def answers_file(self) -> Path:
        return self.path / "answers.jsonl"


def open_run(tier: Tier | None = None, name: str | None = None) -> Run:
    """Open (or begin) the run called `name`, else `BAIZE_RUN`, else the tier's name.

    The folder remembers its tier in `run.json`, so that two tiers never mix in one folder.

    Raises:
        BaizeError: the folder belongs to another tier, or cannot be written.
    """
    tier = tier or current_tier()
    path = runs_dir() / (name or os.environ.get("BAIZE_RUN") or tier.name)
    card = path / "run.json"
    try:
        path.mkdir(parents=True, exist_ok=True)
        if card.is_file():
            earlier = json.loads(card.read_text(encoding="utf-8"))["tier"]
            _refuse_other_tier(path, earlier, asdict(tier))
        else:
            with tempfile.NamedTemporaryFile(
                "w", dir=path, delete=False, encoding="utf-8", prefix=".run.json."
            ) as file:
                json.dump({"tier": asdict(tier)}, file, indent=1)
            Path(file.name).replace(card)
    except OSError as error:
        raise BaizeError(
            f"run folder {path} cannot be written ({error.strerror}): "
            "set BAIZE_RUNS to a folder you own"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise BaizeError(
            f"{card} is not readable ({error}): delete that one file, nothing else, and run again"
        ) from error
    return Run(path, tier)


def _refuse_other_tier(path: Path, earlier: dict[str, Any], now: dict[str, Any]) -> None:
    changed = [
        f"{key}: {earlier.get(key)!r} -> {value!r}"
        for key, value in now.items()
        if earlier.get(key) != value and key not in ("minutes", "usd", "gigabytes")
    ]
    if changed:
        raise BaizeError(
            f"run folder {path} was made with other settings ({'; '.join(changed)}): "
            "set BAIZE_RUN to a new name, or delete the folder if you no longer need it"
        )
