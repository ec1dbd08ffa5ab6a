"""A look at this machine before anything is spent on it; each failure comes with its fix.

print(check_environment())            # every line, as in notebook 00
print(check_environment(brief=True))  # one line, or only what fails
"""

import importlib.metadata
import os
import platform
import shutil
from dataclasses import dataclass
from typing import NamedTuple

from baize_lib.config import BaizeError, cache_dir
from baize_lib.course.tiers import Tier, current_tier
from baize_lib.models.weights import MODELS
from baize_lib.teacher.client import find_key

__all__ = ["check_environment"]

PACKAGES = ("torch", "transformers", "peft", "datasets", "openai", "pandas", "matplotlib")


class Check(NamedTuple):
    """One line of the report; `fix` says what to do when it is not ok."""

    name: str
    ok: bool
    found: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class EnvironmentReport:
    """All checks; prints as lines of OK and FAIL, with `brief` only what fails."""

    checks: list[Check]
    brief: bool = False

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)

    def __str__(self) -> str:
        if self.brief and self.ok:
            return "This machine is ready; notebook 00 shows what was looked at."
        width, lines = max(len(check.name) for check in self.checks), []
        for name, ok, found, fix in self.checks:
            if not ok:
                lines += [f"FAIL  {name:<{width}}  {found}", f"{'':<{width + 8}}to fix: {fix}"]
            elif not self.brief:
                lines.append(f"OK    {name:<{width}}  {found}")
        return "\n".join(lines)


def check_environment(tier: Tier | str | None = None, *, brief: bool = False) -> EnvironmentReport:
    """Check Python, packages, key, memory, disk and GPU for a tier (None: the current one)."""
    tier = tier if isinstance(tier, Tier) else current_tier(tier)
    is_local = tier.teacher in MODELS or tier.teacher.endswith(".gguf")
    checks = [
        Check("Python", True, platform.python_version()), *map(_check_package, PACKAGES),
        _check_package("xllamacpp") if is_local else _check_key(tier),
        _check_memory(tier), _check_disk(tier), _check_gpu(tier),
    ]  # fmt: skip
    return EnvironmentReport(checks, brief)


def _check_package(name: str) -> Check:
    try:
        return Check(name, True, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        fix = "in the clone: make course, or pip install -c constraints.txt -e '.[lab]'"
        return Check(name, False, "not installed", fix)


def _check_key(tier: Tier) -> Check:
    try:
        found = "set" if find_key(needed=False) else "not set"
    except BaizeError as error:
        return Check("OPENAI_API_KEY", False, "not a key", str(error))
    own_server = bool(os.environ.get("OPENAI_BASE_URL"))  # it may do without a key
    return Check(
        "OPENAI_API_KEY", found == "set" or own_server, f"{found} (teacher {tier.teacher})",
        "set it in the environment or in Colab's secrets, or use BAIZE_TIER=laptop",
    )  # fmt: skip


def _check_memory(tier: Tier) -> Check:
    import psutil

    total, needed = psutil.virtual_memory().total / 1e9, min(tier.gigabytes, 4)
    return Check(
        "memory", total >= 0.9 * needed, f"{total:.0f} GB, {os.cpu_count()} cores",
        f"tier {tier.name} needs about {needed:g} GB: close programs, or use BAIZE_TIER=ci",
    )  # fmt: skip


def _check_disk(tier: Tier) -> Check:
    """Room for the models that are not here yet, and for the student in the form of training."""
    models = [MODELS[name] for name in {tier.teacher, tier.student} & MODELS.keys()]
    missing = [model for model in models if not (cache_dir() / model.file).is_file()]
    needed = 1.2 * sum(model.num_bytes for model in missing) / 1e9
    if (student := MODELS.get(tier.student)) and not student.folder.is_dir():
        needed += 6 * student.num_bytes / 1e9
    folder = next(path for path in (cache_dir(), *cache_dir().parents) if path.exists())
    free = shutil.disk_usage(folder).free / 1e9
    return Check(
        "disk for models", free >= needed, f"{free:.0f} GB free, {needed:.1f} needed",
        "free some space, or set BAIZE_CACHE to another disk",
    )  # fmt: skip


def _check_gpu(tier: Tier) -> Check:
    import torch

    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        return Check("GPU", True, f"{gpu.name}, {gpu.total_memory / 1e9:.0f} GB")
    wanted = tier.gigabytes > 6
    return Check(
        "GPU", not wanted, "none" if wanted else "none (not needed)",
        f"tier {tier.name} needs a GPU with {tier.gigabytes:g} GB: in Colab choose Runtime > "
        "Change runtime type, or use BAIZE_TIER=laptop",
    )  # fmt: skip
