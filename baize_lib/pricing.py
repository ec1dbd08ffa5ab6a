"""What a call costs, at a price with a date and a source; and a meter that shows it growing.

>>> price = price_of("gpt-3.5-turbo", year=2023)
>>> f"${price.cost(Usage(input=248, output=200)):.6f}"
'$0.000896'
"""

import html
import importlib.metadata
import math
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TextIO

from baize_lib.budget import Budget, BudgetExceeded, Reservation, money
from baize_lib.config import BaizeError

__all__ = [
    "Usage", "Price", "FREE", "UnknownPrice", "price_of", "SHADOW_TEACHERS", "ShadowCost",
    "shadow_cost", "Budget", "BudgetExceeded", "Reservation", "CostMeter",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one or more calls. `cached_input` is a part of `input`, as in the API.

    >>> (Usage(10, 4, 5) + Usage(1, 0, 2)).total
    18
    """

    input: int = 0
    cached_input: int = 0
    output: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.input + other.input,
            self.cached_input + other.cached_input,
            self.output + other.output,
        )

    @property
    def total(self) -> int:
        return self.input + self.output


@dataclass(frozen=True, slots=True)
class Price:
    """USD per million tokens, where it comes from and the date it was last checked.

    Attributes:
        cached_input: price of input the provider had cached; None means no discount.
        batch_factor: what the Batch API multiplies a bill by (0.5 is half price).
    """

    model: str
    input: float
    output: float
    cached_input: float | None = None
    batch_factor: float = 1.0
    source: str = ""
    as_of: str = ""

    def cost(self, usage: Usage, batch: bool = False) -> float:
        """USD for `usage`; with `batch`, through the Batch API."""
        cached = self.input if self.cached_input is None else self.cached_input
        millionths = (
            (usage.input - usage.cached_input) * self.input
            + usage.cached_input * cached
            + usage.output * self.output
        )
        return millionths / 1e6 * (self.batch_factor if batch else 1.0)

    def __str__(self) -> str:
        if not (self.input or self.output):
            return f"{self.model}: $0 ({self.source})"
        return (
            f"{self.model}: ${self.input:g} in, ${self.output:g} out per million tokens "
            f"({self.source}, {self.as_of})"
        )


FREE = Price("local", 0.0, 0.0, source="runs on this machine")
PRICE_2023 = Price(
    "gpt-3.5-turbo", 2.0, 2.0, as_of="2023-03", source="OpenAI's launch price, $0.002 per 1K tokens"
)


class UnknownPrice(BaizeError):  # noqa: N818
    """No price is known for a model: it must be given, never taken as 0."""


def price_of(model: str, *, year: int | None = None) -> Price:
    """Today's price of a hosted model from genai-prices' bundled table (no network).

    Args:
        model: a name such as `gpt-4.1-nano`; "embedded" and "local" are free.
        year: 2023 gives what gpt-3.5-turbo cost when Baize was made; nothing else is known of
            the past.

    For models priced by prompt length it is the price of short prompts. Where the table knows no
    batch price the batch factor is 1, so that a forecast is never too low.

    Raises:
        UnknownPrice: the table does not know the model.
    """
    if model in ("embedded", "local"):
        return replace(FREE, model=model)
    if year is not None:
        if (model, year) == (PRICE_2023.model, 2023):
            return PRICE_2023
        raise _unknown(model, f" in {year}")
    from genai_prices import Usage as Tokens
    from genai_prices import calc_price

    def usd_per_million(batch: bool, **tokens: int) -> float:
        context = {"processing": "batch"} if batch else None
        bill = calc_price(Tokens(**tokens), model_ref=model, price_context=context)
        return float(bill.total_price * 1000)

    try:
        full = usd_per_million(False, input_tokens=1000)
        output = usd_per_million(False, output_tokens=1000)
        cached = usd_per_million(False, input_tokens=1000, cache_read_tokens=1000)
        batch = [
            usd_per_million(True, input_tokens=1000),
            usd_per_million(True, output_tokens=1000),
        ]
    except LookupError:
        raise _unknown(model) from None
    factor = max(new / old for new, old in zip(batch, (full, output), strict=True) if old)
    source = f"genai-prices {importlib.metadata.version('genai-prices')}"
    return Price(model, full, output, cached, round(factor, 4), source, _checked_on(model))


def _unknown(model: str, when: str = "") -> UnknownPrice:
    return UnknownPrice(
        f"no price is known for {model!r}{when}: give one, such as "
        f"Price({model!r}, input=0.5, output=1.5) in USD per million tokens "
        "(baize_lib.pricing.FREE for a server of your own)"
    )


def _checked_on(model: str) -> str:
    """When genai-prices last checked this model, else when it last checked any."""
    from genai_prices.data_snapshot import get_snapshot

    snapshot = get_snapshot()
    checked = re.compile(r"(?:verified|checked|updated)(?: on)? (\d{4}-\d\d-\d\d)", re.IGNORECASE)
    _, found = snapshot.find_provider_model(model, None, None, None)
    own = checked.findall(found.price_comments or "")
    every = (m.price_comments or "" for p in snapshot.providers for m in p.models)
    return max(own or checked.findall("\n".join(every)), default="undated")


@dataclass(frozen=True, slots=True)
class ShadowCost:
    """What a run would have cost at a paid teacher, at a price of a given date."""

    model: str
    usd: float
    source: str
    as_of: str


SHADOW_TEACHERS: tuple[str | Price, ...] = ("gpt-4.1-nano", "gpt-4o-mini", "gpt-5-mini", PRICE_2023)


def shadow_cost(
    usage: Usage, models: Sequence[str | Price] = SHADOW_TEACHERS
) -> tuple[ShadowCost, ...]:
    """What the same tokens would cost elsewhere: a free run has a price too.

    Another model counts tokens a little differently and has other cache hits, so cached input is
    billed in full: read it as an estimate from above.
    """
    plain = Usage(input=usage.input, output=usage.output)
    prices = [model if isinstance(model, Price) else price_of(model) for model in models]
    return tuple(ShadowCost(p.model, p.cost(plain), p.source, p.as_of) for p in prices)


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
