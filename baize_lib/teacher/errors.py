"""What came back from a teacher, and what it means: a reply, a retry, a failure, or the end.

The rules stand in `errors.toml`. In short: 429, 5xx, timeouts, broken connections: try again. 400,
a flagged question, a prompt too long: this call fails. 401, 404, no money: the run stops. A
timeout, a broken connection, a gateway's 502 or 504, an unreadable answer: perhaps billed.

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
from baize_lib.files import compiled, written
from baize_lib.teacher.prices import Usage

LONGEST_WAIT = 600.0  # seconds a Retry-After may ask for before the run is stopped instead
SAID = written(__file__, "errors.toml")
_FINISH = {theirs: ours for ours, names in SAID["finish"].items() for theirs in names.split()}
_MEANS = compiled(SAID["means"])
_FIELDS = re.compile(rf"(?<!\w)(?:{'|'.join(SAID['fields'].split())})(?!\w)")


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer and its bill."""

    text: str
    finish_reason: str  # "stop", "length" (cut by `max_tokens`), "content_filter" or "unknown"
    usage: Usage
    estimated: bool = False  # the server's count contradicts itself: the larger of what may be true
    cost_usd: float = 0.0  # now or when it was paid for
    found: bool = False  # it was in the table already, and cost nothing now
    seconds: float = 0.0  # all attempts together; 0 if it was found


class TeacherError(BaizeError):
    """A call failed for good. `kind` is a short name for counting."""

    def __init__(self, text: str, kind: str) -> None:
        super().__init__(text)
        self.kind = kind


class RunStopped(TeacherError):  # noqa: N818
    """No other call can do better: every later one is refused too, until `Teacher.start()`."""


class Halted(TeacherError):  # noqa: N818
    """The teacher was told to begin no further call."""


class Waiting(Halted):
    """The call is put off until the next batch: run the same again after `next_round()`."""


@dataclass(frozen=True, slots=True)
class Failure:
    """One attempt that gave no answer."""

    kind: str
    text: str
    billed: bool = False  # the server may still charge for it
    retry: bool = False
    error: type[TeacherError] = TeacherError
    crowded: bool = False  # the server has too much to do; ask for less at once
    wait: float | None = None  # seconds, from Retry-After
    fields: tuple[str, ...] = ()  # of the request, that the server does not take


# ---- answers


def read_answer(body: bytes, bound: Usage) -> Reply | Failure:
    """The reply in a response of status 200, `cost_usd` the server's own price, or 0.

    An answer that cannot be read was still billed.
    """
    try:
        data = json.loads(body)
        if isinstance(data, dict) and not data.get("choices") and any(words_of(data)):
            return _error_at_200(data.get("error") or data)
        choice = data["choices"][0]
        if isinstance(choice.get("error"), dict) and not choice.get("message"):
            return _error_at_200(choice["error"])
        message = choice.get("message") or {}
        text = _text_of(message.get("content")) or _text_of(message.get("refusal"))
        thoughts = _text_of(message.get("reasoning_content")) or _text_of(message.get("reasoning"))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        text = f"the answer cannot be read ({type(error).__name__}): try again, or check base_url"
        return Failure("malformed answer", text, billed=True, retry=True)
    said = str(choice.get("finish_reason") or "").strip().lower()
    reason = _FINISH.get(said, "unknown")
    if reason == "failed":
        failed = f"the server gave up on its answer ({said}): run again to go on"
        return Failure("failed answer", failed, billed=True, retry=True)
    text = re.sub("[\ud800-\udfff]", "\ufffd", text)
    usage, usd, estimated = read_usage(data.get("usage"), text + thoughts, bound)
    return Reply(text, reason, usage, estimated, usd)


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
    details: dict[str, Any] = {}
    for name in ("prompt", "input", "completion", "output"):
        more = reported.get(f"{name}_tokens_details")
        details |= more if isinstance(more, dict) else {}
    thoughts = _number(details, "reasoning_tokens")
    thoughts += output if thoughts > output else 0  # then the output was counted without them
    least = max(total - prompt, thoughts, math.ceil(len(written) / 16))
    estimated = not prompt or output < least or 0 < total != prompt + output
    said_none = any(type(reported.get(n)) is int for n in ("completion_tokens", "output_tokens"))
    if not (output or thoughts or total > prompt) and (written or not said_none):
        estimated, output = True, max(bound.output, math.ceil(len(written) / 4))
    cached = max(_number(details, "cached_tokens"), _number(reported, "prompt_cache_hit_tokens"))
    prompt = prompt or bound.input
    usage = Usage(prompt, cached if cached <= prompt else 0, max(output, least))
    usd = reported.get("cost")
    is_price = isinstance(usd, int | float) and 0 < usd < 1e5  # a call of more is no call
    return usage, float(usd) if is_price else 0.0, estimated


