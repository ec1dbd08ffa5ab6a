"""The ledger: on disk before it is counted, whole after any crash, one writer at a time."""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baize_lib.config import BaizeError
from baize_lib.files import read_jsonl
from baize_lib.teacher import ledger as ledger_room
from baize_lib.teacher.ledger import (
    Ledger,
    check_settings,
    journal_file,
    read_settings,
    settings_file,
)


def record(name, status="ok", attempt=1, **more):
    return {"id": name, "status": status, "attempt": attempt, "cost_usd": 0.5, **more}


def answer(text="yes"):
    return {"text": text, "usage": {"input": 1, "cached_input": 0, "output": 1}, "cost_usd": 0.1}


def write(path, *records):
    async def main():
        with Ledger(path) as ledger:
            list(ledger.scan())
            for row in records:
                await ledger.append(row)

    asyncio.run(main())


def resume(path):
    with Ledger(path) as ledger:
        list(ledger.scan())
    return ledger


def test_what_was_appended_is_found_again(tmp_path):
    path = tmp_path / "deep" / "self_chat.jsonl"
    write(path, record("a"), record("b", "failed"), record("c", "rejected", attempt=3))
    again = resume(path)
    assert again.done == {"a"}
    assert again.failed == {"b": 1, "c": 3}


def test_a_failure_that_succeeded_later_is_no_failure(tmp_path):
    path = tmp_path / "l.jsonl"
    write(path, record("a", "failed"), record("a", attempt=2))
    assert (resume(path).done, resume(path).failed) == ({"a"}, {})


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(0, 400), text=st.text(max_size=20))
def test_a_ledger_torn_at_any_byte_loses_its_last_line_at_most(cut, text):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "l.jsonl"
        rows = [record("a", text=text), record("b", text=text), record("c", text=text)]
        write(path, *rows)
        whole = path.read_bytes()
        torn = whole[: max(len(whole) - cut, 0)]
        path.write_bytes(torn)
        kept = resume(path).done
        ends = [len(whole[: i + 1]) for i in range(len(whole)) if whole[i : i + 1] == b"\n"]
        expected = {n for n, end in zip("abc", ends, strict=True) if len(torn) >= end - 1}
        assert kept == expected
        write(path, record("d"))
        assert {row["id"] for row in read_jsonl(path)} == {*expected, "d"}


def test_a_torn_last_line_is_cut_off_and_its_bytes_are_told(tmp_path):
    path = tmp_path / "l.jsonl"
    path.write_text('{"id": "a", "status": "ok"}\n{"id": "b", "sta', encoding="utf-8")
    with Ledger(path) as ledger:
        assert ledger.repaired == len('{"id": "b", "sta')
    assert path.read_text(encoding="utf-8") == '{"id": "a", "status": "ok"}\n'


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "l.jsonl"
    path.write_text('{"id": "a"}\n{"id": \n{"id": "c"}\n', encoding="utf-8")
    with pytest.raises(BaizeError, match=r"l\.jsonl:2"):
        resume(path)


def test_a_second_writer_is_refused_and_nothing_is_touched(tmp_path):
    path = tmp_path / "l.jsonl"
    code = f"from baize_lib.ledger import Ledger\nLedger({str(path)!r})"
    with Ledger(path) as ledger:
        list(ledger.scan())
        asyncio.run(ledger.append(record("a")))
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "written by another process" in other.stderr
    assert resume(path).done == {"a"}


def test_a_full_disk_leaves_whole_lines_and_says_so(tmp_path, monkeypatch):
    path, write_bytes = tmp_path / "l.jsonl", os.write
    with Ledger(path) as ledger:
        list(ledger.scan())
        asyncio.run(ledger.append(record("a")))
        monkeypatch.setattr(os, "write", lambda fd, data: write_bytes(fd, data[:10]))
        with pytest.raises(BaizeError, match="free some disk space"):
            asyncio.run(ledger.append(record("b")))
        monkeypatch.undo()
    assert "b" not in ledger.done
    assert [row["id"] for row in read_jsonl(path)] == ["a"]


def test_a_folder_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BaizeError, match="BAIZE_RUNS"):
        Ledger(tmp_path / "file" / "l.jsonl")


