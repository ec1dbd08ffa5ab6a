"""Run the whole course: notebooks in order, a line of progress each, an index and a receipt.

`baize run` leaves executed notebooks and `index.html` under `runs/course/`; `baize run --bonus`
runs the longer experiments of `notebooks/bonus/` on the files of that run; `baize render` runs the
course from an empty run and writes the outputs into `notebooks/` (in both languages) and
`figures/`. What a run has paid for or computed stays in `runs/<name>/`, so a second run reuses it.
"""

import base64
import copy
import html
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from baize_lib.config import BaizeError, Run, runs_dir
from baize_lib.course.environment import check_environment
from baize_lib.course.receipt import clock, spent_usd, write_receipt
from baize_lib.course.tiers import current_tier, open_run
from baize_lib.files import template, write_atomic

if TYPE_CHECKING:
    from nbformat import NotebookNode

__all__ = []

ROOT = Path(__file__).resolve().parents[2]
COURSE, BONUS = ROOT / "notebooks", ROOT / "notebooks" / "bonus"


@dataclass(frozen=True, slots=True)
class Executed:
    """One notebook's run: seconds, and dollars spent by its teacher."""

    name: str
    title: str
    seconds: float
    usd: float


def execute(path: Path, out: Path, run: Run) -> Executed:
    """Run one notebook in its own kernel; write it and its HTML into `out`.

    Raises:
        BaizeError: a cell failed; the notebook was written up to there.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, DeadKernelError

    notebook = nbformat.read(path, as_version=4)
    spent, begun, error = spent_usd(run), time.perf_counter(), ""
    client = NotebookClient(
        notebook, timeout=None, kernel_name="python3", extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": path.parent}},
    )  # fmt: skip
    try:
        client.execute()
    except CellExecutionError as failure:
        error = f"{failure.ename}: {failure.evalue}"
    except DeadKernelError:
        error = "its Python process died; most often that means the memory was full"
    seconds = time.perf_counter() - begun
    tidy(notebook)
    write_atomic(out / path.name, nbformat.writes(notebook) + "\n")
    write_atomic(out / f"{path.stem}.html", as_html(notebook, path.parent))
    lines = (line for cell in notebook.cells for line in cell.source.splitlines())
    title = next((line.lstrip("# ") for line in lines if line.startswith("# ")), path.stem)
    if error:
        raise BaizeError(
            f"{path.name} stopped: {error}\nSee {os.path.relpath(out / path.name)}; "
            "run the same command again to go on: finished work is kept"
        )
    return Executed(path.stem, title, seconds, spent_usd(run) - spent)


def tidy(notebook: "NotebookNode") -> None:
    """Keep of the metadata only what a reader needs: no timings, no widget state, no versions."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number:02d}"
        cell.metadata = {k: v for k, v in cell.metadata.items() if k == "tags"}


