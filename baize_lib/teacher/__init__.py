"""teacher"""

from baize_lib.teacher.budget import Budget, BudgetExceeded, Reservation, money
from baize_lib.teacher.client import Rate, Reply, Teacher, token_bound
from baize_lib.teacher.errors import (
    Failure,
    KeyRejected,
    RunStopped,
    ServerAnswer,
    TeacherError,
    read_answer,
    read_broken_line,
    read_refusal,
)
from baize_lib.teacher.keys import Secret, find_key
from baize_lib.teacher.ledger import Ledger, Underway, check_settings, read_settings, settings_file
from baize_lib.teacher.local import local_teacher, teacher_for
from baize_lib.teacher.meter import CostMeter
from baize_lib.teacher.prices import (
    FREE,
    SHADOW_TEACHERS,
    Price,
    ShadowCost,
    UnknownPrice,
    Usage,
    price_of,
    shadow_cost,
)

__all__ = [
    "TeacherError",
    "RunStopped",
    "KeyRejected",
    "ServerAnswer",
    "Failure",
    "read_answer",
    "read_refusal",
    "read_broken_line",
    "Teacher",
    "Reply",
    "Rate",
    "token_bound",
    "local_teacher",
    "teacher_for",
    "Ledger",
    "Underway",
    "read_settings",
    "check_settings",
    "settings_file",
    "Usage",
    "Price",
    "FREE",
    "UnknownPrice",
    "price_of",
    "SHADOW_TEACHERS",
    "ShadowCost",
    "shadow_cost",
    "CostMeter",
    "Budget",
    "BudgetExceeded",
    "Reservation",
    "money",
    "Secret",
    "find_key",
]
