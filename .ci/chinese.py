"""The Chinese edition follows the English one: only its text cells are written by hand.

    python .ci/chinese.py write     code cells and outputs of notebooks/ into notebooks/zh/
    python .ci/chinese.py check     name every text cell whose English has changed since

Each text cell in notebooks/zh/ says in its metadata which English text it renders: `en`, the first
twelve digits of that text's SHA-256. `write` keeps the Chinese cells, in the order of the English
ones, and never changes a digest: who translates a cell again writes the new one, with

    python .ci/chinese.py take notebooks/03_dataset_inspection.ipynb texts.md

where texts.md has, for each English text cell, a line `%%%% DIGEST` and the Chinese text below it
(`python .ci/chinese.py give NOTEBOOK` prints the cells that wait, in that form). A link in
a Chinese text is written as seen from notebooks/zh/: `../../figures/…`, `../glossary.md`.
"""

import copy
import hashlib
import json
import re
import sys
import tomllib
from difflib import SequenceMatcher
from pathlib import Path

COURSE = Path(__file__).resolve().parent.parent
ROOT = COURSE / "notebooks"
ADDRESS = tomllib.loads((COURSE / "pyproject.toml").read_text("utf-8"))["project"]["urls"]
OURS = "baize-course/baize-course"
WAITING = "（此处待译。）"
SIGNS = "\u2014-\u201f\u3000-\u303f\uff00-\uffef"  # Chinese punctuation
HAN = SIGNS + "\u4e00-\u9fff"


def digest(text: str) -> str:
    """The English text's digest; in a copy with an address of its own (`make badge`) the same."""
    for name, ours in (("Notebooks", f"{OURS}/blob/main/notebooks"), ("Repository", OURS)):
        text = text.replace(ADDRESS[name].removeprefix("https://github.com/"), ours)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def english() -> list[Path]:
    return [*sorted(ROOT.glob("[0-9]*.ipynb")), *sorted(ROOT.glob("bonus/[0-9]*.ipynb"))]


def chinese(path: Path) -> Path:
    return ROOT / "zh" / path.relative_to(ROOT)


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def texts(path: Path) -> dict[str, str]:
    """English digest -> Chinese text, of what is translated so far."""
    if not chinese(path).is_file():
        return {}
    cells = read(chinese(path))["cells"]
    return {cell["metadata"]["en"]: source(cell) for cell in cells if "en" in cell["metadata"]}


def unwrapped(text: str) -> str:
    """Each paragraph on one line: a browser may show a line break inside Chinese as a space.

    >>> unwrapped("自我\\n对话，\\n`seed` 与\\nLoRA")
    '自我对话，`seed` 与\\nLoRA'
    """
    parts = re.split(r"(```.*?```)", text, flags=re.DOTALL)
    between = rf"(?<=[{HAN}*])\n(?=[{HAN}\[]|\*\*)|(?<=[{SIGNS}])\n(?=[A-Za-z`])"
    parts[::2] = [re.sub(between, "", prose) for prose in parts[::2]]
    return "".join(parts)


def kept(before: list[str], now: list[str]) -> list[str]:
    """Which Chinese text each English one gets: its own, or, when changed, the one in its place.

    >>> kept(["a", "b", "c"], ["a", "B", "c", "d"])
    ['a', 'b', 'c', '']
    """
    found = [key if key in before else "" for key in now]
    for tag, i, j, k, m in SequenceMatcher(None, before, now, autojunk=False).get_opcodes():
        if tag == "replace":
            gone = [key for key in before[i:j] if key not in now]
            for place in range(k, m):
                found[place] = found[place] or (gone.pop(0) if gone else "")
    return found


def rendered(path: Path, translated: dict[str, str]) -> dict:
    """The Chinese notebook: the English one with its texts replaced."""
    notebook = copy.deepcopy(read(path))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "markdown"]
    keys = kept(list(translated), [digest(source(cell)) for cell in cells])
    for cell, key in zip(cells, keys, strict=True):
        cell["metadata"] = {"en": key}
        cell["source"] = unwrapped(translated.get(key, WAITING)).splitlines(keepends=True)
    return notebook


def write(path: Path, translated: dict[str, str]) -> None:
    out = chinese(path)
    out.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(rendered(path, translated), ensure_ascii=False, indent=1)
    out.write_text(text + "\n", encoding="utf-8")


def behind(path: Path) -> list[str]:
    """What is wrong with the Chinese edition of one notebook, a line each; [] when it is true."""
    if not chinese(path).is_file():
        return [f"{chinese(path).relative_to(ROOT)} is missing"]
    name, ours, theirs = path.stem, read(path)["cells"], read(chinese(path))["cells"]
    if [c["cell_type"] for c in ours] != [c["cell_type"] for c in theirs]:
        return [f"{name}: its cells are not those of the English one; run .ci/chinese.py write"]
    wrong = []
    for number, (cell, other) in enumerate(zip(ours, theirs, strict=True)):
        begins = source(cell).strip().splitlines()[0][:50]
        if cell["cell_type"] == "code":
            same = [cell.get(k) == other.get(k) for k in ("source", "outputs", "execution_count")]
            if not all(same):
                wrong.append(f"{name}, cell {number} ({begins}): run .ci/chinese.py write")
        elif other["metadata"].get("en") != digest(source(cell)):
            wrong.append(f"{name}, cell {number} ({begins}): the English text has changed")
    return wrong


def take(path: Path, file: Path) -> None:
    translated = texts(path)
    for part in re.split(r"^%%%% ", file.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        key, _, text = part.partition("\n")
        translated[key.strip()] = text.strip("\n")
    current = {digest(source(c)) for c in read(path)["cells"] if c["cell_type"] == "markdown"}
    gone = [f"{key} ({text[:20]})" for key, text in translated.items() if key not in {"", *current}]
    if gone:
        print("left out, as no English text has this digest now:", *gone, sep="\n    ")
    write(path, {key: text for key, text in translated.items() if key in current})


def give(path: Path) -> str:
    translated = texts(path)
    cells = [source(c) for c in read(path)["cells"] if c["cell_type"] == "markdown"]
    return "\n".join(f"%%%% {digest(c)}\n{c}" for c in cells if digest(c) not in translated)


def main(verb: str, *names: str) -> int:
    if verb == "write":
        for path in filter(lambda path: chinese(path).is_file(), english()):
            write(path, texts(path))
    elif verb == "give":
        print(give(Path(names[0]).resolve()))
    elif verb == "take":
        take(Path(names[0]).resolve(), Path(names[1]))
    elif verb == "check":
        wrong = [line for path in english() for line in behind(path)]
        print(*wrong, sep="\n")
        return bool(wrong)
    return 0


if __name__ == "__main__":
    sys.exit(main(*(sys.argv[1:] or ["check"])))
