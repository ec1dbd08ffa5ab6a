"""One table of every call that can cost money: `runs/<run>/calls.sqlite`.

A row is written *before* its call is made, with the most it can cost, and filled when the answer is
here: on disk before anyone sees it. So the same table says what was spent and what was answered:

    spent    is one sum over it; a call that may have been billed unseen counts at its bound
    going on is running the same code again: an answered call is found by its key and costs nothing

The key of a call is a hash of who is asked, what, how, and which attempt it is. Rows that are
written at the same time share one commit, which keeps hundreds of calls a second durable.

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
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import filelock

from baize_lib.config import BaizeError
from baize_lib.teacher.budget import PICO, Budget, Reservation
from baize_lib.teacher.errors import Reply
from baize_lib.teacher.prices import Usage

__all__ = ["Calls"]

# One row a call. state: "begun", "answered", or "doubtful" (it may have been billed, unseen).
# pico: picodollars; the bill is what is owed: the price of an answer, the bound of all others.
SCHEMA = """
CREATE TABLE IF NOT EXISTS calls (
  id INTEGER PRIMARY KEY, key TEXT NOT NULL, purpose TEXT NOT NULL, subject TEXT NOT NULL,
  part TEXT NOT NULL, model TEXT NOT NULL, state TEXT NOT NULL, batch TEXT,
  bound_pico INTEGER NOT NULL, bound_tokens INTEGER NOT NULL,
  pico INTEGER, input INTEGER, cached_input INTEGER, output INTEGER, estimated INTEGER,
  finish_reason TEXT, text TEXT);
