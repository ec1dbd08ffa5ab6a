"""All answers side by side on one HTML page, to look through and to pass on.

    page(prompts, attempts, graded, errors, path=run.path / "answers.html")

One file without any script: filters, folding and the light and dark themes are plain CSS. The
template engine escapes what a model wrote, names and headers too, and the page's own policy (CSP)
forbids scripts and fetching, so that an answer that looks like HTML stays an answer.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baize_lib.chat.demo import prose_and_code
from baize_lib.evaluation.attempts import Attempt
from baize_lib.evaluation.checks import CHECKS, MARKS
from baize_lib.evaluation.health import health
from baize_lib.evaluation.prompts import Prompt
from baize_lib.evaluation.statistics import Graded, score_table
from baize_lib.files import template, write_atomic

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["page"]


def page(
    prompts: Sequence[Prompt],
    attempts: Sequence[Attempt],
    graded: Graded,
    errors: "pd.DataFrame",
    *,
    path: Path | str | None = None,
) -> str:
    """The page as HTML text, also written to `path`; `errors` is `check_errors()`.

    An attempt that is not the first says so.
    """
    import pandas as pd

    shown = {(a.prompt, a.model): a for a in attempts}
    models = list(dict.fromkeys(a.model for a in attempts))
    prompts = [p for p in prompts if any((p.id, m) in shown for m in models)]
    how = ["model", "layout", "adapter", "sampling"]
    lines = ((a, line) for a in attempts for line in a.turns)
    rows = [(a.model, t["layout"], a.adapter or "–", _asked(t), t["num_tokens"]) for a, t in lines]
    alike = pd.DataFrame(rows, columns=[*how, "tokens"]).groupby(how, sort=False)["tokens"]
    text = template(Path(__file__).with_name("page.jinja")).render(
        models=models, marks={grade: sign for grade, (sign, _) in MARKS.items()},
        prompts=prompts, shown=shown, graded=graded, parts=prose_and_code,
        grades=lambda p: {m: graded[p.id, m].grade for m in models if (p.id, m) in graded},
        reported=list(dict.fromkeys(name for p in prompts for name in p.article)),
        kinds=[kind for kind in CHECKS if any(p.category == kind for p in prompts)],
        languages=sorted({p.language for p in prompts}),
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

    shown = frame.to_html(index=False, border=0, float_format="{:.2f}".format, na_rep="–")
    return Markup(shown)


def _asked(line: Mapping[str, Any]) -> str:
    sampling = {**line["sampling"], "seed": line["seed"]}
    return ", ".join(f"{name} {value}" for name, value in sampling.items())
