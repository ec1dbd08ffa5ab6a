"""Run the whole course: notebooks in order, a line of progress each, an index and a receipt.

`python -m baize_lib.course run` leaves executed notebooks and `index.html` under `runs/course/`;
`bonus` runs the longer experiments of `notebooks/bonus/` on the files of that run; `render` runs
the course from an empty run and writes the outputs into `notebooks/` and `figures/`.
What a run has paid for or computed stays in `runs/<name>/`, so a second run reuses it.
"""

import argparse
import base64
import copy
import html
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baize_lib.config import BaizeError, Run, open_run, runs_dir
from baize_lib.corpus.formats import read_dialogues
from baize_lib.course.environment import check_environment
from baize_lib.files import write_atomic

__all__ = [
    "Executed",
    "execute",
    "receipt",
    "index_page",
    "main",
]


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
    from nbclient.exceptions import CellExecutionError

    notebook = nbformat.read(path, as_version=4)
    spent, begun, error = _spent(run), time.perf_counter(), ""
    client = NotebookClient(
        notebook, timeout=None, kernel_name="python3", extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": path.parent}},
    )  # fmt: skip
    try:
        client.execute()
    except CellExecutionError as failure:
        error = f"{failure.ename}: {failure.evalue}"
    seconds = time.perf_counter() - begun
    tidy(notebook)
    write_atomic(out / path.name, nbformat.writes(notebook) + "\n")
    write_atomic(out / f"{path.stem}.html", _as_html(notebook, path.parent))
    title = _title(notebook) or path.stem
    return Executed(path.stem, title, seconds, _spent(run) - spent, error)


def tidy(notebook: Any) -> None:
    """Keep of the metadata only what a reader needs: no timings, no widget state, no versions."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number:02d}"
        cell.metadata = {k: v for k, v in cell.metadata.items() if k == "tags"}


def _as_html(notebook: Any, folder: Path) -> str:
    from nbconvert import HTMLExporter

    notebook = copy.deepcopy(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = _with_pictures_inside(cell.source, folder)
    exporter = HTMLExporter(embed_images=True)
    return exporter.from_notebook_node(notebook, {"metadata": {"path": str(folder)}})[0]


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


def _title(notebook: Any) -> str:
    lines = (line for cell in notebook.cells for line in cell.source.splitlines())
    return next((line.lstrip("# ") for line in lines if line.startswith("# ")), "")


def _spent(run: Run) -> float:
    if not run.ledger.is_file():
        return 0.0
    return sum(dialogue.cost_usd for dialogue in read_dialogues(run.ledger, statuses=None))


def index_page(done: Sequence[Executed], printed: str) -> str:
    """One HTML page: the executed notebooks with their times and costs, then the receipt."""
    rows = "".join(
        f"<tr><td><a href='{e.name}.html'>{html.escape(e.title)}</a></td>"
        f"<td class=n>{_clock(e.seconds)}</td><td class=n>${e.usd:.2f}</td>"
        f"<td>{'failed' if e.error else 'done'}</td></tr>"
        for e in done
    )
    return f"""<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>The course, executed</title>
