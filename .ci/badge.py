"""Write the address of a copy of the course wherever it is named: badges, cells, README, pyproject.

`pyproject.toml` is the one place it is read from; a test holds the others to it.
"""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAMED = [
    "pyproject.toml",
    "README*.md",
    ".github/workflows/*.yml",
    "notebooks/**/*.ipynb",
    "instructor/**/*.md",
    "binder/*",
]


def main(owner: str) -> None:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", owner):
        sys.exit(f"OWNER={owner!r}: give name/repository, as in its address on GitHub")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    before = project["urls"]["Repository"].removeprefix("https://github.com/")
    for path in sorted({path for pattern in NAMED for path in ROOT.glob(pattern)}):
        text = path.read_text(encoding="utf-8")
        if before in text:
            path.write_text(text.replace(before, owner), encoding="utf-8")
            print(path.relative_to(ROOT))


if __name__ == "__main__":
    main(sys.argv[1])
