"""What came back from a teacher, and what it means: an answer, a retry, a failure, or the end.

The table, in short. 429 and 5xx, timeouts and broken connections: try again. 400: this call fails.
401, 403, 404, an empty account: the run stops. Billed although there is no answer, perhaps: a
timeout, a connection broken after sending, a gateway's 502 or 504, an answer that cannot be read.

>>> read_refusal(429, {"message": "Slow down"}, {"retry-after": "2"}).wait
2.0
"""

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from baize_lib.config import BaizeError
from baize_lib.teacher.prices import Usage

__all__ = [
    "TeacherError",
    "RunStopped",
    "KeyRejected",
    "ServerAnswer",
    "Failure",
    "read_answer",
    "read_refusal",
    "read_broken_line",
]


LONGEST_WAIT = 600.0  # seconds a Retry-After may ask for before the run is stopped instead


class TeacherError(BaizeError):
    """A call failed for good. `kind` is a short name for counting.

    Everything that leaves `Teacher.chat` early, cancellation included, carries `uncertain_usd`,
    `uncertain_tokens` and `num_calls`: what the call may have cost, for the ledger.
    """

    uncertain_usd = 0.0
    uncertain_tokens = 0
    num_calls = 0

    def __init__(self, text: str, kind: str) -> None:
        super().__init__(text)
        self.kind = kind


class RunStopped(TeacherError):  # noqa: N818
    """No other call can do better: the run has to stop until a person changes something.

    The teacher refuses every later call for the same reason; make a new one to go on.
    """


class KeyRejected(RunStopped):
    """The server does not know the key."""


@dataclass(frozen=True, slots=True)
class Failure:
    """One attempt that gave no answer. `billed`: the server may still charge for it."""

    kind: str
    text: str
    billed: bool = False
    retry: bool = False
    error: type[TeacherError] = TeacherError
    wait: float | None = None  # seconds, from Retry-After


@dataclass(frozen=True, slots=True)
class ServerAnswer:
    text: str
    finish_reason: str
    usage: Usage
    estimated: bool


def read_answer(body: bytes, bound: Usage) -> ServerAnswer | Failure:
    """The answer in a response of status 200; one that cannot be read was still billed."""
    try:
        data = json.loads(body)
        choice = data["choices"][0]
        message = choice["message"]
        text = message.get("content") or message.get("refusal") or ""
        reason = str(choice.get("finish_reason") or "unknown")
        if not isinstance(text, str):
            raise TypeError("content is not text")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        return Failure(
            "malformed answer",
            f"the answer cannot be read ({type(error).__name__}): try again, or check base_url",
            billed=True, retry=True,
        )  # fmt: skip
    usage = _usage(data.get("usage"))
    return ServerAnswer(text, reason, usage or bound, estimated=usage is None)


def _usage(reported: Any) -> Usage | None:
    try:
        cached = (reported.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        given = Usage(reported["prompt_tokens"], cached, reported["completion_tokens"])
        return given if 0 <= given.cached_input <= given.input and given.output >= 0 else None
    except (AttributeError, LookupError, TypeError):
        return None


REMEDIES = {
    401: "check OPENAI_API_KEY, or use the embedded teacher with BAIZE_TIER=laptop",
    403: "this key, project or country may not use it: see the account's limits",
    404: "check the model's name and base_url",
}


def read_refusal(status: int, body: Any, headers: Mapping[str, str]) -> Failure:
    """What an HTTP error means: stop the run, fail this call, or try again."""
    said = body if isinstance(body, dict) else {}
    code = str(said.get("code") or "")
    code = "" if code.isdigit() else code
    text = " ".join(str(said.get("message") or "no reason given").split())[:300]
    if status in REMEDIES:
        error = KeyRejected if status == 401 else RunStopped
        return Failure(str(status), f"{status}: {text}: {REMEDIES[status]}", error=error)
    if code == "insufficient_quota":
        remedy = "the account has no money left: add some, then run again to go on"
        return Failure("no quota", f"{status}: {text}: {remedy}", error=RunStopped)
    if status == 429 or status >= 500 or status in (408, 409):
        wait = _retry_after(headers)
        if wait is not None and wait > LONGEST_WAIT:
            remedy = f"the server asks to wait {wait:.0f} s: run again then to go on"
            return Failure(str(status), f"{status}: {text}: {remedy}", error=RunStopped)
        remedy = "wait a little and run again to go on"
        billed = status in (408, 502, 504) or status > 511  # a gateway gave up, not the model
        return Failure(str(status), f"{status}: {text}: {remedy}", billed, retry=True, wait=wait)
    every_call = code.startswith("unsupported") or "model" in code
    remedy = "change the request" + (": this model takes other settings" if every_call else "")
    return Failure(
        str(status), f"{f'{status} {code}'.strip()}: {text}: {remedy}",
        error=RunStopped if every_call else TeacherError,
    )  # fmt: skip


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait: from `retry-after-ms`, or `Retry-After` in seconds or as a date."""
    value = headers.get("retry-after", "")
    try:
        if "retry-after-ms" in headers:
            wait = float(headers["retry-after-ms"]) / 1000
        elif re.fullmatch(r"[\d.]+", value.strip()):
            wait = float(value)
        else:
            wait = parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, TypeError):
        return None
    return max(0.0, wait) if wait < float("inf") else None


def read_broken_line(error: BaseException) -> Failure:
    """A connection that failed: only one that was never made is certainly not billed."""
    causes, cause = [], error
    while cause is not None:
        causes.append(type(cause).__name__)
        cause = cause.__cause__ or cause.__context__
    if {"ClientConnectorError", "ClientConnectorDNSError", "ConnectionTimeoutError"} & set(causes):
        text = "no connection: check the network and base_url, then run again to go on"
        return Failure("no connection", text, retry=True)
    if "SocketTimeoutError" in causes or "TimeoutError" in causes:
        return Failure(
            "timeout", "no answer in time: run again to go on, or raise timeout",
            billed=True, retry=True,
        )  # fmt: skip
    return Failure("dropped", "the connection broke: run again to go on", billed=True, retry=True)
