"""Self-chat through the OpenAI Batch API: half the price, an answer within a day.

One call per dialogue (the `transcript` strategy), so that a batch is a file of independent
requests. The steps, each remembered in `self_chat.batch.json` before the next is begun, so that a
process killed anywhere goes on from there and no batch is bought twice:

    write     self_chat.batch-TAG.jsonl, one request a line
    upload    the file -> its id
    submit    a batch of it, marked with the tag; one that has this tag already is taken instead
    wait      asking now and then; the batch goes on without us
    ingest    answers and failures into the ledger; rows that may succeed go into the next round

Money for the whole batch is reserved, at the batch price, before it is submitted.

    receipt = await collect_batch(seeds, teacher, Settings(strategy="transcript"), run.ledger)
"""

import asyncio
import contextlib
import itertools
import json
import secrets
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from baize_lib.config import BaizeError
from baize_lib.files import read_jsonl, write_atomic, write_jsonl
from baize_lib.seeds.seed import Seed
from baize_lib.selfchat.bill import Receipt
from baize_lib.selfchat.collect import (
    Session,
    claim,
    ledger_line,
    sampling_seed,
    todo,
    transcript_line,
)
from baize_lib.selfchat.prompts import SelfChatSettings, transcript_request
from baize_lib.teacher.budget import BudgetExceeded, Reservation
from baize_lib.teacher.client import Teacher, token_bound
from baize_lib.teacher.errors import Failure, ServerAnswer, read_answer, read_refusal
from baize_lib.teacher.ledger import Ledger
from baize_lib.teacher.meter import CostMeter
from baize_lib.teacher.prices import Usage

__all__ = [
    "collect_batch",
    "state_file",
]


_Row = tuple[Seed, int, int]  # seed, number of the attempt, number of the try within it

MOST_ROWS, MOST_BYTES = 50_000, 180_000_000  # the API allows 50,000 requests and 200 MB
ENDPOINT = "/v1/chat/completions"
ENDED = ("completed", "expired", "cancelled", "failed")


def state_file(ledger: Path | str) -> Path:
    """Where the step of the batch under way is kept; it is there only while there is one."""
    return Path(ledger).with_suffix(".batch.json")


async def collect_batch(
    seeds: Iterable[Seed],
    teacher: Teacher,
    settings: SelfChatSettings | None = None,
    ledger: Path | str = "self_chat.jsonl",
    *,
    retry_failed: bool = False,
    meter: CostMeter | None = None,
    max_rounds: int = 3,
    poll_seconds: float = 30.0,
) -> Receipt:
    """Make one dialogue of every seed that has none yet, by batches; call it again to go on.

    Args:
        retry_failed: also try again the seeds whose dialogue failed or was rejected.
        max_rounds: how often a row is submitted before it is recorded as failed.
        poll_seconds: time between two questions whether a batch is done.

    Returns:
        The receipt; `stopped` is "budget" if the rest of the seeds did not fit into it.

    Raises:
        BaizeError: the strategy is not `transcript`, the ledger was begun otherwise, or the API
            refuses the batch; the text says why.
        asyncio.CancelledError: interrupted; the batch goes on and is fetched by the next call.
    """
    settings, path = settings or SelfChatSettings(strategy="transcript"), Path(ledger)
    if settings.strategy != "transcript":
        raise BaizeError(
            "a batch cannot ask follow-up questions: use SelfChatSettings(strategy='transcript'), or "
            "collect() for turns"
        )
    seeds, began = seeds if isinstance(seeds, Collection) else tuple(seeds), time.monotonic()
    with Ledger(path) as opened:
        claim(path, seeds, teacher.model, settings)
        session = Session(opened, teacher, settings, meter)
        session.read_ledger()
        rounds = _Rounds(session, {seed.id: seed for seed in seeds}, max_rounds, poll_seconds)
        try:
            await rounds.run(todo(seeds, opened, retry_failed))
        except asyncio.CancelledError:
            print("interrupted: the batch goes on without us; run the same again to fetch it")
            raise
        finally:
            rounds.release()
            session.remember_counted()
        return session.receipt(seeds, time.monotonic() - began)


