"""The exercises: the folded solutions are right, the stubs are harmless, wrong answers are told."""

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from baize_lib.config import BaizeError, Run
from baize_lib.course import exercises
from baize_lib.course.exercises import cases, check_exercise, verdict

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"  # the Chinese ones: same code
NOTEBOOKS = [*sorted(FOLDER.glob("[0-9]*.ipynb")), *sorted(FOLDER.glob("bonus/[0-9]*.ipynb"))]
MAIN = [path for path in NOTEBOOKS if path.stem[:2] <= "06"]


def exercises_of(path):
    """(name, function, stub cell, solution code) of each function to write, in order."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    prose = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    fold = r"<details><summary>Solution</summary>.*?</details>"
    folded = re.findall(fold, prose, flags=re.DOTALL)
    found, stubs = [], ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    checks = [(s, *c) for s in stubs for c in re.findall(CHECK, s, re.MULTILINE)]
    assert len(folded) >= len(checks), f"{path.name}: an exercise without a solution"
    for stub, name, function, expected in checks:
        code = [c for c in re.findall(r"```python\n(.*?)```", prose, re.DOTALL)
                if f"def {function}(" in c]  # fmt: skip
        assert expected or code, f"{path.name}: no solution of {name}"
        if not expected:
            found.append((name, function, stub, code[-1]))
    return found


CHECK = r'^check_exercise\("([\w-]+)", (\w+)(, expected=)?'
EVERY = [(path.stem, *found) for path in NOTEBOOKS for found in exercises_of(path)]


@pytest.mark.parametrize(("notebook", "name", "function", "stub", "code"), EVERY)
def test_a_folded_solution_passes_its_own_check(notebook, name, function, stub, code):
    space = {}
    exec(code, space)
    assert verdict(name, space[function]).startswith("passed")


@pytest.mark.parametrize(("notebook", "name", "function", "stub", "code"), EVERY)
def test_an_untouched_stub_says_so(notebook, name, function, stub, code, capsys):
    exec(stub, {"check_exercise": check_exercise})
    assert capsys.readouterr().out == f"{name}: not attempted yet\n"


def test_every_exercise_belongs_to_a_notebook_and_is_numbered_like_it():
    assert sorted(name for _, name, *_ in EVERY) == sorted(cases())
    assert all(name[:2] == notebook[:2] for notebook, name, *_ in EVERY)


GIVEN = yaml.safe_load((Path(__file__).parent / "exercise_answers.yaml").read_text("utf-8"))
ANSWERS = [(n, kind, a) for n, given in GIVEN.items() for kind in ("right", "wrong")
           for a in given[kind]]  # fmt: skip


@pytest.mark.parametrize(("name", "kind", "answer"), ANSWERS)
def test_right_answers_pass_and_wrong_ones_do_not(name, kind, answer):
    said = verdict(name, eval(answer), GIVEN[name].get("expected"))
    assert said.startswith("passed" if kind == "right" else "not yet"), said


def test_every_exercise_has_two_right_and_three_wrong_answers_to_try():
    found = re.findall(r'check_exercise\(\\"([\w-]+)', "".join(map(Path.read_text, NOTEBOOKS)))
    assert sorted(GIVEN) == sorted(found)
    for name, given in GIVEN.items():
        assert len(given["right"]) >= 2 and len(given["wrong"]) >= 3, name
        assert ("expected" in given) == (name not in cases()), name


@pytest.mark.parametrize("path", MAIN, ids=lambda path: path.stem)
def test_a_main_notebook_has_three_kinds_of_exercises_and_a_hint_before_each_solution(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    prose = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    asked = re.findall(r"\*\*Exercise \d+\*\* \(([\w, ]+), \d+ minutes[,)]", prose)
    kinds = {kind.removesuffix(" a figure").removesuffix(" a dialogue") for kind in asked}
    assert {"write code", "predict, then run", "read"} <= kinds, asked
    folds = re.findall(r"<summary>(Hint|Solution)</summary>", prose)
    assert folds == ["Hint", "Solution"] * (len(folds) // 2)
    assert len(folds) // 2 >= len(asked) >= 3


def test_what_was_expected_is_told_at_the_second_try_only(capsys, monkeypatch):
    monkeypatch.setattr(exercises, "_tries", Counter())
    check_exercise("01-2", lambda a, b: 1.0)
    check_exercise("01-2", lambda a, b: 1.0)
    first, second = capsys.readouterr().out.splitlines()
    wrong = "01-2: not yet: ('how do I boil an egg', 'how do I peel an egg please') gave 1.0, "
    assert first == f"{wrong}which is not it"
    assert second == f"{wrong}expected 0.8333333333333334"


@pytest.fixture(autouse=True)
def of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("BAIZE_RUNS", str(tmp_path))


def test_what_is_passed_is_noted_in_the_run_and_nothing_else_is(tmp_path, monkeypatch):
    monkeypatch.setenv("BAIZE_RUN", "mine")
    check_exercise("03-8", 13, expected=12)
    check_exercise("03-8", ..., expected=12)
    assert not (tmp_path / "mine").exists()
    for name in ("03-9", "00-4", "03-9"):
        check_exercise(name, 12, expected=12)
    assert list(exercises.passed_exercises(Run(tmp_path / "mine"))) == ["00-4", "03-9"]


def test_a_value_found_in_ones_own_run_is_checked_against_it(capsys):
    check_exercise("03-9", ..., expected=12)
    check_exercise("03-9", 13, expected=12)
    check_exercise("03-9", 12.0, expected=12)
    assert capsys.readouterr().out.splitlines() == [
        "03-9: not attempted yet", "03-9: not yet: this is 13, which is not it",
        "03-9: passed (1 case)",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "right"),
    [(np.float64(0.714), 5 / 7), (np.bool_(True), True), (np.int64(3), 3),
     (np.array([-100, 6, 7]), [-100, 6, 7]), ([np.float64(1.5), 2], [1.5, 2]),
     (160.00000000000003, 160), (0.71, 5 / 7)],
)  # fmt: skip
def test_numbers_and_arrays_of_numpy_are_numbers_and_lists(given, right):
    assert exercises.same(given, right)


@pytest.mark.parametrize(("given", "right"), [(0.0, 0.0009), (1, True), (0.7, 5 / 7), ("3", 3)])
def test_what_is_near_is_not_yet_right(given, right):
    assert not exercises.same(given, right)


def test_an_attempt_that_changes_what_it_is_given_does_not_spoil_the_next():
    right = eval(GIVEN["04-2"]["right"][0])
    assert verdict("04-2", lambda ids, answered: ids.clear()).startswith("not yet")
    assert verdict("04-2", right).startswith("passed")


def test_what_cannot_be_compared_is_told_and_does_not_stop_the_notebook():
    assert verdict("04-2", lambda ids, said: pd.DataFrame([ids])).startswith("not yet")


def test_an_answer_that_raises_is_told_and_does_not_stop_the_notebook():
    assert "raised ZeroDivisionError" in verdict("00-1", lambda *_: 1 / 0)


def test_an_unknown_exercise_is_named():
    with pytest.raises(BaizeError, match="no exercise '99-9'"):
        verdict("99-9", print)
