"""Two processes train what one would have trained."""

import json
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from test_train import TALKS, TOKENIZER, tiny_base

from baize_lib.config import BaizeError, data_dir
from baize_lib.corpus.formats import write_dialogues
from baize_lib.training.__main__ import main
from baize_lib.training.settings import read_run_file
from baize_lib.training.step import Team
from baize_lib.training.tokens import Encoded

# `--multi_gpu` is accelerate's word for several processes of one machine, processors included
LAUNCH = [
    sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
    "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
    "--main_process_port", "0",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parallel")
    tiny_base().model.save_pretrained(folder / "base")
    TOKENIZER.save_pretrained(folder / "base")
    write_dialogues(folder / "train.jsonl", TALKS)
    write_dialogues(folder / "validation.jsonl", TALKS[:3])
    return folder


def run_file(folder, adapter, **more):
    said = {
        "base": str(folder / "base"), "precision": "float32", "adapter": str(folder / adapter),
        "train": str(folder / "train.jsonl"), "validation": str(folder / "validation.jsonl"),
        "settings": {
            "lr": 5e-3, "batch_size": 3, "num_epochs": 2, "micro_tokens": 100, "compute": "float32",
        },
    } | more  # fmt: skip
    path = folder / f"{adapter}.yaml"
    path.write_text(json.dumps(said))  # every JSON object is YAML
    return path


@pytest.fixture(scope="module")
def alone(folder):
    assert main([str(run_file(folder, "alone"))]) == 0
    return history(folder / "alone"), load_file(folder / "alone" / "adapter_model.safetensors")


def history(adapter):
    return [json.loads(line) for line in (adapter / "history.jsonl").read_text().splitlines()]


def test_two_processes_give_the_losses_and_the_adapter_of_one(folder, alone):
    path = run_file(folder, "two")  # in its last step one of them has nothing to do
    command = [*LAUNCH, "-m", "baize_lib.training", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("held-out loss") == 1
    expected, weights = alone
    found = history(folder / "two")
    for key in ("loss", "grad_norm", "lr"):
        assert [row[key] for row in found] == pytest.approx([r[key] for r in expected], rel=1e-4)
    for key, weight in load_file(folder / "two" / "adapter_model.safetensors").items():
        torch.testing.assert_close(weight, weights[key], rtol=1e-3, atol=1e-5)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=20), st.integers(1, 5))
def test_a_team_computes_every_row_once_whatever_its_size(lengths, size):
    rows = [Encoded([1] * n, [1] * n, str(i)) for i, n in enumerate(lengths)]
    shares = [Team(rank, size).batches(rows, 60) for rank in range(size)]
    seen = [row.id for share in shares for batch in share for row in batch]
    assert sorted(seen) == sorted(row.id for row in rows)


# --- run files


def test_a_preset_is_the_start_and_settings_go_over_it(folder):
    file = read_run_file(
        run_file(folder, "p", preset="7B", settings={"lr": "3e-4", "targets": ["q_proj"]})
    )
    assert (file.settings.batch_size, file.settings.lr) == (64, 3e-4)
    assert file.settings.targets == ("q_proj",)
    assert file.adapter == folder / "p"


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ("- a", "key: value"),
        ("a: [", "cannot be read as YAML"),
        ("train: t", "adapter: field required"),
        (
            "train: t\nadapter: a\nlearning_rate: 1",
            r"learning_rate: unexpected .*known are .*base",
        ),
        ("train: t\nadapter: a\nsettings: {rnak: 1}", r"rnak: unexpected .*known are .*rank"),
        ("train: t\nadapter: a\nsettings: {rank: many}", "settings in .*: rank: .*integer"),
        ("train: t\nadapter: a\nsettings: 3", "expected `key: value` lines"),
        ("train: t\nadapter: a\nshard: true", "shard: unexpected .*known are .*base"),
        ("train: t\nadapter: a\npreset: [7B]", r"preset \['7B'\] is unknown"),
        ("train: t\nadapter: a\npreset: 66B", "use one of 135M, .*7B, 13B, 30B, 65B"),
    ],
)
def test_a_run_file_that_cannot_be_meant_is_refused_with_the_place(tmp_path, said, says):
    path = tmp_path / "run.yaml"
    path.write_text(said)
    with pytest.raises(BaizeError, match=says):
        read_run_file(path)


@pytest.mark.parametrize(
    "path", sorted((data_dir() / "training").glob("*.yaml")), ids=lambda path: path.stem
)
def test_the_run_files_of_the_course_can_be_read(path):
    file = read_run_file(path)
    assert file.settings.loss_on == "replies"


def test_the_command_starts_without_a_warning():
    command = [sys.executable, "-W", "error", "-m", "baize_lib.training"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "")
    assert done.stdout.startswith("usage: python -m baize_lib.training RUN.yaml")


def test_a_missing_run_file_is_named(tmp_path, capsys):
    assert main([str(tmp_path / "none.yaml")]) == 1
    assert "none.yaml cannot be read" in capsys.readouterr().err
    assert main([]) == 2
