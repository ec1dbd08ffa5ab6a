"""A meter that shows, while a collection runs, what it has cost and what it will cost.

with CostMeter(teacher.budget, target=len(seeds), errors=teacher.errors) as meter:
    receipt = await collect(seeds, teacher, settings, run.self_chat, meter=meter)
"""

import html
import shutil
import sys
import time
from collections import Counter
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from baize_lib.teacher.budget import Budget, money
from baize_lib.teacher.prices import Price, Usage, shadow_cost

__all__ = ["CostMeter"]

INTERVAL = 0.25  # seconds between two states that are shown


class CostMeter:
    """One display, updated in place: a table in a notebook, a line in a terminal, else its end.

    Args:
        budget: what was spent is read here alone.
        target: number of dialogues wanted, for the time left and the projection.
        errors: failures by kind; a teacher's own counter shows its retries too.
        shadow: also show what the same tokens would cost at this price.
    """

    def __init__(
        self, budget: Budget, *, target: int = 0, errors: Counter[str] | None = None,
        shadow: Price | None = None,
    ) -> None:  # fmt: skip
        self.budget, self.target, self.shadow = budget, target, shadow
        self.errors: Counter[str] = Counter() if errors is None else errors
        self.usage, self.dialogues, self._usd = Usage(), 0, 0.0  # failed lines cost too
        self._fresh_dialogues = self._fresh_tokens = 0  # of this time, for the rates
        self._began = self._drawn = time.monotonic()
        self._ended: float | None = None
        self._display: Any = None

    def add(self, line: Mapping[str, Any], *, fresh: bool = True) -> None:
        """Count one line of `self_chat.jsonl`; `fresh=False` for one that was there before."""
        usage, done = Usage(**line["usage"]), int(line["status"] == "ok")
        self.usage += usage
        self.dialogues += done
        self._usd += line["cost_usd"]
        self._fresh_dialogues += fresh * done
        self._fresh_tokens += fresh * usage.total
        if fresh and time.monotonic() - self._drawn >= INTERVAL:
            self._draw()

    def rows(self) -> dict[str, str]:
        """What the display shows."""
        budget, left = self.budget, max(self.target - self.dialogues, 0)
        seconds = max((self._ended or time.monotonic()) - self._began, 1e-9)
        rows = {"spent": money(budget.spent_usd), "reserved": money(budget.reserved_usd)}
        if budget.usd is not None:
            rows["cap"] = money(budget.usd)
        if budget.uncertain_usd:
            rows["of it uncertain"] = money(budget.uncertain_usd)
        rows["dialogues"] = f"{self.dialogues:,}" + (f" of {self.target:,}" if self.target else "")
        if self.dialogues:
            rows["per 1,000 dialogues"] = money(1000 * budget.spent_usd / self.dialogues)
        rows["tokens"] = f"{self.usage.total:,}"
        rows["tokens/s"] = f"{self._fresh_tokens / seconds:,.0f}"
        if self._ended:
            rows["time"] = str(timedelta(seconds=round(seconds)))
        elif left and self._fresh_dialogues:
            seconds_left = round(left * seconds / self._fresh_dialogues)
            rows["time left"] = str(timedelta(seconds=seconds_left))
        if left and self.dialogues and self._usd:
            usd = budget.spent_usd + left * self._usd / self.dialogues
            rows[f"at {self.target:,} dialogues"] = money(usd)
        if self.shadow:
            [other] = shadow_cost(self.usage, [self.shadow])
            rows[f"would cost at {other.model}"] = f"{money(other.usd)} ({other.as_of})"
        return rows | {f"errors: {kind}": f"{n:,}" for kind, n in sorted(self.errors.items())}

    def _draw(self) -> None:
        self._drawn, rows = time.monotonic(), self.rows()
        text = " · ".join(f"{name} {value}" for name, value in rows.items())
        ipython = sys.modules.get("IPython")
        if ipython and getattr(ipython.get_ipython(), "kernel", None):
            cell = "<tr><th>{}</th><td>{}</td></tr>".format
            cells = "".join(cell(*map(html.escape, row)) for row in rows.items())
            shown = {"text/plain": text, "text/html": f"<table>{cells}</table>"}
            if self._display:
                self._display.update(shown, raw=True)
            else:
                self._display = ipython.display.display(shown, raw=True, display_id=True)
        elif sys.stdout.isatty():
            width = shutil.get_terminal_size().columns - 1
            print("\r" + text[:width].ljust(width), end="\n" if self._ended else "", flush=True)
        elif self._ended:
            print(text)

    def __enter__(self) -> "CostMeter":
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = time.monotonic()
        self._draw()
