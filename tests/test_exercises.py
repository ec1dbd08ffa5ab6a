"""The exercises: the folded solutions are right, the stubs are harmless, wrong answers are told."""

import json
import re
from pathlib import Path

import pytest

from baize_lib.config import BaizeError
from baize_lib.course.exercises import EXERCISES, check_exercise, verdict

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "notebooks").rglob("[0-9]*.ipynb"))


def exercises(path):
    """(name, stub cell, solution code) for each exercise of a notebook, in order."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    stubs = [
        "".join(cell["source"])
        for cell in cells
        if cell["cell_type"] == "code" and "\ncheck_exercise(" in "".join(cell["source"])
    ]
    prose = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    fold = r"<details><summary>Solution</summary>.*?```python\n(.*?)```\s*</details>"
    solutions = re.findall(fold, prose, flags=re.DOTALL)
    assert len(stubs) == len(solutions), path.name
    names = [
        re.search(r'^check_exercise\("([\w-]+)", (\w+)\)', stub, re.MULTILINE) for stub in stubs
    ]
    return [(n[1], n[2], stub, code) for n, stub, code in zip(names, stubs, solutions, strict=True)]


EVERY = [(path.stem, *found) for path in NOTEBOOKS for found in exercises(path)]


@pytest.mark.parametrize(("notebook", "name", "function", "stub", "code"), EVERY)
def test_a_folded_solution_passes_its_own_check(notebook, name, function, stub, code):
    space = {}
    exec(code, space)
    assert verdict(name, space[function]).startswith("passed")


@pytest.mark.parametrize(("notebook", "name", "function", "stub", "code"), EVERY)
def test_an_untouched_stub_says_so(notebook, name, function, stub, code, capsys):
    exec(stub, {"check_exercise": check_exercise})
    assert capsys.readouterr().out == f"{name}: not attempted yet\n"


def test_every_exercise_belongs_to_a_notebook_and_each_has_two_or_three():
    assert sorted(name for _, name, *_ in EVERY) == sorted(EXERCISES)
    for path in NOTEBOOKS:
        assert 2 <= len(exercises(path)) <= 3, path.name


def test_a_wrong_answer_is_told_with_the_case_it_fails():
    assert verdict("01-2", lambda a, b: 1.0) == (
        "not yet: ('how do I boil an egg', 'how do I peel an egg') gave 1.0, expected "
        "0.7142857142857143"
    )


def test_an_answer_that_raises_is_told_and_does_not_stop_the_notebook():
    assert "raised ZeroDivisionError" in verdict("00-1", lambda *_: 1 / 0)


def test_an_unknown_exercise_is_named():
    with pytest.raises(BaizeError, match="no exercise '99-9'"):
        verdict("99-9", print)
