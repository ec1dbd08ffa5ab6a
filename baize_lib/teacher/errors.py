"""What came back from a teacher, and what it means: an answer, a retry, a failure, or the end.

The table, in short. 429, 5xx, timeouts and broken connections: try again. 400, a flagged question,
a prompt too long: this call fails. 401, 404, no money, no such model: the run stops. Billed though
there is no answer, perhaps: a timeout, a connection broken after sending, a gateway's 502 or 504,
an answer that cannot be read.

>>> read_refusal(429, {"message": "Slow down"}, {"retry-after": "2"}).wait
2.0
"""

import json
import math
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from baize_lib.config import BaizeError
from baize_lib.teacher.prices import Usage

__all__ = ["TeacherError", "RunStopped", "Halted", "Waiting"]

LONGEST_WAIT = 600.0  # seconds a Retry-After may ask for before the run is stopped instead


class TeacherError(BaizeError):
    """A call failed for good. `kind` is a short name for counting."""

    def __init__(self, text: str, kind: str) -> None:
        super().__init__(text)
        self.kind = kind


class RunStopped(TeacherError):  # noqa: N818
    """No other call can do better: the run has to stop until a person changes something.

    The teacher refuses every later call for the same reason, until `Teacher.start()`.
    """


class KeyRejected(RunStopped):
    """The server does not know the key."""


class Halted(TeacherError):  # noqa: N818
    """The teacher was told to begin no further call."""


class Waiting(Halted):
    """The call is put off until the next batch: run the same again after `next_round()`."""


@dataclass(frozen=True, slots=True)
class Failure:
    """One attempt that gave no answer.

    Attributes:
        billed: the server may still charge for it.
        crowded: the server has too much to do; ask for less at once.
        wait: seconds, from Retry-After.
        fields: the fields of a request that the error names, if it is that one is not taken.
    """

    kind: str
    text: str
    billed: bool = False
    retry: bool = False
    error: type[TeacherError] = TeacherError
    crowded: bool = False
    wait: float | None = None
    fields: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ServerAnswer:
    """The text of an answer and its bill: as the server tells it `usd` is its own price, or 0; in
    the table it is what the answer cost us.
    """

    text: str
    finish_reason: str
    usage: Usage
    estimated: bool = False
    usd: float = 0.0


# ---- answers

# What servers call it -> what the course calls it. What is not here is "unknown", never "stop".
_FINISH = {
    "stop": "stop end_turn eos eos_token stop_sequence complete completed end stop_token",
    "length": "length max_tokens model_length max_output_tokens token_limit max_length truncated",
    "content_filter": "content_filter safety recitation prohibited_content blocklist spii refusal "
    "sensitive content_filtered image_safety",
    "failed": "error abort aborted cancelled network_error timeout insufficient_system_resource "
    "malformed_function_call",
}
FINISH_REASONS = {theirs: ours for ours, names in _FINISH.items() for theirs in names.split()}
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def read_answer(body: bytes, bound: Usage) -> ServerAnswer | Failure:
    """The answer in a response of status 200; one that cannot be read was still billed."""
    try:
        data = json.loads(body)
        if isinstance(data, dict) and not data.get("choices") and any(_words_of(data)):
            return _error_at_200(data.get("error") or data)
        choice = data["choices"][0]
        if isinstance(choice.get("error"), dict) and not choice.get("message"):
            return _error_at_200(choice["error"])
        message = choice.get("message") or {}
        text = _text_of(message.get("content")) or _text_of(message.get("refusal"))
        thoughts = _text_of(message.get("reasoning_content")) or _text_of(message.get("reasoning"))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        return Failure(
            "malformed answer",
            f"the answer cannot be read ({type(error).__name__}): try again, or check base_url",
            billed=True, retry=True,
        )  # fmt: skip
    said = str(choice.get("finish_reason") or "").strip().lower()
    reason = FINISH_REASONS.get(said, "unknown")
    if reason == "failed":
        failed = f"the server gave up on its answer ({said}): run again to go on"
        return Failure("failed answer", failed, billed=True, retry=True)
    text = _LONE_SURROGATE.sub("\ufffd", text)
    usage, usd, estimated = read_usage(data.get("usage"), text + thoughts, bound)
    return ServerAnswer(text, reason, usage, estimated, usd)


def _text_of(content: Any) -> str:
    """Text, or the texts of a list of parts, joined."""
    if isinstance(content, list):
        parts = (p.get("text") if isinstance(p, dict) else p for p in content)
        return "".join(part for part in parts if isinstance(part, str))
    if content is not None and not isinstance(content, str):
        raise TypeError("content is not text")
    return content or ""


