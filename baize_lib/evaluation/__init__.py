"""evaluation"""

from baize_lib.evaluation.ablation import HeldOut, held_out, usual_range
from baize_lib.evaluation.attempts import Attempt, ask, ask_teacher, first_attempts, read_attempts
from baize_lib.evaluation.checks import (
    CHECKS,
    Verdict,
    check,
    check_errors,
    extract_code,
    load_labelled,
)
from baize_lib.evaluation.judge import (
    Judgement,
    Pair,
    bias_table,
    compare,
    judge_forecast,
    labelled_pairs,
    pairs_of,
    score,
)
from baize_lib.evaluation.page import page
from baize_lib.evaluation.prompts import Prompt, load_prompts
from baize_lib.evaluation.refusals import (
    GUARDED,
    Lesson,
    answers,
    ask_guarded,
    declines,
    keep_proper,
    read_refusals,
    refusal_lesson,
)
from baize_lib.evaluation.sandbox import Limits, Outcome, run_code
from baize_lib.evaluation.statistics import (
    grade,
    health,
    interval,
    refusal_table,
    repetition,
    score_table,
    verdict_table,
)

__all__ = [
    "HeldOut",
    "held_out",
    "usual_range",
    "page",
    "Attempt",
    "ask",
    "ask_teacher",
    "read_attempts",
    "first_attempts",
    "Prompt",
    "load_prompts",
    "grade",
    "verdict_table",
    "score_table",
    "refusal_table",
    "interval",
    "health",
    "repetition",
    "Pair",
    "Judgement",
    "pairs_of",
    "labelled_pairs",
    "judge_forecast",
    "compare",
    "bias_table",
    "score",
    "Limits",
    "Outcome",
    "run_code",
    "GUARDED",
    "Lesson",
    "refusal_lesson",
    "read_refusals",
    "ask_guarded",
    "keep_proper",
    "declines",
    "answers",
    "Verdict",
    "check",
    "check_errors",
    "extract_code",
    "CHECKS",
    "load_labelled",
]
