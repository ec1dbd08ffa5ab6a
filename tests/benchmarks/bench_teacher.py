"""How many calls a second one process makes through `Teacher`, against the stub.

    python tests/benchmarks/bench_teacher.py [--latency 0.2] [--seconds 15] [--profile]

The stub is a process of its own on the same machine. "one at a time" is the original's loop: the
next call starts when the last is answered (its extra pause of a second a call is left out, so the
ratio flatters the original). With `--profile` the client's own time is shown by function.
"""

import argparse
import asyncio
import cProfile
import os
import pstats
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from baize_lib.teacher.calls import Calls  # noqa: E402
from baize_lib.teacher.client import Teacher  # noqa: E402
from baize_lib.teacher.prices import Price  # noqa: E402

PRICE = Price("stub", 0.1, 0.4)
HISTORY = [
    {"role": "system", "content": "You are a helpful assistant. Answer in a few sentences."},
    {"role": "user", "content": "How do I save data to a JSON file in Python?"},
    {"role": "assistant", "content": "Open a file for writing and call json.dump(data, file)."},
    {"role": "user", "content": "Rewrite it as a function that takes the path as well."},
]


async def one_at_a_time(url: str, seconds: float) -> tuple[int, float]:
    import openai

    async with openai.AsyncOpenAI(base_url=url, api_key="sk-test", max_retries=0) as client:
        calls, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            await client.chat.completions.create(model="m", messages=HISTORY, max_tokens=60)
            calls += 1
        return calls, time.perf_counter() - began


async def many(url: str, seconds: float, in_flight: int) -> tuple[int, float, float]:
    """(calls, seconds, client CPU seconds) in the steady state, the warm-up left out.

    Every call is noted and its answer kept in a table on disk, durably, as in a collection.
    """
    with tempfile.TemporaryDirectory() as folder:
        table = Calls(Path(folder) / "calls.sqlite", budget=1000)
        with table.held():
            return await _steady(url, seconds, in_flight, table)


async def _steady(url: str, seconds: float, in_flight: int, table: Calls) -> tuple:
    async with Teacher(
        "m", base_url=url, api_key="sk-test", price=PRICE, calls=table, max_concurrency=in_flight
    ) as teacher:
        stop_at = time.perf_counter() + seconds + 3
        calls = 0

        async def worker() -> None:
            nonlocal calls
            while time.perf_counter() < stop_at:
                calls += 1
                await teacher.chat(HISTORY, max_tokens=60, attempt=calls)

        tasks = [asyncio.create_task(worker()) for _ in range(in_flight)]
        await asyncio.sleep(3)
        before, began, cpu = calls, time.perf_counter(), time.process_time()
        await asyncio.sleep(seconds)
        done = calls - before, time.perf_counter() - began, time.process_time() - cpu
        await asyncio.gather(*tasks)
        assert table.budget.reserved_usd == 0, "money still reserved"
        return done


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--latency", type=float, default=0.2)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--in-flight", type=int, nargs="+", default=[64, 128, 192, 256])
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    stub = subprocess.Popen(
        [sys.executable, ROOT / "tests" / "stub_server.py", "--latency", str(options.latency)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        url = stub.stdout.readline().strip()
        print(f"{os.cpu_count()} cores, stub latency {1000 * options.latency:.0f} ms")
        calls, seconds = asyncio.run(one_at_a_time(url, min(options.seconds, 8)))
        alone = calls / seconds
        print(f"{'in flight':>14} {'calls/s':>9} {'ratio':>7} {'client ms/call':>15} {'core':>6}")
        print(f"{'one at a time':>14} {alone:9.1f} {1:6.0f}x")
        for in_flight in options.in_flight:
            calls, seconds, cpu = asyncio.run(many(url, options.seconds, in_flight))
            rate = calls / seconds
            print(
                f"{in_flight:>14} {rate:9.1f} {rate / alone:6.0f}x {1000 * cpu / calls:15.2f} "
                f"{cpu / seconds:6.0%}"
            )
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"peak memory of the client: {memory:.0f} MB")
        if options.profile:
            with cProfile.Profile() as profile:
                asyncio.run(many(url, 5, options.in_flight[-1]))
            pstats.Stats(profile).sort_stats("tottime").print_stats(25)
    finally:
        stub.terminate()
        stub.wait()


if __name__ == "__main__":
    main()
