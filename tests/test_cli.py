"""The command `baize`: each step explains itself, works on the run folder, fails in one line."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from baize_lib.course.cli import app

COMMANDS = ("check", "run", "render", "collect", "train", "evaluate", "chat", "serve", "receipt")


@pytest.fixture(autouse=True)
def of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("BAIZE_RUNS", str(tmp_path))
    for name in ("TIER", "TEACHER", "STUDENT", "RUN"):
        monkeypatch.setenv(f"BAIZE_{name}", "")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command):
    told = CliRunner().invoke(app, [command, "--help"])
    assert told.exit_code == 0
    assert "Usage:" in told.output


def test_the_list_of_commands_is_complete():
    told = CliRunner().invoke(app, ["--help"]).output
    assert all(command in told for command in COMMANDS)


def test_an_error_is_one_line_without_a_traceback(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "baize_lib.course.cli", "check", "--tier", "desktop"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.strip() == (
        "BAIZE_TIER='desktop' is not a tier: use one of ci, laptop, t4, a100"
    )


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["collect", "--num", "0"], "--num"),
        (["serve", "--port", "70000"], "--port"),
        (["serve", "--port", "-1"], "--port"),
    ],
)
def test_a_number_out_of_range_is_refused_before_anything_begins(command, says, tmp_path):
    told = CliRunner().invoke(app, command)
    assert told.exit_code == 2 and says in told.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["../mine", "a/b", "C:mine", ".hidden"])
def test_a_run_has_a_name_and_not_a_path(name, tmp_path):
    told = CliRunner().invoke(app, ["receipt", "--tier", "ci", "--run", name])
    assert f"BAIZE_RUN={name!r} is no name" in str(told.exception)
    assert not list(tmp_path.iterdir())


def test_a_receipt_is_not_written_of_a_run_that_is_not_there(tmp_path):
    told = CliRunner().invoke(app, ["receipt", "--tier", "ci", "--run", "mine"])
    assert "there is no run" in str(told.exception)
    assert not list(tmp_path.iterdir())


def test_check_says_whether_this_machine_is_ready():
    told = CliRunner().invoke(app, ["check", "--tier", "ci"])
    assert told.exit_code == 0
    assert "OK    Python" in told.output


def test_questions_become_dialogues_in_the_runs_folder_and_are_found_again(tmp_path):
    (tmp_path / "mine.txt").write_text("Why do cats purr when they sleep?\n", encoding="utf-8")
    command = ["collect", str(tmp_path / "mine.txt"), "--tier", "ci", "--run", "mine"]
    first = CliRunner().invoke(app, command)
    assert first.exit_code == 0, first.output
    lines = (tmp_path / "mine" / "self_chat.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 0
    assert (tmp_path / "mine" / "self_chat.jsonl").read_text(encoding="utf-8").splitlines() == lines
