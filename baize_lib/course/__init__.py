"""course"""

from baize_lib.course.environment import Check, EnvironmentReport, check_environment
from baize_lib.course.exercises import EXERCISES, check_exercise, verdict
from baize_lib.course.runner import Executed, execute, index_page, main, receipt
from baize_lib.course.show import Shown, bubbles, side_by_side, table, verdicts

__all__ = [
    "Executed",
    "execute",
    "receipt",
    "index_page",
    "main",
    "Check",
    "EnvironmentReport",
    "check_environment",
    "EXERCISES",
    "check_exercise",
    "verdict",
    "Shown",
    "bubbles",
    "side_by_side",
    "table",
    "verdicts",
]
