"""Bonus 07 compares several turns with single ones from a file of measurements: its cells."""

import json
import random
from pathlib import Path
from statistics import mean, stdev

import pytest

from baize_lib import config
from baize_lib.course import plots, table
from baize_lib.files import read_jsonl

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "notebooks" / "bonus" / "07_what_each_choice_buys.ipynb"
ARMS = ("several turns", "single turns")


def line(arm, seed, loss_later, on_topic):
    """One training as `tests/benchmarks/bench_data.py` writes it."""
    luck = random.Random(f"{arm} {seed}").uniform(-0.002, 0.002)
    return {
        "arm": arm, "seed": seed, "num_dialogues": 200, "num_tokens": 50_000, "loss_before": 1.3,
        "loss_after": 1.0, "good": {"fact": 5, "code": 4}, "asked": {"fact": 20, "code": 20},
        "refused": {}, "p": {}, "stops": 0.9, "empty": 0.0, "repetition": 0.1, "tokens": 60.0,
        "loss_first": 1.1, "loss_later": loss_later + luck,
        "follow_ups": {"asked": 24, "ends": 20 + seed, "on_topic": on_topic, "repeats": 3},
    }  # fmt: skip


def printed(rows, tmp_path, monkeypatch, capsys):
    """What the notebook's cells print of a file with these lines."""
    (tmp_path / "training").mkdir()
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "training" / "arms.jsonl").write_text(text, encoding="utf-8")
    monkeypatch.setattr(config, "data_dir", lambda: tmp_path)
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    first = next(i for i, source in enumerate(code) if '"arms.jsonl"' in source)
    [last] = [i for i, source in enumerate(code) if "The article's claim" in source]
    names = {"read_jsonl": read_jsonl, "table": table, "plots": plots, "mean": mean,
             "stdev": stdev}  # fmt: skip
    for source in code[first : last + 1]:
        exec(compile(source, NOTEBOOK.name, "exec"), names)
    return " ".join(capsys.readouterr().out.split()), names


@pytest.mark.parametrize("seeds", [[0], [0, 1], [0, 1, 2]])
def test_any_number_of_seeds_gives_a_table_and_a_sentence(seeds, tmp_path, monkeypatch, capsys):
    rows = [line(arm, seed, 1.0, 10) for seed in seeds for arm in ARMS]
    other = [{"arm": "25 ordinary", "seed": 0, "num_dialogues": 25, "loss_after": 1.2}]
    said, names = printed(other + rows, tmp_path, monkeypatch, capsys)
    assert f"several turns 200 dialogues, 50,000 tokens, random seeds {seeds[0]}" in said
    assert {row["95%"] == "one seed" for row in names["rows"]} == {len(seeds) == 1}
    assert "several turns win 0, lose 0, and 3 cannot be told." in said


def test_what_lies_outside_the_seeds_luck_is_given_to_the_better_arm(tmp_path, monkeypatch, capsys):
    better = {"loss_later": {"several turns": 0.9, "single turns": 1.0},
              "on_topic": {"several turns": 8, "single turns": 16}}  # fmt: skip
    rows = [
        line(arm, seed, better["loss_later"][arm], better["on_topic"][arm])
        for arm in ARMS for seed in (0, 1, 2)
    ]  # fmt: skip
    said, _ = printed(rows, tmp_path, monkeypatch, capsys)
    assert "several turns better: loss, later replies " in said
    assert "single turns better: follow-ups: on topic, % " in said
    assert "several turns win 0, lose 1, and 2 cannot be told." in said
