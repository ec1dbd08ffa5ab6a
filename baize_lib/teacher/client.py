"""One client for every teacher: OpenAI, any compatible server, or a model on this machine.

Every call goes through one table (`baize_lib.teacher.calls`): an answer that was paid for is found
there; any other call reserves the most it can cost, is noted before it is made, and its answer is
on disk before you see it. The SDK's own retries hide what they spend, so they are off.

    async with Teacher("gpt-4.1-nano", calls=Calls(run.calls_file, budget=1)) as teacher:
        reply = await teacher.chat([{"role": "user", "content": "Hello"}], max_tokens=40)
        print(reply.text, reply.usage, reply.cost_usd)
"""

import asyncio
import contextlib
import getpass
import hashlib
import json
import os
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Any, NoReturn
from urllib.parse import urlsplit

from pydantic import HttpUrl, SecretStr, ValidationError

from baize_lib.config import BaizeError
from baize_lib.dialogue import as_messages
from baize_lib.teacher.budget import Budget, BudgetExceeded
from baize_lib.teacher.calls import Call, Calls, sendable
from baize_lib.teacher.errors import (
    Failure,
    Halted,
    Reply,
    RunStopped,
    TeacherError,
    read_answer,
    read_error,
)
from baize_lib.teacher.pace import Pace
from baize_lib.teacher.prices import Price, Usage, price_of

__all__ = ["Teacher"]

OPENAI_URL = "https://api.openai.com/v1"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
LONGEST_BACKOFF = 30.0  # seconds, without a Retry-After
MOST_UNCLEAR = 3  # attempts of one call that may have been billed without an answer
PATIENCE = 4  # times as many attempts where the server only has too much to do
OF_ONE_REQUEST = ("400", "403", "404", "422")  # statuses
OTHER_NAME = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}


def token_bound(
    messages: Sequence[Mapping[str, str]], extra: Mapping[str, Any] | None = None
) -> int:
    """An upper bound on the prompt's tokens, without a tokenizer.

    Byte-level BPE (OpenAI's models, SmolLM, LLaMA 3) makes at most one token of a UTF-8 byte; 8
    tokens a message cover the roles' tags and 32 a system prompt that a chat template adds. For
    English it is about four times too high, which only matters for calls in flight near the cap.
    """
    text = "".join(value for message in messages for value in message.values())
    schema = json.dumps(extra, default=str) if extra else ""
    return len(sendable(text).encode()) + len(schema) + 8 * len(messages) + 32


def find_key(*, needed: bool = True) -> SecretStr | None:
    """The key: from `OPENAI_API_KEY`, Colab's secrets, or typed in where someone can type.

    Nobody is asked to type one that is not `needed`. Raises a BaizeError that says where to put it.
    """
    found = os.environ.get("OPENAI_API_KEY")
    if not found and "google.colab" in sys.modules:
        from google.colab import userdata

        with contextlib.suppress(userdata.SecretNotFoundError, userdata.NotebookAccessError):
            found = userdata.get("OPENAI_API_KEY")
    if found or not needed:
        return as_key(found) if found else None
    ipython = sys.modules.get("IPython")
    kernel = getattr(ipython and ipython.get_ipython(), "kernel", None)
    if getattr(kernel, "_allow_stdin", False) or (kernel is None and sys.stdin.isatty()):
        return as_key(getpass.getpass("OpenAI API key (not shown, not stored): "))
    raise BaizeError(
        "no OPENAI_API_KEY in the environment: set it, or use a teacher on this machine with "
        "BAIZE_TIER=laptop"
    )


def as_key(text: str) -> SecretStr:
    """`text` as a key, the space around it cut off; raises `RunStopped` if it can be none."""
    if not re.fullmatch(r"[!-~]+", text.strip()):
        raise RunStopped(
            "the API key is empty or holds a character no key has (a space, a line break, a "
            "letter outside ASCII): copy it again",
            kind="bad key",
        )
    return SecretStr(text.strip())


