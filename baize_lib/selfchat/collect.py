"""All dialogues: from seeds to `self_chat.jsonl`, within a budget, never lost.

Every answer is in the table of calls before the next question is asked. So `collect` may be
stopped at any moment, by Ctrl-C, the budget or `kill -9`, and called again: only the calls in
flight may be paid twice. The file is made from the table; delete it, and it is made again free.

    with CostMeter(calls.budget, target=len(seeds)) as meter:
        receipt = await collect(seeds, teacher, SelfChatSettings(), run.self_chat, meter=meter)
    bill_by_role_and_turn(teacher.calls)     # where the money went
"""

import asyncio
import contextlib
import errno
import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from baize_lib.config import BaizeError
from baize_lib.files import read_jsonl, repair_tail
from baize_lib.seeds.seed import Seed, as_seeds
from baize_lib.selfchat.bill import Receipt, spent
from baize_lib.selfchat.prompts import SelfChatSettings
from baize_lib.selfchat.strategies import self_chat
from baize_lib.teacher.budget import BudgetExceeded
from baize_lib.teacher.calls import Calls, sendable
from baize_lib.teacher.client import Teacher
from baize_lib.teacher.errors import Halted, Waiting
from baize_lib.teacher.meter import CostMeter

__all__ = ["collect"]

GRACE = 20.0  # seconds that answers under way are waited for when a run is stopped
USELESS_IN_A_ROW = 20  # so many dialogues without one that is good stop a run
_under_way: set[Path] = set()  # the files that this process is collecting


@dataclass(slots=True)
class _Session:
    """What the dialogues of one `collect` share, and what they come to."""

    teacher: Teacher
    settings: SelfChatSettings
    meter: CostMeter | None
    file: BinaryIO
    done: set[str] = field(default_factory=set)
    attempts: Counter[str] = field(default_factory=Counter)  # by seed
    counts: Counter[str] = field(default_factory=Counter)  # of this time, as the receipt has them
    reasons: Counter[str] = field(default_factory=Counter)
    useless_in_a_row: int = 0
    stopped: str = ""  # why no other dialogue is begun: "", "budget", "interrupted" or "error"

    def take(self, line: dict[str, Any], *, fresh: bool = True) -> None:
        """Note what became of a seed; `fresh`: this time."""
        self.attempts[line["id"]] = line["attempt"]
        if line["status"] == "ok":
            self.done.add(line["id"])
        if self.meter:
            self.meter.add(line, fresh=fresh)
        if not fresh:
            return
        ends = line["finish_reasons"]
        self.counts.update({line["status"]: 1, "replies": len(ends), "cut": ends.count("length")})
        # a dialogue whose calls were paid for in vain may still have a turn to keep
        why = line["reason"] or (line["ended"] if line["ended"].startswith("empty") else "")
        self.reasons.update([why] if why else [])
        self.useless_in_a_row = self.useless_in_a_row + 1 if why else 0
        if self.useless_in_a_row >= USELESS_IN_A_ROW:
            raise BaizeError(
                f"{USELESS_IN_A_ROW} dialogues in a row came to nothing, the last one with: {why}. "
                "When the cause is mended, go on with collect(..., retry_failed=True)"
            )

    async def rounds(self, seeds: Sequence[Seed], retry_failed: bool) -> None:
        """Go through the seeds once, or as often as a batch has brought answers."""
        earlier, again = self.attempts.copy(), True
        while again:
            self.stopped = ""
            todo = (
                (seed, earlier[seed.id] + 1)
                for seed in seeds
                if seed.id not in self.done and self.attempts[seed.id] == earlier[seed.id]
                if retry_failed or not earlier[seed.id]
            )
            await self._work(todo)
            again = await self.teacher.next_round()

    async def _work(self, todo: Iterator[tuple[Seed, int]]) -> None:
        workers = range(self.teacher.max_concurrency)
        tasks = [asyncio.create_task(self._worker(todo)) for _ in workers]
        try:
            for ended in asyncio.as_completed(tasks):
                await ended
        except BaseException as error:
            self.stopped = "interrupted" if isinstance(error, asyncio.CancelledError) else "error"
            self.teacher.halt()
            print(
                f"stopping, {GRACE:.0f} s at most are left to answers under way: every answered "
                "call is kept; run the same again to go on"
            )
            await asyncio.wait(tasks, timeout=GRACE)
            raise
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.teacher.start()

    async def _worker(self, todo: Iterator[tuple[Seed, int]]) -> None:
        for seed, attempt in todo:
            if self.stopped:
                return
            try:
                line = await self_chat(seed, self.teacher, self.settings, attempt)
            except Waiting:  # for the next batch
                continue
            except Halted:
                return
            except BudgetExceeded:
                self.stopped = "budget"
                return
            _append(self.file, line)
            self.take(line)