def test_many_writers_share_an_fsync_and_each_waits_for_one(tmp_path, monkeypatch):
    path, synced, sync = tmp_path / "l.jsonl", [], os.fsync

    def counting(descriptor):
        synced.append(os.fstat(descriptor).st_size)
        sync(descriptor)

    async def main():
        with Ledger(path) as ledger:
            list(ledger.scan())
            monkeypatch.setattr(os, "fsync", counting)

            async def add(number):
                await ledger.append(record(f"{number}"))
                end = path.read_bytes().index(f'"id": "{number}"'.encode())
                assert max(synced) > end

            await asyncio.gather(*(add(number) for number in range(200)))

    asyncio.run(main())
    assert len(resume(path).done) == 200
    assert len(synced) < 20


def test_answers_of_a_dialogue_under_way_survive(tmp_path):
    path = tmp_path / "l.jsonl"

    async def main():
        ledger = Ledger(path)
        list(ledger.scan())
        for call in range(2):
            ledger.begin("a", 1, call, 0.3, 30)
            await ledger.answered("a", 1, call, answer(f"answer {call}"))
        ledger.begin("a", 1, 2, 0.3, 30)
        ledger.begin("b", 1, 0, 0.3, 30)
        ledger.lost("b", 1, 0, 0, 0)  # it was never sent
        os.close(ledger._held)  # the process dies: nothing is closed in order

    asyncio.run(main())
    again = resume(path)
    assert [a["text"] for a in again.underway["a"].answers] == ["answer 0", "answer 1"]
    assert again.underway["a"].in_doubt == [(0.3, 30)]
    assert again.underway["b"].in_doubt == []
    assert resume(path).underway == again.underway


def test_a_ledger_opened_and_refused_keeps_its_journal(tmp_path):
    path = tmp_path / "l.jsonl"
    line = json.dumps({"id": "a", "attempt": 1, "call": 0, "answer": answer()}) + "\n"
    journal_file(path).write_text(line)
    with Ledger(path):
        pass  # nothing was read: other settings, say
    path.write_text("broken\n")
    with pytest.raises(BaizeError):
        resume(path)
    assert journal_file(path).read_text() == line


def test_a_finished_dialogue_leaves_the_journal(tmp_path):
    path = tmp_path / "l.jsonl"

    async def main():
        with Ledger(path) as ledger:
            list(ledger.scan())
            ledger.begin("a", 1, 0, 0, 0)
            await ledger.answered("a", 1, 0, answer())
            await ledger.append(record("a"))

    asyncio.run(main())
    assert journal_file(path).read_bytes() == b""


def test_the_journal_stays_small(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger_room, "JOURNAL_LIMIT", 3000)
    path, largest = tmp_path / "l.jsonl", 0

    async def main():
        nonlocal largest
        with Ledger(path) as ledger:
            list(ledger.scan())
            ledger.begin("open", 1, 0, 0.5, 5)
            for number in range(100):
                ledger.begin(f"{number}", 1, 0, 0, 0)
                await ledger.answered(f"{number}", 1, 0, answer())
                await ledger.append(record(f"{number}"))
                largest = max(largest, journal_file(path).stat().st_size)

    asyncio.run(main())
    assert largest < 3500
    assert resume(path).underway["open"].in_doubt == [(0.5, 5)]


def test_a_journal_of_dialogues_since_finished_is_ignored(tmp_path):
    path = tmp_path / "l.jsonl"
    write(path, record("a"), record("b", "failed"))
    stale = [{"id": name, "attempt": 1, "call": 0, "answer": answer()} for name in "ab"]
    journal_file(path).write_text("".join(json.dumps(row) + "\n" for row in stale))
    assert resume(path).underway == {}


def test_text_no_file_can_hold_does_not_stop_the_run(tmp_path):
    write(tmp_path / "l.jsonl", record("a", text="half a pair: \ud83d"))
    assert resume(tmp_path / "l.jsonl").done == {"a"}


def test_other_settings_are_refused_with_the_difference(tmp_path):
    path = tmp_path / "l.jsonl"
    check_settings(path, {"strategy": "turns", "num_turns": 3}, read_settings(path))
    check_settings(path, {"strategy": "turns", "num_turns": 3}, read_settings(path))
    with pytest.raises(BaizeError, match="BAIZE_RUN") as refusal:
        check_settings(path, {"strategy": "transcript", "num_turns": 3}, read_settings(path))
    assert '\n  strategy: "turns" -> "transcript"\n' in str(refusal.value)
    assert "num_turns" not in str(refusal.value)


def test_a_settings_file_that_is_broken_is_named(tmp_path):
    path = tmp_path / "l.jsonl"
    settings_file(path).write_text("{")
    with pytest.raises(BaizeError, match=r"l\.settings\.json is not readable"):
        read_settings(path)
