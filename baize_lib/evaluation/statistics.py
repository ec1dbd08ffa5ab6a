"""What the verdicts add up to, and how sure one may be of it.

    graded = grade(prompts, attempts)                 # {(prompt id, model): Verdict}
    score_table(prompts, graded, errors)              # good answers by kind, and the checks' error
    true_shares(prompts, graded)                      # what the share of good answers *is*
    compare_arms(one, other, prompts)                 # is that difference more than chance?

Three things make such numbers too sure. Few answers: see the interval, and `visible_difference`
before you begin. The same prompts for both models: test in pairs, with twins (a prompt and its
look-alike or translation) as one. Checks that err: their measured error goes into the share.
"""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from baize_lib.config import BaizeError
from baize_lib.evaluation.attempts import Attempt
from baize_lib.evaluation.checks import CHECKS, Verdict, check, try_checks
from baize_lib.evaluation.prompts import Prompt

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "grade", "score_table", "interval", "visible_difference", "compare_arms", "true_shares",
]  # fmt: skip

Graded = dict[tuple[str, str], Verdict]  # (prompt id, model) -> verdict
_DRAWS = 4000


def grade(prompts: Iterable[Prompt], attempts: Iterable[Attempt]) -> Graded:
    """Run each prompt's check on its answers (code runs in the sandbox, several at a time)."""
    by_id = {prompt.id: prompt for prompt in prompts}
    asked = [(by_id[a.prompt], a) for a in attempts if a.prompt in by_id]
    with ThreadPoolExecutor(4) as pool:
        verdicts = pool.map(lambda pa: check(pa[0].category, pa[0].check, pa[1].replies), asked)
        return {(p.id, a.model): v for (p, a), v in zip(asked, verdicts, strict=True)}


def _grades(prompts: Iterable[Prompt], graded: Graded) -> "pd.DataFrame":
    """One row a verdict: prompt, kind, language, model, grade."""
    import pandas as pd

    by_id = {p.id: (p.id, p.category, p.language) for p in prompts}
    rows = [(*by_id[i], model, v.grade) for (i, model), v in graded.items() if i in by_id]
    return pd.DataFrame(rows, columns=["prompt", "kind", "language", "model", "grade"])


def score_table(
    prompts: Iterable[Prompt], graded: Graded, errors: "pd.DataFrame"
) -> "pd.DataFrame":
    """Good answers by kind and model, "3 of 8, 1 to look at", beside what the check gets wrong.

    Of `errors` (`check_errors()`) languages are taken together, and the two halves of code.
    """

    def told(grades: "pd.Series") -> str:
        good, look = (grades == "good").sum(), (grades == "look").sum()
        return f"{good} of {len(grades)}" + (f", {look} to look at" if look else "")

    rows = _grades(prompts, graded)
    counts = rows.groupby(["kind", "model"], sort=False)["grade"].agg(told).unstack(sort=False)
    counts.insert(0, "prompts", rows.groupby("kind")["prompt"].nunique())
    known = errors.groupby(errors["check"].str.split(",").str[0])[["precision", "recall", "look"]]
    kinds = [kind for kind in CHECKS if kind in counts.index]
    return counts.loc[kinds].fillna("0 of 0").join(known.mean()).reset_index(names="kind")


# ---- Few answers


