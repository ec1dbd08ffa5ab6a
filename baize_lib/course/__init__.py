"""What every notebook uses: the tier and its run, the environment check, exercises, and looks."""

from baize_lib.course.environment import check_environment
from baize_lib.course.exercises import check_exercise
from baize_lib.course.show import bubbles, side_by_side, table, verdicts
from baize_lib.course.tiers import TIERS, current_tier, open_run

__all__ = [
    "TIERS", "current_tier", "open_run", "check_environment", "check_exercise", "bubbles",
    "side_by_side", "table", "verdicts",
]  # fmt: skip