def _error_at_200(error: Any) -> Failure:
    code = error.get("code") if isinstance(error, dict) else None
    status = int(code) if str(code).isdigit() and 400 <= int(code) < 600 else 400
    return read_refusal(status, error, {})


def read_usage(reported: Any, written: str, bound: Usage) -> tuple[Usage, float, bool]:
    """(tokens, the server's own price in USD or 0, whether the tokens are an estimate).

    A bill is never read as smaller than it can be. Output is at least the total less the prompt,
    at least the thoughts, and at least a token for 16 characters of what was written; where sums
    contradict each other the larger counts. What is missing counts as its bound.

    >>> usage, _, estimated = read_usage(
    ...     {"prompt_tokens": 50, "completion_tokens": 20, "total_tokens": 870}, "", Usage(9, 0, 9))
    >>> usage.output, estimated
    (820, True)
    """
    reported = reported if isinstance(reported, dict) else {}
    prompt = _number(reported, "prompt_tokens", "input_tokens")
    output = _number(reported, "completion_tokens", "output_tokens")
    total = _number(reported, "total_tokens")
    details = [_dict(reported, f"{name}_tokens_details") for name in ("completion", "output")]
    thoughts = max(_number(detail, "reasoning_tokens") for detail in details)
    thoughts += output if thoughts > output else 0  # then the output was counted without them
    least = max(total - prompt, thoughts, math.ceil(len(written) / 16))
    estimated = not prompt or output < least or 0 < total != prompt + output
    uncounted = not (output or thoughts or total > prompt)
    if uncounted and (written or not _counts_output(reported)):
        estimated, output = True, max(bound.output, math.ceil(len(written) / 4))
    cached = max(
        _number(_dict(reported, "prompt_tokens_details"), "cached_tokens"),
        _number(_dict(reported, "input_tokens_details"), "cached_tokens"),
        _number(reported, "prompt_cache_hit_tokens"),
    )
    prompt = prompt or bound.input
    usage = Usage(prompt, cached if cached <= prompt else 0, max(output, least))
    usd = reported.get("cost")
    is_price = isinstance(usd, int | float) and 0 < usd < 1e5  # a call of more is no call
    return usage, float(usd) if is_price else 0.0, estimated


def _counts_output(reported: Mapping[str, Any]) -> bool:
    names = ("completion_tokens", "output_tokens")
    return any(isinstance(reported.get(name), int) for name in names)


