"""A cap that holds: money is reserved before a call is made and settled when its bill is known.

A call first *reserves* the most it could cost; spent plus reserved never passes the cap, however
many calls are in flight. Amounts are whole picodollars, so sums are exact.

>>> budget = Budget(usd=0.01)
>>> held = budget.reserve(usd=0.0016, tokens=800)
>>> budget.settle(held, usd=0.000896, tokens=448)
>>> budget
Budget($0.0008960 spent, $0 reserved, cap $0.01000)
"""

import math
import threading
from typing import NamedTuple

from baize_lib.config import BaizeError

__all__ = ["Budget", "BudgetExceeded"]

PICO = 10**12  # picodollars in a dollar


class BudgetExceeded(BaizeError):  # noqa: N818
    """The next call could pass the cap. `final` is False while calls in flight may free money."""

    def __init__(self, text: str, final: bool) -> None:
        super().__init__(text)
        self.final = final


class Reservation(NamedTuple):
    """Money and tokens held for one call."""

    picodollars: int
    tokens: int


class Budget:
    """A cap on dollars, on tokens or on both; None means no cap. Safe to share between threads.

    `spent_usd` includes `uncertain_usd`: calls that failed but may have been billed are counted at
    the most they could have cost.
    """

    def __init__(self, usd: float | None = None, tokens: int | None = None) -> None:
        for name, cap in (("usd", usd), ("tokens", tokens)):
            if cap is not None and not (isinstance(cap, int | float) and 0 <= cap < math.inf):
                raise BaizeError(f"budget {name}={cap!r}: use a number of at least 0, or None")
        self.usd, self.tokens = usd, tokens
        self._cap = math.inf if usd is None else int(usd * PICO)
        self._spent = self._uncertain = self._reserved = 0
        self.spent_tokens = self.reserved_tokens = 0
        self._lock = threading.RLock()

    def reserve(self, usd: float, tokens: int) -> Reservation:
        """Hold the most a call could cost, before it is made; raises `BudgetExceeded`."""
        wanted = Reservation(math.ceil(usd * PICO), tokens)
        token_cap = math.inf if self.tokens is None else self.tokens
        with self._lock:
            for cap, spent, held, need, show in (
                (self._cap, self._spent, self._reserved, wanted.picodollars, _usd_text),
                (token_cap, self.spent_tokens, self.reserved_tokens, tokens, "{:,} tokens".format),
            ):
                if spent + held + need > cap:
                    raise BudgetExceeded(
                        f"the budget of {show(cap)} does not allow a call of up to {show(need)}: "
                        f"{show(spent)} spent, {show(held)} reserved by calls in flight. What is "
                        "collected is kept; raise the budget and run again to go on",
                        final=spent + need > cap,
                    )
            self.hold(wanted)
        return wanted

    def hold(self, held: Reservation) -> None:
        """Hold money that was promised before, by a batch under way: cap or no cap."""
        with self._lock:
            self._reserved += held.picodollars
            self.reserved_tokens += held.tokens

    def settle(
        self, held: Reservation, usd: float, tokens: int, *, uncertain: bool = False
    ) -> None:
        """Replace a reservation by what the call cost; `uncertain`: by a bill nobody has seen."""
        pico = round(usd * PICO)
        with self._lock:
            self.hold(Reservation(-held.picodollars, -held.tokens))
            self.take_over(pico, pico if uncertain else 0, tokens)

    def take_over(self, spent: int, uncertain: int, tokens: int) -> None:
        """Add what was spent, as a table of calls says it (picodollars, tokens)."""
        with self._lock:
            self._spent += spent
            self._uncertain += uncertain
            self.spent_tokens += tokens

    @property
    def spent_usd(self) -> float:
        return self._spent / PICO

    @property
    def uncertain_usd(self) -> float:
        return self._uncertain / PICO

    @property
    def reserved_usd(self) -> float:
        return self._reserved / PICO

    @property
    def left_usd(self) -> float:
        """USD neither spent nor reserved; infinite without a cap."""
        return (self._cap - self._spent - self._reserved) / PICO

    def __repr__(self) -> str:
        spent, reserved = _usd_text(self._spent), _usd_text(self._reserved)
        cap = "no cap" if self.usd is None else f"cap {_usd_text(self._cap)}"
        return f"Budget({spent} spent, {reserved} reserved, {cap})"


def _usd_text(pico: int) -> str:
    return money(pico / PICO)


def money(usd: float) -> str:
    """Dollars with as many digits as they need: $0, $0.000123, $1.25."""
    if usd == 0:
        return "$0"
    return f"${usd:,.2f}" if abs(usd) >= 1 else f"${usd:.{3 - math.floor(math.log10(abs(usd)))}f}"
