"""The ledger of a run: every dialogue that was paid for, on disk before it is counted.

Three files, so that nothing a teacher answered is lost, whenever the process dies:

    self_chat.jsonl               one line per finished dialogue, failed ones too; only appended to
    self_chat.calls.jsonl         the calls of dialogues still under way: begun, then answered
    self_chat.settings.json       what the run was begun with; other settings are refused

An answer is on disk (`fsync`) before its dialogue goes on, so a restart takes it from there and
does not pay again. A call begun but not answered may have been billed: it stays counted, at the
most it could cost, as `uncertain_usd`. Writers share an `fsync` (group commit), which keeps
hundreds of calls a second durable.

    with Ledger("runs/laptop/self_chat.jsonl") as ledger:
        earlier = list(ledger.scan())
        await ledger.append({"id": "general-001", "status": "ok", "messages": []})
        "general-001" in ledger.done
"""

import asyncio
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from baize_lib.config import BaizeError
from baize_lib.files import read_jsonl, write_atomic

__all__ = [
    "Ledger",
    "Underway",
    "read_settings",
    "check_settings",
    "settings_file",
]


JOURNAL_LIMIT = 8_000_000  # bytes; beyond it the journal is rewritten with live dialogues only


@dataclass(slots=True)
class Underway:
    """A dialogue begun and not finished: its answered calls in order, and the calls in doubt.

    Attributes:
        in_doubt: (USD, tokens) at most, for every call begun whose answer was never recorded.
    """

    attempt: int = 1
    answers: list[dict[str, Any]] = field(default_factory=list)
    in_doubt: list[tuple[float, int]] = field(default_factory=list)


class Ledger:
    """Append to and resume from `path`, held by one process at a time.

    Attributes:
        done: ids with a dialogue of status "ok".
        failed: id -> number of attempts, for ids whose last line is failed or rejected.
        underway: id -> Underway, dialogues an earlier session did not finish.
        repaired: bytes of a torn last line that were cut off.

    Raises:
        BaizeError: another process writes to it, a line is broken, or the disk refuses.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.done: set[str] = set()
        self.failed: dict[str, int] = {}
        self.underway: dict[str, Underway] = {}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._held = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise _unwritable(self.path, error) from error
        try:
            _lock(self._held, self.path)
            self._lines = _Appender(self.path)
            self._journal = _Appender(journal_file(self.path))
            self.repaired = self._lines.repair()
            self._journal.repair()
        except BaseException:
            os.close(self._held)
            raise
        self._scanned = False
        self._live: dict[str, list[bytes]] = {}  # id -> journal lines of a dialogue under way

    def scan(self) -> Iterator[dict[str, Any]]:
        """Read the ledger once, in flat memory; yields its lines, which fill `done` and `failed`.

        Run it to its end, once, before anything is appended.
        """
        for record in read_jsonl(self.path):
            name, ok = record["id"], record.get("status", "ok") == "ok"
            if ok:
                self.done.add(name)
                self.failed.pop(name, None)
            elif name not in self.done:
                self.failed[name] = record.get("attempt", 1)
            yield record
        self._read_journal()

    def _read_journal(self) -> None:
        begun: dict[tuple[str, int], list[tuple[float, int]]] = {}
        for row in read_jsonl(journal_file(self.path)):
            name, attempt = row["id"], row["attempt"]
            if name in self.done or attempt <= self.failed.get(name, 0):
                continue
            talk = self.underway.setdefault(name, Underway(attempt))
            waiting = begun.setdefault((name, row["call"]), [])
            if "begun" in row:
                waiting.append(tuple(row["begun"]))
            elif "lost" in row:
                del waiting[-1:]
                if any(row["lost"]):
                    talk.in_doubt.append(tuple(row["lost"]))
            elif len(talk.answers) == row["call"]:
                talk.answers.append(row["answer"])
                del waiting[-1:]
            self._live.setdefault(name, []).append(_line(row))
        for (name, _), waiting in begun.items():
            self.underway[name].in_doubt += waiting
        self._scanned = True

    def begin(self, name: str, attempt: int, call: int, usd: float, tokens: int) -> None:
        """Note that a call is about to be made which may cost `usd` and `tokens` at most.

        It survives the death of the process, not of the machine: it is not worth an `fsync`.
        """
        row = {"id": name, "attempt": attempt, "call": call, "begun": [usd, tokens]}
        self._journal_line(name, row)
        self._journal.write()

    def lost(self, name: str, attempt: int, call: int, usd: float, tokens: int) -> None:
        """Note that a call begun has ended without an answer, and what it may have cost."""
        self._journal_line(
            name, {"id": name, "attempt": attempt, "call": call, "lost": [usd, tokens]}
        )
        self._journal.write()

    async def answered(self, name: str, attempt: int, call: int, answer: dict[str, Any]) -> None:
        """Keep the answer of a call; returns once it is on disk."""
        row = {"id": name, "attempt": attempt, "call": call, "answer": answer}
        self._journal_line(name, row)
        await self._journal.commit()

    async def append(self, record: dict[str, Any]) -> None:
        """Write a dialogue's line; returns once it is on disk, and only then is it counted."""
        self._lines.add(_line(record))
        await self._lines.commit()
        name = record["id"]
        self._live.pop(name, None)
        self.underway.pop(name, None)
        if record["status"] == "ok":
            self.done.add(name)
            self.failed.pop(name, None)
        else:
            self.failed[name] = record["attempt"]
        if self._scanned and self._journal.size > JOURNAL_LIMIT:
            self._journal.replace(self._live_lines())

    @property
    def size(self) -> int:
        """Bytes in the ledger."""
        return self._lines.size

    def close(self) -> None:
        """Let go of the files, the journal reduced to what is under way."""
        if self._scanned:
            self._journal.replace(self._live_lines())
        self._journal.close()
        self._lines.close()
        os.close(self._held)

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _journal_line(self, name: str, row: dict[str, Any]) -> None:
        line = _line(row)
        self._live.setdefault(name, []).append(line)
        self._journal.add(line)

    def _live_lines(self) -> list[bytes]:
        return [line for lines in self._live.values() for line in lines]


