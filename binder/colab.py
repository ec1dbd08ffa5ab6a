"""What the first cell of a notebook runs on Colab and Kaggle: the pinned course, and its tier.

The cell sets `course` and `version` (the address of this copy and the branch or tag of the
notebook), `tier` and `keep_on_drive` before. What the kernel has loaded already keeps its version
where the course can do with that, so that nothing has to be restarted; where not, the cell says so.
"""

import importlib
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from urllib.request import urlopen

AGAIN = "run this cell again; if it stays so, open an issue with these lines"


def in_use() -> dict[str, str]:
    """The installed packages of which the kernel has loaded a module, with their versions."""
    owners = metadata.packages_distributions()
    names = {name for module in list(sys.modules) for name in owners.get(module, ())}
    return {name.lower().replace("_", "-"): metadata.version(name) for name in names}


def not_loaded(pins: str, loaded: dict[str, str]) -> str:
    """The pins without those of packages that are in use."""
    return "\n".join(line for line in pins.splitlines() if line.split("==")[0] not in loaded)


def install(course: str, version: str) -> None:
    """Install the course at its pinned set; says what failed if it fails."""
    try:
        with urlopen(f"{course}/raw/{version}/constraints.txt") as file:
            pins = file.read().decode("utf-8")
    except OSError as error:
        raise RuntimeError(
            f"{course} at {version} cannot be read ({error}): on Kaggle switch Internet on; {AGAIN}"
        ) from None
    loaded = in_use()
    Path("pins.txt").write_text(not_loaded(pins, loaded), encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--only-binary=:all:", "-c", "pins.txt"]
    done = subprocess.run(
        [*pip, f"baize-course @ git+{course}@{version}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-25:])
        raise RuntimeError(
            f"the course was not installed: {last}\nRuntime > Restart session, then {AGAIN}"
        )
    print("the course is installed")
    if newer := loaded_anew(loaded):
        print(
            f"{', '.join(newer)}: in use, and newer now. If an import fails: Runtime > Restart "
            "session, then run this cell again"
        )


def loaded_anew(loaded: dict[str, str]) -> list[str]:
    """Names of packages that were in use and were replaced, and that stay loaded as they were.

    A module of one plain file, such as `typing_extensions`, is read anew at its next import; a
    package of several, or one with compiled parts, cannot be.
    """
    importlib.invalidate_caches()
    newer = {name for name, before in loaded.items() if metadata.version(name) != before}
    for module, owners in metadata.packages_distributions().items():
        names = {name.lower().replace("_", "-") for name in owners} & newer
        if names and module in sys.modules and not hasattr(sys.modules[module], "__path__"):
            del sys.modules[module]
            newer -= names
    return sorted(newer)


def place(tier: str, keep_on_drive: bool) -> None:
    """Set the tier, and the folder of the runs on Google Drive if asked."""
    os.environ["BAIZE_TIER"] = tier
    if keep_on_drive:
        from google.colab import drive

        drive.mount("/content/drive")
        os.environ["BAIZE_RUNS"] = "/content/drive/MyDrive/baize-course/runs"


if "course" in globals():
    install(course, version)  # noqa: F821 - set by the notebook's cell
    place(tier, keep_on_drive)  # noqa: F821
