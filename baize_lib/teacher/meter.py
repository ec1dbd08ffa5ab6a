"""teacher.meter: moved."""

import html
import math
import shutil
import sys
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any, TextIO

from baize_lib.teacher.budget import Budget, money
from baize_lib.teacher.prices import Price, Usage, shadow_cost

__all__ = [
    "CostMeter",
]


class CostMeter:
    """One display, updated in place, of what a collection has cost and will cost.

    In a notebook (JupyterLab, Colab) it is a small table, in a terminal one line, elsewhere only
    the final line. Use it as a context manager, so that the last state is always shown.

    Args:
        budget: where spent and reserved are read; without one the meter adds up what it is told.
        target: number of dialogues wanted, for the ETA and the projection.
        errors: failures by kind; a teacher's own counter may be given, so that retries show too.
        shadow: also show what the same tokens would cost at this price.
    """

    def __init__(
        self,
        budget: Budget | None = None,
        *,
        target: int | None = None,
        errors: Counter[str] | None = None,
        shadow: Price | None = None,
        out: TextIO | None = None,
        interval: float = 0.25,
    ) -> None:
        self.budget, self.target, self.shadow = budget, target, shadow
        self.errors: Counter[str] = Counter() if errors is None else errors
        self.usage, self.dialogues = Usage(), 0
        self._told_usd = 0.0  # all that add() was told, for a meter without a budget
        self._costs = (0, 0.0, 0.0)  # Welford: lines, mean USD, sum of squared differences
        self._fresh = (0, 0)  # (dialogues, tokens) of this session, for the rates
        self._out, self._interval = out or sys.stdout, interval
        self._began = self._drawn = time.monotonic()
        self._ended: float | None = None
        self._display: Any = None

    def add(self, record: Mapping[str, Any], *, fresh: bool = True) -> None:
        """Count one ledger line; `fresh=False` for a line of an earlier session."""
        usage = Usage(**(record.get("usage") or {}))
        usd = (record.get("cost_usd") or 0) + (record.get("uncertain_usd") or 0)
        done = int(record.get("status", "ok") == "ok")
        count, mean, squares = self._costs
        delta = usd - mean
        mean += delta / (count + 1)
        self._costs = (count + 1, mean, squares + delta * (usd - mean))
        self._told_usd += usd
        self.usage += usage
        self.dialogues += done
        if fresh:
            self._fresh = (self._fresh[0] + done, self._fresh[1] + usage.total)
        self.draw()

    @property
    def spent_usd(self) -> float:
        return self.budget.spent_usd if self.budget else self._told_usd

    def projection(self, target: int | None = None) -> tuple[float, float]:
        """(USD, standard error) for `target` finished dialogues, from the costs so far.

        With n lines of mean m and standard deviation s and r still to pay for, the rest costs r·m
        with error s·sqrt(r²/n + r): the mean's own error and the spread of what is still to come.
        Failed lines cost too: r counts them in at the rate seen so far.
        """
        wanted = target or self.target or self.dialogues
        count, mean, squares = self._costs
        if count < 2 or not self.dialogues:
            return math.nan, math.nan
        rest = max(wanted - self.dialogues, 0) * count / self.dialogues
        deviation = math.sqrt(squares / (count - 1))
        return self.spent_usd + rest * mean, deviation * math.sqrt(rest**2 / count + rest)

    def rows(self) -> list[tuple[str, str]]:
        """What the display shows, as (name, text) pairs."""
        elapsed = max((self._ended or time.monotonic()) - self._began, 1e-9)
        done, tokens = self._fresh
        rows = [("spent", money(self.spent_usd))]
        if self.budget:
            rows += [("reserved", money(self.budget.reserved_usd))]
            if self.budget.usd is not None:
                rows += [("cap", money(self.budget.usd))]
            if self.budget.uncertain_usd:
                rows += [("of it uncertain", money(self.budget.uncertain_usd))]
        goal = f" of {self.target:,}" if self.target else ""
        rows += [("dialogues", f"{self.dialogues:,}{goal}")]
        if self.dialogues:
            rows += [("per 1,000 dialogues", money(1000 * self.spent_usd / self.dialogues))]
        rows += [("tokens", f"{self.usage.total:,}"), ("tokens/s", f"{tokens / elapsed:,.0f}")]
        if self._ended:
            rows += [("time", _duration(elapsed))]
        elif self.target and done:
            rest = max(self.target - self.dialogues, 0) * elapsed / done
            rows += [("time left", _duration(rest))]
        usd, error = self.projection()
        if self.target and not math.isnan(usd) and usd:
            rows += [(f"at {self.target:,} dialogues", f"{money(usd)} ± {money(error)}")]
        if self.shadow:
            [other] = shadow_cost(self.usage, [self.shadow])
            rows += [(f"would cost at {other.model}", f"{money(other.usd)} ({other.as_of})")]
        return rows + [
            (f"errors: {kind}", f"{n:,}") for kind, n in sorted(self.errors.items()) if n
        ]

    def table(self) -> Any:
        """The rows as a pandas DataFrame with one column."""
        import pandas as pd

        return pd.DataFrame(dict(self.rows()).items(), columns=["meter", ""]).set_index("meter")

    def draw(self, final: bool = False) -> None:
        """Show the present state, at most every `interval` seconds unless it is `final`."""
        now = time.monotonic()
        if not final and now - self._drawn < self._interval:
            return
        self._drawn = now
        text = " · ".join(f"{name} {value}" for name, value in self.rows())
        if _in_notebook():
            self._draw_table(text)
        elif self._out.isatty():
            width = shutil.get_terminal_size().columns - 1
            self._out.write("\r" + text[:width].ljust(width) + ("\n" if final else ""))
            self._out.flush()
        elif final:
            print(text, file=self._out)

    def _draw_table(self, text: str) -> None:
        from IPython.display import display

        cells = "".join(
            f'<tr><td style="text-align:left">{html.escape(name)}</td>'
            f'<td style="text-align:right">{html.escape(value)}</td></tr>'
            for name, value in self.rows()
        )
        shown = {"text/plain": text, "text/html": f"<table>{cells}</table>"}
        if self._display is None:
            self._display = display(shown, raw=True, display_id=True)
        else:
            self._display.update(shown, raw=True)

    def __enter__(self) -> "CostMeter":
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = time.monotonic()
        self.draw(final=True)


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return getattr(shell, "kernel", None) is not None


def _duration(seconds: float) -> str:
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {whole % 60:02} s"
