"""Everything that can cost money: one client, one table of calls, a cap that holds, a meter."""

from baize_lib.teacher.batch import BatchTeacher
from baize_lib.teacher.budget import Budget, BudgetExceeded
from baize_lib.teacher.calls import Calls
from baize_lib.teacher.client import Teacher
from baize_lib.teacher.local import local_teacher, teacher_for
from baize_lib.teacher.meter import CostMeter
from baize_lib.teacher.prices import SHADOW_TEACHERS, Price, Usage, price_of, shadow_cost

__all__ = [
    "BatchTeacher", "Budget", "BudgetExceeded", "Calls", "Teacher", "local_teacher", "teacher_for",
    "CostMeter", "SHADOW_TEACHERS", "Price", "Usage", "price_of", "shadow_cost",
]  # fmt: skip
