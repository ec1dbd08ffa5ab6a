"""One table of every call that can cost money: `runs/<run>/calls.sqlite`.

A row is written *before* its call is made, with the most it can cost, and filled when the answer is
here: on disk before anyone sees it. So what was spent is one sum over it, and to go on is to run
the same code again: an answered call is found by its key (who is asked, what, how, which attempt)
and costs nothing, one that may have been billed unseen counts at the most it can cost. Rows
written at the same time share one commit.

>>> table = Calls(None, Budget(usd=1))
>>> with table.held():
...     call = asyncio.run(table.begin(Call("k1", "chat", model="m"), usd=0.002, tokens=900))
...     reply = Reply("Hello", "stop", Usage(10, 0, 5), cost_usd=0.001)
...     asyncio.run(table.answered(call, reply))
...     table.find("k1").text, table.budget.spent_usd
('Hello', 0.001)
"""

import asyncio
import collections
import contextlib
import errno
import itertools
import json
import re
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass
from operator import add, sub
from pathlib import Path
from typing import Any, NamedTuple

import filelock

from baize_lib.config import BaizeError
from baize_lib.teacher.budget import PICO, Budget, Reservation
from baize_lib.teacher.errors import SAID, Reply
from baize_lib.teacher.prices import Usage

__all__ = ["Calls"]

SCHEMA = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
INSERT = """INSERT INTO calls
  (id, key, purpose, subject, part, model, state, batch, text, bound_pico, bound_tokens)
  VALUES (?, ?, ?, ?, ?, ?, 'begun', ?, ?, ?, ?)"""
ANSWER = """UPDATE calls SET state = 'answered', pico = ?, input = ?, cached_input = ?, output = ?,
  estimated = ?, finish_reason = ?, text = ? WHERE id = ?"""


class Call(NamedTuple):
    """Which call it is, and what it is for."""

    key: str
    purpose: str  # "self-chat"
    subject: str = ""  # "general-001"
    part: str = ""  # "assistant 1"
    model: str = ""


@dataclass(eq=False, slots=True)
class _Write:
    """One statement that waits for the next commit."""

    sql: str
    values: tuple[Any, ...]
    done: bool = False


