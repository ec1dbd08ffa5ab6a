"""How fast a Stack Exchange dump is read, and how fast near-duplicates are found, in what memory.

    python tests/benchmarks/bench_seeds.py            # 1 GB of Posts.xml, 110,000 dialogues
    python tests/benchmarks/bench_seeds.py --quick    # a twentieth of it

The dump is made up: rows of a real dump's shape (one question to one and a half answers, bodies of
HTML around 1.5 kB), every title different. So are the dialogues: about 200 words each, a fifth of
them copies of an earlier one with a few words changed. Each measurement has a process of its own;
"MB" is its peak resident set, the interpreter and (last row) the dialogues included.
"""

import argparse
import multiprocessing
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def make_posts(path: Path, num_bytes: int) -> None:
    rng = random.Random(0)
    words = ["".join(rng.choices("etaoinshrdlucmfw", k=rng.randint(2, 9))) for _ in range(5000)]
    bodies = [" ".join(rng.choices(words, k=rng.randint(60, 400))) for _ in range(500)]
    with path.open("w", encoding="utf-8") as file:
        file.write('\ufeff<?xml version="1.0" encoding="utf-8"?>\n<posts>\n')
        number = 0
        while file.tell() < num_bytes:
            for _ in range(1000):
                number += 1
                body = f"&lt;p&gt;{rng.choice(bodies)}&lt;/p&gt;&#xA;"
                title = " ".join(rng.choices(words, k=rng.randint(4, 12)))
                kind = (
                    f'"1" Title="How do I {title} &quot;{number}&quot;?"'
                    if number % 5 < 2
                    else '"2"'
                )
                file.write(f'  <row Id="{number}" PostTypeId={kind} Score="1" Body="{body}" />\n')
        file.write("</posts>\n")


def make_dialogues(num: int) -> list[str]:
    rng = random.Random(0)
    weights = [1 / (i + 5) for i in range(20_000)]
    stream = [f"w{i}" for i in rng.choices(range(20_000), weights, k=4_000_000)]
    dialogues = []
    for i in range(num):
        if i % 5 == 4:
            row = dialogues[rng.randrange(i)].split()
            for _ in range(6):
                row[rng.randrange(len(row))] = "changed"
        else:
            start, length = rng.randrange(len(stream) - 400), rng.randint(80, 330)
            row = stream[start : start + length]
        dialogues.append(" ".join(row))
    return dialogues


def load_posts(path: Path) -> str:
    from baize_lib.seeds.clean import load_seeds

    return f"{len(load_seeds(path)):,} questions in a list"


def find_duplicates(dialogues: list[str]) -> str:
    from baize_lib.text import near_duplicates

    groups = near_duplicates(dialogues)
    return f"{sum(len(group) - 1 for group in groups):,} near-duplicates of {len(groups):,}"


def measure(work, argument) -> tuple[float, float, str]:
    """Seconds, peak MB (Linux counts in kB), and what came out."""
    start = time.perf_counter()
    result = work(argument)
    seconds = time.perf_counter() - start
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, result


def measure_duplicates(num: int) -> tuple[float, float, str]:
    return measure(find_duplicates, make_dialogues(num))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a twentieth of the full size")
    share = 0.05 if parser.parse_args().quick else 1
    num_bytes, num_dialogues = int(share * 1e9), int(share * 110_000)
    spawn = multiprocessing.get_context("spawn")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size in (num_bytes // 10, num_bytes):
            posts = Path(folder) / "Posts.xml"
            make_posts(posts, size)
            with spawn.Pool(1) as pool:
                done = pool.apply(measure, (load_posts, posts))
            rows.append((f"load Posts.xml, {posts.stat().st_size / 1e9:.2f} GB", *done))
    with spawn.Pool(1) as pool:
        done = pool.apply(measure_duplicates, (num_dialogues,))
    rows.append((f"near-duplicates, {num_dialogues:,} dialogues", *done))
    print(f"{'':40} {'seconds':>8} {'MB':>6}  result")
    for what, seconds, megabytes, result in rows:
        print(f"{what:40} {seconds:8.1f} {megabytes:6.0f}  {result}")


if __name__ == "__main__":
    main()
