"""All dialogues: from seeds to `self_chat.jsonl`, within a budget, never lost.

`collect` may be stopped at any moment, by Ctrl-C, the budget or `kill -9`, and called again: every
answer is in the table of calls before the next question is asked, so a dialogue that was under way
is made again from there and only the calls in flight may be paid twice.

    with CostMeter(calls.budget, target=len(seeds)) as meter:
        receipt = await collect(seeds, teacher, SelfChatSettings(), run.self_chat, meter=meter)
    receipt                                  # dialogues, calls, tokens, dollars, why some failed
    bill_by_role_and_turn(teacher.calls)     # where the money went

The file is made from the table, a dialogue a line; delete it, and it is made again for nothing.
"""

import asyncio
import contextlib
import json
import os
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from baize_lib.config import BaizeError
from baize_lib.files import repair_tail
from baize_lib.seeds.seed import Seed
from baize_lib.selfchat.bill import Receipt
from baize_lib.selfchat.prompts import SelfChatSettings
from baize_lib.selfchat.strategies import as_seed, self_chat
from baize_lib.teacher.budget import PICO, BudgetExceeded
from baize_lib.teacher.calls import Calls
from baize_lib.teacher.client import Teacher
from baize_lib.teacher.errors import Halted, Waiting
from baize_lib.teacher.meter import CostMeter

__all__ = ["collect"]

GRACE = 20.0  # seconds that answers under way are waited for when a run is stopped
_under_way: set[Path] = set()  # the files that this process is collecting
USELESS_IN_A_ROW = 20  # so many dialogues without one that is good stop a run
SPENT = """SELECT count(*) AS calls, coalesce(sum(state = 'doubtful'), 0) AS doubtful,
  total(owed) AS owed, total(CASE state WHEN 'doubtful' THEN owed END) AS in_doubt,
  total(input) AS input, total(cached_input) AS cached_input, total(output) AS output
  FROM bill WHERE purpose = 'self-chat' AND state != 'begun'"""


