"""The receipt of a run: what it paid, collected and learnt, read from the files it left.

`receipt.txt` is for reading. `receipt.json` is for handing in: the same facts, the hash of each
file they came from, and a hash of its own. `baize check receipt.json` holds it against the run.
That shows a mistake, a mixed-up folder or a number changed by hand; it is no proof against somebody
who writes a whole run by hand.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from baize_lib import __version__
from baize_lib.config import BaizeError, Run, runs_dir
from baize_lib.corpus.formats import read_dialogues
from baize_lib.course.environment import PACKAGES
from baize_lib.course.exercises import passed_exercises
from baize_lib.evaluation.attempts import first_attempts
from baize_lib.evaluation.prompts import load_prompts
from baize_lib.evaluation.statistics import grade
from baize_lib.files import sha256_of, write_atomic
from baize_lib.teacher.prices import Usage, shadow_cost

__all__ = []

_BILL = (
    "SELECT purpose, sum(owed) / 1e12, ifnull(sum(input), 0), ifnull(sum(output), 0) "
    "FROM bill GROUP BY purpose ORDER BY min(id)"
)
_CALLS = "SELECT key, purpose, model, state, owed, input, output, text FROM bill ORDER BY id"


def _rows(run: Run, query: str) -> list[tuple[Any, ...]]:
    if not run.calls_file.is_file():
        return []
    address = f"{run.calls_file.resolve().as_uri()}?mode=ro"
    try:
        with closing(sqlite3.connect(address, uri=True)) as db:
            return db.execute(query).fetchall()
    except sqlite3.Error as error:
        raise BaizeError(f"{run.calls_file} cannot be read ({error}): put it back") from error


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _card(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
    except (ValueError, TypeError) as error:
        remedy = "put back what was in it, or delete it and run the notebook that wrote it"
        raise BaizeError(f"{path} is damaged ({error}): {remedy}") from error


def facts(run: Run) -> dict[str, Any]:
    """What the files of a run say, with their SHA-256; a step not run leaves None, or nothing.

    Of the table of calls the hash is that of its rows.
    """
    cards = run.path / "run.json", run.corpus_dir / "card.json", run.adapter_dir / "baize_run.json"
    started, corpus, adapter = map(_card, cards)
    files = (*cards, run.self_chat, run.train_file, run.validation_file, run.answers_file,
             run.adapter_dir / "adapter_model.safetensors")  # fmt: skip
    hashes = {f.relative_to(run.path).as_posix(): sha256_of(f) for f in files if f.is_file()}
    tier = started.get("tier", {})
    made = read_dialogues(run.self_chat, statuses=None) if run.self_chat.is_file() else ()
    statuses = [dialogue.status for dialogue in made]
    prompts = load_prompts(origin="article")
    attempts = first_attempts(run.answers_file, prompts)
    verdicts: dict[str, Counter[str]] = {}
    for (_, model), verdict in grade(prompts, attempts).items():
        verdicts.setdefault(model, Counter())[verdict.grade] += 1
    trained = ("num_tokens", "seconds", "loss_before", "loss_after")
    spent = _rows(run, _BILL)
    found = {
        "tier": {name: tier.get(name) for name in ("name", "teacher", "student")},
        "random_seeds": {
            "split": corpus.get("split", {}).get("seed"),
            "training": adapter.get("settings", {}).get("seed"),
            "answers": sorted({line["seed"] for a in attempts for line in a.turns}),
        },
        "dialogues": len(statuses), "finished": statuses.count("ok"), "kept": corpus.get("kept"),
        "spent": spent, "usd": sum(usd for _, usd, *_ in spent),
        "trained": {name: adapter.get(name) for name in trained},
        "verdicts on the article's questions": verdicts,
        "exercises": passed_exercises(run),
        "files": hashes | {run.calls_file.name: _hash(_rows(run, _CALLS))},
    }  # fmt: skip
    return json.loads(json.dumps(found))


def write_receipt(run: Run) -> str:
    """Write `receipt.txt` and `receipt.json` into `runs/course/`; returns the text of the first."""
    found, course = facts(run), runs_dir() / "course"
    lines = dict(_told(found, run))
    width = max(map(len, lines))
    text = "\n".join(f"{name:<{width}}  {value}" for name, value in lines.items())
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    versions |= {"course": __version__, "python": platform.python_version()}
    card = {"run": run.path.name, "versions": versions, **found}
    write_atomic(course / "receipt.txt", text + "\n")
    write_atomic(course / "receipt.json", json.dumps(card | {"hash": _hash(card)}, indent=1) + "\n")
    return text


def _told(found: Mapping[str, Any], run: Run) -> Iterator[tuple[str, str]]:
    """(name, value) of each line of the receipt that is read."""
    kept = "– kept (notebook 03 has not run)" if found["kept"] is None else f"{found['kept']} kept"
    made = f"{found['finished']} finished of {found['dialogues']}, {kept}"
    yield "dialogues", made if found["dialogues"] else "– (notebook 02 has not run)"
    usage = Usage()
    for purpose, usd, given, said in found["spent"]:
        yield f"spent, {purpose}", f"${usd:.4f}, {given:,} tokens in, {said:,} out"
        usage += Usage(input=given, output=said)
    yield "spent", f"${found['usd']:.4f}"
    for other in shadow_cost(usage) if found["spent"] else ():
        yield f"at {other.model}", f"${other.usd:.4f} ({other.as_of})"
    card = found["trained"]
    if card["num_tokens"] is None:
        yield "adapter", "– (notebook 04 has not run)"
    else:
        yield "trained on", f"{card['num_tokens']:,} tokens in {card['seconds']:.0f} s"
        losses = [card["loss_before"], card["loss_after"]]
        told = "– (nothing held out)" if None in losses else "{:.3f} before, {:.3f} after"
        yield "held-out loss", told.format(*losses)
        yield "adapter", os.path.relpath(run.adapter_dir)
    yield "exercises", f"{len(found['exercises'])} passed {' '.join(found['exercises'])}".strip()


def check_receipt(path: Path | str, folder: Path | str | None = None) -> str:
    """Read the run again and hold `receipt.json` against it; one line when all of it agrees.

    `folder` is the run's folder, or its name under `runs/`; by default what the receipt names. A
    BaizeError says that it is no receipt, was changed, has no run here, differs, or is unfinished.
    """
    try:
        card = json.loads(Path(path).read_text(encoding="utf-8"))
        written, name, before = card.pop("hash"), card["run"], _flat(card)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise BaizeError(f"{path} is no receipt ({error}): baize receipt writes one") from error
    if _hash(card) != written:
        raise BaizeError(f"{path} was changed after it was written: its hash is that of other text")
    named = folder or name
    run = Run(Path(folder) if folder and Path(folder).is_dir() else runs_dir() / named)
    if not run.path.is_dir():
        raise BaizeError(f"run '{named}' is not in {runs_dir()}: name its folder with --run")
    now = _flat(facts(run))
    if differ := sorted(n for n in {*before, *now} if before.get(n) != now.get(n)):
        raise BaizeError(
            f"{path} and {run.path} do not agree in {', '.join(differ)}: it is another run's, or "
            "the run went on or was changed; baize receipt writes a new one"
        )
    steps = {"02": card["dialogues"], "03": card["kept"], "04": card["trained"]["num_tokens"],
             "05": card["verdicts on the article's questions"]}  # fmt: skip
    if missing := [number for number, done in steps.items() if not done]:
        raise BaizeError(f"{path} is true to its run, but notebook {missing[0]} has not run there")
    passed = dict(_told(card, run))["exercises"]
    return f"{path} agrees with {run.path}; exercises: {passed} ({written[:12]})"


def _flat(card: Mapping[str, Any]) -> dict[str, Any]:
    """What is compared: the facts by name, and the hashes of files by theirs."""
    return {k: v for k, v in card.items() if k not in ("run", "versions", "files")} | card["files"]
