"""Files for machines that are not here: each example is parsed, or run with stand-ins."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from baize_lib.course.cli import app
from baize_lib.training.settings import read_run_file

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.sh"))


def test_each_example_says_whether_it_has_been_run_and_is_short():
    for path in [*SCRIPTS, *EXAMPLES.glob("*.yaml")]:
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 45, path.name
        assert re.search(r"not\s(#\s)?been run|not run|teacher of your own", text), path.name


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_sound_shell_and_stops_at_the_first_error(script):
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert "set -euo pipefail" in script.read_text(encoding="utf-8")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_command_of_the_course_in_it_is_there_with_its_options(script):
    for line in re.findall(r"^baize ([^|\n]*)", script.read_text(encoding="utf-8"), re.MULTILINE):
        command, *options = line.split()
        shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).output
        assert all(option in shown for option in options if option.startswith("--")), line


@pytest.fixture
def stand_ins(tmp_path):
    """A PATH on which vllm, baize, curl and python3 only write down how they were called."""
    log = tmp_path / "calls"
    note = f'echo "$(basename $0) $* [$BAIZE_TEACHER $BAIZE_STUDENT $OPENAI_BASE_URL]" >> {log}'
    scripts = {
        "baize": note, "curl": f"test -e {tmp_path}/up", "sleep": "exec /bin/sleep 0.1",
        "python3": 'mkdir -p "$3/bin" && cp $(dirname $0)/vllm $(dirname $0)/pip "$3/bin"',
        "pip": note,
        "vllm": f"{note}\ntouch {tmp_path}/up\ntrap 'echo vllm ended >> {log}; exit 0' TERM\n"
        "while true; do /bin/sleep 0.1; done",
    }  # fmt: skip
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, body in scripts.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)

    def run(script, *arguments, **environment):
        text = script.read_text(encoding="utf-8").replace("/tmp/vllm", str(tmp_path / "vllm"))
        copy = tmp_path / script.name
        copy.write_text(text)
        (tmp_path / "runs/one-card").mkdir(parents=True, exist_ok=True)
        path = {"PATH": f"{folder}:{os.environ['PATH']}"}
        subprocess.run(
            ["bash", str(copy), *arguments], cwd=tmp_path, env=path | environment, check=True,
            timeout=60,
        )  # fmt: skip
        return log.read_text(encoding="utf-8").splitlines()

    return run


def test_one_card_teaches_then_frees_the_card_then_trains_and_evaluates(stand_ins):
    calls = stand_ins(EXAMPLES / "one_card.sh", DIALOGUES="7")
    assert [" ".join(call.split()[:2]) for call in calls] == [
        "pip install", "vllm serve", "baize collect", "vllm ended", "baize train", "baize evaluate",
    ]  # fmt: skip
    assert (
        "baize collect --num 7 [Qwen/Qwen2.5-7B-Instruct Qwen/Qwen2.5-1.5B http://127" in calls[2]
    )
    assert "--host 127.0.0.1" in calls[1]


def test_a_vllm_server_is_the_teacher_by_its_address_alone(stand_ins):
    (call,) = stand_ins(EXAMPLES / "vllm_teacher.sh", OPENAI_BASE_URL="http://gpu:8000/v1")
    assert call == "baize collect --num 200 [Qwen/Qwen2.5-7B-Instruct  http://gpu:8000/v1]"


def test_the_job_at_hugging_face_is_one_that_its_own_command_accepts(tmp_path):
    text = (EXAMPLES / "hf_jobs.sh").read_text(encoding="utf-8")
    script = tmp_path / "dry.sh"
    script.write_text(text.replace("hf jobs run", "hf jobs run --dry-run"))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    said = subprocess.run(
        ["bash", str(script), "you/your-chatbot"], capture_output=True, text=True, check=True,
        env={"PATH": path, "HF_TOKEN": "hf_marked", "HOME": str(tmp_path)},
    )  # fmt: skip
    assert "flavor   h200" in said.stdout
    assert "bash examples/one_card.sh" in said.stdout
    assert "hf upload you/your-chatbot runs/one-card/adapter --private" in said.stdout
    assert "hf_marked" not in said.stdout + said.stderr


def test_the_skypilot_task_has_the_fields_of_one_and_runs_what_is_here():
    task = yaml.safe_load((EXAMPLES / "one_card.sky.yaml").read_text(encoding="utf-8"))
    assert set(task) <= {"name", "workdir", "resources", "envs", "setup", "run", "num_nodes"}
    known = {"accelerators", "disk_size", "use_spot", "autostop", "infra", "cpus", "memory"}
    assert set(task["resources"]) <= known
    assert all((ROOT / path).is_file() for path in re.findall(r"examples/\S+", task["run"]))
    pytest.importorskip("sky", reason="SkyPilot is not installed").Task.from_yaml_config(task)


def test_accelerate_itself_reads_the_file_for_several_cards():
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(EXAMPLES / "several_cards.yaml"))
    assert (config.num_processes, config.num_machines) == (4, 1)
    text = (EXAMPLES / "several_cards.yaml").read_text(encoding="utf-8")
    read_run_file(ROOT / re.search(r"data/training/\S+\.yaml", text)[0])
