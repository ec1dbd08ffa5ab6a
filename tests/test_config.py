"""Tiers, dials, run folders and files: bad input is named, and nothing is lost."""

import json
import subprocess
import sys

import pytest

from baize_lib.config import BaizeError
from baize_lib.course.environment import check_environment
from baize_lib.course.tiers import TIERS, current_tier, open_run
from baize_lib.files import read_jsonl, write_atomic, write_jsonl
from baize_lib.models.weights import MODELS

DIALS = ("TIER", "TEACHER", "STUDENT", "TEACHER_PRICE", "MAX_CALLS", "RUN")


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("BAIZE_RUNS", str(tmp_path / "runs"))
    for dial in DIALS:
        monkeypatch.delenv(f"BAIZE_{dial}", raising=False)


class TestTiers:
    def test_the_laptop_is_the_default(self):
        assert current_tier().name == "laptop"

    def test_the_environment_chooses(self, monkeypatch):
        monkeypatch.setenv("BAIZE_TIER", "ci")
        assert current_tier() == TIERS["ci"]

    def test_an_unknown_one_is_refused_with_the_ones_there_are(self, monkeypatch):
        monkeypatch.setenv("BAIZE_TIER", "desktop")
        with pytest.raises(BaizeError, match="'desktop' is not a tier: use one of ci, laptop, t4"):
            current_tier()

    def test_ci_needs_the_small_model_alone_and_laptop_has_a_stronger_teacher(self):
        assert {TIERS["ci"].teacher, TIERS["ci"].student} == {"smollm2-135m"}
        teacher, student = (MODELS[n] for n in (TIERS["laptop"].teacher, TIERS["laptop"].student))
        assert teacher.num_bytes > 10 * student.num_bytes

    def test_it_prints_what_a_reader_wants_to_know_first(self):
        printed = str(current_tier("a100"))
        for expected in ("gpt-4.1-nano", "110,000 dialogues of 3 turns", "$100", "40 GB"):
            assert expected in printed


class TestDials:
    def test_they_overrule_the_tier_and_are_kept_in_the_runs_card(self, monkeypatch, capsys):
        monkeypatch.setenv("BAIZE_TEACHER", "my-model")
        monkeypatch.setenv("BAIZE_STUDENT", "qwen-0.5b")
        monkeypatch.setenv("BAIZE_TEACHER_PRICE", "0.10/0.40")
        monkeypatch.setenv("BAIZE_MAX_CALLS", "4")
        tier = current_tier()
        assert (tier.teacher, tier.student, tier.max_calls) == ("my-model", "qwen-0.5b", 4)
        assert (tier.price.model, tier.price.input, tier.price.output) == ("my-model", 0.1, 0.4)
        kept = json.loads((open_run(tier).path / "run.json").read_text())["tier"]
        assert (kept["teacher"], kept["price"]["output"], kept["max_calls"]) == ("my-model", 0.4, 4)
        assert "my-model teaches qwen-0.5b" in capsys.readouterr().out
        open_run(tier)
        assert capsys.readouterr().out == ""

    @pytest.mark.parametrize("price", ["1", "1/2/3", "a/b", "-1/2", "nan/1", "1/inf", "/"])
    def test_what_is_no_price_is_refused_with_an_example(self, price, monkeypatch):
        monkeypatch.setenv("BAIZE_TEACHER_PRICE", price)
        with pytest.raises(BaizeError, match=r"is not a price: .*0\.10/0\.40"):
            current_tier()

    @pytest.mark.parametrize("calls", ["0", "-1", "many", "1.5"])
    def test_calls_in_flight_are_a_whole_number(self, calls, monkeypatch):
        monkeypatch.setenv("BAIZE_MAX_CALLS", calls)
        with pytest.raises(BaizeError, match="whole number, 1 or more"):
            current_tier()

    def test_money_and_pace_may_change_within_a_run_and_the_teacher_may_not(self, monkeypatch):
        open_run()
        monkeypatch.setenv("BAIZE_MAX_CALLS", "2")
        monkeypatch.setenv("BAIZE_TEACHER_PRICE", "0/0")
        open_run()
        monkeypatch.setenv("BAIZE_TEACHER", "another")
        with pytest.raises(BaizeError, match="teacher: 'qwen-1.5b' -> 'another'"):
            open_run()


def test_a_run_folder_opens_again_at_its_own_tier(monkeypatch):
    monkeypatch.setenv("BAIZE_RUN", "mine")
    first = open_run(current_tier("ci"))
    assert first.path.name == "mine" and open_run(current_tier("ci")) == first