class Teacher:
    """A chat model behind an OpenAI-compatible address. Use it as `async with Teacher(…)`.

    Args:
        base_url: None takes `OPENAI_BASE_URL`, else OpenAI's own address.
        api_key: None takes `OPENAI_API_KEY` (or asks for it) unless `base_url` was given here: a
            key is never sent to another server unasked. A server of your own may need none.
        price: None looks it up; an unknown model is an error, not $0.
        calls: the table its calls are kept in, with its cap; None keeps them in memory, up to
            `budget` (a `Budget` or USD).
        max_concurrency: the most calls in flight; fewer after a 429, a 503 or a timeout.
        timeout: seconds without a byte from the server before an attempt is given up.
        max_attempts: tries of one call, four times as many where the server is only busy; a random
            time up to backoff·2ⁿ seconds lies before the n-th ("full jitter").
        weak: it needs worked examples and a grammar to keep to a form (the 135M model does).
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | SecretStr | None = None,
        price: Price | None = None,
        calls: Calls | None = None,
        budget: Budget | float | None = None,
        max_concurrency: int = 256,
        timeout: float = 120.0,
        max_attempts: int = 8,
        backoff: float = 0.5,
        weak: bool = False,
    ) -> None:
        self.model, self.weak = model, weak
        self.base_url = _checked_url(base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL)
        self.host = urlsplit(self.base_url).hostname
        self.price = price or price_of(model, base_url=self.base_url)
        if calls is not None and budget is not None:
            raise BaizeError("the cap belongs to the table: give it as Calls(path, budget)")
        self.calls = calls or Calls(None, budget)
        if api_key is None and base_url is None:
            api_key = find_key(needed=self.host == urlsplit(OPENAI_URL).hostname)
        self._key = api_key if isinstance(api_key, SecretStr) else as_key(api_key or "none")
        self.max_concurrency, self.pace = max_concurrency, Pace(max_concurrency)
        self.errors: Counter[str] = Counter()  # failed attempts by kind, retried ones included
        self._timeout, self._max_attempts, self._backoff = timeout, max_attempts, backoff
        self._learnt: dict[str, str | None] = {}  # a field -> its name at this server, None: no
        self._client: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped: Failure | None = None
        self._proven = False  # whether any call was answered

    def halt(self) -> None:
        """Begin no further call; those in flight come to their end."""
        self._stopped = Failure("halted", "no further call is begun", error=Halted)

    def start(self) -> None:
        """Begin calls again, whatever halted or stopped it before."""
        self._stopped = None

    @property
    def budget(self) -> Budget:
        """The cap that every call counts against, and what was spent."""
        return self.calls.budget

    async def chat(
        self,
        messages: str | Sequence[Mapping[str, str]],
        *,
        max_tokens: int,
        temperature: float | None = 1.0,
        top_p: float | None = 0.95,
        seed: int | None = None,
        stop: Sequence[str] | None = None,
        extra: Mapping[str, Any] | None = None,
        purpose: str = "chat",
        subject: str = "",
        part: str = "",
        attempt: int = 1,
    ) -> Reply:
        """One reply: found in the table, or asked for, trying again what is worth it.

        Args:
            messages: a question, or `{"role", "content"}` rows, the last one usually the user's.
            max_tokens: the cap of the reply, tokens (for a thinking model its thoughts too).
            temperature, top_p, seed, stop: None leaves a setting out (some models refuse it).
            extra: more fields for the request's body, such as `response_format` or `grammar`.
            purpose, subject, part: what it is for: "self-chat", "general-001", "assistant 1".
            attempt: another number asks the same again and pays again.

        Raises:
            BudgetExceeded: the worst case does not fit in what is left.
            RunStopped: no call can succeed: a wrong key, no money, no such model.
            TeacherError: this call failed; the text says why and what to do.
        """
        rows = [{"role": m.role, "content": sendable(m.content)} for m in as_messages(messages)]
        request = {
            "model": self.model, "messages": rows, "max_tokens": max_tokens,
            "temperature": temperature, "top_p": top_p, "seed": seed,
            "stop": list(stop) if stop else None, **(extra or {}),
        }  # fmt: skip
        request = {name: value for name, value in request.items() if value is not None}
        asked = "here" if self.host in LOOPBACK else self.host
        whole = json.dumps([asked, request, attempt], sort_keys=True).encode("utf-8", "replace")
        key = hashlib.sha256(whole).hexdigest()[:32]
        call = Call(key, purpose, subject, part, self.model)
        bound = Usage(input=token_bound(rows, extra), output=max_tokens)
        began = time.monotonic()
        with self.calls.held():
            if found := self.calls.find(key):
                return found
            reply = await self._ask(request, call, bound)
        return replace(reply, seconds=time.monotonic() - began)

    def _priced(self, reply: Reply, *, batch: bool = False) -> Reply:
        """The reply at our price or at the server's own, whichever is more."""
        return replace(reply, cost_usd=max(self.price.cost(reply.usage, batch), reply.cost_usd))

    # ---- one call, however often it must be tried

    async def _ask(self, request: dict[str, Any], call: Call, bound: Usage) -> Reply:
        return await self._persist(lambda: self._attempt(request, call, bound))

    async def _persist(
        self, attempt: Callable[[], Awaitable[Any]], *, repeatable: bool = True
    ) -> Any:
        """Try until there is no `Failure`, or trying again makes no sense; then raise it."""
        unclear = tries = 0
        while isinstance(outcome := await attempt(), Failure):
            tries += 1
            unclear += outcome.billed and self.price.cost(Usage(1, 0, 1)) > 0
            patience = PATIENCE if outcome.crowded and not outcome.billed else 1
            again = outcome.retry and (repeatable or not outcome.billed)
            if not again or unclear == MOST_UNCLEAR or tries >= patience * self._max_attempts:
                self._raise(outcome, f" after {tries} attempts" if tries > 1 else "")
            longest = min(LONGEST_BACKOFF, self._backoff * 2 ** min(tries, 9))
            await asyncio.sleep((outcome.wait or 0) + random.uniform(0, longest))
        return outcome

    def _raise(self, failure: Failure, how_often: str = "") -> NoReturn:
        text = f"{self.model} at {self.host}{how_often}: {failure.text}"
        raise failure.error(text, failure.kind) from None

    async def _attempt(self, request: dict[str, Any], call: Call, bound: Usage) -> Reply | Failure:
        """One try in one of the places in flight: noted before it is made, settled after."""
        spell = await self.pace.enter()
        try:
            if (number := await self._begin(call, bound)) is None:
                return self._stopped
            outcome = Failure("interrupted", "", billed=True)
            try:
                outcome = await self._send_as_taken(request, bound)
            finally:
                if isinstance(outcome, Failure):
                    self.calls.failed(number, billed=outcome.billed)
            if isinstance(outcome, Failure):
                return outcome if outcome is self._stopped else self._noted(outcome, spell)
            self._proven = True
            self.pace.answered(spell, outcome.usage.total)
            outcome = self._priced(outcome)
            await self.calls.answered(number, outcome)
            return outcome
        finally:
            self.pace.leave()

    async def _begin(self, call: Call, bound: Usage) -> int | None:
        """Wait while calls in flight may still free enough money; None if told to stop."""
        while not self._stopped:
            try:
                return await self.calls.begin(call, self.price.cost(bound), bound.total)
            except BudgetExceeded as error:
                if error.final:
                    raise
            await asyncio.sleep(random.uniform(0.02, 0.05))
        return None

    def _noted(self, failure: Failure, spell: int) -> Failure:
        """What a failure means for the calls after it."""
        self.errors[failure.kind] += 1
        if failure.crowded:
            self.pace.slow_down(spell, failure.wait)
        failure = self._weighed(failure)
        if issubclass(failure.error, RunStopped):
            self._stopped = failure
        return failure

    def _weighed(self, failure: Failure) -> Failure:
        """Once other calls were answered, a refusal is of this request and stops no run."""
        alone = self._proven and failure.kind in OF_ONE_REQUEST
        return replace(failure, error=TeacherError) if alone else failure

    async def _send_as_taken(self, request: Mapping[str, Any], bound: Usage) -> Reply | Failure:
        """Send it, and again if the server names a field it does not take, until told to stop."""
        while not self._stopped:
            sent = self._as_sent(request)
            outcome = await self._send(sent, bound)
            if not (isinstance(outcome, Failure) and self._learns(outcome, request, sent)):
                return outcome
        return self._stopped

    def _learns(
        self, failure: Failure, request: Mapping[str, Any], sent: Mapping[str, Any]
    ) -> bool:
        """Whether a field is refused that is renamed or left out from now on, or was just now."""
        named = [field for field in failure.fields if field in sent]
        if named and self._as_sent(request) != sent:
            return True  # another call learnt it while this one was in flight
        for field in named:
            other = OTHER_NAME.get(field)
            if field not in self._learnt and other not in self._learnt:
                self._learnt[field] = other
                what = f"sent as {other!r}" if other else "left out"
                print(f"{self.model} at {self.host} does not take {field!r}: {what} from now on")
                return True
        return False

    def _as_sent(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The request with its fields as this server wants them."""
        named = {self._learnt.get(name, name): value for name, value in request.items()}
        return {name: value for name, value in named.items() if name is not None}

    async def _send(self, request: dict[str, Any], bound: Usage) -> Reply | Failure:
        import httpx2

        outcome = await self._exchange(
            lambda client: client.post("/chat/completions", cast_to=httpx2.Response, body=request)
        )
        if not isinstance(outcome, Failure):
            outcome = read_answer(outcome.content, bound)
        return self._without_key(outcome) if isinstance(outcome, Failure) else outcome

    async def _exchange(self, ask: Callable[[Any], Awaitable[Any]]) -> Any:
        """What `ask` gets from the SDK's client, or the Failure that came instead.

        Returned, not raised: a traceback through the SDK's frames would carry the key.
        """
        try:
            return await ask(self._connection())
        except asyncio.CancelledError:
            failure = None
        except Exception as error:  # noqa: BLE001  whatever it is, it comes without its frames
            failure = read_error(error)
        if failure is None:
            raise asyncio.CancelledError
        return self._without_key(failure)

    def _without_key(self, failure: Failure) -> Failure:
        text = failure.text.replace(self._key.get_secret_value(), "[key]")
        return replace(failure, text=re.sub(r"(?:Bearer |sk-)[^\s:,;'\"]+", "[key]", text))

    async def request(self, method: str, *args: Any, repeatable: bool = True, **fields: Any) -> Any:
        """Another request, as `request("batches.retrieve", id)`, tried again as a chat is; unless
        `repeatable`, only after a try that failed for certain."""

        async def attempt() -> Any:
            outcome = await self._exchange(lambda c: attrgetter(method)(c)(*args, **fields))
            self.errors.update([outcome.kind] if isinstance(outcome, Failure) else [])
            return outcome

        return await self._persist(attempt, repeatable=repeatable)

    def _connection(self) -> Any:
        """The SDK's client; one per event loop, since its connections belong to the loop."""
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:
            import openai

            web = openai.DefaultAioHttpClient(
                timeout=self._timeout, trust_env=self.host not in LOOPBACK, follow_redirects=False
            )
            self._loop, self._client = loop, openai.AsyncOpenAI(
                api_key=self._key.get_secret_value(), base_url=self.base_url, max_retries=0,
                timeout=self._timeout, http_client=web,
            )  # fmt: skip
        return self._client

    async def next_round(self) -> bool:
        """Whether calls were put off and have been answered since; an online teacher has none."""
        return False

    async def aclose(self) -> None:
        """Close the connections; the next call opens new ones."""
        if self._client is not None and self._loop is asyncio.get_running_loop():
            await self._client.close()
        self._client = None

    async def __aenter__(self) -> "Teacher":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"Teacher({self.model!r} at {self.host}, {self.price})"


def _checked_url(address: str) -> str:
    if "@" in address:
        raise BaizeError("base_url holds a password or a key: give it as OPENAI_API_KEY instead")
    try:
        HttpUrl(address)
    except ValidationError:
        text = f"base_url={address!r} is no web address: it looks like https://host/v1"
        raise BaizeError(text) from None
    return address
