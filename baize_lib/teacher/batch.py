"""The Batch API: the same calls at half the price, answered within a day, round by round.

A `BatchTeacher` puts a call off: it notes it, holds its money and raises `Waiting`. `next_round()`
sends all that wait and fills the table; then the same code runs again, finds what was answered,
and gets to the next call. `collect` goes through the rounds by itself:

    teacher = BatchTeacher("gpt-4.1-nano", calls=Calls(run.calls_file, budget=5))
    receipt = await collect(seeds, teacher, SelfChatSettings(), run.self_chat)

How far a batch is stands in the table before the next step is taken, so that a process killed
anywhere goes on from there and no batch is bought twice:

    (noted)     a call that waits; forgotten if the process dies now, for nothing was sent
    uploaded    the file of requests lies at the provider
    submitted   as a batch marked with our tag; one that has this tag already is taken instead
"""

import asyncio
import json
import secrets
from collections import Counter
from collections.abc import Mapping
from typing import Any

from baize_lib.config import BaizeError
from baize_lib.teacher.calls import Call
from baize_lib.teacher.client import Teacher
from baize_lib.teacher.errors import (
    Failure,
    Reply,
    RunStopped,
    TeacherError,
    Waiting,
    read_answer,
    read_refusal,
    words_of,
)
from baize_lib.teacher.prices import Usage

__all__ = ["BatchTeacher"]

MOST_ROWS, MOST_BYTES = 50_000, 180_000_000  # the API allows 50,000 requests and 200 MB
MOST_TRIES = 3  # batches that a row is sent with before its call has failed
ENDPOINT = "/v1/chat/completions"
ENDED = ("completed", "expired", "cancelled", "failed")
WANTED = """SELECT id, text FROM (
  SELECT id, text, sum(length(text)) OVER (ORDER BY id) AS so_far FROM calls
  WHERE batch = '' AND state = 'begun') WHERE so_far <= ? ORDER BY id LIMIT ?"""


