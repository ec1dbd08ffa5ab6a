"""What each fault of a server costs: six dialogues, three faulty calls, then the failed ones again.

    python tests/benchmarks/bench_faults.py

Every call goes over real HTTP to the stub server. "answered" is what the server billed, "recorded"
what the table holds for certain, "doubtful" what failed calls may have cost and the cap counts.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from stub_server import StubServer
from test_selfchat import FAULTS, answered_usd, rows_of, run, table_of, teacher_of


def try_fault(fault: str) -> tuple[int, int, float, float, float]:
    """(dialogues finished, lost, USD answered, recorded, doubtful) for six seeds."""
    with StubServer() as stub, tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "self_chat.jsonl"
        stub.script("ok", "ok", fault, "ok", fault, fault)
        run(stub, path, teacher=teacher_of(stub, budget=1, timeout=0.2))
        run(stub, path, retry_failed=True)
        rows = rows_of(path)
        finished = {row["id"] for row in rows if row["status"] == "ok"}
        with (table := table_of(path)).held():
            budget = table.budget
        certain = budget.spent_usd - budget.uncertain_usd
        lost = 6 - len(finished)
        return len(finished), lost, answered_usd(stub), certain, budget.uncertain_usd


def main() -> None:
    print(
        f"{'fault':<22}{'finished':>9}{'lost':>6}{'answered':>12}{'recorded':>12}{'doubtful':>12}"
    )
    for fault in FAULTS:
        finished, lost, *usd = try_fault(fault)
        print(
            f"{fault:<22}{finished:>9}{lost:>6}" + "".join(f"{u:>12.6f}" for u in usd), flush=True
        )


if __name__ == "__main__":
    main()