def interval(count: int, of: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share: honest for few cases and for shares near 0 and 1.

    >>> tuple(round(x, 2) for x in interval(9, 10))
    (0.6, 0.98)
    """
    from scipy.stats import binomtest

    if of == 0:
        return 0.0, 1.0
    found = binomtest(count, of).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def visible_difference(num_prompts: int) -> float:
    """The smallest true difference that `num_prompts` prompts would show, 4 times out of 5.

    "Show" is McNemar's exact test at 5%. The better model does worse on 5% of the prompts; the
    difference is what it gains minus that. 1.0 when nothing would be enough.

    >>> round(visible_difference(12), 2), round(visible_difference(120), 2)
    (0.68, 0.13)
    """
    from scipy.stats import binom

    won, lost = np.arange(num_prompts + 1), 0.05
    differ = won[:, None]  # rows: how many prompts differ, columns: how many of them are won
    fewer = np.minimum(won, differ - won)
    shows = (fewer >= 0) & (2 * binom.cdf(fewer, differ, 0.5) < 0.05)
    for gained in np.arange(lost, 1 - lost + 1e-9, 0.01):
        chance = binom.pmf(differ, num_prompts, gained + lost)
        chance = chance * binom.pmf(won, differ, gained / (gained + lost))
        if chance[shows].sum() >= 0.8:
            return float(gained - lost)
    return 1.0


# ---- The same prompts


@dataclass(frozen=True, slots=True)
class Comparison:
    """Arm one minus arm other: the mean difference and its 95% interval."""

    difference: float
    low: float
    high: float
    p: float  # the chance of as large a difference if the arms were alike
    won: int  # prompts
    lost: int
    clusters: int  # what the prompts are in

    def __str__(self) -> str:
        return (
            f"{self.difference:+.3f} ({self.low:+.3f} to {self.high:+.3f}), p = {self.p:.3f}; "
            f"{self.won} better, {self.lost} worse, in {self.clusters} clusters"
        )


def compare_arms(
    one: Sequence[float], other: Sequence[float], prompts: Sequence[Prompt] | None = None
) -> Comparison:
    """Two arms on the same prompts: marks (1 for good, else 0), or losses.

    The interval is a paired bootstrap of whole clusters: translations and harmless look-alikes are
    one cluster, where `prompts` are given. Of marks on unrelated prompts the test is McNemar's
    exact one; else the signs of the clusters' differences are flipped.

    >>> round(compare_arms([1, 1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0, 1]).p, 3)
    0.125
    """
    from scipy.stats import binomtest, bootstrap, permutation_test

    if not 0 < len(one) == len(other) == len(one if prompts is None else prompts):
        what = "the arms are of no prompts, or not of the same"
        raise BaizeError(f"{what}: compare those that both answered")
    gaps = np.asarray(one, float) - np.asarray(other, float)
    names = list(range(len(gaps)) if prompts is None else map(_cluster, prompts))
    _, of = np.unique(names, return_inverse=True)
    sums, sizes = np.bincount(of, gaps), np.bincount(of).astype(float)
    decided = int(np.abs(sums).sum())
    if set(np.abs(sums)) <= {0.0, 1.0}:
        p = binomtest(int((sums > 0).sum()), decided).pvalue if decided else 1.0
    elif len(sums) == 1:
        p = 1.0  # with its sign flipped it is as large
    else:
        options = {"permutation_type": "samples", "n_resamples": 9999, "rng": 0}
        p = permutation_test((sums,), np.sum, **options).pvalue
    low = high = gaps.mean()
    if len(sums) > 1 and np.ptp(sums / sizes):
        low, high = bootstrap(
            (sums, sizes), lambda s, n, axis: s.sum(axis) / n.sum(axis), paired=True,
            vectorized=True, method="percentile", n_resamples=_DRAWS, rng=0,
        ).confidence_interval  # fmt: skip
    ends = float(gaps.mean()), float(low), float(high), float(p)
    return Comparison(*ends, int((gaps > 0).sum()), int((gaps < 0).sum()), len(sums))


def _cluster(prompt: Prompt) -> str:
    """A name that a prompt shares with its translation and its look-alike."""
    return min(prompt.id, prompt.twin or prompt.id).rpartition("-")[0]


# ---- Checks that err


def true_shares(
    prompts: Iterable[Prompt], graded: Graded, tried: Iterable[Mapping[str, Any]] | None = None
) -> "pd.DataFrame":
    """The share of good answers, corrected for the checks' mistakes, one row a model.

    Prediction-powered inference (Angelopoulos et al. 2023, arXiv 2301.09633): verdicts on all
    answers, set right by those whose truth is known (`tried`, by default the held ones). With e1
    the mean verdict on good ones and e0 on bad ones, a mean verdict v means a true share of
    (v - e0) / (e1 - e0) (Rogan & Gladen 1978); "look" counts half. The 95% interval holds the
    chance in all three. It assumes that the checks err on a model's answers as on those we
    labelled, kind by kind and language by language; kinds that they call never good are left out.
    """
    import pandas as pd

    labelled = pd.DataFrame(try_checks() if tried is None else tried)
    labelled["kind"] = labelled["check"].str.split(",").str[0]
    can = labelled.groupby(["kind", "language"])["grade"].transform(lambda g: (g == "good").any())
    gold = labelled[can].groupby(["kind", "language", "label"])["grade"]
    asked = _grades(prompts, graded).merge(
        labelled.loc[can, ["kind", "language"]].drop_duplicates()
    )
    rng, rows = np.random.default_rng(0), []
    for model, answers in asked.groupby("model", sort=False):
        drawn = np.zeros(_DRAWS)
        for kind, group in answers.groupby(["kind", "language"], sort=False):
            seen = _mean_verdict(group["grade"], rng)
            bad, good = (_mean_verdict(gold.get_group((*kind, x)), rng) for x in ("bad", "good"))
            drawn += (seen - bad) / np.maximum(good - bad, 0.05) * len(group) / len(answers)
        low, middle, high = np.percentile(drawn, (2.5, 50, 97.5)).clip(0, 1)
        good, look = ((answers["grade"] == grade).mean() for grade in ("good", "look"))
        rows.append((model, len(answers), good, look, middle, low, high))
    columns = ["model", "answers", "called good", "to look at", "share", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def _mean_verdict(grades: "pd.Series", rng: np.random.Generator) -> np.ndarray:
    """(draws,) of the mean verdict that these came from: good 1, look 1/2, others 0."""
    good, look = (grades == "good").sum(), (grades == "look").sum()
    drawn = rng.dirichlet((good + 1 / 3, look + 1 / 3, len(grades) - good - look + 1 / 3), _DRAWS)
    return drawn @ (1.0, 0.5, 0.0)