CREATE INDEX IF NOT EXISTS keys ON calls (key);
CREATE INDEX IF NOT EXISTS subjects ON calls (purpose, subject);
CREATE TABLE IF NOT EXISTS settings (purpose TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS batches (tag TEXT PRIMARY KEY, step TEXT NOT NULL, file TEXT, name TEXT);
CREATE VIEW IF NOT EXISTS bill AS SELECT *,
  CASE state WHEN 'answered' THEN pico ELSE bound_pico END AS owed,
  CASE state WHEN 'answered' THEN input + output ELSE bound_tokens END AS tokens FROM calls;
PRAGMA user_version = 2;
"""
INSERT = """INSERT INTO calls
  (id, key, purpose, subject, part, model, state, batch, bound_pico, bound_tokens)
  VALUES (?, ?, ?, ?, ?, ?, 'begun', ?, ?, ?)"""
ANSWER = """UPDATE calls SET state = 'answered', pico = ?, input = ?, cached_input = ?, output = ?,
  estimated = ?, finish_reason = ?, text = ? WHERE id = ?"""
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)


class Call(NamedTuple):
    """Which call it is: its key, what it is for, whom it belongs to, its part there, who is asked.

    `Call(key, "self-chat", "general-001", "assistant 1", "gpt-4.1-nano")`
    """

    key: str
    purpose: str
    subject: str = ""
    part: str = ""
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

    Raises:
        BaizeError: `path` belongs to an earlier version of the course.
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
        if self.path and not self.path.exists():
            for name in ("*.calls.jsonl", "*.settings.json"):
                for old in self.path.parent.glob(name):
                    raise BaizeError(
                        f"{self.path.parent} was collected by an earlier version of the course "
                        f"({old.name}): its finished dialogues can be read and trained on as they "
                        "are; to collect more, set BAIZE_RUN to a new name"
                    )

    # ---- holding the file

    @contextlib.contextmanager
    def held(self) -> Iterator["Calls"]:
        """Keep the table open and to ourselves.

        Raises:
            BaizeError: another process has it, the folder or disk refuses, or it is damaged.
        """
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
        where = ":memory:" if self.path is None else self.path
        connection = sqlite3.connect(where, check_same_thread=False, isolation_level="DEFERRED")
        connection.row_factory = sqlite3.Row
        if self.path:
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
            waiting = table.execute(
                "SELECT id, bound_pico, bound_tokens FROM calls WHERE state = 'begun'"
            ).fetchall()
            owed = tuple(table.execute(
                "SELECT coalesce(sum(owed), 0), coalesce(sum(owed) FILTER"
                " (WHERE state = 'doubtful'), 0), coalesce(sum(tokens), 0)"
                " FROM bill WHERE state != 'begun'"
            ).fetchone())  # fmt: skip
        self._numbers = itertools.count(last + 1)
        self.budget.take_over(*(new - old for new, old in zip(owed, self._known, strict=True)))
        self._known = owed
        for number, pico, tokens in waiting:  # in a batch: committed, cap or no cap
            self._reserved[number] = self.budget.commit(pico, tokens)

    def _let_go(self) -> None:
        self._connection = self._reader = None
        self._waiting.clear()
        while self._reserved:
            self.budget.settle(self._reserved.popitem()[1], 0, 0)

    def _explained(self, error: sqlite3.Error | OSError) -> BaizeError:
        """A fault of the file, with a remedy."""
        if isinstance(error, filelock.Timeout):
            text = (
                "is being written by another process: wait for it, stop it, or use another run "
                "folder (BAIZE_RUN)"
            )
        elif getattr(error, "errno", None) in NO_LOCKS:
            text = (
                f"is on a file system that knows no locks ({error.strerror}), so two processes "
                "could pay twice: set BAIZE_RUNS to a folder on a local disk"
            )
        elif any(word in str(error) for word in ("malformed", "not a database", "no such column")):
            text = (
                f"is damaged ({error}): keep it aside for its bill and begin another run folder "
                "(BAIZE_RUN); self_chat.jsonl still has the finished dialogues"
            )
        else:
            text = (
                f"cannot be written ({getattr(error, 'strerror', None) or error}): free some disk "
                "space or choose a writable folder with BAIZE_RUNS, then run again; all that was "
                "recorded is kept"
            )
        return BaizeError(f"{self.path} {text}")

    # ---- writing: whoever comes first commits for all who wait

    async def begin(self, call: Call, usd: float, tokens: int, batch: str | None = None) -> int:
        """Reserve the most a call can cost and note it; on disk when this returns. Gives its id.

        Raises:
            BudgetExceeded: it does not fit into the budget; nothing is noted.
        """
        held = self.budget.reserve(usd, tokens)
        number = next(self._numbers)
        self._reserved[number] = held
        try:
            await self._written(
                INSERT, number, *map(sendable, call), batch, held.picodollars, tokens
            )
        except BaseException:
            self.unbilled(number)
            raise
        return number

    async def answered(self, number: int, reply: Reply) -> None:
        """Keep a reply and its bill; on disk when this returns."""
        pico = round(reply.cost_usd * PICO)
        self._settle(number, pico, reply.usage.total)
        await self._written(
            ANSWER, pico, *astuple(reply.usage), reply.estimated, reply.finish_reason, reply.text,
            number,
        )  # fmt: skip

    def unbilled(self, number: int) -> None:
        """Forget a call that certainly cost nothing."""
        self._settle(number, 0, 0)
        self._write("DELETE FROM calls WHERE id = ?", number)

    def doubtful(self, number: int) -> None:
        """A call ended without an answer, and may have been billed: it counts at its bound."""
        self._settle(number, *self._reserved[number], doubtful=True)
        self._write("UPDATE calls SET state = 'doubtful' WHERE id = ?", number)

    def _settle(self, number: int, pico: int, tokens: int, *, doubtful: bool = False) -> None:
        self.budget.settle(self._reserved.pop(number), pico / PICO, tokens, uncertain=doubtful)
        spent, uncertain, used = self._known
        self._known = (spent + pico, uncertain + pico * doubtful, used + tokens)

    def note_batch(self, tag: str, step: str, file: str = "", name: str = "") -> None:
        """Remember, on disk at once, how far a batch is; step "" forgets it."""
        self._write("DELETE FROM batches WHERE tag = ?", tag)
        if step:
            self._write("INSERT INTO batches VALUES (?, ?, ?, ?)", tag, step, file, name)
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
        """Whether the call with this key was sent with a batch and is not answered yet."""
        sql = "SELECT 1 FROM calls JOIN batches ON batch = tag WHERE key = ? AND state = 'begun'"
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
        """Tie the table to settings (flat name -> value) on first use; refuse others later.

        Raises:
            BaizeError: it was begun with others; the text is the difference.
        """
        now = json.loads(json.dumps(now))
        with self.held():
            rows = self.query("SELECT value FROM settings WHERE purpose = ?", purpose)
            before = json.loads(rows[0]["value"]) if rows else now
            changed = [
                f"\n  {name}: {_shown(before.get(name))} -> {_shown(now.get(name))}"
                for name in {**before, **now}
                if before.get(name) != now.get(name)
            ]
            if changed:
                raise BaizeError(
                    f"{self.path} was begun with other settings:{''.join(changed)}\n"
                    "Use the old ones to go on, or another run folder (BAIZE_RUN) for the new ones"
                )
            self._write("INSERT OR IGNORE INTO settings VALUES (?, ?)", purpose, json.dumps(now))


def sendable(text: str) -> str:
    """Text without lone halves of surrogate pairs, which neither SQLite nor UTF-8 can say."""
    return text.encode("utf-8", "replace").decode()


def _shown(value: Any) -> str:
    return f"{json.dumps(value, ensure_ascii=False):.80}"
