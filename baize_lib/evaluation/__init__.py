"""Ask fairly, check by rule, know what the checks get wrong, and say how sure one may be."""

from baize_lib.evaluation.attempts import ask, ask_teacher, first_attempts
from baize_lib.evaluation.checks import check, check_errors
from baize_lib.evaluation.health import health, health_errors
from baize_lib.evaluation.judge import Pair, bias_table, compare, score, score_pairs
from baize_lib.evaluation.page import page
from baize_lib.evaluation.prompts import load_prompts
from baize_lib.evaluation.sandbox import run_code
from baize_lib.evaluation.statistics import (
    compare_arms,
    grade,
    interval,
    score_table,
    true_shares,
    visible_difference,
)
from baize_lib.text import declines

__all__ = [
    "ask", "ask_teacher", "first_attempts", "load_prompts",
    "check", "check_errors", "declines",
    "run_code", "health", "health_errors", "page",
    "grade", "score_table", "interval", "visible_difference", "compare_arms",
    "true_shares", "Pair", "compare", "bias_table", "score", "score_pairs",
]  # fmt: skip
