"""Run the whole course: notebooks in order, a line of progress each, an index and a receipt.

`baize run` leaves executed notebooks and `index.html` under `runs/course/`; `baize run --bonus`
runs the longer experiments of `notebooks/bonus/` on the files of that run; `baize render` runs the
course from an empty run and writes the outputs into `notebooks/` (in both languages) and
`figures/`. What a run has paid for or computed stays in `runs/<name>/`, so a second run reuses it.
"""

import base64
import copy
import datetime
import html
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from baize_lib.config import BaizeError, runs_dir
from baize_lib.course.environment import check_environment
from baize_lib.course.receipt import write_receipt
from baize_lib.course.tiers import current_tier, open_run
from baize_lib.files import template, write_atomic

if TYPE_CHECKING:
    from nbformat import NotebookNode

__all__ = []

ROOT = Path(__file__).resolve().parents[2]
COURSE, BONUS = ROOT / "notebooks", ROOT / "notebooks" / "bonus"


def execute(path: Path, out: Path) -> None:
    """Run one notebook in its own kernel; write it and its HTML into `out`.

    Where a cell fails, they are written up to there, and a BaizeError says which and why.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, DeadKernelError

    notebook = nbformat.read(path, as_version=4)
    error = ""
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
    tidy(notebook)
    write_atomic(out / path.name, nbformat.writes(notebook) + "\n")
    write_atomic(out / f"{path.stem}.html", as_html(notebook, path.parent))
    if error:
        raise BaizeError(
            f"{path.name} stopped: {error}\nSee {os.path.relpath(out / path.name)}; "
            "run the same command again to go on: finished work is kept"
        )


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
    """The notebook as one page that needs no network, with pictures inside and links to pages."""
    from nbconvert import HTMLExporter

    def inside(found: re.Match[str]) -> str:  # nbconvert leaves those above the folder out
        path = folder / found[2]
        if path.suffix not in (".svg", ".png") or not path.is_file():
            return found[0]
        kind = path.suffix[1:].replace("svg", "svg+xml")
        data = base64.b64encode(path.read_bytes()).decode()
        return f'<img alt="{html.escape(found[1])}" src="data:image/{kind};base64,{data}">'

    notebook = copy.deepcopy(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"!\[([^\]]*)\]\((\.\./[^)]+)\)", inside, cell.source)
            cell.source = re.sub(r"(\]\([\w/.]+)\.(?:ipynb|md)(?=[)#])", r"\1.html", cell.source)
    exporter = HTMLExporter(  # of nbconvert's templates the one that keeps alt texts
        template_name="classic", mathjax_url="", require_js_url="", jquery_url="", mermaid_js_url=""
    )
    page = exporter.from_notebook_node(notebook)[0]
    return re.sub(r'<script src="">\s*</script>', "", page)


def _glossary() -> str:
    from nbformat.v4 import new_markdown_cell, new_notebook

    words = (COURSE / "glossary.md").read_text(encoding="utf-8")
    return as_html(new_notebook(cells=[new_markdown_cell(words)]), COURSE)


def _run_all(paths: Sequence[Path], out: Path) -> dict[str, datetime.timedelta]:
    """How long each notebook took, by its name."""
    took = {}
    for number, path in enumerate(paths, start=1):
        print(f"[{number}/{len(paths)}] {path.stem:<26}", end=" ", flush=True)
        begun = time.perf_counter()
        execute(path, out)
        took[path.stem] = datetime.timedelta(seconds=int(time.perf_counter() - begun))
        print(took[path.stem], flush=True)
    return took


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
    tier, course = current_tier(), runs_dir() / "course"
    paths, out = _chosen(only, BONUS if bonus else COURSE), course / "bonus" if bonus else course
    run = open_run(tier)
    print(f"{tier}\ninto {os.path.relpath(run.path)}\n")
    if not (report := check_environment(tier)).ok:
        raise BaizeError(f"this machine is not ready:\n{report}")
    took = _run_all(paths, out)
    printed, total = write_receipt(run), sum(took.values(), datetime.timedelta())
    index = template(Path(__file__).with_name("index.jinja")).render(took=took, receipt=printed)
    write_atomic(out / "index.html", index)
    write_atomic(course / "glossary.html", _glossary())
    print(f"\n{printed}\n\n{total} in all; open {os.path.relpath(out / 'index.html')}")


def render_course(only: Sequence[str] = ()) -> None:
    """Execute at the current tier from an empty run, then write outputs and figures back.

    Nothing is written back unless every notebook ran. `only` renders those again, bonus ones too,
    on the files of the last render.
    """
    os.environ["BAIZE_RUN"] = "render"
    paths = _chosen(only, COURSE, *[BONUS] if only else [])
    if not only:
        shutil.rmtree(runs_dir() / "render", ignore_errors=True)
    run = open_run()
    out = run.path / "executed"
    os.environ["BAIZE_FIGURES"] = str(out / "figures")
    _run_all(paths, out)
    for path in paths:
        write_atomic(path, (out / path.name).read_bytes())
        for picture in (out / "figures").glob(f"{path.stem[:2]}_*.png"):
            write_atomic(ROOT / "figures" / picture.name, picture.read_bytes())
    subprocess.run([sys.executable, ROOT / ".ci" / "chinese.py", "write"], check=True)
    print(write_receipt(run))