def _number(row: Mapping[str, Any], *names: str) -> int:
    """The largest sensible count under these names; 0 for none, and for what is no count."""
    found = (row.get(name) for name in names)
    return max((int(n) for n in found if type(n) in (int, float) and 0 <= n < 1e9), default=0)


# ---- refusals: an HTTP status and what the server said


def read_refusal(status: int, body: Any, headers: Mapping[str, str]) -> Failure:
    """What an HTTP error means: stop the run, fail this call, or try again."""
    said = list(dict.fromkeys(filter(None, words_of(body))))
    reason, everything = said[0][:300] if said else "no reason given", " ".join(said)
    rule = next(
        rule
        for rule in SAID["refusals"]
        if re.fullmatch(rule.get("status", ".*"), str(status))
        if "means" not in rule or _MEANS[rule["means"]].search(everything)
    )
    wait = _retry_after(headers)
    if rule.get("retry") and (wait or 0) > LONGEST_WAIT:
        remedy = f"it asks to wait {wait:.0f} s: run again then to go on"
        rule = {"remedy": remedy, "stops": True}
    remedy = rule["remedy"].format(location=headers.get("location", "another address"))
    fields = _FIELDS.findall(everything) if rule.get("fields") else ()  # in the order of the text
    kind = rule.get("kind", str(status))
    return _failure(rule, kind, f"{status}: {reason}: {remedy}", wait=wait, fields=tuple(fields))


def _failure(rule: Mapping[str, Any], kind: str, text: str, **more: Any) -> Failure:
    flags = {name: rule[name] for name in ("billed", "retry", "crowded") if name in rule}
    error = RunStopped if rule.get("stops") else TeacherError
    return Failure(kind, text, error=error, **flags, **more)


def words_of(body: Any) -> Iterator[str]:
    """Every text a server put into an error, the most telling first, whatever its shape."""
    if isinstance(body, str):
        text = re.sub(r"(?is)<(script|style).*?</\1>|<[^>]+>", " ", body)
        yield " ".join(text.split())
    elif isinstance(body, Mapping):
        for key in SAID["telling"].split():
            if body.get(key):
                yield from words_of(body[key])
    elif isinstance(body, list | tuple):
        for part in body:
            yield from words_of(part)
    elif body is not None and not isinstance(body, bool):
        yield str(body)


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


def read_error(error: Exception) -> Failure:
    """What an error of the SDK means: only a connection never made is certainly not billed."""
    import openai

    if isinstance(error, openai.APIStatusError):
        return read_refusal(error.status_code, error.body, error.response.headers)
    causes, cause = set(), error
    while cause is not None:
        causes |= {kind.__name__ for kind in type(cause).__mro__}
        cause = cause.__cause__ or cause.__context__
    rule = next(rule for rule in SAID["broken"] if causes & set(rule["causes"].split()))
    return _failure(rule, rule["kind"], rule["text"].format(error=f"{error!r:.300}"))