def as_html(notebook: "NotebookNode", folder: Path) -> str:
    """The notebook as one page that needs no network: pictures inside, each with its alt text."""
    from nbconvert import HTMLExporter

    notebook = copy.deepcopy(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = _with_pictures_inside(cell.source, folder)
            cell.source = re.sub(r"(\]\([\w/.]+)\.(?:ipynb|md)(?=[)#])", r"\1.html", cell.source)
        for output in cell.get("outputs", ()):
            if about := output.get("metadata", {}).get("image/png"):  # nbconvert drops alt texts
                alt, width = html.escape(about.get("alt", "")), int(about.get("width", 700))
                picture = f"data:image/png;base64,{output.data['image/png'].strip()}"
                tag = f'<img alt="{alt}" width="{width}" src="{picture}">'
                output["data"], output["metadata"] = {"text/html": tag}, {}
    exporter = HTMLExporter(mathjax_url="", require_js_url="", jquery_url="", mermaid_js_url="")
    page = exporter.from_notebook_node(notebook, {"metadata": {"path": str(folder)}})[0]
    return re.sub(r'<script src="">\s*</script>', "", page)


def _glossary() -> str:
    from nbformat.v4 import new_markdown_cell, new_notebook

    words = (COURSE / "glossary.md").read_text(encoding="utf-8")
    return as_html(new_notebook(cells=[new_markdown_cell(words)]), COURSE)


def _with_pictures_inside(markdown: str, folder: Path) -> str:
    """Pictures from above the notebook's folder as part of the text: nbconvert leaves those out."""

    def inside(found: re.Match[str]) -> str:
        path = folder / found[2]
        kind = {".svg": "svg+xml", ".png": "png"}.get(path.suffix)
        if not kind or not path.is_file():
            return found[0]
        data = base64.b64encode(path.read_bytes()).decode()
        return f'<img alt="{html.escape(found[1])}" src="data:image/{kind};base64,{data}">'

    return re.sub(r"!\[([^\]]*)\]\((\.\./[^)]+)\)", inside, markdown)


def _run_all(paths: Sequence[Path], out: Path, run: Run) -> list[Executed]:
    done: list[Executed] = []
    for number, path in enumerate(paths, start=1):
        print(f"[{number}/{len(paths)}] {path.stem:<26}", end=" ", flush=True)
        done.append(execute(path, out, run))
        print(f"{clock(done[-1].seconds)}  ${done[-1].usd:.2f}", flush=True)
    return done


def _chosen(only: Sequence[str], *folders: Path) -> list[Path]:
    """The notebooks of these folders, in order: all, or those named by their number or name."""
    every = [path for folder in folders for path in sorted(folder.glob("[0-9]*.ipynb"))]
    if not every:
        raise BaizeError(
            "the notebooks are not part of an installed package: run this in a clone of the course"
        )
    for name in only:
        if not any(name in (path.stem, path.stem[:2]) for path in every):
            names = ", ".join(path.stem for path in every)
            raise BaizeError(f"no notebook {name!r}: use one of {names}, or its number")
    return [path for path in every if not only or {path.stem, path.stem[:2]} & {*only}]


def run_course(only: Sequence[str] = (), *, bonus: bool = False) -> None:
    """Run the notebooks into `runs/course/`, print the receipt and where the index is."""
    tier = current_tier()
    folder, out = (BONUS, runs_dir() / "course/bonus") if bonus else (COURSE, runs_dir() / "course")
    paths, begun = _chosen(only, folder), time.perf_counter()
    run = open_run(tier)
    print(f"{tier}\ninto {os.path.relpath(run.path)}\n")
    report = check_environment(tier)
    if not report.ok:
        raise BaizeError(f"this machine is not ready:\n{report}")
    done = _run_all(paths, out, run)
    printed = write_receipt(run, out, time.perf_counter() - begun)
    page = template(Path(__file__).with_name("index.jinja")).render(
        done=done, receipt=printed, clock=clock
    )
    write_atomic(out / "index.html", page)
    write_atomic(runs_dir() / "course" / "glossary.html", _glossary())
    print(f"\n{printed}\n\nopen {os.path.relpath(out / 'index.html')}")


def render_course(only: Sequence[str] = ()) -> None:
    """Execute at the current tier from an empty run, then write outputs and figures back.

    Nothing is written back unless every notebook ran. `only` renders those again, bonus ones too,
    on the files of the last render.
    """
    os.environ["BAIZE_RUN"] = "render"
    paths, begun = _chosen(only, COURSE, BONUS) if only else _chosen((), COURSE), time.time()
    if not only:
        shutil.rmtree(runs_dir() / "render", ignore_errors=True)
    run = open_run()
    out = run.path / "executed"
    os.environ["BAIZE_FIGURES"] = str(out / "figures")
    _run_all(paths, out, run)
    for path in paths:
        write_atomic(path, (out / path.name).read_bytes())
    rendered = {path.stem[:2] for path in paths}
    for picture in sorted((out / "figures").glob("*.png")):
        if picture.stem[:2] in rendered:
            write_atomic(ROOT / "figures" / picture.name, picture.read_bytes())
    subprocess.run([sys.executable, ROOT / ".ci" / "chinese.py", "write"], check=True)
    print(write_receipt(run, out, time.time() - begun))
