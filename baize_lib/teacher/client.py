"""One client for every teacher: OpenAI, any compatible server, or the embedded model's own.

The SDK's retries hide what they spend, so they are off. Every attempt here reserves its worst case
in the budget first; a failure that may have been billed (a timeout, a torn answer) stays counted.
The number of calls in flight adapts like TCP: it grows while all is well and halves when the server
says 429. A refused key, an empty account or an unknown model stops the whole run at once.

    async with local_teacher() as teacher:
        reply = await teacher.chat([{"role": "user", "content": "Hello"}], max_tokens=40)
        print(reply.text, reply.usage, reply.cost_usd)
"""

import asyncio
import json
import os
import random
import re
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from baize_lib.config import BaizeError
from baize_lib.teacher.budget import Budget, BudgetExceeded, Reservation
from baize_lib.teacher.errors import (
    Failure,
    RunStopped,
    ServerAnswer,
    read_answer,
    read_broken_line,
    read_refusal,
)
from baize_lib.teacher.keys import Secret, find_key
from baize_lib.teacher.prices import Price, Usage, price_of

__all__ = [
    "Teacher",
    "Reply",
    "Rate",
    "token_bound",
]


OPENAI_URL = "https://api.openai.com/v1"
LONGEST_BACKOFF = 30.0  # seconds, without a Retry-After
MOST_UNCLEAR = 3  # attempts of one call that may have been billed without an answer


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer and its bill.

    Attributes:
        finish_reason: "stop", "length" (cut by `max_tokens`), "content_filter"…
        cost_usd: what the answer cost; `usage` are its tokens, `seconds` all attempts together.
        num_calls: attempts made; those that failed but may have been billed are counted, at the
            most they could have cost, in `uncertain_usd` and `uncertain_tokens`.
        estimated: the server sent no usage, so `usage` and `cost_usd` are upper bounds.
    """

    text: str
    finish_reason: str
    usage: Usage
    cost_usd: float
    model: str
    seconds: float
    num_calls: int = 1
    uncertain_usd: float = 0.0
    uncertain_tokens: int = 0
    estimated: bool = False


@dataclass(frozen=True, slots=True)
class Rate:
    """What the teacher is doing now; rates over the last 500 answers at most."""

    limit: int
    in_flight: int
    calls_per_second: float
    tokens_per_second: float
    num_slowdowns: int

    def __str__(self) -> str:
        return (
            f"{self.calls_per_second:,.1f} calls/s, {self.tokens_per_second:,.0f} tokens/s, up to "
            f"{self.limit} in flight, slowed {self.num_slowdowns} times by 429"
        )


@dataclass(slots=True)
class _Tally:
    """What one chat() has cost so far beyond its answer."""

    calls: int = 0
    unclear: int = 0
    usd: float = 0.0
    tokens: int = 0


def token_bound(
    messages: Sequence[Mapping[str, str]], extra: Mapping[str, Any] | None = None
) -> int:
    """An upper bound on the prompt's tokens, without a tokenizer.

    Byte-level BPE (OpenAI's models, SmolLM, LLaMA 3) makes at most one token of a UTF-8 byte; 8
    tokens a message cover the roles' tags and 32 a system prompt that a chat template adds. For
    English it is about four times too high, which only matters for calls in flight near the cap.
    """
    size = sum(len(str(value).encode()) for message in messages for value in message.values())
    schema = len(json.dumps(extra, default=str)) if extra else 0
    return size + schema + 8 * len(messages) + 32


class Teacher:
    """A chat model behind an OpenAI-compatible address. Use it as `async with Teacher(…)`.

    Args:
        model: the name sent to the server.
        base_url: None takes `OPENAI_BASE_URL`, else OpenAI's own address.
        api_key: None looks for OpenAI's key with `find_key`, unless `base_url` was given: a key
            is never sent to another server unasked.
        price: None looks it up; an unknown model is an error, not $0.
        budget: the cap every attempt is counted against; None counts without a cap.
        max_concurrency: the most calls in flight; fewer are used after a 429, and one until the
            first has succeeded, so that a wrong key costs one call.
        timeout: seconds without a byte from the server before an attempt is given up.
        max_attempts: tries of one call on 429, 5xx, timeouts and dropped connections; only 3 of
            those that may be billed though nothing came back.
        backoff: seconds; the n-th retry waits a random time up to backoff·2ⁿ ("full jitter").

    Attributes:
        errors: failed attempts by kind, retried ones included.
        is_local: it is the embedded model, whose server takes `grammar` and `repeat_penalty`.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | Secret | None = None,
        price: Price | None = None,
        budget: Budget | None = None,
        max_concurrency: int = 256,
        timeout: float = 120.0,
        max_attempts: int = 8,
        backoff: float = 0.5,
    ) -> None:
        self.model = model
        self.is_local = model == "embedded"
        self.max_concurrency = max_concurrency
        self.price = price or price_of(model)
        self.budget = budget or Budget()
        self.base_url = base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL
        if api_key is None:
            api_key = find_key() if base_url is None else "none"
        self._key = api_key if isinstance(api_key, Secret) else Secret(api_key)
        self.errors: Counter[str] = Counter()
        self._places = _Places(max_concurrency)
        self._timeout, self._max_attempts, self._backoff = timeout, max_attempts, backoff
        self._client: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped: Failure | None = None
        self._resume_at = 0.0  # no call starts before this time, after a Retry-After
        self._answers: deque[tuple[float, int]] = deque(maxlen=500)  # (time, tokens)

    async def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        max_tokens: int,
        temperature: float | None = 1.0,
        top_p: float | None = 0.95,
        seed: int | None = None,
        stop: Sequence[str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Reply:
        """Ask for one reply, retrying what is worth retrying.

        Args:
            messages: `{"role", "content"}` rows, the last one usually the user's.
            max_tokens: the cap of the reply, tokens (for a reasoning model its thoughts too).
            temperature, top_p: None leaves them out (reasoning models refuse them).
            extra: more fields for the request's body, such as `response_format` or `grammar`.

        Raises:
            BudgetExceeded: the worst case does not fit in what is left.
            RunStopped: no call can succeed (`KeyRejected`: because of the key).
            TeacherError: this call failed; the text says why and what to do.
        """
        request = self.body(
            messages, max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed,
            stop=list(stop) if stop else None,
        )  # fmt: skip
        bound = Usage(input=token_bound(messages, extra), output=max_tokens)
        began, tally = time.monotonic(), _Tally()
        try:
            answer = await self._insist(request | dict(extra or {}), bound, tally)
        except (BaizeError, asyncio.CancelledError) as error:
            error.uncertain_usd, error.uncertain_tokens = tally.usd, tally.tokens
            error.num_calls = tally.calls
            raise error.with_traceback(None) from None  # the SDK's frames hold the key
        return Reply(
            answer.text, answer.finish_reason, answer.usage, self.price.cost(answer.usage),
            self.model, time.monotonic() - began, tally.calls, tally.usd, tally.tokens,
            answer.estimated,
        )  # fmt: skip

    def body(
        self, messages: Sequence[Mapping[str, str]], *, max_tokens: int, **more: Any
    ) -> dict[str, Any]:
        """A chat request's body; fields that are None are left out."""
        hosted = urlsplit(self.base_url).hostname == urlsplit(OPENAI_URL).hostname
        cap = {("max_completion_tokens" if hosted else "max_tokens"): max_tokens}
        given = {name: value for name, value in more.items() if value is not None}
        return {"model": self.model, "messages": [dict(m) for m in messages]} | cap | given

    async def _insist(self, request: dict[str, Any], bound: Usage, tally: _Tally) -> ServerAnswer:
        for attempt in range(1, self._max_attempts + 1):
            outcome = await self._attempt(request, bound, tally)
            if isinstance(outcome, ServerAnswer):
                return outcome
            tally.unclear += outcome.billed
            if not outcome.retry or tally.unclear == MOST_UNCLEAR or attempt == self._max_attempts:
                break
            longest = min(LONGEST_BACKOFF, self._backoff * 2**attempt)
            await asyncio.sleep((outcome.wait or 0) + random.uniform(0, longest))
        tries = f" after {tally.calls} attempts" if tally.calls > 1 else ""
        raise outcome.error(f"{self.model} at {self._host}{tries}: {outcome.text}", outcome.kind)

    async def _attempt(
        self, request: dict[str, Any], bound: Usage, tally: _Tally
    ) -> ServerAnswer | Failure:
        """One call, in one of the places in flight, its money reserved before and settled after."""
        episode = await self._places.enter()
        try:
            while (wait := self._resume_at - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            if self._stopped:
                return self._stopped
            held = await self._reserve(bound)
            tally.calls += 1
            outcome: ServerAnswer | Failure = Failure("interrupted", "", billed=True)
            try:
                outcome = await self._send(request, bound)
            finally:
                self._settle(held, bound, outcome, tally)
            self._learn(outcome, episode)
            return outcome
        finally:
            self._places.leave()

    async def _reserve(self, bound: Usage) -> Reservation:
        """Wait while calls in flight may still free enough money; raise when they cannot."""
        while True:
            try:
                return self.budget.reserve(self.price.cost(bound), bound.total)
            except BudgetExceeded as error:
                if error.final:
                    raise
            await asyncio.sleep(random.uniform(0.02, 0.05))

    def _settle(
        self, held: Reservation, bound: Usage, outcome: ServerAnswer | Failure, tally: _Tally
    ) -> None:
        if isinstance(outcome, ServerAnswer):
            self.budget.settle(held, self.price.cost(outcome.usage), outcome.usage.total)
        elif outcome.billed:
            usd = self.price.cost(bound)
            self.budget.settle(held, usd, bound.total, uncertain=True)
            tally.usd += usd
            tally.tokens += bound.total
        else:
            self.budget.release(held)

    def _learn(self, outcome: ServerAnswer | Failure, episode: int) -> None:
        """Adapt the pace and the run to what came back."""
        if isinstance(outcome, ServerAnswer):
            self._answers.append((time.monotonic(), outcome.usage.total))
            self._places.grow(episode)
            return
        self.errors[outcome.kind] += 1
        if issubclass(outcome.error, RunStopped):
            self._stopped = outcome
        if outcome.kind == "429":
            self._places.shrink(episode)
            self._resume_at = max(self._resume_at, time.monotonic() + (outcome.wait or 0))

    async def _send(self, request: dict[str, Any], bound: Usage) -> ServerAnswer | Failure:
        import httpx2
        import openai

        try:
            response = await self._connection().post(
                "/chat/completions", cast_to=httpx2.Response, body=request
            )
            return read_answer(response.content, bound)
        except openai.APIStatusError as error:
            failure = read_refusal(error.status_code, error.body, error.response.headers)
        except openai.APIConnectionError as error:
            failure = read_broken_line(error)
        # Returned, not raised: a traceback through the SDK's frames would carry the key.
        return self._without_key(failure)

    def _without_key(self, failure: Failure) -> Failure:
        text = failure.text.replace(self._key.reveal(), "[key]")
        return replace(failure, text=re.sub(r"(?:Bearer |sk-)[^\s:,;'\"]+", "[key]", text))

    async def request(self, call: Callable[[Any], Awaitable[Any]], *, repeatable: bool) -> Any:
        """Make another request of the API, with the same retries and errors as a chat.

        Args:
            call: gets the SDK's client, for example `lambda client: client.batches.list()`.
            repeatable: making it twice does no harm; else it is not tried again when it is not
                certain that the first try failed.
        """
        import openai

        for attempt in range(1, self._max_attempts + 1):
            try:
                return await call(self._connection())
            except openai.APIStatusError as error:
                failure = read_refusal(error.status_code, error.body, error.response.headers)
            except openai.APIConnectionError as error:
                failure = read_broken_line(error)
            failure = self._without_key(failure)
            self.errors[failure.kind] += 1
            again = failure.retry and (repeatable or not failure.billed)
            if not again or attempt == self._max_attempts:
                break
            longest = min(LONGEST_BACKOFF, self._backoff * 2**attempt)
            await asyncio.sleep((failure.wait or 0) + random.uniform(0, longest))
        raise failure.error(f"{self.model} at {self._host}: {failure.text}", failure.kind)

    def _connection(self) -> Any:
        """The SDK's client; one per event loop, since its connections belong to the loop."""
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:
            import openai

            nearby = urlsplit(self.base_url).hostname in ("127.0.0.1", "localhost", "::1")
            web = openai.DefaultAioHttpClient(timeout=self._timeout, trust_env=not nearby)
            self._client, self._loop = (
                openai.AsyncOpenAI(
                    api_key=self._key.reveal(), base_url=self.base_url, max_retries=0,
                    timeout=self._timeout, http_client=web,
                ),
                loop,
            )  # fmt: skip
        return self._client

    async def aclose(self) -> None:
        """Close the connections; the next call opens new ones."""
        if self._client is not None and self._loop is asyncio.get_running_loop():
            await self._client.close()
        self._client = None

    async def __aenter__(self) -> "Teacher":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @property
    def rate(self) -> Rate:
        """The pace now: places, calls and tokens a second, and how often a 429 slowed it."""
        seconds = self._answers[-1][0] - self._answers[0][0] if len(self._answers) > 1 else 0.0
        calls, tokens = len(self._answers) - 1, sum(n for _, n in list(self._answers)[1:])
        places = self._places
        return Rate(
            int(places.limit), places.in_flight,
            calls / seconds if seconds else 0.0, tokens / seconds if seconds else 0.0,
            places.episodes,
        )  # fmt: skip

    @property
    def _host(self) -> str:
        return urlsplit(self.base_url).hostname or "?"

    def __repr__(self) -> str:
        return f"Teacher({self.model!r} at {self._host}, {self.price})"


class _Places:
    """How many calls may be in flight: additive increase, multiplicative decrease (as TCP).

    One place until the first success, then 16; doubling each round trip until the first 429,
    one more each round trip after it. An episode of 429s, however many calls it hits, halves once.
    """

    def __init__(self, most: int) -> None:
        self.most, self.limit, self.in_flight, self.episodes = most, 1.0, 0, 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def enter(self) -> int:
        """Wait for a place; gives the number of the present episode, to hand back afterwards."""
        if self.in_flight < int(self.limit):
            self.in_flight += 1
            return self.episodes
        place = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self.leave()
            raise
        return self.episodes

    def leave(self) -> None:
        self.in_flight -= 1
        self._admit()

    def grow(self, episode: int) -> None:
        if episode == self.episodes and self.in_flight >= int(self.limit):
            step = 1.0 if self.episodes == 0 else 1.0 / self.limit
            start = 16.0 if self.episodes == 0 else 1.0
            self.limit = min(max(self.limit + step, start), self.most)
            self._admit()

    def shrink(self, episode: int) -> None:
        if episode == self.episodes:
            self.episodes += 1
            self.limit = max(1.0, self.limit / 2)

    def _admit(self) -> None:
        while self._waiting and self.in_flight < int(self.limit):
            place = self._waiting.popleft()
            if not place.done():
                self.in_flight += 1
                place.set_result(None)