class BatchTeacher(Teacher):
    """A `Teacher` whose calls wait for a batch, asked for every `poll_seconds`."""

    def __init__(self, model: str, *, poll_seconds: float = 30.0, **options: Any) -> None:
        super().__init__(model, **options)
        self._poll_seconds = poll_seconds
        self._wanted: set[str] = set()  # keys of the calls of this round
        self._tries: Counter[str] = Counter()
        self._failed: dict[str, Failure] = {}  # key -> what is to be told when it is asked again

    async def _ask(self, request: dict[str, Any], call: Call, bound: Usage) -> Reply:
        """Put the call off; raises `Waiting`, or what became of it in its batch."""
        if failure := self._failed.pop(call.key, self._stopped):
            self._raise(self._weighed(failure))
        if call.key not in self._wanted and not self.calls.in_batch(call.key):
            self._wanted.add(call.key)
            name = f"{call.key}.{bound.input}.{bound.output}"  # comes back beside the answer
            body = self._as_sent(request)
            row = {"custom_id": name, "method": "POST", "url": ENDPOINT, "body": body}
            usd = self.price.cost(bound, batch=True)
            try:
                await self.calls.begin(call, usd, bound.total, request=json.dumps(row))
            except BaseException:
                self._wanted.discard(call.key)
                raise
        raise Waiting("this call waits for the next batch", "waiting")

    async def next_round(self) -> bool:
        """Send what is wanted, wait for every batch under way, and take in what they answer.

        Returns whether to run the same code again: False if nothing was wanted. Raises a BaizeError
        if a batch was refused, `RunStopped` if a person cancelled it.
        """
        with self.calls.held():
            while rows := self.calls.query(WANTED, MOST_BYTES, MOST_ROWS):
                await self._upload(rows)
            self._wanted.clear()
            under_way = self.calls.query("SELECT * FROM batches")
            try:
                names = {await self._submit(row): row["tag"] for row in under_way}
                await self._wait(names)
            except asyncio.CancelledError:
                print("interrupted: the batches go on without us; run the same again to fetch them")
                raise
            except TeacherError as error:
                if error.kind != "404":
                    raise
                remedy = "use the key of the account that sent it, or another run folder"
                text = f"a batch is not known at {self.host} ({error}): {remedy} (BAIZE_RUN)"
                raise RunStopped(text, "404") from None
            return bool(under_way)

    async def _upload(self, rows: list[dict[str, Any]]) -> None:
        tag, content = secrets.token_hex(8), "".join(f"{row['text']}\n" for row in rows).encode()
        file = f"baize-{tag}.jsonl", content
        uploaded = await self.request("files.create", file=file, purpose="batch")
        sent = "UPDATE calls SET batch = ?, text = NULL WHERE batch = '' AND id <= ?"
        noted = "INSERT INTO batches VALUES (?, 'uploaded', ?, NULL)"
        self.calls.write_now((sent, tag, rows[-1]["id"]), (noted, tag, uploaded.id))

    async def _submit(self, row: Mapping[str, Any]) -> str:
        """The batch's id. It is bought once: look for its tag, and repeat no unclear try."""
        if row["step"] == "submitted":
            return row["name"]
        mark = {"baize_tag": row["tag"]}
        page = await self.request("batches.list", limit=100)
        found = next((batch for batch in page.data if batch.metadata == mark), None)
        batch = found or await self.request(
            "batches.create", input_file_id=row["file"], endpoint=ENDPOINT,
            completion_window="24h", metadata=mark, repeatable=False,
        )  # fmt: skip
        noted = "UPDATE batches SET step = 'submitted', name = ? WHERE tag = ?"
        self.calls.write_now((noted, batch.id, row["tag"]))
        return batch.id

    async def _wait(self, names: dict[str, str]) -> None:
        """Ask for each batch (id -> tag) now and then; take in its answers once it has ended."""
        from tqdm import tqdm

        for name, tag in (bar := tqdm(names.items(), unit="batch", disable=not names)):
            while (batch := await self.request("batches.retrieve", name)).status not in ENDED:
                if rows := batch.request_counts:
                    bar.set_description(f"{batch.status}, {rows.completed} of {rows.total}")
                await asyncio.sleep(self._poll_seconds)
            await self._ingest(batch, tag)

    async def _ingest(self, batch: Any, tag: str) -> None:
        """Put every row's outcome into the table, once, and forget the batch."""
        outcomes: dict[str, dict[str, Any]] = {}
        for name in filter(None, (batch.output_file_id, batch.error_file_id)):
            content = await self.request("files.content", name)
            lines = (json.loads(line) for line in content.content.splitlines() if line.strip())
            outcomes |= {line["custom_id"].partition(".")[0]: line for line in lines}
        of_batch = "SELECT id, key FROM calls WHERE batch = ? AND state = 'begun'"
        rows, given_up = self.calls.query(of_batch, tag), batch.status in ("cancelled", "failed")
        for start in range(0, len(rows), 500):  # so many share a commit
            await asyncio.gather(*(
                self._take(row["id"], row["key"], _read(outcomes.get(row["key"])), given_up)
                for row in rows[start : start + 500]
            ))  # fmt: skip
        self.calls.write_now(("DELETE FROM batches WHERE tag = ?", tag))
        if batch.status == "failed":
            faults = batch.errors.data if batch.errors and batch.errors.data else []
            reason = "; ".join(f"line {e.line}: {e.message}" for e in faults[:3]) or "unsaid why"
            raise BaizeError(
                f"batch {batch.id} was refused ({reason}); nothing was billed: mend the cause, "
                "then run the same again"
            )
        if batch.status == "cancelled":
            text = f"batch {batch.id} was cancelled in the provider's console: the answers it had "
            raise RunStopped(text + "are kept; run again to send the rest anew", "cancelled")

    async def _take(self, number: int, key: str, outcome: Reply | Failure, given_up: bool) -> None:
        if isinstance(outcome, Reply):
            self._proven = True
            await self.calls.answered(number, self._priced(outcome, batch=True))
            return
        outcome = self._without_key(outcome)
        self.calls.failed(number, billed=outcome.billed)
        self.errors[outcome.kind] += 1
        self._tries[key] += 1
        asked = dict.fromkeys(name for name in outcome.fields if name != "max_completion_tokens")
        retry = self._learns(outcome, asked, asked) or (outcome.retry and not outcome.billed)
        if not (given_up or (retry and self._tries[key] < MOST_TRIES)):
            self._failed[key] = outcome


def _read(row: Mapping[str, Any] | None) -> Reply | Failure:
    """What became of a row: an answer, or a failure that may be worth another try."""
    if row is None:
        return Failure("missing", "the batch ended without this row", retry=True)
    if not (response := row.get("response")):
        error = row.get("error")
        code = error.get("code") if isinstance(error, dict) else None
        text = next(filter(None, words_of(error)), "no reason given")
        return Failure(str(code), text, retry=True)
    status, body = response.get("status_code") or 500, response.get("body") or {}
    if status != 200:
        return read_refusal(status, body, {})
    _, asked, most = row["custom_id"].split(".")
    return read_answer(json.dumps(body).encode(), Usage(int(asked), 0, int(most)))
