"""Slides from the notebooks: titles, their own figures with alt texts, key points, exercises.

    python .ci/slides.py [FOLDER]     # writes slides.md (Marp's Markdown) and slides.html

`slides.html` is one file that needs no network and no program but a browser: arrow keys turn its
pages, printing makes a PDF. Nothing is typed here, so what the notebooks say is what is shown.
"""

import ast
import base64
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import mistune

ROOT = Path(__file__).resolve().parent.parent
LOOK = """
body { margin: 0; font: 1.5rem/1.4 system-ui, sans-serif; color: #222; background: #fff }
section { min-height: 100vh; box-sizing: border-box; padding: 4vh 8vw; break-after: page;
  display: flex; flex-direction: column; justify-content: center }
img { max-width: 100%; max-height: 62vh; object-fit: contain; align-self: center }
h1 { font-size: 2.6rem; margin: 0 0 1rem } p:has(> img) { text-align: center; margin: 0 }
"""
TURN = """
addEventListener("keydown", event => {
  const by = {ArrowRight: 1, ArrowDown: 1, PageDown: 1, " ": 1,
    ArrowLeft: -1, ArrowUp: -1, PageUp: -1}[event.key]
  if (!by) return
  event.preventDefault()
  const all = [...document.querySelectorAll("section")]
  const now = all.findLastIndex(one => one.getBoundingClientRect().top < 5)
  all[Math.min(Math.max(now + by, 0), all.length - 1)].scrollIntoView()
})
"""


def figures(cell: dict) -> Iterator[tuple[str, str]]:
    """(name, alt text) of each figure a cell shows: the text it was rendered with, or will be."""
    tree = ast.parse(re.sub(r"^[%!].*$", "", "".join(cell["source"]), flags=re.MULTILINE))
    known, rendered = {}, iter(
        output["metadata"]["image/png"]["alt"]
        for output in cell["outputs"]
        if "alt" in output.get("metadata", {}).get("image/png", {})
    )  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            known[node.targets[0].id] = node.value
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "plots.show":
            yield node.args[1].value, next(rendered, None) or written(node.args[2], known)


def written(node: ast.expr, known: dict[str, ast.expr]) -> str:
    """A text as the code has it; "…" where a number will stand."""
    if isinstance(node, ast.Name) and node.id in known:
        return written(known[node.id], known)
    if isinstance(node, ast.JoinedStr):
        return "".join(written(part, known) for part in node.values)
    return str(node.value) if isinstance(node, ast.Constant) else "…"


def paragraphs(cell: dict) -> list[str]:
    return [part.strip() for part in "".join(cell["source"]).split("\n\n") if part.strip()]


def slides(path: Path) -> Iterator[str]:
    """One notebook's slides: its title, each figure with what the text says of it, the rest."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    title, promise, *_ = paragraphs(cells[0])
    yield f"{title}\n\n{promise}"
    heading = ""
    for cell, after in zip(cells, [*cells[1:], None], strict=True):
        shown = figures(cell) if cell["cell_type"] == "code" else ()
        for part in paragraphs(cell) if cell["cell_type"] == "markdown" else ():
            heading = part if re.match(r"##? [^\n]+$", part) else heading
            if picture := re.match(r"!\[(.*)\]\(\.\./(figures/\w+\.png)\)$", part):
                yield f"#{heading.lstrip('#')}\n\n![{picture[1]}]({picture[2]})"
        for name, alt in shown:
            if (ROOT / "figures" / f"{name}.png").is_file():
                told = paragraphs(after)[0] if after and after["cell_type"] == "markdown" else ""
                told = " ".join(re.split(r"(?<=[.?!]) (?=[A-Z*])", " ".join(told.split()))[:2])
                yield f"#{heading.lstrip('#')}\n\n![{alt}](figures/{name}.png)\n\n{told}"
    prose = "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    if asked := re.findall(r"^\*\*Exercise \d+\*\*(?:.+\n?)+", prose, re.MULTILINE):
        yield "# Try it\n\n" + "\n\n".join(asked)
    if points := re.search(r"## (Key points\n\n(?:- .*\n(?:  .*\n)*)+)", prose + "\n"):
        yield f"# {points[1].strip()}"


def as_page(deck: list[str]) -> str:
    """The slides as one HTML page with its pictures inside."""

    def inside(found: re.Match[str]) -> str:
        data = base64.b64encode((ROOT / found[1]).read_bytes()).decode()
        return f'src="data:image/png;base64,{data}"'

    body = "\n".join(f"<section>{mistune.html(slide)}</section>" for slide in deck)
    body = re.sub(r'src="(figures/\w+\.png)"', inside, body)
    body = re.sub(r"<a href=[^>]*>|</a>", "", body)  # they lead to notebooks, which are not here
    head = '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>Slides</title>'
    return f"{head}\n<style>{LOOK}</style>\n{body}\n<script>{TURN}</script>\n</html>\n"


def main(out: Path) -> None:
    books = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
    deck = [slide for path in books for slide in slides(path)]
    out.mkdir(parents=True, exist_ok=True)
    (out / "slides.html").write_text(as_page(deck), encoding="utf-8")
    pictures = os.path.relpath(ROOT / "figures", out)
    text = "\n\n---\n\n".join(deck).replace("](figures/", f"]({pictures}/")
    (out / "slides.md").write_text(f"---\nmarp: true\n---\n\n{text}\n", encoding="utf-8")
    print(f"{len(deck)} slides in {os.path.relpath(out / 'slides.html')} (and slides.md)")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "runs" / "course")
