"""The checks behind every "Try it": one line that says passed, not yet (and why), or not attempted.

An exercise is a function to complete, or a value to find. What still is `...` counts as untouched,
so a notebook runs before anybody has solved anything. The right answer is told at the second try.
The cases are in `exercises.yaml`; a pass is noted in the run, for its receipt.

>>> check_exercise("00-1", lambda num, tokens, price: ...)
00-1: not attempted yet
>>> check_exercise("00-1", lambda num, tokens, price: num * tokens * price)
00-1: not yet: (1000, 448, 2.0) gave 896000.0, which is not it
>>> verdict("00-1", lambda num, tokens, price: num * tokens * price / 1e6)
'passed (3 cases)'
"""

import copy
import datetime
import functools
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from baize_lib.config import BaizeError, Run
from baize_lib.course.tiers import current_tier, run_folder
from baize_lib.files import write_atomic

__all__ = ["check_exercise"]

_PASSED = "exercises.json"
_tries: Counter[str] = Counter()


@functools.cache
def cases() -> Mapping[str, Sequence[tuple[Sequence[Any], Any]]]:
    """Exercise -> (arguments, right answer) of each case."""
    import yaml

    return yaml.safe_load(Path(__file__).with_name("exercises.yaml").read_text(encoding="utf-8"))


def check_exercise(exercise: str, attempt: Any, expected: Any = None) -> None:
    """Print one line on an attempt: the completed function, or the value found.

    `exercise` is its name, for example "02-1"; `expected` what a value should be, where that comes
    from the learner's own run. A BaizeError where no exercise has that name.
    """
    said = verdict(exercise, attempt, expected, tell=_tries[exercise] > 0)
    _tries[exercise] += said.startswith("not yet")
    print(f"{exercise}: {said}")
    if said.startswith("passed"):
        run = Run(run_folder(current_tier()))
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        passed = {exercise: now} | passed_exercises(run)
        write_atomic(run.path / _PASSED, json.dumps(passed, indent=1, sort_keys=True) + "\n")


def passed_exercises(run: Run) -> dict[str, str]:
    """Exercise -> when it was first passed in this run (UTC)."""
    try:
        return dict(json.loads((run.path / _PASSED).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # none yet, or nothing that can be read
        return {}


def verdict(exercise: str, attempt: Any, expected: Any = None, *, tell: bool = True) -> str:
    """ "passed", "not attempted yet", or "not yet" with the first case that differs."""
    known = cases().get(exercise) if expected is None else [((), expected)]
    if known is None:
        raise BaizeError(f"there is no exercise {exercise!r}: {', '.join(cases())}")
    for arguments, right in known:
        asked = repr(tuple(arguments)) if len(arguments) > 1 else "".join(map(repr, arguments))
        try:
            given = attempt(*copy.deepcopy(arguments)) if callable(attempt) else attempt
            is_right = same(given, right)
        except Exception as error:  # noqa: BLE001 - a learner's code may raise anything
            return f"not yet: {asked} raised {type(error).__name__}: {error}"
        if given is ...:
            return "not attempted yet"
        if not is_right:
            gave = f"{asked} gave" if asked else "this is"
            so = f"expected {right!r}" if tell else "which is not it"
            return f"not yet: {gave} {given!r}, {so}"
    return f"passed ({len(known)} case{'s' if len(known) > 1 else ''})"


def same(given: Any, right: Any) -> bool:
    """Whether an answer is right: fractions to three digits or two decimals, all else exactly.

    Tuples and arrays count as lists. A fraction below 0.1 cannot be told by two decimals.
    """
    given = given.tolist() if hasattr(given, "tolist") else given  # of numpy, torch or pandas
    if isinstance(right, bool) or isinstance(given, bool):
        return given is right
    if isinstance(right, int | float) and isinstance(given, int | float):
        if isinstance(right, float) and abs(right) >= 0.1 and given == round(right, 2):
            return True
        digits = 1e-3 if isinstance(right, float) else 1e-9
        return math.isclose(given, right, rel_tol=digits, abs_tol=1e-9)
    if isinstance(right, list) and isinstance(given, list | tuple):
        return len(given) == len(right) and all(map(same, given, right))
    return bool(given == right)