class _Rounds:
    """Batch after batch until every seed has a line; each batch is also one row's one try."""

    def __init__(
        self, session: Session, seeds: Mapping[str, Seed], max_rounds: int, poll_seconds: float
    ) -> None:
        self.session, self.seeds = session, seeds
        self.teacher, self.settings = session.teacher, session.settings
        self.max_rounds, self.poll_seconds = max_rounds, poll_seconds
        self.state_path = state_file(session.ledger.path)
        self.held: list[Reservation] = []
        self.unaffordable: list[_Row] = []  # the row the budget had no room for

    async def run(self, waiting: Iterator[tuple[Seed, int]]) -> None:
        state = self._read_state()
        again = await self._finish(state) if state else []
        self._sweep()
        rows = itertools.chain(again, ((seed, attempt, 1) for seed, attempt in waiting))
        while state := self._write(rows):
            again = await self._finish(state)
            rows = itertools.chain(self.unaffordable, again, rows)

    def _write(self, rows: Iterator[_Row]) -> dict[str, Any] | None:
        """Reserve and write one batch; None when nothing is left, or no money for any row."""
        tag, self.unaffordable = secrets.token_hex(8), []
        requests = list(self._affordable(rows))
        if not requests:
            self.session.closing = "budget" if self.unaffordable else ""
            return None
        name = f"{self.session.ledger.path.stem}.batch-{tag}.jsonl"
        write_jsonl(self.state_path.with_name(name), requests)
        return self._save({"step": "written", "tag": tag, "requests": name})

    def _affordable(self, rows: Iterator[_Row]) -> Iterator[dict[str, Any]]:
        size = 0
        for seed, attempt, number_of_try in rows:
            if seed.id in self.session.ledger.done:
                continue  # by the batch that an earlier process had left behind
            body = self._body(seed, attempt)
            try:
                self._reserve(body)
            except BudgetExceeded:
                self.unaffordable = [(seed, attempt, number_of_try)]
                return
            name = f"{attempt}.{number_of_try}.{seed.id}"
            yield {"custom_id": name, "method": "POST", "url": ENDPOINT, "body": body}
            size += len(json.dumps(body))
            if len(self.held) == MOST_ROWS or size > MOST_BYTES:
                return

    def _sweep(self) -> None:
        """Remove requests that were written and never begun."""
        for stale in self.state_path.parent.glob(f"{self.session.ledger.path.stem}.batch-*.jsonl"):
            stale.unlink()

    def _body(self, seed: Seed, attempt: int) -> dict[str, Any]:
        request = transcript_request(seed, self.settings)
        return self.teacher.body(
            **request, top_p=self.settings.top_p, seed=sampling_seed(seed.id, attempt, 0)
        )

    def _reserve(self, body: Mapping[str, Any]) -> None:
        bound = _bound(body, self.settings)
        usd = self.teacher.price.cost(bound, batch=True)
        self.held.append(self.teacher.budget.reserve(usd, bound.total))

    def release(self) -> None:
        """Give back what is held for rows that were not ingested."""
        while self.held:
            self.teacher.budget.release(self.held.pop())

    async def _finish(self, state: dict[str, Any]) -> list[_Row]:
        """Take a batch from whatever step it is at to its end; the rows to be tried again."""
        requests = self.state_path.with_name(state["requests"])
        if not self.held:  # an earlier process's batch: its money is committed, cap or no cap
            with contextlib.suppress(BudgetExceeded):
                for row in read_jsonl(requests):
                    self._reserve(row["body"])
        if state["step"] == "written":
            state = await self._upload(state, requests)
        if state["step"] == "uploaded":
            state = await self._submit(state)
        batch = await self._wait(state["batch_id"])
        again = await self._ingest(batch, requests)
        requests.unlink(missing_ok=True)
        self.state_path.unlink(missing_ok=True)
        return again

    async def _upload(self, state: dict[str, Any], requests: Path) -> dict[str, Any]:
        content = requests.read_bytes()
        uploaded = await self.teacher.request(
            lambda client: client.files.create(file=(requests.name, content), purpose="batch"),
            repeatable=True,
        )
        return self._save(state | {"step": "uploaded", "file_id": uploaded.id})

    async def _submit(self, state: dict[str, Any]) -> dict[str, Any]:
        """A batch is bought once: look for its tag first, and do not repeat an unclear try."""
        mark = {"baize_tag": state["tag"]}
        page = await self.teacher.request(
            lambda client: client.batches.list(limit=100), repeatable=True
        )
        found = next((batch for batch in page.data if batch.metadata == mark), None)
        batch = found or await self.teacher.request(
            lambda client: client.batches.create(
                input_file_id=state["file_id"], endpoint=ENDPOINT, completion_window="24h",
                metadata=mark,
            ),
            repeatable=False,
        )  # fmt: skip
        return self._save(state | {"step": "submitted", "batch_id": batch.id})

    async def _wait(self, name: str) -> Any:
        from tqdm import tqdm

        with tqdm(unit="row", desc="batch") as bar:
            while True:
                batch = await self.teacher.request(
                    lambda client: client.batches.retrieve(name), repeatable=True
                )
                counts = batch.request_counts
                if counts:
                    bar.total, bar.n = counts.total, counts.completed + counts.failed
                bar.set_description(f"batch {batch.status}")
                if batch.status in ENDED:
                    return batch
                await asyncio.sleep(self.poll_seconds)

    async def _ingest(self, batch: Any, requests: Path) -> list[_Row]:
        """Write every row's outcome to the ledger, once; returns the rows to be tried again."""
        outcomes: dict[str, dict[str, Any]] = {}
        for name in (batch.output_file_id, batch.error_file_id):
            if name:
                outcomes |= await self._fetch(name)
        if batch.status == "failed" and not outcomes:
            self._give_up(batch, requests)
        again = []
        for row in read_jsonl(requests):
            attempt, number_of_try, name = row["custom_id"].split(".", 2)
            seed = self.seeds[name]
            if name in self.session.ledger.done or (
                self.session.ledger.failed.get(name, 0) >= int(attempt)
            ):
                continue  # written before the process was killed
            outcome = _read(outcomes.get(row["custom_id"]), _bound(row["body"], self.settings))
            last = int(number_of_try) >= self.max_rounds
            if isinstance(outcome, Failure) and outcome.retry and not outcome.billed and not last:
                again.append((seed, int(attempt), int(number_of_try) + 1))
            else:
                await self._record(seed, int(attempt), outcome, row["body"])
        self.release()
        return again

    async def _fetch(self, name: str) -> dict[str, dict[str, Any]]:
        content = await self.teacher.request(
            lambda client: client.files.content(name), repeatable=True
        )
        rows = (json.loads(line) for line in content.content.splitlines() if line.strip())
        return {row["custom_id"]: row for row in rows}

    def _give_up(self, batch: Any, requests: Path) -> None:
        faults = batch.errors.data if batch.errors and batch.errors.data else []
        reason = "; ".join(f"line {e.line}: {e.message}" for e in faults[:3]) or "no reason given"
        requests.unlink(missing_ok=True)
        self.state_path.unlink(missing_ok=True)
        raise BaizeError(
            f"batch {batch.id} was refused ({reason}); nothing was billed: mend the cause, then "
            "run the same again"
        )

    async def _record(
        self, seed: Seed, attempt: int, outcome: ServerAnswer | Failure, body: Mapping[str, Any]
    ) -> None:
        model, price = self.teacher.model, self.teacher.price
        if isinstance(outcome, ServerAnswer):
            usd = price.cost(outcome.usage, batch=True)
            answer = {
                "text": outcome.text, "finish_reason": outcome.finish_reason,
                "usage": asdict(outcome.usage), "cost_usd": usd,
            }  # fmt: skip
            line = transcript_line(seed, model, self.settings, answer, attempt)
            self.session.count_call(outcome.usage, usd)
        else:
            bound = _bound(body, self.settings)
            usd, tokens = (price.cost(bound, batch=True), bound.total) if outcome.billed else (0, 0)
            line = ledger_line(
                seed, model, self.settings, [], [(usd, tokens)], status="failed",
                reason=outcome.text, attempt=attempt, messages=[], finish_reasons=[],
            )  # fmt: skip
            self.session.uncertain_usd += usd
        line["batch"] = True
        await self.session.ledger.append(line)
        self.teacher.budget.replay([line])
        self.session.count_dialogue(line)

    def _save(self, state: dict[str, Any]) -> dict[str, Any]:
        write_atomic(self.state_path, json.dumps(state, indent=1) + "\n")
        return state

    def _read_state(self) -> dict[str, Any] | None:
        if not self.state_path.exists():
            return None
        try:
            state = json.loads(self.state_path.read_text(encoding="utf-8"))
            if not self.state_path.with_name(state["requests"]).exists():
                raise ValueError(f"{state['requests']} is missing")
            return state
        except (ValueError, KeyError, TypeError) as error:
            raise BaizeError(
                f"{self.state_path} cannot be followed ({error}): look at the batch in OpenAI's "
                "console; delete this file to begin a new one"
            ) from error


def _bound(body: Mapping[str, Any], settings: SelfChatSettings) -> Usage:
    """The most tokens one request can take."""
    return Usage(token_bound(body["messages"]), 0, settings.transcript_tokens)


def _read(row: Mapping[str, Any] | None, bound: Usage) -> ServerAnswer | Failure:
    """What became of a row: an answer, or a failure that may be worth another try."""
    if row is None:
        return Failure("missing", "the batch ended without this row", retry=True)
    response, error = row.get("response"), row.get("error")
    if response and response.get("status_code") == 200:
        return read_answer(json.dumps(response.get("body")).encode(), bound)
    if response:
        said = (response.get("body") or {}).get("error")
        return read_refusal(response.get("status_code") or 500, said, {})
    text = str((error or {}).get("message") or "no reason given")
    return Failure(str((error or {}).get("code")), text, retry=True)