async def collect(
    seeds: Iterable[Seed | str], teacher: Teacher, settings: SelfChatSettings | None = None,
    path: Path | str = "self_chat.jsonl", *, retry_failed: bool = False,
    meter: CostMeter | None = None,
) -> Receipt:  # fmt: skip
    """Make one dialogue of every seed that has none yet, a line each in the file at `path`.

    Whatever stops it, call it again with the same arguments to go on; only seeds may be others.
    When the budget ends it, the receipt says so (`stopped`).

    `retry_failed` also tries again the seeds whose dialogue failed or was rejected. There are as
    many dialogues under way as the teacher may have calls.

    Raises:
        RunStopped: the teacher refuses every call; at once, the reason in its text.
        BaizeError: other settings than the table's, another question of a name used before,
            another process on it, a full disk, or 20 dialogues in a row that came to nothing.
        asyncio.CancelledError: interrupted; what was answered is kept, and a line says so.
    """
    settings, path, began = settings or SelfChatSettings(), Path(path), time.monotonic()
    seeds = tuple(as_seeds(seeds))
    for name, count in Counter(seed.id for seed in seeds).most_common(1):
        if count > 1:
            raise BaizeError(f"two seeds have the id {name!r}: give each its own")
    if not isinstance(teacher, Teacher):
        raise BaizeError(f"teacher={teacher!r:.60}: make one, for example teacher_for('qwen-1.5b')")
    if teacher.calls.path is None:  # what is paid for here is kept beside the dialogues
        teacher.calls = Calls(path.with_name("calls.sqlite"), teacher.budget)
    teacher.start()
    with teacher.calls.held(), _appending(path) as file:
        name = os.path.relpath(path, teacher.calls.path.parent)
        teacher.calls.claim(name, asdict(settings) | {"teacher": teacher.model})
        session = _Session(teacher, settings, meter, file)
        _take_earlier(session, path, {seed.id: sendable(seed.text) for seed in seeds})
        already, before = len(session.done), spent(teacher.calls)
        await session.rounds(seeds, retry_failed)
        now = spent(teacher.calls)
    new = {name: now[name] - before[name] for name in ("calls", "input", "output", "usd")}
    return Receipt(
        **session.counts, **now | new, total_usd=now["usd"], already=already,
        left=sum(seed.id not in session.done for seed in seeds), reasons=session.reasons,
        stopped=session.stopped, seconds=time.monotonic() - began, rate=str(teacher.pace),
    )  # fmt: skip


def _take_earlier(session: _Session, path: Path, questions: dict[str, str]) -> None:
    """Note the lines there were before; only a file that is a collection has its tail mended."""
    try:
        for line in read_jsonl(path, torn_tail_ok=True):
            session.take(line, fresh=False)
            if questions.get(line["id"], line["seed"]["text"]) != line["seed"]["text"]:
                raise BaizeError(
                    f"{path} was begun with another question called {line['id']!r}: use that one, "
                    "or another run folder (BAIZE_RUN)"
                )
    except LookupError as error:
        raise BaizeError(
            f"{path} has a line without {error}, so it is no collection: move it away, and it "
            "is made again from calls.sqlite at no cost"
        ) from error
    repair_tail(path)


@contextlib.contextmanager
def _appending(path: Path) -> Iterator[BinaryIO]:
    """The file, opened to be appended to."""
    name = path.resolve()
    if name in _under_way:
        raise BaizeError(f"{path} is being collected already: wait for it, or interrupt it")
    _under_way.add(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab", buffering=0) as file:
            yield file
    except OSError as error:
        raise BaizeError(
            f"{path} cannot be written ({error.strerror}): free some disk space or choose another "
            "folder with BAIZE_RUNS, and run again; every answer is kept in calls.sqlite"
        ) from error
    finally:
        _under_way.discard(name)


def _append(file: BinaryIO, line: dict[str, Any]) -> None:
    """One line, whole or not at all. The table has its content, so no `fsync` is needed."""
    data = json.dumps(line, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
    before = file.seek(0, os.SEEK_END)
    if file.write(data) < len(data):
        file.truncate(before)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
