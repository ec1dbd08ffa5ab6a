"""What the first cell of a notebook runs on Colab: install the pinned course, choose the tier.

The cell sets `course` (the address of this copy), `tier` and `keep_on_drive` before. What the
kernel has loaded already keeps its version, so that nothing has to be restarted.
"""

import os
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path
from urllib.request import urlopen


def not_loaded(pins: str, modules: list[str]) -> str:
    """The pins without those of packages whose modules are loaded."""
    owners = packages_distributions()
    loaded = {name.lower().replace("_", "-") for m in modules for name in owners.get(m, ())}
    return "\n".join(line for line in pins.splitlines() if line.split("==")[0] not in loaded)


def install(course: str) -> None:
    """Install the course at its pinned set; says what failed if it fails."""
    with urlopen(f"{course}/raw/main/constraints.txt") as file:
        pins = file.read().decode("utf-8")
    Path("pins.txt").write_text(not_loaded(pins, list(sys.modules)), encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "install", "-q", "-c", "pins.txt"]
    done = subprocess.run(
        [*pip, f"baize-course @ git+{course}"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise RuntimeError(
            f"the course was not installed: {last}\nRuntime > Restart session, then run this cell "
            "again; if it stays so, open an issue with these lines"
        )
    print("the course is installed")


def place(tier: str, keep_on_drive: bool) -> None:
    """Set the tier, and the folder of the runs on Google Drive if asked."""
    os.environ["BAIZE_TIER"] = tier
    if keep_on_drive:
        from google.colab import drive

        drive.mount("/content/drive")
        os.environ["BAIZE_RUNS"] = "/content/drive/MyDrive/baize-course/runs"


if "course" in globals():
    install(course)  # noqa: F821 - set by the notebook's cell
    place(tier, keep_on_drive)  # noqa: F821
