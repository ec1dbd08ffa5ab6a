"""Everything that can cost money: one client, one table of calls, a cap that holds, a meter."""

from baize_lib.teacher.budget import Budget, BudgetExceeded, money
from baize_lib.teacher.calls import Calls
from baize_lib.teacher.client import Reply, Teacher
from baize_lib.teacher.errors import Halted, KeyRejected, RunStopped, TeacherError
from baize_lib.teacher.keys import find_key
from baize_lib.teacher.local import local_teacher, teacher_for
from baize_lib.teacher.meter import CostMeter
from baize_lib.teacher.prices import (
    FREE,
    SHADOW_TEACHERS,
    Price,
    Usage,
    price_of,
    shadow_cost,
)

__all__ = [
    "Budget", "BudgetExceeded", "money", "Calls", "Reply", "Teacher", "Halted", "KeyRejected",
    "RunStopped", "TeacherError", "find_key", "local_teacher", "teacher_for", "CostMeter", "FREE",
    "SHADOW_TEACHERS", "Price", "Usage", "price_of", "shadow_cost",
]  # fmt: skip