<style>
body{{font:16px/1.5 system-ui,sans-serif;max-width:48rem;margin:2rem auto;padding:0 1rem;
color-scheme:light dark}} table{{border-collapse:collapse;width:100%}} .n{{text-align:right}}
td,th{{padding:.4rem .6rem;border-bottom:1px solid #8886;text-align:left}}
pre{{background:#8881;padding:1rem;overflow:auto}}
</style>
<h1>The course, executed</h1>
<table><tr><th>notebook</th><th class=n>time</th><th class=n>spent</th><th></th></tr>{rows}</table>
<h2>Receipt</h2><pre>{html.escape(printed)}</pre></html>
"""


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def receipt(run: Run, seconds: float) -> str:
    """What the run took in and gave out, from the files it left; a missing step reads "–"."""
    lines = [*_collected(run), *_trained(run), ("wall time", _clock(seconds))]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)


def _collected(run: Run) -> list[tuple[str, str]]:
    from baize_lib.pricing import Usage, shadow_cost

    if not run.ledger.is_file():
        return [("dialogues", "– (notebook 02 has not run)")]
    collected = list(read_dialogues(run.ledger, statuses=None))
    usage = sum((dialogue.usage for dialogue in collected), Usage())
    ok = sum(dialogue.status == "ok" for dialogue in collected)
    card = _read(run.corpus_dir / "card.json")
    kept = f"{card['kept']} kept, {ok - card['kept']} dropped" if card else "– (03 has not run)"
    costs = [f"${bill.usd:.4f} at {bill.model} ({bill.as_of})" for bill in shadow_cost(usage)]
    return [
        ("seeds", f"{len({dialogue.seed for dialogue in collected})}"),
        ("dialogues", f"{ok} finished, {kept}"),
        ("teacher's tokens", f"{usage.input:,} in, {usage.output:,} out"),
        ("spent", f"${sum(dialogue.cost_usd for dialogue in collected):.4f}"),
        ("would have cost", costs[0]),
        *(("", cost) for cost in costs[1:]),
    ]


def _trained(run: Run) -> list[tuple[str, str]]:
    card = _read(run.adapter_dir / "baize_run.json")
    if not card:
        return [("adapter", "– (notebook 04 has not run)")]
    return [
        ("trained on", f"{card['num_tokens']:,} tokens in {card['seconds']:.0f} s"),
        ("held-out loss", _before_after(card["loss_before"], card["loss_after"])),
        ("adapter", os.path.relpath(run.adapter_dir)),
    ]


def _before_after(before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return "– (nothing was held out)"
    return f"{before:.3f} before, {after:.3f} after (nats a token)"


def _read(path: Path) -> dict[str, Any]:
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


def _notebooks(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9]*.ipynb"))


def run_course(run: Run) -> None:
    """Run every notebook into `runs/course/`, then print the receipt and where the index is."""
    print(
        f"tier {run.tier.name}: about {run.tier.minutes:g} minutes and ${run.tier.usd:.2f}"
        f" (estimates), into {os.path.relpath(run.path)}"
    )
    _run_folder(COURSE, runs_dir() / "course", run)


def run_bonus(run: Run) -> None:
    """Run the notebooks of `notebooks/bonus/` into `runs/course/bonus/`, on the course's run."""
    print(f"tier {run.tier.name}, bonus notebooks, on {os.path.relpath(run.path)}")
    _run_folder(BONUS, runs_dir() / "course" / "bonus", run)


def _run_folder(folder: Path, out: Path, run: Run) -> None:
    begun = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    report = check_environment(run.tier)
    if not report.ok:
        raise BaizeError(f"this machine is not ready:\n{report}")
    done = _run_all(_notebooks(folder), out, run)
    printed = receipt(run, time.perf_counter() - begun)
    write_atomic(out / "index.html", index_page(done, printed))
    write_atomic(out / "receipt.txt", printed + "\n")
    print(f"\n{printed}\n\nopen {os.path.relpath(out / 'index.html')}")


def render(only: Sequence[str] = ()) -> None:
    """Execute at the current tier from an empty run, then write outputs and figures back.

    Nothing is written back unless every notebook ran; `only` re-renders those notebooks, bonus ones
    too, on the files of the last render.
    """
    os.environ["BAIZE_RUN"] = "render"
    if not only:
        shutil.rmtree(runs_dir() / "render", ignore_errors=True)
    run = open_run()
    out = run.path / "executed"
    os.environ["BAIZE_FIGURES"] = str(out / "figures")
    paths = _notebooks(COURSE)
    if only:
        paths = [p for p in paths + _notebooks(BONUS) if p.stem in only or p.stem[:2] in only]
    begun = time.perf_counter()
    _run_all(paths, out, run)
    for path in paths:
        write_atomic(path, (out / path.name).read_bytes())
    rendered = {path.stem[:2] for path in paths}
    for picture in sorted((out / "figures").glob("*.png")):
        if picture.stem[:2] not in rendered:
            continue
        write_atomic(ROOT / "figures" / picture.name, picture.read_bytes())
    print(receipt(run, time.perf_counter() - begun))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: `run`, `bonus`, or `render [notebook …]`."""
    parser = argparse.ArgumentParser(prog="python -m baize_lib.course", description=__doc__)
    parser.add_argument("command", choices=["run", "bonus", "render"])
    parser.add_argument("notebooks", nargs="*", help="render only these, e.g. 04")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.command == "render":
            render(chosen.notebooks)
        else:
            (run_bonus if chosen.command == "bonus" else run_course)(open_run())
    except BaizeError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
