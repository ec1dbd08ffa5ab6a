"""Tiers, run folders and files: bad input is named, and nothing is lost."""

import json

import pytest

from baize_lib.config import BaizeError, current_tier, open_run
from baize_lib.course.environment import check_environment
from baize_lib.files import read_jsonl, write_atomic, write_jsonl


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("BAIZE_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("BAIZE_RUN", raising=False)
    monkeypatch.delenv("BAIZE_TIER", raising=False)


def test_the_laptop_is_the_default_tier():
    assert current_tier().name == "laptop"


def test_an_unknown_tier_is_refused_with_the_ones_there_are(monkeypatch):
    monkeypatch.setenv("BAIZE_TIER", "desktop")
    with pytest.raises(BaizeError, match="'desktop' is not a tier: use one of ci, laptop, a100"):
        current_tier()


def test_a_run_folder_opens_again_at_its_own_tier():
    first = open_run(current_tier("ci"), "mine")
    assert open_run(current_tier("ci"), "mine") == first


def test_a_run_folder_of_another_tier_is_refused_with_what_differs():
    open_run(current_tier("ci"), "mine")
    with pytest.raises(BaizeError, match="name: 'ci' -> 'laptop'.*set BAIZE_RUN"):
        open_run(current_tier("laptop"), "mine")


def test_an_unwritable_run_folder_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("BAIZE_RUNS", str(tmp_path / "file"))
    with pytest.raises(BaizeError, match="cannot be written.*BAIZE_RUNS"):
        open_run(current_tier("ci"))


def test_a_damaged_run_card_says_what_to_delete():
    run = open_run(current_tier("ci"))
    (run.path / "run.json").write_text("{")
    with pytest.raises(BaizeError, match="delete that one file"):
        open_run(current_tier("ci"))


def test_a_paid_tier_without_a_key_fails_the_check_with_a_remedy(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    report = check_environment(current_tier("a100"))
    assert not report.ok
    assert "use BAIZE_TIER=laptop" in str(report)


def test_this_machine_passes_the_check_for_the_tier_it_runs():
    report = check_environment(current_tier("ci"))
    assert report.ok, str(report)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [{"n": 1}])

    def interrupted():
        yield {"n": 2}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_jsonl(path, interrupted())
    assert list(read_jsonl(path)) == [{"n": 1}]
    assert [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_torn_last_line_is_skipped_only_when_asked(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"n": 1}\n{"n": 2', encoding="utf-8")
    assert list(read_jsonl(path, torn_tail_ok=True)) == [{"n": 1}]
    with pytest.raises(BaizeError, match="rows.jsonl:2 is not a JSON object"):
        list(read_jsonl(path))


def test_a_byte_order_mark_and_blank_lines_are_read_over(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"a": "é"}).encode() + b"\n\n")
    assert list(read_jsonl(path)) == [{"a": "é"}]


def test_a_file_written_atomically_has_ordinary_permissions(tmp_path):
    write_atomic(tmp_path / "a.txt", "text")
    (tmp_path / "b.txt").write_text("text")
    modes = {p.name: p.stat().st_mode for p in tmp_path.iterdir()}
    assert modes["a.txt"] == modes["b.txt"]