class _Appender:
    """A file that is only appended to: whole lines, one `write` for all that wait, one `fsync`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open()
        self._waiting: list[bytes] = []
        self._written = self._synced = 0  # numbers of writes
        self._syncing: asyncio.Future[None] | None = None

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | _BINARY
        self.descriptor = os.open(self.path, flags, 0o666)
        self.size = os.fstat(self.descriptor).st_size

    def repair(self) -> int:
        """Mend a torn last line: end it if it is whole JSON, else cut it off. Returns bytes cut."""
        tail, start = b"", self.size
        while start and b"\n" not in tail:
            step = min(start, 1 << 16)
            start -= step
            os.lseek(self.descriptor, start, os.SEEK_SET)
            tail = os.read(self.descriptor, step) + tail
        torn = tail.rpartition(b"\n")[2]
        if not torn:
            return 0
        try:
            json.loads(torn)
            self.add(b"\n")
            self.write()
            return 0
        except ValueError:
            os.ftruncate(self.descriptor, self.size - len(torn))
            self.size -= len(torn)
            return len(torn)

    def add(self, line: bytes) -> None:
        self._waiting.append(line)

    def write(self) -> None:
        """Hand all waiting lines to the system in one call; a short write leaves no part of it."""
        data = b"".join(self._waiting)
        self._waiting.clear()
        if not data:
            return
        try:
            written = os.write(self.descriptor, data)
            if written < len(data):
                os.ftruncate(self.descriptor, self.size)
                raise OSError(28, "no space left on the disk")
        except OSError as error:
            raise _unwritable(self.path, error) from error
        self.size += written
        self._written += 1

    async def commit(self) -> None:
        """Write, and wait until it is on disk; whoever comes meanwhile shares the next `fsync`."""
        self.write()
        mine = self._written
        while self._synced < mine:
            if self._syncing is None:
                self._syncing = asyncio.ensure_future(self._sync())
            await asyncio.shield(self._syncing)

    async def _sync(self) -> None:
        covered, copy = self._written, os.dup(self.descriptor)  # ours may be closed meanwhile
        try:
            await asyncio.to_thread(_sync_and_close, copy)
            self._synced = max(self._synced, covered)
        except OSError as error:
            raise _unwritable(self.path, error) from error
        finally:
            self._syncing = None

    def replace(self, lines: Iterable[bytes]) -> None:
        """Make the file consist of `lines`, atomically."""
        self._waiting.clear()
        self.close()
        write_atomic(self.path, b"".join(lines))
        self._open()
        self._written += 1
        self._synced = self._written

    def close(self) -> None:
        os.close(self.descriptor)


def _sync_and_close(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_BINARY = getattr(os, "O_BINARY", 0)  # Windows


def journal_file(ledger: Path) -> Path:
    return ledger.with_suffix(".calls.jsonl")


def settings_file(ledger: Path | str) -> Path:
    """Where a ledger's settings are kept."""
    return Path(ledger).with_suffix(".settings.json")


def read_settings(ledger: Path | str) -> dict[str, Any]:
    """What a ledger was begun with; {} if it is new."""
    path = settings_file(ledger)
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise BaizeError(
            f"{path} is not readable ({error}): delete that one file if the settings are unchanged"
        ) from error


def check_settings(ledger: Path | str, now: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    """Remember what a run is made with; refuse to go on with anything else.

    Args:
        now, before: flat name -> value, as JSON keeps it; nothing before for a new ledger.

    Raises:
        BaizeError: the ledger was begun with other settings; its text is the difference.
    """
    now = json.loads(json.dumps(now))
    names = [*before, *(name for name in now if name not in before)]
    changed = [
        f"\n  {name}: {_short(before.get(name))} -> {_short(now.get(name))}"
        for name in names
        if before.get(name) != now.get(name)
    ]
    if before and changed:
        raise BaizeError(
            f"{Path(ledger)} was begun with other settings:{''.join(changed)}\n"
            "Use the old ones to go on, or another run folder (BAIZE_RUN) for the new ones"
        )
    if now != read_settings(ledger):
        write_atomic(settings_file(ledger), json.dumps(now, indent=1, ensure_ascii=False) + "\n")


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:60]}…{text[-15:]}"


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def _unwritable(path: Path, error: OSError) -> BaizeError:
    return BaizeError(
        f"{path} cannot be written ({error.strerror or error}): free some disk space or choose a "
        "writable folder with BAIZE_RUNS, then run again; all that was recorded is kept"
    )


def _lock(descriptor: int, path: Path) -> None:
    """Hold the file until it is closed or the process ends."""
    try:
        try:
            import fcntl
        except ImportError:  # Windows
            import msvcrt

            os.lseek(descriptor, 1 << 40, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise BaizeError(
            f"{path} is being written by another process: wait for it, stop it, or use another "
            "run folder (BAIZE_RUN)"
        ) from error
