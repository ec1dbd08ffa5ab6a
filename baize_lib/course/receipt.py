"""The receipt of a run: what it paid, collected and learnt, read from the files it left.

>>> clock(617)
'10:17'
"""

import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from baize_lib.config import Run
from baize_lib.corpus.formats import read_dialogues
from baize_lib.teacher.prices import Usage, shadow_cost

__all__ = []


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


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def receipt(run: Run, seconds: float) -> str:
    """What the run took in and gave out, from the files it left; a missing step reads "–"."""
    rows = [*_collected(run), *_trained(run), ("wall time", clock(seconds))]
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
