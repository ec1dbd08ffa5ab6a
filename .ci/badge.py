"""Write the address of a copy of the course wherever it is named: badges, cells, README, pyproject.

    make badge OWNER=you/your-copy                # a copy of your own
    make badge OWNER=you/your-copy VERSION=v1.0   # its notebooks, for a tag: they install that tag

`pyproject.toml` is the one place both are read from; a test holds the others to it.
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


def main(owner: str, version: str = "") -> None:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", owner):
        sys.exit(f"OWNER={owner!r}: give name/repository, as in its address on GitHub")
    if not re.fullmatch(r"[\w.-]*", version):
        sys.exit(
            f"VERSION={version!r}: give a branch or a tag without a slash, such as main or v1.0"
        )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    before, _, now = project["urls"]["Notebooks"].partition("/blob/")
    before, now = before.removeprefix("https://github.com/"), now.removesuffix("/notebooks")
    for path in sorted({path for pattern in NAMED for path in ROOT.glob(pattern)}):
        text = path.read_text(encoding="utf-8")
        new = text.replace(before, owner)
        if version:  # in addresses of files, and in the notebooks' first cell as JSON writes it
            new = new.replace(f"{owner}/blob/{now}/", f"{owner}/blob/{version}/")
            new = new.replace(f'{owner}\\", \\"{now}\\"', f'{owner}\\", \\"{version}\\"')
        if new != text:
            path.write_text(new, encoding="utf-8")
            print(path.relative_to(ROOT))


if __name__ == "__main__":
    main(*sys.argv[1:])