def test_a_run_folder_of_another_tier_is_refused_with_what_differs(monkeypatch):
    monkeypatch.setenv("BAIZE_RUN", "mine")
    open_run(current_tier("ci"))
    with pytest.raises(BaizeError, match=r"name: 'ci' -> 'laptop'.*selfchat\.num_turns: 2 -> 3"):
        open_run(current_tier("laptop"))


def test_a_run_folder_of_the_earlier_edition_is_refused_with_the_way_out(tmp_path):
    card = {"tier": {"name": "laptop", "num_turns": 3, "base_model": "embedded"}}
    write_atomic(tmp_path / "runs/laptop/run.json", json.dumps(card))
    with pytest.raises(BaizeError, match="base_model: 'embedded' -> None.*set BAIZE_RUN"):
        open_run(current_tier("laptop"))


def test_an_unwritable_run_folder_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("BAIZE_RUNS", str(tmp_path / "file"))
    with pytest.raises(BaizeError, match=r"cannot be written.*BAIZE_RUNS"):
        open_run(current_tier("ci"))


@pytest.mark.parametrize("card", ["{", "[]", '{"tier": 1}', ""])
def test_a_damaged_run_card_says_what_to_delete(card):
    run = open_run(current_tier("ci"))
    (run.path / "run.json").write_text(card)
    with pytest.raises(BaizeError, match="delete that one file"):
        open_run(current_tier("ci"))


class TestEnvironment:
    def test_this_machine_passes_for_the_tier_it_runs(self):
        report = check_environment(current_tier("ci"))
        assert report.ok, str(report)
        assert str(check_environment(current_tier("ci"), brief=True)).count("\n") == 0

    def test_a_paid_teacher_without_a_key_fails_with_a_remedy(self, monkeypatch):
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        report = check_environment(current_tier("a100"), brief=True)
        assert not report.ok
        assert "use BAIZE_TIER=laptop" in str(report)
        assert "OK" not in str(report)

    def test_a_key_that_is_none_is_told(self, monkeypatch):
        monkeypatch.setenv("OPENAI_API_KEY", "two words")
        assert "copy it again" in str(check_environment(current_tier("a100")))

    def test_a_server_of_ones_own_may_do_without_a_key(self, monkeypatch):
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1")
        monkeypatch.setenv("BAIZE_TEACHER", "my-model")
        assert check_environment(current_tier("ci")).ok

    def test_a_key_in_colabs_secrets_counts(self):
        code = (
            "import sys, types\n"
            "userdata = types.ModuleType('google.colab.userdata')\n"
            "userdata.get = lambda name: {'OPENAI_API_KEY': 'sk-from-colab'}[name]\n"
            "userdata.SecretNotFoundError = userdata.NotebookAccessError = KeyError\n"
            "colab = types.ModuleType('google.colab'); colab.userdata = userdata\n"
            "sys.modules |= {'google': types.ModuleType('google'), 'google.colab': colab}\n"
            "from baize_lib.course import check_environment, current_tier\n"
            "print(check_environment(current_tier('a100')))"
        )
        environment = {"PATH": "/usr/bin", "HOME": "/nowhere"}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment
        )
        assert "OK    OPENAI_API_KEY" in done.stdout, done.stderr

    def test_models_that_are_not_here_yet_need_their_room(self, tmp_path, monkeypatch):
        monkeypatch.setenv("BAIZE_CACHE", str(tmp_path))
        assert "2.0 needed" in str(check_environment(current_tier("laptop")))
        assert "0.7 needed" in str(check_environment(current_tier("ci")))


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


@pytest.mark.parametrize("tail", ["id,text", "[1, 2]", "3"])
def test_a_last_line_that_never_was_an_object_is_not_a_torn_one(tmp_path, tail):
    (tmp_path / "rows.jsonl").write_text(tail, encoding="utf-8")
    with pytest.raises(BaizeError, match="rows.jsonl:1 is not a JSON object"):
        list(read_jsonl(tmp_path / "rows.jsonl", torn_tail_ok=True))


def test_a_byte_order_mark_and_blank_lines_are_read_over(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"a": "é"}).encode() + b"\n\n")
    assert list(read_jsonl(path)) == [{"a": "é"}]


def test_a_file_written_atomically_has_ordinary_permissions(tmp_path):
    write_atomic(tmp_path / "a.txt", "text")
    (tmp_path / "b.txt").write_text("text")
    modes = {p.name: p.stat().st_mode for p in tmp_path.iterdir()}
    assert modes["a.txt"] == modes["b.txt"]