class Calls:
    """The table at `path` (None: in memory only) and the budget that its rows count against.

    Inside `with calls.held():` this process alone may write to it; leaving the last one lets go.
    A `path` of an earlier version of the course is refused with a BaizeError.
    """

    def __init__(self, path: Path | str | None, budget: Budget | float | None = None) -> None:
        self.path = None if path is None else Path(path)
        self.budget = budget if isinstance(budget, Budget) else Budget(usd=budget)
        self._holding, self._holders = threading.RLock(), 0
        self._waiting: collections.deque[_Write] = collections.deque()
        self._one_writer = threading.Lock()
        self._reserved: dict[int, Reservation] = {}
        self._known = (0, 0, 0)  # picodollars, of them in doubt, tokens: in the budget already
        self._numbers: Iterator[int] | None = None  # ids of the rows to come
        self._connection: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None
        self._opened = contextlib.ExitStack()
        for old in self.path.parent.glob("*") if self.path and not self.path.exists() else ():
            if old.name.endswith((".calls.jsonl", ".settings.json")):
                raise BaizeError(
                    f"{self.path.parent} was collected by an earlier version of the course "
                    f"({old.name}): its finished dialogues can be read and trained on as they are; "
                    "to collect more, set BAIZE_RUN to a new name"
                )

    # ---- holding the file

    @contextlib.contextmanager
    def held(self) -> Iterator["Calls"]:
        """Keep the table open and to ourselves; a BaizeError says who or what is in the way."""
        with self._holding:
            if not self._connection:
                try:
                    self._open()
                except (sqlite3.Error, OSError) as error:
                    raise self._explained(error) from error
            self._holders += 1
        try:
            yield self
        finally:
            with self._holding:
                self._holders -= 1
                if not self._holders and self.path:  # one in memory stays open
                    self._opened.close()

    def _open(self) -> None:
        with contextlib.ExitStack() as opened:
            if self.path:  # another thread may let go of the lock, hence thread_local=False
                self.path.parent.mkdir(parents=True, exist_ok=True)
                opened.enter_context(filelock.FileLock(
                    self.path.with_suffix(".lock"), timeout=0, thread_local=False,
                    fallback_to_soft=False,
                ))  # fmt: skip
            opened.callback(self._let_go)
            self._connection = opened.enter_context(contextlib.closing(self._connect()))
            self._reader = self._connection
            if self.path:
                self._reader = opened.enter_context(contextlib.closing(self._connect()))
            self._read_the_past()
            opened.callback(self._flush)  # what still waits; the rest is let go even if this fails
            self._opened = opened.pop_all()

    def _connect(self) -> sqlite3.Connection:
        where = self.path or ":memory:"
        connection = sqlite3.connect(where, check_same_thread=False, isolation_level="DEFERRED")
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.executescript(SCHEMA)
        return connection

    def _read_the_past(self) -> None:
        """Take over what was begun and spent before now."""
        with self._connection as table:
            # calls that a dead process had begun: nobody knows whether they were billed
            table.execute(
                "UPDATE calls SET state = 'doubtful' WHERE state = 'begun' AND batch IS NULL"
            )
            if self._numbers is None:  # what a dead process wanted, and had not sent yet
                table.execute(
                    "DELETE FROM calls WHERE state = 'begun' AND batch NOT IN "
                    "(SELECT tag FROM batches)"
                )
            [last] = table.execute("SELECT coalesce(max(id), 0) FROM calls").fetchone()
            waiting = "SELECT id, bound_pico, bound_tokens FROM calls WHERE state = 'begun'"
            for number, *bound in table.execute(waiting):  # in a batch: held, cap or no cap
                self._reserved[number] = Reservation(*bound)
                self.budget.hold(self._reserved[number])
            spent = tuple(table.execute("SELECT * FROM spent").fetchone())
        self._numbers = itertools.count(last + 1)
        self.budget.take_over(*map(sub, spent, self._known))
        self._known = spent

    def _let_go(self) -> None:
        self._connection = self._reader = None
        self._waiting.clear()
        while self._reserved:
            self.budget.settle(self._reserved.popitem()[1], 0, 0)

    def _explained(self, error: sqlite3.Error | OSError) -> BaizeError:
        """A fault of the file, with a remedy."""
        code = errno.errorcode.get(getattr(error, "errno", None))
        fault = f"{type(error).__name__} {code} {error}"
        rule = next(rule for rule in SAID["table"] if re.search(rule["fault"], fault))
        said = getattr(error, "strerror", None) or error
        return BaizeError(f"{self.path} {rule['text'].format(error=said)}")

    # ---- writing: whoever comes first commits for all who wait

    async def begin(self, call: Call, usd: float, tokens: int, request: str | None = None) -> int:
        """Reserve the most a call can cost and note it; on disk when this returns. Gives its id.

        One with a `request` waits for the next batch. Raises `BudgetExceeded` if it does not fit.
        """
        held = self.budget.reserve(usd, tokens)
        number = next(self._numbers)
        self._reserved[number] = held
        batch = None if request is None else ""
        try:
            await self._written(INSERT, number, *map(sendable, call), batch, request, *held)
        except BaseException:
            self.failed(number, billed=False)
            raise
        return number

    async def answered(self, number: int, reply: Reply) -> None:
        """Keep a reply and its bill; on disk when this returns."""
        pico = round(reply.cost_usd * PICO)
        self._settle(number, pico, reply.usage.total)
        how = (reply.estimated, reply.finish_reason, reply.text)
        await self._written(ANSWER, pico, *astuple(reply.usage), *how, number)

    def failed(self, number: int, *, billed: bool) -> None:
        """A call gave no answer: forget it, or count it at its bound if it may have been billed."""
        self._settle(number, *(self._reserved[number] if billed else (0, 0)), doubtful=billed)
        keep, forget = "UPDATE calls SET state = 'doubtful'", "DELETE FROM calls"
        self._write(f"{keep if billed else forget} WHERE id = ?", number)

    def _settle(self, number: int, pico: int, tokens: int, *, doubtful: bool = False) -> None:
        self.budget.settle(self._reserved.pop(number), pico / PICO, tokens, uncertain=doubtful)
        self._known = tuple(map(add, self._known, (pico, pico * doubtful, tokens)))

    def write_now(self, *statements: tuple[Any, ...]) -> None:
        """Carry out statements, each (SQL, value, …), in one commit; on disk when this returns."""
        for statement in statements:
            self._write(*statement)
        self._flush()

    def _write(self, sql: str, *values: Any) -> _Write:
        self._waiting.append(write := _Write(sql, values))
        return write

    async def _written(self, sql: str, *values: Any) -> None:
        write = self._write(sql, *values)
        if self.path:
            await asyncio.to_thread(self._flush, write)
        else:
            self._flush(write)

    def _flush(self, write: _Write | None = None) -> None:
        """Commit all that waits, unless another did so for `write` in the meantime.

        What could not be written waits on: the next flush tries it again.
        """
        with self._one_writer:
            if write and write.done:
                return
            batch = [self._waiting.popleft() for _ in range(len(self._waiting))]
            try:
                with self._connection as table:
                    for each in batch:
                        table.execute(each.sql, each.values)
            except sqlite3.Error as error:
                self._waiting.extendleft(reversed(batch))
                raise self._explained(error) from error
            for each in batch:
                each.done = True

    # ---- reading

    def find(self, key: str) -> Reply | None:
        """The reply to the call with this key, and what it cost, if there is one."""
        rows = self._read(
            "SELECT text, finish_reason, input, cached_input, output, estimated, pico FROM calls "
            "WHERE key = ? AND state = 'answered' LIMIT 1", key,
        )  # fmt: skip
        for text, reason, *tokens, estimated, pico in rows:
            return Reply(text, reason, Usage(*tokens), bool(estimated), pico / PICO, found=True)
        return None

    def in_batch(self, key: str) -> bool:
        """Whether the call with this key waits for a batch or its answers."""
        sql = "SELECT 1 FROM calls WHERE key = ? AND state = 'begun' AND batch IS NOT NULL"
        return self._read(sql, key).fetchone() is not None

    def _read(self, sql: str, *values: Any) -> sqlite3.Cursor:
        try:
            return self._reader.execute(sql, values)
        except sqlite3.Error as error:
            raise self._explained(error) from error

    def query(self, sql: str, *values: Any) -> list[dict[str, Any]]:
        """Rows of a SELECT over the view `bill` (the table and `owed`, picodollars), as dicts.

        >>> Calls(None).query("SELECT count(*) AS calls FROM bill")
        [{'calls': 0}]
        """
        with self.held():
            self._flush()
            return [dict(row) for row in self._read(sql, *values)]

    def claim(self, purpose: str, now: Mapping[str, Any]) -> None:
        """Tie the table to its first settings (name -> value); a BaizeError shows what differs."""
        with self.held():
            insert = "INSERT OR IGNORE INTO settings VALUES (?, ?)"
            self.write_now((insert, purpose, json.dumps(now)))
            [row] = self.query("SELECT value FROM settings WHERE purpose = ?", purpose)
        old, shown = json.loads(row["value"]), ""
        for name in old | now:
            was, is_now = (json.dumps(it.get(name), ensure_ascii=False) for it in (old, now))
            shown += f"\n  {name}: {was:.80} -> {is_now:.80}" if was != is_now else ""
        if shown:
            raise BaizeError(
                f"{self.path} was begun with other settings:{shown}\n"
                "Use the old ones to go on, or another run folder (BAIZE_RUN) for the new ones"
            )


def sendable(text: str) -> str:
    """Text without lone halves of surrogate pairs, which neither SQLite nor UTF-8 can say."""
    return text.encode("utf-8", "replace").decode()
