"""A look at this machine before anything is spent on it; each failure comes with its fix.

print(check_environment())            # every line, as in notebook 00
print(check_environment(brief=True))  # one line, or only what fails
"""

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
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
    checks = [Check("Python", True, platform.python_version())]
    is_local = tier.teacher in MODELS or tier.teacher.endswith(".gguf")
    for name in (*PACKAGES, "xllamacpp") if is_local else PACKAGES:
        try:
            checks.append(Check(name, True, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            fix = "in the clone: make course, or pip install -c constraints.txt -e '.[lab]'"
            checks.append(Check(name, False, "not installed", fix))
    if not is_local:
        own_server = bool(os.environ.get("OPENAI_BASE_URL"))  # it may do without a key
        fix = "set it in the environment or in Colab's secrets, or use BAIZE_TIER=laptop"
        try:
            found = "set" if find_key(needed=False) else "not set"
        except BaizeError as error:
            found, own_server, fix = "not a key", False, str(error)
        told = f"{found} (teacher {tier.teacher})"
        checks.append(Check("OPENAI_API_KEY", found == "set" or own_server, told, fix))
    return EnvironmentReport([*checks, *_machine(tier)], brief)


def _machine(tier: Tier) -> Iterator[Check]:
    """Its memory, its GPU, and room for the models that are not here yet, the student twice."""
    import psutil

    memory, needed = psutil.virtual_memory().total / 1e9, min(tier.gigabytes, 4)
    found = f"{memory:.0f} GB, {os.cpu_count()} cores"
    fix = f"tier {tier.name} needs about {needed:g} GB: close programs, or use BAIZE_TIER=ci"
    yield Check("memory", memory >= 0.9 * needed, found, fix)

    models = [MODELS[name] for name in {tier.teacher, tier.student} & MODELS.keys()]
    missing = [model for model in models if not (cache_dir() / model.file).is_file()]
    needed = 1.2 * sum(model.num_bytes for model in missing) / 1e9
    if (student := MODELS.get(tier.student)) and not student.folder.is_dir():
        needed += 6 * student.num_bytes / 1e9  # in the form of training
    folder = next(path for path in (cache_dir(), *cache_dir().parents) if path.exists())
    free = shutil.disk_usage(folder).free / 1e9
    fix = "free some space, or set BAIZE_CACHE to another disk"
    yield Check("disk for models", free >= needed, f"{free:.0f} GB free, {needed:.1f} needed", fix)

    if find_spec("torch"):
        from torch import cuda

        wanted, found = tier.gigabytes > 6, "none (not needed)"
        if cuda.is_available():
            gpu, wanted = cuda.get_device_properties(0), False
            found = f"{gpu.name}, {gpu.total_memory / 1e9:.0f} GB"
        fix = f"tier {tier.name} needs a GPU with {tier.gigabytes:g} GB: in Colab choose Runtime > "
        fix += "Change runtime type, or use BAIZE_TIER=laptop"
        yield Check("GPU", not wanted, "none" if wanted else found, fix)
