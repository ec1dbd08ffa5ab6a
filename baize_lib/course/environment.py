"""course.environment: moved."""

import importlib.metadata
import os
import shutil
import sys
from dataclasses import dataclass

from baize_lib.config import Tier, cache_dir, current_tier

__all__ = [
    "Check",
    "EnvironmentReport",
    "check_environment",
]


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the environment check; `fix` says what to do when it is not `ok`."""

    name: str
    ok: bool
    found: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class EnvironmentReport:
    """All checks; prints as lines of OK and FAIL."""

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)

    def __str__(self) -> str:
        width = max(len(check.name) for check in self.checks)
        lines = []
        for check in self.checks:
            mark = "OK  " if check.ok else "FAIL"
            lines.append(f"{mark}  {check.name:<{width}}  {check.found}")
            if not check.ok:
                lines.append(f"      {'':<{width}}  to fix: {check.fix}")
        return "\n".join(lines)


PACKAGES = ("torch", "transformers", "peft", "datasets", "openai", "pandas", "matplotlib")


def check_environment(tier: Tier | None = None) -> EnvironmentReport:
    """Look at this machine before anything is spent on it; each failure comes with its fix."""
    tier = tier or current_tier()
    checks = [_check_python(), *map(_check_package, PACKAGES)]
    if tier.teacher == "smollm2-135m":
        checks.append(_check_package("xllamacpp"))
    else:
        checks.append(_check_key(tier))
    checks += [_check_memory(tier), _check_disk(), _check_gpu(tier)]
    return EnvironmentReport(tuple(checks))


def _check_python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    return Check("Python", sys.version_info >= (3, 11), found, "install Python 3.11 or newer")


def _check_package(name: str) -> Check:
    try:
        return Check(name, True, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Check(
            name, False, "not installed", "pip install -e . in the clone, or `make course`"
        )


def _check_key(tier: Tier) -> Check:
    present = bool(os.environ.get("OPENAI_API_KEY"))
    return Check(
        "OPENAI_API_KEY", present, f"{'set' if present else 'not set'} (teacher {tier.teacher})",
        "set it in the environment or in Colab's secrets, or use BAIZE_TIER=laptop",
    )  # fmt: skip


def _check_memory(tier: Tier) -> Check:
    import psutil

    total = psutil.virtual_memory().total / 1e9
    needed = min(tier.gigabytes, 4)
    return Check(
        "memory", total >= needed, f"{total:.0f} GB, {os.cpu_count()} cores",
        f"tier {tier.name} needs about {needed:g} GB: close programs, or use BAIZE_TIER=ci",
    )  # fmt: skip


def _check_disk() -> Check:
    folder = cache_dir()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 1e9
    return Check(
        "disk for the model", free >= 1.5, f"{free:.0f} GB free",
        "the embedded model needs 1.5 GB: free some space, or set BAIZE_CACHE to another disk",
    )  # fmt: skip


def _check_gpu(tier: Tier) -> Check:
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return Check("GPU", True, f"{properties.name}, {properties.total_memory / 1e9:.0f} GB")
    return Check(
        "GPU", tier.name != "a100", "none" if tier.name == "a100" else "none (not needed)",
        "tier a100 needs one A100 or H100: in Colab choose Runtime > Change runtime type",
    )  # fmt: skip