def _dict(row: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return row[name] if isinstance(row.get(name), dict) else {}


def _number(row: Mapping[str, Any], *names: str) -> int:
    """The largest sensible count under these names; 0 for none, and for what is no count."""
    found = (row.get(name) for name in names)
    good = (n for n in found if isinstance(n, int | float) and not isinstance(n, bool))
    return max((int(n) for n in good if math.isfinite(n) and 0 <= n < 1e9), default=0)


# ---- refusals: an HTTP status and what the server said

REMEDIES = {
    401: "check OPENAI_API_KEY, or use a teacher on this machine with BAIZE_TIER=laptop",
    402: "the account has no money left: add some, then run again to go on",
    403: "this key, project or country may not use it: see the account's limits",
    404: "check the model's name and base_url",
}
_NO_MONEY = re.compile(
    r"insufficient[ _](?:quota|balance|funds|credit)|billing[ _]hard[ _]limit|billing_not_active"
    r"|credit balance is too low|payment required|out of credits|not enough credits"
    r"|spend(?:ing)? limit|requires more credits|quota_exceeded|arrear|account.{0,20}overdue"
    r"|余额不足|欠费",
    re.IGNORECASE,
)
_FLAGGED = re.compile(
    r"flagged|moderation|content[ _-]?(?:policy|filter|management)|usage (?:polic|guideline)"
    r"|inappropriate|safety|unsafe|harmful|high[ _]risk|exists[ _]risk|data_?inspection_?failed"
    r"|prohibited|敏感|违规|不安全",
    re.IGNORECASE,
)
_TOO_LONG = re.compile(
    r"context|too (?:long|large|many tokens)|maximum.{0,20}(?:length|tokens)|max(?:imum)?_.*length"
    r"|input.{0,20}(?:exceed|limit)|string_above_max",
    re.IGNORECASE,
)
_NOT_TAKEN = re.compile(
    r"unsupported|not supported|does not support|unknown|unrecognized|unexpected|not permitted"
    r"|not allowed|extra (?:fields|inputs)|extra_forbidden|invalid (?:field|argument|parameter)"
    r"|use '?max_",
    re.IGNORECASE,
)
_WRONG_MODEL = re.compile(r"model.{0,12}(?:not|invalid|unknown|deprecat)|invalid_model", re.I)
TELLING = (
    "message", "msg", "error", "detail", "errors", "reason", "title", "code", "type", "param",
    "loc", "metadata", "status", "base_resp", "status_msg",
)  # fmt: skip
FIELDS = (
    "max_completion_tokens", "max_tokens", "seed", "top_p", "temperature", "stop",
    "repeat_penalty", "grammar", "response_format", "chat_template_kwargs",
)  # fmt: skip


def read_refusal(status: int, body: Any, headers: Mapping[str, str]) -> Failure:
    """What an HTTP error means: stop the run, fail this call, or try again."""
    said = list(dict.fromkeys(filter(None, _words_of(body))))
    everything = " ".join(said)
    text = " ".join((said or ["no reason given"])[0].split())[:300]
    name = f"{status}: {text}"
    if status == 402 or _NO_MONEY.search(everything):
        return Failure("no money", f"{name}: {REMEDIES[402]}", error=RunStopped)
    if 300 <= status < 400:
        where = headers.get("location", "another address")
        text = f"{status}: the server sends us on to {where}: set base_url to it if you trust it"
        return Failure(str(status), text, error=RunStopped)
    if status in (400, 403, 422) and _FLAGGED.search(everything):
        return Failure("flagged", f"{name}: this request was refused for what it asks")
    if status in REMEDIES:
        error = KeyRejected if status == 401 else RunStopped
        return Failure(str(status), f"{name}: {REMEDIES[status]}", error=error)
    if status == 429 or status >= 500 or status in (408, 409):
        return _busy(status, name, headers)
    if _TOO_LONG.search(everything) and not _NOT_TAKEN.search(everything):
        return Failure("too long", f"{name}: this dialogue has outgrown the model's context")
    not_taken = _NOT_TAKEN.search(everything)
    every_call = bool(not_taken or _WRONG_MODEL.search(everything))
    remedy = "change the request" + (": this model takes other settings" if every_call else "")
    error = RunStopped if every_call else TeacherError
    fields = _fields_of(everything) if not_taken else ()
    return Failure(str(status), f"{name}: {remedy}", error=error, fields=fields)


def _busy(status: int, name: str, headers: Mapping[str, str]) -> Failure:
    wait = _retry_after(headers)
    if wait is not None and wait > LONGEST_WAIT:
        remedy = f"the server asks to wait {wait:.0f} s: run again then to go on"
        return Failure(str(status), f"{name}: {remedy}", error=RunStopped)
    gave_up = status in (408, 502, 504) or (status > 511 and status != 529)  # perhaps billed
    return Failure(
        str(status), f"{name}: wait a little and run again to go on", gave_up, retry=True,
        crowded=status in (408, 429, 503, 504, 529), wait=wait,
    )  # fmt: skip


def _words_of(body: Any) -> Iterator[str]:
    """Every text a server put into an error, the most telling first, whatever its shape."""
    if isinstance(body, str):
        text = re.sub(r"<(script|style).*?</\1>|<[^>]+>", " ", body, flags=re.DOTALL | re.I)
        yield " ".join(text.split())
    elif isinstance(body, Mapping):
        for key in TELLING:
            if body.get(key):
                yield from _words_of(body[key])
    elif isinstance(body, list | tuple):
        for part in body:
            yield from _words_of(part)
    elif body is not None and not isinstance(body, bool):
        yield str(body)


def _fields_of(everything: str) -> tuple[str, ...]:
    """The fields of a request that an error names, in the order of the text."""
    return tuple(re.findall(rf"(?<!\w)(?:{'|'.join(FIELDS)})(?!\w)", everything))


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
    if {"SocketTimeoutError", "TimeoutError"} & set(causes):
        return Failure(
            "timeout", "no answer in time: run again to go on, or raise timeout",
            billed=True, retry=True, crowded=True,
        )  # fmt: skip
    if {"BadStatusLine", "BadHttpMessage", "InvalidURLError"} & set(causes):
        text = "what answers there is no web server: check base_url"
        return Failure("no web server", text, error=RunStopped)
    return Failure("dropped", "the connection broke: run again to go on", billed=True, retry=True)
