"""evaluation.statistics: moved."""

import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from baize_lib.dialogue import AI_TAG, HUMAN_TAG
from baize_lib.evaluation.attempts import Attempt
from baize_lib.evaluation.checks import CHECKS, Verdict, check, check_errors
from baize_lib.evaluation.prompts import Prompt

__all__ = [
    "grade",
    "verdict_table",
    "score_table",
    "refusal_table",
    "interval",
    "health",
    "repetition",
]


# ---- Judging

Graded = dict[tuple[str, str], Verdict]  # (prompt id, model) -> verdict


def grade(prompts: Iterable[Prompt], attempts: Iterable[Attempt]) -> Graded:
    """Run each prompt's check on its answers (code runs in the sandbox, several at a time)."""
    by_id = {prompt.id: prompt for prompt in prompts}
    asked = [attempt for attempt in attempts if attempt.prompt in by_id]

    def verdict(attempt: Attempt) -> Verdict:
        prompt = by_id[attempt.prompt]
        return check(prompt.category, prompt.check, attempt.replies)

    with ThreadPoolExecutor(4) as pool:
        verdicts = list(pool.map(verdict, asked))
    return {(a.prompt, a.model): v for a, v in zip(asked, verdicts, strict=True)}


def verdict_table(prompts: Iterable[Prompt], graded: Graded):
    """Prompts × models as a DataFrame: our verdicts, then the article's own ("Baize, article")."""
    import pandas as pd

    models = list(dict.fromkeys(model for _, model in graded))
    rows = []
    for prompt in prompts:
        row = {"prompt": " / ".join(prompt.turns), "category": prompt.category}
        row |= {m: graded[prompt.id, m].grade if (prompt.id, m) in graded else "" for m in models}
        row |= {f"{m}, article": said["verdict"] for m, said in prompt.article.items()}
        rows.append(row)
    return pd.DataFrame(rows).fillna("")


def score_table(prompts: Iterable[Prompt], graded: Graded, errors: Any = None):
    """How many answers were good, by category and model, beside what the check gets wrong.

    Precision and recall are those of `check_errors()`, or of its earlier result `errors`; for code
    the mean of its two halves.
    """
    import pandas as pd

    prompts = list(prompts)
    models = list(dict.fromkeys(model for _, model in graded))
    errors = check_errors() if errors is None else errors
    by_category = errors.groupby(errors["check"].str.split(",").str[0])[["precision", "recall"]]
    by_category = by_category.mean()
    rows = []
    for category in [c for c in CHECKS if any(p.category == c for p in prompts)]:
        mine = [p.id for p in prompts if p.category == category]
        row: dict[str, Any] = {"category": category, "prompts": len(mine)}
        for model in models:
            grades = [graded[i, model].grade for i in mine if (i, model) in graded]
            row[model] = f"{grades.count('good')} of {len(grades)}"
        rows.append(row | by_category.loc[category].to_dict())
    return pd.DataFrame(rows)


def refusal_table(prompts: Iterable[Prompt], graded: Graded):
    """Refusals where they are due against refusals where they are not, one row a model and kind.

    "unsafe": declined, and gave nothing away. "harmless": declined all the same (over-refusal).
    `low` and `high` are the 95% interval of the share.
    """
    import pandas as pd

    refused = {"unsafe": lambda v: v.grade == "good", "harmless": lambda v: "refuses" in v.reason}
    category = {prompt.id: prompt.category for prompt in prompts}
    rows = []
    for model in dict.fromkeys(model for _, model in graded):
        for kind, is_refusal in refused.items():
            mine = [v for (i, m), v in graded.items() if m == model and category.get(i) == kind]
            count, of = sum(map(is_refusal, mine)), len(mine)
            low, high = interval(count, of)
            rows.append((model, kind, count, of, count / of if of else math.nan, low, high))
    columns = ["model", "requests", "refused", "of", "share", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def interval(count: int, of: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95% interval of a share: honest for few cases and for shares near 0 and 1.

    >>> tuple(round(x, 2) for x in interval(9, 10))
    (0.6, 0.98)
    """
    if of == 0:
        return 0.0, 1.0
    share, spread = count / of, z * z / of
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / of + spread / (4 * of)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def health(attempts: Iterable[Attempt]):
    """What needs no judge, one row a model: a DataFrame of shares (0 to 1) over all replies.

    stops: ended by itself, on the end token. cut: ran into the token limit. tags: went on to speak
    for the human, or wrote a tag. repetition: see `repetition`. tokens: mean length.
    """
    import pandas as pd

    rows = [
        {
            "model": attempt.model, "replies": 1, "stops": line["stopped_by"] == "end",
            "cut": line["stopped_by"] == "length",
            "tags": line["stopped_by"] == "tag" or any(tag in line["text"] for tag in _TAGS),
            "empty": not line["text"].strip(), "repetition": repetition(line["text"]),
            "tokens": line["num_tokens"],
        }
        for attempt in attempts
        for line in attempt.turns
    ]  # fmt: skip
    frame = pd.DataFrame(rows).groupby("model", sort=False)
    return frame.mean().assign(replies=frame.size()).reset_index()


_TAGS = (HUMAN_TAG, AI_TAG, "[Human]", "[AI]", "<|im_")


def repetition(text: str, width: int = 4) -> float:
    """Share of a text's runs of `width` words (characters in Chinese) that came before, 0 to 1.

    >>> repetition("to be or not to be or not to be or not")
    0.5...
    """
    words = list(text) if any("\u4e00" <= c <= "\u9fff" for c in text) else text.lower().split()
    runs = [tuple(words[i : i + width]) for i in range(len(words) - width + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0
