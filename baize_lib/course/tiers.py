"""One dial for the whole course: the tier, and four environment variables that overrule it.

A tier is plain data that holds the very settings objects the wings take, so a notebook passes
`tier.training` on and copies nothing by hand. `BAIZE_TIER` chooses it; `BAIZE_TEACHER`,
`BAIZE_STUDENT`, `BAIZE_TEACHER_PRICE` and `BAIZE_MAX_CALLS` overrule it, as README.md explains.

>>> TIERS["laptop"].teacher, TIERS["laptop"].selfchat.num_turns
('qwen-1.5b', 3)
"""

import json
import os
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from baize_lib.config import BaizeError, Run, runs_dir
from baize_lib.files import write_atomic, written
from baize_lib.selfchat.prompts import SelfChatSettings
from baize_lib.teacher.prices import Price
from baize_lib.training.settings import TrainingSettings

__all__ = ["TIERS", "current_tier", "open_run"]


@dataclass(frozen=True, slots=True)
class EvaluationSettings:
    """How many answers are looked at, of at most `max_tokens` each; `tiers.toml` explains."""

    max_tokens: int = 120
    num_prompts: int | None = None
    num_judged: int = 12
    hosted_usd: float = 0.05


@dataclass(frozen=True, slots=True)
class Tier:
    """How big a run is; `tiers.toml` says what its fields are."""

    name: str
    teacher: str
    student: str
    seed_mix: dict[str, float]
    num_seeds: int
    budget_usd: float
    minutes: float
    gigabytes: float
    selfchat: SelfChatSettings
    training: TrainingSettings
    evaluation: EvaluationSettings
    num_recorded: int = 0
    precision: str = "auto"
    usd: float = 0
    price: Price | None = None
    max_calls: int | None = None

    def __str__(self) -> str:
        chat, train = self.selfchat, self.training
        rows = {
            "tier": self.name,
            "teacher": f"{self.teacher}, {self.num_seeds:,} dialogues of {chat.num_turns} turns",
            "student": f"{self.student}, epochs: {train.num_epochs}, LoRA rank: {train.rank}",
            "expect": f"{self.minutes:,.0f} minutes, ${self.usd:,.0f}, "
            f"{self.gigabytes:g} GB of memory (estimates)",
            "cap": f"${self.budget_usd:,.2f} for the teacher",
        }
        return "\n".join(f"{name:<8} {value}" for name, value in rows.items())


_WINGS = {
    "selfchat": SelfChatSettings, "training": TrainingSettings, "evaluation": EvaluationSettings,
}  # fmt: skip
TIERS = {
    name: Tier(name, **row | {wing: make(**row.get(wing, {})) for wing, make in _WINGS.items()})
    for name, row in written(__file__, "tiers.toml").items()
}
_FREE_TO_CHANGE = ("minutes", "usd", "gigabytes", "budget_usd", "price", "max_calls", "evaluation")


def current_tier(name: str | None = None) -> Tier:
    """The tier called `name`, else the one in `BAIZE_TIER`, else `laptop`, with the other dials."""
    chosen, dial = name or os.environ.get("BAIZE_TIER") or "laptop", os.environ.get
    if chosen not in TIERS:
        raise BaizeError(f"BAIZE_TIER={chosen!r} is not a tier: use one of {', '.join(TIERS)}")
    tier = TIERS[chosen]
    if teacher := dial("BAIZE_TEACHER"):
        tier = replace(tier, teacher=teacher)
    if student := dial("BAIZE_STUDENT"):
        tier = replace(tier, student=student, precision="auto")
    if price := dial("BAIZE_TEACHER_PRICE"):
        parts = re.fullmatch(r"\s*\$?(\d{0,6}\.?\d+)\s*/\s*\$?(\d{0,6}\.?\d+)\s*", price)
        if not parts:
            raise BaizeError(
                f"BAIZE_TEACHER_PRICE={price!r} is not a price: give USD per million tokens of "
                "input and output, for example 0.10/0.40 (0/0 for a server of your own)"
            )
        usd = map(float, parts.groups())
        tier = replace(tier, price=Price(tier.teacher, *usd, source="BAIZE_TEACHER_PRICE"))
    if calls := dial("BAIZE_MAX_CALLS"):
        if not calls.isdecimal() or int(calls) < 1:
            raise BaizeError(f"BAIZE_MAX_CALLS={calls!r}: give a whole number, 1 or more")
        tier = replace(tier, max_calls=int(calls))
    return tier


def run_folder(tier: Tier) -> Path:
    """Where the run called `BAIZE_RUN`, else like the tier, is or will be."""
    name = os.environ.get("BAIZE_RUN") or tier.name
    if re.search(r"[/\\:]|^\.", name):
        raise BaizeError(f"BAIZE_RUN={name!r} is no name: use a word; BAIZE_RUNS says the folder")
    return runs_dir() / name


def open_run(tier: Tier | str | None = None) -> Run:
    """Open (or begin) the run called `BAIZE_RUN`, else like the tier.

    The folder remembers its settings in `run.json`, so that two tiers never mix in one folder: a
    BaizeError says what differs. A new run prints what it was begun with.
    """
    tier = tier if isinstance(tier, Tier) else current_tier(tier)
    path = run_folder(tier)
    card, now = path / "run.json", json.loads(json.dumps({"tier": asdict(tier)}))
    if card.is_file():
        try:
            earlier = dict(json.loads(card.read_text(encoding="utf-8"))["tier"])
        except (ValueError, KeyError, TypeError) as error:
            remedy = "delete that one file, nothing else, and run again"
            raise BaizeError(f"{card} is not readable ({error}): {remedy}") from error
        if differ := _differences(earlier, now["tier"]):
            raise BaizeError(
                f"run folder {path} was made with other settings ({differ}): set BAIZE_RUN to a "
                "new name, or delete the folder if you no longer need it"
            )
    else:
        write_atomic(card, json.dumps(now, indent=1))
        print(f"run {path.name} begun: {tier.teacher} teaches {tier.student} (tier {tier.name})")
    return Run(path)


def _differences(earlier: Any, now: Any, name: str = "") -> str:
    """What differs in settings that a run may not change: "training.lr: 0.1 -> 0.2"."""
    if not (isinstance(earlier, dict) and isinstance(now, dict)):
        return f"{name}: {earlier!r} -> {now!r}" if earlier != now else ""
    keys = [key for key in sorted({*earlier, *now}) if name or key not in _FREE_TO_CHANGE]
    found = (_differences(earlier.get(k), now.get(k), f"{name}.{k}" if name else k) for k in keys)
    return "; ".join(filter(None, found))
