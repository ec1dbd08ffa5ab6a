"""All answers side by side on one HTML page, to look through and to pass on.

    page(prompts, attempts, graded, errors, path=run.path / "answers.html")

The page is a single file without any script: filters, folding and the light and dark themes are
plain CSS (`page.jinja`). The template engine escapes everything a model wrote, names and headers
too, and the page's own policy (CSP) forbids scripts and fetching, so that an answer that looks like
HTML stays an answer.
"""

from collections import Counter
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
    asked = [p for p in prompts if any((p.id, m) in shown for m in models)]
    paid: Counter[str] = Counter()
    for attempt in attempts:
        paid[attempt.model] += sum(line.get("cost_usd", 0) for line in attempt.turns)
    text = template(Path(__file__).with_name("page.jinja")).render(
        title=title, models=models, marks={grade: sign for grade, (sign, _) in MARKS.items()},
        rows=[_row(prompt, models, shown, graded) for prompt in asked],
        reported=list(dict.fromkeys(name for p in asked for name in p.article)),
        kinds=[kind for kind in CHECKS if any(p.category == kind for p in asked)],
        languages=sorted({p.language for p in asked}),
        scores=_table(score_table(asked, graded, errors)), health=_table(health(attempts)),
        asked=_table(_asked_how(attempts)),
        paid=", ".join(f"{model} {money(usd)}" for model, usd in paid.items() if usd),
    )  # fmt: skip
    text = text.encode("utf-8", "replace").decode("utf-8")  # half characters become "?"
    if path:
        write_atomic(path, text)
    return text


def _row(
    prompt: Prompt, models: Sequence[str], shown: Mapping[tuple[str, str], Attempt], graded: Graded
) -> dict[str, Any]:
    """One prompt with the answers to it, and what the filters go by."""
    verdicts = {m: graded[prompt.id, m] for m in models if (prompt.id, m) in graded}
    grades = {m: verdict.grade for m, verdict in verdicts.items()}
    disagree, look = len(set(grades.values())) > 1, "look" in grades.values()
    answers = [
        {
            "model": a.model, "label": a.label, "picked": a.number != 1,
            "verdict": verdicts.get(a.model),
            "turns": [
                {"question": question, "parts": list(prose_and_code(line["text"])),
                 "ended": f"{line['num_tokens']} tokens, {_ended(line['stopped_by'])}"}
                for question, line in zip(prompt.turns, a.turns, strict=False)
            ],
        }
        for m in models
        if (a := shown.get((prompt.id, m)))
    ]  # fmt: skip
    facets = " ".join(["disagreement"] * disagree + ["look"] * look)
    return {"prompt": prompt, "grades": grades, "verdicts": facets, "answers": answers}


def _ended(stopped_by: str) -> str:
    return _ENDED.get(stopped_by, f"stopped by {stopped_by}")


def _table(frame: "pd.DataFrame") -> str:
    """The frame as HTML; pandas escapes its headers and cells."""
    from markupsafe import Markup

    return Markup(frame.to_html(index=False, border=0, float_format="{:.2f}".format))


def _asked_how(attempts: Sequence[Attempt]) -> "pd.DataFrame":
    """One row a model and way of asking: its layout, adapter, sampling and seed."""
    import pandas as pd

    rows = []
    for attempt in attempts:
        for line in attempt.turns:
            sampling = {**line["sampling"], "seed": line["seed"]}
            told = ", ".join(f"{name} {value}" for name, value in sampling.items())
            how = attempt.model, line["layout"], attempt.adapter or "–", told
            rows.append((*how, line["num_tokens"]))
    columns = ["model", "layout", "adapter", "sampling"]
    frame = pd.DataFrame(rows, columns=[*columns, "tokens"])
    counted = frame.groupby(columns, sort=False)["tokens"].agg(replies="size", tokens="sum")
    return counted.reset_index()
