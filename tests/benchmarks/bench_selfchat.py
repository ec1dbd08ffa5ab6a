"""Collecting at scale: memory for 110,000 dialogues, time to resume, what 100 x `kill -9` cost.

    python tests/benchmarks/bench_selfchat.py [collect | kills] [--dialogues N] [--kills N]

The stub server runs in a process of its own on the same machine, without latency, so that its work
and ours share the cores; one dialogue is one call (`transcript`).
"""

import argparse
import asyncio
import multiprocessing
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).parent.parent
sys.path[:0] = [str(TESTS.parent), str(TESTS)]

from kill_run import PRICE, kill_run, seeds_of  # noqa: E402

from baize_lib.selfchat.collect import collect  # noqa: E402
from baize_lib.selfchat.prompts import SelfChatSettings  # noqa: E402
from baize_lib.teacher.budget import Budget  # noqa: E402
from baize_lib.teacher.client import Teacher  # noqa: E402
from baize_lib.teacher.meter import CostMeter  # noqa: E402

SETTINGS = SelfChatSettings(strategy="transcript")


def peak_megabytes() -> float:
    """Most memory this process ever had resident (Linux counts in kilobytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def session(url: str, path: str, number: int, results: multiprocessing.Queue) -> None:
    """One process's collection; reports (receipt text, seconds, MB before, MB at most)."""

    async def main() -> None:
        import openai  # noqa: F401  loaded anyway; its memory is not the collection's

        seeds, before = seeds_of(number), peak_megabytes()
        budget, began = Budget(usd=1000), time.monotonic()
        async with Teacher(
            "stub", base_url=url, api_key="sk-test", price=PRICE, budget=budget, max_concurrency=128
        ) as teacher:
            with CostMeter(budget, target=number) as meter:
                receipt = await collect(seeds, teacher, SETTINGS, path, meter=meter)
        seconds = time.monotonic() - began
        results.put((str(receipt), seconds, before, peak_megabytes()))

    asyncio.run(main())


def in_process(url: str, path: Path, number: int) -> tuple[str, float, float, float]:
    fresh = multiprocessing.get_context("spawn")
    results = fresh.Queue()
    process = fresh.Process(target=session, args=(url, str(path), number, results))
    process.start()
    found = results.get()
    process.join()
    return found


def bench_collect(number: int) -> None:
    """Collect `number` dialogues, then start again with all of them there."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "self_chat.jsonl"
        stub = subprocess.Popen(
            [sys.executable, str(TESTS / "stub_server.py")], stdout=subprocess.PIPE, text=True
        )
        try:
            url = stub.stdout.readline().strip()
            first = in_process(url, path, number)
            again = in_process(url, path, number)
        finally:
            stub.terminate()
            stub.wait()
        print(first[0])
        sizes = [file.stat().st_size / 1e6 for file in (path, path.with_name("calls.sqlite"))]
    print(f"\n{number:,} dialogues: {path.name} {sizes[0]:,.0f} MB, table {sizes[1]:,.0f} MB")
    print(f"{'':<14}{'seconds':>9}{'per second':>12}{'MB at start':>13}{'MB at most':>12}")
    for name, (_, seconds, before, most) in (("collecting", first), ("resuming", again)):
        print(f"{name:<14}{seconds:>9.1f}{number / seconds:>12,.0f}{before:>13.0f}{most:>12.0f}")


def bench_kills(kills: int) -> None:
    """`kill -9` at `kills` random moments over one collection of 3 turns a dialogue."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        found = kill_run(Path(folder), kills=kills, num_seeds=12 * kills)
        seconds = time.monotonic() - began
    rows = [
        ("kills", found.kills), ("dialogues asked for", 12 * kills), ("finished", found.dialogues),
        ("finished ones lost", found.lost), ("doubled", found.doubled),
        ("calls the server answered", found.answered), ("of these recorded", found.recorded),
        ("paid again", found.paid_again), ("the table's bound on that", found.at_most),
        ("USD the server billed", f"{found.usd_answered:.6f}"),
        ("USD recorded", f"{found.usd_recorded:.6f}"),
        ("USD counted as doubtful", f"{found.usd_uncertain:.6f}"), ("seconds", f"{seconds:.0f}"),
    ]  # fmt: skip
    for name, value in rows:
        print(f"{name:<28}{value:>12}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=["collect", "kills"], help="both if left out")
    parser.add_argument("--dialogues", type=int, default=110_000)
    parser.add_argument("--kills", type=int, default=100)
    options = parser.parse_args()
    if options.what != "kills":
        bench_collect(options.dialogues)
    if options.what != "collect":
        bench_kills(options.kills)
