"""Run the whole course: notebooks in order, a line of progress each, an index and a receipt.

`baize run` leaves executed notebooks and `index.html` under `runs/course/`; `baize run --bonus`
runs the longer experiments of `notebooks/bonus/` on the files of that run; `baize render` runs the
course from an empty run and writes the outputs into `notebooks/` and `figures/`. What a run has
paid for or computed stays in `runs/<name>/`, so a second run reuses it.

>>> _clock(617)
'10:17'
"""

import base64
import copy
import html
import json
import os
import re
import shutil
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baize_lib.config import BaizeError, Run, runs_dir
from baize_lib.corpus.formats import read_dialogues
from baize_lib.course.environment import check_environment
from baize_lib.course.show import template
from baize_lib.course.tiers import current_tier, open_run
from baize_lib.files import write_atomic
from baize_lib.teacher.prices import Usage, shadow_cost

if TYPE_CHECKING:
    from nbformat import NotebookNode

__all__ = []

ROOT = Path(__file__).resolve().parents[2]
COURSE, BONUS = ROOT / "notebooks", ROOT / "notebooks" / "bonus"


@dataclass(frozen=True, slots=True)
class Executed:
    """One notebook's run: seconds, dollars spent by its teacher, and its error if it failed."""

    name: str
    title: str
    seconds: float
    usd: float
    error: str = ""


def execute(path: Path, out: Path, run: Run) -> Executed:
    """Run one notebook in its own kernel, in its own folder; write it and its HTML into `out`.

    A notebook that fails is written too, up to its error.
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
    return Executed(path.stem, title, seconds, spent_usd(run) - spent, error)


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
        for output in cell.get("outputs", ()):
            if about := output.get("metadata", {}).get("image/png"):  # nbconvert drops alt texts
                alt, width = html.escape(about.get("alt", "")), int(about.get("width", 700))
                picture = f"data:image/png;base64,{output.data['image/png'].strip()}"
                tag = f'<img alt="{alt}" width="{width}" src="{picture}">'
                output["data"], output["metadata"] = {"text/html": tag}, {}
    exporter = HTMLExporter(mathjax_url="", require_js_url="", jquery_url="", mermaid_js_url="")
    page = exporter.from_notebook_node(notebook, {"metadata": {"path": str(folder)}})[0]
    return re.sub(r'<script src="">\s*</script>', "", page)


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


def bill(run: Run) -> list[tuple[str, float, int, int]]:
    """What the run's table of paid calls says: (purpose, USD, tokens in, tokens out) each."""
    if not run.calls_file.is_file():
        return []
    with closing(sqlite3.connect(f"{run.calls_file.resolve().as_uri()}?mode=ro", uri=True)) as db:
        return db.execute(
            "SELECT purpose, sum(owed) / 1e12, ifnull(sum(input), 0), ifnull(sum(output), 0) "
            "FROM bill GROUP BY purpose ORDER BY min(id)"
        ).fetchall()


def spent_usd(run: Run) -> float:
    """USD this run has spent so far, whatever for."""
    return sum(usd for _, usd, *_ in bill(run))


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def receipt(run: Run, seconds: float) -> str:
    """What the run took in and gave out, from the files it left; a missing step reads "–"."""
    rows = [*_collected(run), *_trained(run), ("wall time", _clock(seconds))]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _collected(run: Run) -> Iterator[tuple[str, str]]:
    if not run.self_chat.is_file():
        yield "dialogues", "– (notebook 02 has not run)"
        return
    statuses = [dialogue.status for dialogue in read_dialogues(run.self_chat, statuses=None)]
    card = _read(run.corpus_dir / "card.json")
    kept = f"{card['kept']} kept" if card else "– kept (notebook 03 has not run)"
    yield "dialogues", f"{statuses.count('ok')} finished of {len(statuses)}, {kept}"
    usage = Usage()
    for purpose, usd, given, said in bill(run):
        yield f"spent, {purpose}", f"${usd:.4f}, {given:,} tokens in, {said:,} out"
        usage += Usage(input=given, output=said)
    yield "spent", f"${spent_usd(run):.4f}"
    for other in shadow_cost(usage):
        yield "elsewhere", f"${other.usd:.4f} at {other.model} ({other.as_of})"


def _trained(run: Run) -> Iterator[tuple[str, str]]:
    if not (card := _read(run.adapter_dir / "baize_run.json")):
        yield "adapter", "– (notebook 04 has not run)"
        return
    yield "trained on", f"{card['num_tokens']:,} tokens in {card['seconds']:.0f} s"
    losses = [card["loss_before"], card["loss_after"]]
    known = None not in losses
    told = "{:.3f} before, {:.3f} after".format(*losses) if known else "– (nothing held out)"
    yield "held-out loss", told
    yield "adapter", os.path.relpath(run.adapter_dir)


def _read(path: Path) -> Mapping[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _run_all(paths: Sequence[Path], out: Path, run: Run) -> list[Executed]:
    done: list[Executed] = []
    for number, path in enumerate(paths, start=1):
        print(f"[{number}/{len(paths)}] {path.stem:<26}", end=" ", flush=True)
        one = execute(path, out, run)
        done.append(one)
        print(f"{_clock(one.seconds)}  ${one.usd:.2f}{'  failed' if one.error else ''}", flush=True)
        if one.error:
            raise BaizeError(
                f"{path.name} stopped: {one.error}\nSee {os.path.relpath(out / path.name)}; "
                "run the same command again to go on: finished work is kept"
            )
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
    printed = receipt(run, time.perf_counter() - begun)
    page = template("index.jinja").render(done=done, receipt=printed, clock=_clock)
    write_atomic(out / "index.html", page)
    write_atomic(out / "receipt.txt", printed + "\n")
    print(f"\n{printed}\n\nopen {os.path.relpath(out / 'index.html')}")


def render_course(only: Sequence[str] = ()) -> None:
    """Execute at the current tier from an empty run, then write outputs and figures back.

    Nothing is written back unless every notebook ran; `only` re-renders those notebooks, bonus ones
    too, on the files of the last render.
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
    print(receipt(run, time.time() - begun))
