"""How many calls may be in flight: additive increase, multiplicative decrease, as TCP does it.

One place until the first success, so that a wrong key costs one call, then 16; doubling each round
trip until the server first says "slow down", one more each round trip after it. One spell of
refusals, however many calls it hits, halves the places once.
"""

import asyncio
import math
import time
from collections import deque


class Pace:
    """The places in flight, `most` of them at most; printed, the calls and tokens a second."""

    def __init__(self, most: int) -> None:
        self.most, self.limit, self.in_flight, self.spells = most, 1.0, 0, 0
        self._resume_at = 0.0  # no call starts before this time, after a Retry-After
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._answers: deque[tuple[float, int]] = deque(maxlen=500)  # (time, tokens)

    async def enter(self) -> int:
        """Wait for a place; gives the number of the present spell, to hand back afterwards."""
        place = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        self._admit()
        try:
            await place
            while (wait := self._resume_at - time.monotonic()) > 0:
                await asyncio.sleep(wait)
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self.leave()
            raise
        return self.spells

    def leave(self) -> None:
        self.in_flight -= 1
        self._admit()

    def answered(self, spell: int, tokens: int) -> None:
        """An answer came: make room for more, unless the server asked for less meanwhile."""
        self._answers.append((time.monotonic(), tokens))
        if spell == self.spells and self.in_flight >= int(self.limit):
            step = 1.0 if self.spells == 0 else 1.0 / self.limit
            start = 16.0 if self.spells == 0 else 1.0
            self.limit = min(max(self.limit + step, start), self.most)
            self._admit()

    def slow_down(self, spell: int, wait: float | None) -> None:
        """The server is too busy: halve the places, once a spell; wait if it says how long."""
        self._resume_at = max(self._resume_at, time.monotonic() + (wait or 0))
        if spell == self.spells:
            self.spells += 1
            self.limit = max(1.0, self.limit / 2)

    def _admit(self) -> None:
        while self._waiting and self.in_flight < int(self.limit):
            place = self._waiting.popleft()
            if not place.done():
                self.in_flight += 1
                place.set_result(None)

    def __str__(self) -> str:
        answers = list(self._answers)
        seconds = answers[-1][0] - answers[0][0] if len(answers) > 1 else math.inf
        tokens = sum(tokens for _, tokens in answers[1:])
        return (
            f"{(len(answers) - 1) / seconds:,.1f} calls/s, {tokens / seconds:,.0f} tokens/s, up to "
            f"{int(self.limit)} in flight, slowed {self.spells} times by the server"
        )