@dataclass(slots=True)
class _Session:
    """What the dialogues of one `collect` share, and what they come to."""

    teacher: Teacher
    settings: SelfChatSettings
    meter: CostMeter | None
    file: BinaryIO
    done: set[str] = field(default_factory=set)
    failed: dict[str, int] = field(default_factory=dict)  # id -> attempts so far
    statuses: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    replies: int = 0
    cut: int = 0
    useless_in_a_row: int = 0
    stopped: str = ""  # why no other dialogue is begun: "", "budget", "interrupted" or "error"

    def read_file(self) -> None:
        """Note which seeds have a dialogue, or failed; a broken line is named."""
        with Path(self.file.name).open("rb") as lines:  # `self.file` has no buffer to read with
            for number, raw in enumerate(lines, start=1):
                try:
                    line = json.loads(raw)
                    name, ok = line["id"], line["status"] == "ok"
                except (ValueError, LookupError, TypeError) as error:
                    raise BaizeError(
                        f"{self.file.name}:{number} is no line of a collection ({error}): move the "
                        "file away, and it is made again from calls.sqlite at no cost"
                    ) from error
                if ok:
                    self.done.add(name)
                    self.failed.pop(name, None)
                elif name not in self.done:
                    self.failed[name] = line.get("attempt", 1)
                if self.meter:
                    self.meter.add(line, fresh=False)

    async def rounds(self, seeds: Collection[Seed], retry_failed: bool, concurrency: int) -> None:
        """Go through the seeds once, or as often as a batch has brought answers."""
        earlier, again = dict(self.failed), True
        while again:
            self.stopped = ""
            await self.work(_todo(seeds, self, earlier, retry_failed), concurrency)
            again = await self.teacher.next_round()

    async def work(self, todo: Iterator[tuple[Seed, int]], concurrency: int) -> None:
        """Go through `todo`, `concurrency` dialogues at a time."""
        tasks = [asyncio.create_task(self._worker(todo)) for _ in range(concurrency)]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        except BaseException as error:
            self.stopped = "interrupted" if isinstance(error, asyncio.CancelledError) else "error"
            self.teacher.halted = True
            print(f"stopping: answers under way are waited for, {GRACE:.0f} s at most")
            await asyncio.wait(tasks, timeout=GRACE)  # answers under way are worth keeping
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
                line = await self_chat(seed, self.teacher, self.settings, attempt=attempt)
            except Waiting:  # for the next batch
                continue
            except Halted:
                return
            except BudgetExceeded:
                self.stopped = "budget"
                return
            self._write(line)
            self._count(line)

    def _write(self, line: dict[str, Any]) -> None:
        """One line, whole or not at all. The table has its content, so no `fsync` is needed."""
        data = json.dumps(line, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        before = self.file.seek(0, os.SEEK_END)
        try:
            if self.file.write(data) < len(data):
                raise OSError(28, "no space left on the disk")
        except OSError as error:
            self.file.truncate(before)
            raise BaizeError(
                f"{self.file.name} cannot be written ({error.strerror}): free some disk space, "
                "then run again; every answer is kept in calls.sqlite"
            ) from error

    def _count(self, line: dict[str, Any]) -> None:
        name, status = line["id"], line["status"]
        self.statuses[status] += 1
        self.replies += len(line["finish_reasons"])
        self.cut += line["finish_reasons"].count("length")
        why = line["reason"] or (line["ended"] if line["ended"].startswith("empty") else "")
        if status == "ok":
            self.done.add(name)
            self.failed.pop(name, None)
        else:
            self.failed[name] = line["attempt"]
        if why:  # a dialogue whose calls were paid for in vain may still have a turn to keep
            self.reasons[why] += 1
        self.useless_in_a_row = self.useless_in_a_row + 1 if why else 0
        if self.meter:
            self.meter.add(line)
        if self.useless_in_a_row >= USELESS_IN_A_ROW:
            raise BaizeError(
                f"{USELESS_IN_A_ROW} dialogues in a row came to nothing, the last one with: "
                f"{why}. Nothing is lost: when the cause is mended, go on with "
                "collect(..., retry_failed=True)"
            )


async def collect(
    seeds: Iterable[Seed | str], teacher: Teacher, settings: SelfChatSettings | None = None,
    path: Path | str = "self_chat.jsonl", *, retry_failed: bool = False,
    meter: CostMeter | None = None, concurrency: int | None = None,
) -> Receipt:  # fmt: skip
    """Make one dialogue of every seed that has none yet, a line each in the file at `path`.

    Whatever stops it, call it again with the same arguments to go on. Seeds may be added at the
    end, nothing else changed.

    Args:
        seeds: each with an id of its own, or plain questions; an iterator is read into memory.
        retry_failed: also try again the seeds whose dialogue failed or was rejected.
        meter: shows progress and cost while it runs.
        concurrency: dialogues under way at once; None takes as many as the teacher may have calls.

    Returns:
        The receipt, also when the budget ended the run early (`stopped` says so).

    Raises:
        RunStopped: the teacher refuses every call; at once, the reason in its text.
        BaizeError: other settings than the table's, another process on it, a full disk, or 20
            dialogues in a row that came to nothing.
        asyncio.CancelledError: interrupted; what was answered is kept, and a line says so.
    """
    settings, path, began = settings or SelfChatSettings(), Path(path), time.monotonic()
    seeds = _as_seeds(seeds)
    if teacher.calls.path is None:  # what is paid for here is kept beside the dialogues
        teacher.calls = Calls(path.with_name("calls.sqlite"), teacher.budget)
    teacher.start()
    with teacher.calls.held(), _appending(path) as file:
        name = os.path.relpath(path, teacher.calls.path.parent)
        teacher.calls.claim(name, asdict(settings) | {"teacher": teacher.model})
        teacher.calls.claim_list(f"seeds of {name}", (f"{s.id}\0{s.text}" for s in seeds))
        session = _Session(teacher, settings, meter, file)
        session.read_file()
        already, [before] = len(session.done), teacher.calls.query(SPENT)
        try:
            await session.rounds(seeds, retry_failed, concurrency or teacher.max_concurrency)
        finally:
            if session.stopped not in ("", "budget"):
                print(
                    f"stopped: {len(session.done):,} dialogues and every answered call are kept in "
                    f"{path.parent.name or '.'}; run the same again to go on"
                )
        [after] = teacher.calls.query(SPENT)
        return _receipt(session, seeds, before, after, already, time.monotonic() - began)


def _receipt(
    session: _Session, seeds: Collection[Seed], before: dict[str, Any], after: dict[str, Any],
    already: int, seconds: float,
) -> Receipt:  # fmt: skip
    new = {name: after[name] - before[name] for name in after}
    return Receipt(
        ok=session.statuses["ok"], failed=session.statuses["failed"],
        rejected=session.statuses["rejected"], already=already,
        left=sum(seed.id not in session.done for seed in seeds), replies=session.replies,
        cut=session.cut, calls=new["calls"], doubtful=after["doubtful"],
        input=int(new["input"]), cached_input=int(new["cached_input"]), output=int(new["output"]),
        usd=new["owed"] / PICO, doubtful_usd=after["in_doubt"] / PICO,
        total_usd=after["owed"] / PICO, seconds=seconds, reasons=dict(session.reasons),
        stopped=session.stopped, rate=str(session.teacher.rate),
    )  # fmt: skip


def _todo(
    seeds: Iterable[Seed], session: _Session, earlier: dict[str, int], retry_failed: bool
) -> Iterator[tuple[Seed, int]]:
    """(seed, number of the attempt) for each seed that is still to be done.

    `earlier`: attempts of those that had failed before this collection.
    """
    for seed in seeds:
        before, now = earlier.get(seed.id, 0), session.failed.get(seed.id, 0)
        if seed.id not in session.done and now == before and (retry_failed or not before):
            yield seed, before + 1


def _as_seeds(seeds: Iterable[Seed | str]) -> tuple[Seed, ...]:
    if isinstance(seeds, str):
        raise BaizeError("seeds is one text: give a list of questions")
    made = []
    for number, seed in enumerate(seeds):
        if not isinstance(seed, Seed | str):
            raise BaizeError(f"seed {number} is a {type(seed).__name__}: give a Seed or a question")
        made.append(as_seed(seed))
    twice = [name for name, count in Counter(seed.id for seed in made).items() if count > 1]
    if twice:
        raise BaizeError(f"two seeds have the id {twice[0]!r}: give each its own")
    return tuple(made)


@contextlib.contextmanager
def _appending(path: Path) -> Iterator[BinaryIO]:
    """The file, opened to be read and appended to, a torn last line cut off."""
    name = path.resolve()
    if name in _under_way:
        raise BaizeError(f"{path} is being collected already: wait for it, or interrupt it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        repair_tail(path)
        file = path.open("a+b", buffering=0)
    except OSError as error:
        raise BaizeError(
            f"{path} cannot be written ({error.strerror}): choose a writable folder with BAIZE_RUNS"
        ) from error
    _under_way.add(name)
    try:
        with file:
            yield file
    finally:
        _under_way.discard(name)
