"""All answers side by side on one HTML page, to look through and to pass on.

    page(prompts, attempts, graded, errors, path=run.path / "answers.html")

The page is a single file without any script: filters, folding and the light and dark themes are
plain CSS (`page.jinja`). The template engine escapes everything a model wrote, names and headers
too, and the page's own policy (CSP) forbids scripts and fetching, so that an answer that looks like
HTML stays an answer.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from baize_lib.chat.demo import prose_and_code
from baize_lib.evaluation.attempts import Attempt
from baize_lib.evaluation.checks import CHECKS, MARKS
from baize_lib.evaluation.health import health
from baize_lib.evaluation.prompts import Prompt
from baize_lib.evaluation.statistics import Graded, score_table
from baize_lib.files import template, write_atomic
from baize_lib.teacher.budget import money

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["page"]

_ENDED = {
    "end": "stopped by itself", "length": "cut at the token limit",
    "tag": "went on to speak for the human, and was cut there",
}  # fmt: skip


def page(
    prompts: Sequence[Prompt],
    attempts: Sequence[Attempt],
    graded: Graded,
    errors: "pd.DataFrame",
    *,
    title: str = "First attempts, side by side",
    path: Path | str | None = None,
) -> str:
    """The page as HTML text, also written to `path`; `errors` is `check_errors()`.

    An attempt that is not the first says so.
    """
    shown = {(a.prompt, a.model): a for a in attempts}
    models = list(dict.fromkeys(a.model for a in attempts))
    prompts = [p for p in prompts if any((p.id, m) in shown for m in models)]
    lines = _lines(attempts)
    paid = lines.groupby("model", sort=False)["paid"].sum()
    alike = lines.groupby(["model", "layout", "adapter", "sampling"], sort=False)["tokens"]
    text = template(Path(__file__).with_name("page.jinja")).render(
        title=title, models=models, marks={grade: sign for grade, (sign, _) in MARKS.items()},
        prompts=prompts, shown=shown, graded=graded, parts=prose_and_code, ended=_ENDED,
        grades=lambda p: {m: graded[p.id, m].grade for m in models if (p.id, m) in graded},
        reported=list(dict.fromkeys(name for p in prompts for name in p.article)),
        kinds=[kind for kind in CHECKS if any(p.category == kind for p in prompts)],
        languages=sorted({p.language for p in prompts}),
        paid=", ".join(f"{model} {money(usd)}" for model, usd in paid.items() if usd),
        scores=_html(score_table(prompts, graded, errors)), health=_html(health(attempts)),
        asked=_html(alike.agg(replies="size", tokens="sum").reset_index()),
    )  # fmt: skip
    text = text.encode("utf-8", "replace").decode("utf-8")  # half characters become "?"
    if path:
        write_atomic(path, text)
    return text


def _html(frame: "pd.DataFrame") -> str:
    """The frame as HTML; pandas escapes its headers and cells."""
    from markupsafe import Markup

    return Markup(frame.to_html(index=False, border=0, float_format="{:.2f}".format))


def _lines(attempts: Sequence[Attempt]) -> "pd.DataFrame":
    """One row a reply: who was asked, how, how long it is, and what it cost."""
    import pandas as pd

    rows = []
    for attempt in attempts:
        for line in attempt.turns:
            sampling = {**line["sampling"], "seed": line["seed"]}
            told = ", ".join(f"{name} {value}" for name, value in sampling.items())
            how = attempt.model, line["layout"], attempt.adapter or "–", told
            rows.append((*how, line["num_tokens"], line.get("cost_usd", 0)))
    columns = ["model", "layout", "adapter", "sampling", "tokens", "paid"]
    return pd.DataFrame(rows, columns=columns)
