"""All answers side by side on one HTML page, to look through and to pass on.

    page(prompts, attempts, graded, errors, path=run.path / "answers.html")

The page is a single file without any script: filters, folding and the light and dark themes are
plain CSS (`page.jinja`). The template engine escapes everything a model wrote, names and headers
too, and the page's own policy (CSP) forbids scripts and fetching, so that an answer that looks like
HTML stays an answer.
"""

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baize_lib.dialogue import fenced
from baize_lib.evaluation.attempts import Attempt
from baize_lib.evaluation.checks import CHECKS, MARKS
from baize_lib.evaluation.health import health
from baize_lib.evaluation.prompts import Prompt
from baize_lib.evaluation.statistics import Graded, score_table
from baize_lib.files import write_atomic
from baize_lib.teacher.budget import money

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["page"]


def page(
    prompts: Sequence[Prompt],
    attempts: Sequence[Attempt],
    graded: Graded,
    errors: "pd.DataFrame",
    *,
    title: str = "First attempts, side by side",
    path: Path | str | None = None,
) -> str:
    """The page as HTML text, also written to `path` when given.

    Args:
        attempts: what to show, usually `first_attempts(log, prompts)`; an attempt that is not the
            first says so.
        errors: `check_errors()`.
    """
    shown = {(a.prompt, a.model): a for a in attempts}
    models = list(dict.fromkeys(a.model for a in attempts))
    asked = [p for p in prompts if any((p.id, m) in shown for m in models)]
    kinds = [kind for kind in CHECKS if any(p.category == kind for p in asked)]
    languages = sorted({p.language for p in asked})
    text = _template().render(
        title=title, models=models, marks={grade: sign for grade, (sign, _) in MARKS.items()},
        rows=[_row(prompt, models, shown, graded) for prompt in asked],
        reported=list(dict.fromkeys(name for p in asked for name in p.article)),
        rules={"category": kinds, "language": languages, "verdicts": ["disagreement", "look"]},
        filters={
            "category": ["all", *kinds], "language": ["any", *languages],
            "verdicts": ["every", "disagreement", "to look at"],
            "theme": ["auto", "light", "dark"],
        },
        scores=_cells(score_table(asked, graded, errors)), health=_cells(health(attempts)),
        asked=_asked_how(attempts), paid=_paid(attempts),
    )  # fmt: skip
    text = text.encode("utf-8", "replace").decode("utf-8")  # half characters become "?"
    if path:
        write_atomic(path, text)
    return text


@functools.cache
def _template() -> Any:
    from jinja2 import Environment, StrictUndefined

    engine = Environment(autoescape=True, undefined=StrictUndefined)
    return engine.from_string(Path(__file__).with_name("page.jinja").read_text(encoding="utf-8"))


def _row(
    prompt: Prompt, models: Sequence[str], shown: Mapping[tuple[str, str], Attempt], graded: Graded
) -> dict[str, Any]:
    """One prompt with the answers to it, and what the filters go by."""
    verdicts = {m: graded[prompt.id, m] for m in models if (prompt.id, m) in graded}
    grades = {m: verdict.grade for m, verdict in verdicts.items()}
    facets = ["disagreement"] * (len(set(grades.values())) > 1) + ["look"] * (
        "look" in grades.values()
    )
    answers = [
        {
            "model": a.model, "label": a.label, "picked": a.number != 1,
            "verdict": verdicts.get(a.model),
            "turns": [
                {"question": question, "parts": list(_parts(line["text"])), "ended": _ended(line)}
                for question, line in zip(prompt.turns, a.turns, strict=False)
            ],
        }
        for a in (shown.get((prompt.id, m)) for m in models)
        if a
    ]  # fmt: skip
    return {"prompt": prompt, "grades": grades, "verdicts": " ".join(facets), "answers": answers}


def _parts(text: str) -> Iterator[tuple[str, str]]:
    """A reply as it is: its prose, and its fenced code highlighted."""
    end = 0
    for block in fenced(text):
        if prose := text[end : block.start].strip():
            yield "prose", prose
        yield "code", _highlighted(block.code, block.info)
        end = block.end
    if prose := text[end:].strip():
        yield "prose", prose


def _highlighted(code: str, info: str) -> str:
    from markupsafe import Markup
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer, TextLexer

    lexer = PythonLexer() if "py" in info.lower() or not info.strip() else TextLexer()
    return Markup(highlight(code, lexer, HtmlFormatter(nowrap=True)))


def _ended(line: Mapping[str, Any]) -> str:
    how = {
        "end": "stopped by itself", "length": "cut at the token limit",
        "tag": "went on to speak for the human, and was cut there",
    }  # fmt: skip
    ended = how.get(line["stopped_by"], f"stopped by {line['stopped_by']}")
    return f"{line['num_tokens']} tokens, {ended}"


def _cells(frame: "pd.DataFrame") -> dict[str, Any]:
    rows = frame.itertuples(index=False)
    shown = [[f"{cell:.2f}" if isinstance(cell, float) else cell for cell in row] for row in rows]
    return {"columns": list(frame.columns), "rows": shown}


def _asked_how(attempts: Iterable[Attempt]) -> dict[str, Any]:
    """One row a model and way of asking: its layout, adapter, sampling and seed."""
    rows: dict[tuple[str, ...], list[int]] = {}
    for attempt in attempts:
        for line in attempt.turns:
            sampling = dict(line.get("sampling", {})) | {"seed": line.get("seed", "–")}
            told = ", ".join(f"{name} {value}" for name, value in sampling.items())
            key = (attempt.model, line.get("layout", "–"), attempt.adapter or "–", told)
            counts = rows.setdefault(key, [0, 0])
            counts[0] += 1
            counts[1] += line["num_tokens"]
    columns = ["model", "layout", "adapter", "sampling", "replies", "tokens"]
    return {"columns": columns, "rows": [[*key, *counts] for key, counts in rows.items()]}


def _paid(attempts: Iterable[Attempt]) -> str:
    cost: dict[str, float] = {}
    for attempt in attempts:
        for line in attempt.turns:
            if "cost_usd" in line:
                cost[attempt.model] = cost.get(attempt.model, 0.0) + line["cost_usd"]
    return ", ".join(f"{model} {money(usd)}" for model, usd in cost.items())
