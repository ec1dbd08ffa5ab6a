"""Kill a collection with `kill -9` at random moments, over and over, and count what it cost.

A fork server holds the imports, so that a life of the collector starts in milliseconds; the stub
server lives in this process and logs every call it answered, whoever was alive to hear it.
"""

import asyncio
import multiprocessing
import os
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from stub_server import StubServer

from baize_lib.files import read_jsonl, text_hash
from baize_lib.seeds.seed import Seed
from baize_lib.selfchat.collect import collect
from baize_lib.selfchat.prompts import SelfChatSettings
from baize_lib.teacher.calls import Calls
from baize_lib.teacher.client import Teacher
from baize_lib.teacher.prices import Price, Usage

PRICE = Price("stub", 1.0, 2.0)
SETTINGS = SelfChatSettings(num_turns=3)


def question_of(body: dict) -> str:
    """A reply that is unlike every other, and the same for the same request."""
    name = text_hash(f"{body['messages']}{body.get('seed')}")
    return f"Why {name[:4]} {name[4:8]} {name[8:12]} {name[12:]}?"


def seeds_of(number: int) -> list[Seed]:
    return [Seed(f"s-{i}", f"What is thing {i}?", "tests") for i in range(number)]


def life(url: str, path: str, num_seeds: int, concurrency: int) -> None:
    """One process's collection; ends with status 0 if it gets to the end."""

    async def main() -> None:
        async with Teacher(
            "stub",
            base_url=url,
            api_key="sk-test",
            price=PRICE,
            max_concurrency=concurrency,
            calls=Calls(Path(path).with_name("calls.sqlite")),
        ) as teacher:
            await collect(seeds_of(num_seeds), teacher, SETTINGS, path)

    asyncio.run(main())


@dataclass
class Outcome:
    """What became of one collection killed again and again."""

    kills: int
    dialogues: int
    lost: int
    doubled: int
    answered: int
    recorded: int
    paid_again: int
    at_most: int
    usd_answered: float
    usd_recorded: float
    usd_uncertain: float


def kill_run(
    folder: Path, *, kills: int, num_seeds: int, longest: float = 0.5, concurrency: int = 16
) -> Outcome:
    """Collect, killed `kills` times after a random time each, then to the end.

    lost: finished dialogues once on disk and not there in the end; doubled: dialogues of one seed
    beyond the first; at_most: calls the table says may have been paid for unseen.
    """
    fork = multiprocessing.get_context("forkserver")
    fork.set_forkserver_preload(["kill_run", "openai", "aiohttp", "httpx2"])
    path, seen, done = folder / "self_chat.jsonl", set(), 0
    with StubServer(latency=0.02, reply=question_of) as stub:
        while True:
            process = fork.Process(target=life, args=(stub.url, str(path), num_seeds, concurrency))
            process.start()
            process.join(random.uniform(0.02, longest) if done < kills else None)
            if process.exitcode is not None:
                assert process.exitcode == 0
                break
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            done += 1
            if path.exists():
                seen |= {row["id"] for row in read_jsonl(path, torn_tail_ok=True)}
        while stub.in_flight:  # a call whose caller was killed is answered, and billed
            time.sleep(0.01)
    return _count(path, seen, done, stub)


def _count(path: Path, seen: set[str], kills: int, stub: StubServer) -> Outcome:
    ids = [row["id"] for row in read_jsonl(path) if row["status"] == "ok"]
    calls = Calls(path.with_name("calls.sqlite"))
    [table] = calls.query(
        "SELECT sum(state = 'answered') AS answered, sum(state = 'doubtful') AS doubtful FROM bill"
    )
    return Outcome(
        kills=kills, dialogues=len(ids), lost=len(seen - set(ids)),
        doubled=len(ids) - len(set(ids)), answered=stub.answered, recorded=table["answered"],
        paid_again=stub.answered - table["answered"], at_most=table["doubtful"],
        usd_answered=PRICE.cost(Usage(stub.input, 0, stub.output)),
        usd_recorded=calls.budget.spent_usd - calls.budget.uncertain_usd,
        usd_uncertain=calls.budget.uncertain_usd,
    )  # fmt: skip
