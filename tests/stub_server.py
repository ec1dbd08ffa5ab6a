"""A stand-in for the OpenAI API over real HTTP: chat, models, files and batches, and its faults.

It answers as the API does, errors included, and counts every call it answered, so that a test can
compare what was paid with what was recorded. In a test it runs in a thread; for benchmarks and
kill tests as a process of its own: `python tests/stub_server.py --latency 0.2` prints its address.

    with StubServer(latency=0.01) as stub:
        stub.script("429 retry-after=1", "500", "reset")   # the next three calls go wrong so
        client = openai.AsyncOpenAI(base_url=stub.url, api_key="sk-test")

Faults: `429`, `429 retry-after=SECONDS`, `429 retry-after-ms=MS`, `429 retry-after-date=SECONDS`,
`quota`, `400`, `context`, `401`, `403`, `404`, `echo-key` (a 401 that repeats the key), `500`,
`502`, `503`, `504`, `reset`, `reset-after` (answered and billed, but never received), `hang`,
`malformed`, `html`, `no-choices`, `no-usage`, `length`, `empty`, `filter`.

Other servers' ways are told as a dict: `{"status": 403, "body": …, "headers": …}` is sent as it is
(a text, bytes or JSON); without a status it is a completion with these fields exchanged: `usage`,
`finish_reason`, `message`, `choices`. A `rule` (request body -> such a dict or None) is asked about
every call, so that a server that forbids a field is one line.
"""

import argparse
import asyncio
import contextlib
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

from aiohttp import web

BAD_KEY = "sk-bad"  # the key this server refuses
STATUS_FAULTS = {
    "400": ("invalid_request_error", "invalid_value", "Invalid value: 'stub'."),
    "context": (
        "invalid_request_error", "context_length_exceeded",
        "This model's maximum context length is 4096 tokens.",
    ),
    "401": ("invalid_request_error", "invalid_api_key", "Incorrect API key provided: sk-***bad."),
    "403": ("permission_error", "unsupported_country", "Country, region not supported."),
    "404": ("invalid_request_error", "model_not_found", "The model 'stub' does not exist."),
    "409": ("conflict_error", "conflict", "Conflict."),
    "429": ("requests", "rate_limit_exceeded", "Rate limit reached for requests."),
    "quota": (
        "insufficient_quota", "insufficient_quota",
        "You exceeded your current quota, please check your plan and billing details.",
    ),
    "500": ("server_error", None, "The server had an error while processing your request."),
    "502": ("server_error", None, "Bad gateway."),
    "503": ("server_error", None, "The engine is currently overloaded, please try again later."),
    "504": ("server_error", None, "Gateway timeout."),
}  # fmt: skip
STATUS_OF = {"context": 400, "quota": 429}


class StubServer:
    """The server and what it counted.

    Attributes:
        latency: seconds every chat call takes.
        reply: what a chat call answers: (request body) -> text.
        max_in_flight: more chat calls than this at once are answered 429, as by a rate limit.
        calls: Counter of all requests by "METHOD path"; `outcomes`: chat calls by fault or "ok".
        answered: chat calls answered with status 200 (billed ones), with their tokens in `input`
            and `output`; `log`: one (request body, usage) per answered call while `keep_log`.
        peak: the most chat calls ever in flight.
        rule: (request body) -> how this server answers it otherwise, or None; see above.
        slots, queue: how many calls are worked on at once, and may wait; one more gets a 503.
        keyless: whether a call without a key is welcome.
    """

    def __init__(self, *, latency: float = 0.0, reply: Callable[[dict], str] | None = None) -> None:
        self.latency, self.reply = latency, reply or default_reply
        self.max_in_flight: int | None = None
        self.rule: Callable[[dict], dict | None] | None = None
        self.slots: int | None = None
        self.queue, self.keyless, self._places = 10**9, False, None
        self.keep_log, self.log = True, []
        self.calls: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.answered = self.input = self.output = 0
        self.in_flight = self.peak = 0
        self.keys_seen: set[str] = set()
        self.batch_polls = 2  # how often a batch is asked for before it is done
        self.batch_end = "completed"  # or "failed", "expired", "cancelled"
        self._script: list[str] = []
        self._row_script: list[str] = []
        self._files: dict[str, dict[str, Any]] = {}
        self._batches: dict[str, dict[str, Any]] = {}
        self._made = 0

    # ---- what a test says and asks

    def script(self, *faults: str | dict[str, Any]) -> None:
        """Queue faults: each chat call takes the next; "ok" is a call without one."""
        self._script.extend(faults)

    def script_rows(self, *faults: str) -> None:
        """Queue faults for the rows of the next batches: "ok", "500", "length", "expired"…"""
        self._row_script.extend(faults)

    def stats(self) -> dict[str, Any]:
        names = ("answered", "input", "output", "in_flight", "peak")
        counts = {name: getattr(self, name) for name in names}
        return counts | {"calls": dict(self.calls), "outcomes": dict(self.outcomes)}

    # ---- running: in a thread, or for ever

    def __enter__(self) -> "StubServer":
        started = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, args=(started,), daemon=True)
        self._thread.start()
        started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def _run(self, started: threading.Event) -> None:
        async def main() -> None:
            self._stop = asyncio.Event()
            runner = await self.start()
            started.set()
            await self._stop.wait()
            await runner.cleanup()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            await asyncio.sleep(0)

        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(main())
        self._loop.close()

    async def start(self, port: int = 0) -> web.ServerRunner:
        """Listen on the loopback interface; `url` is the base address for a client."""
        runner = web.ServerRunner(web.Server(self._serve, access_log=None), shutdown_timeout=0.2)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", port, backlog=2048)
        await site.start()
        self.port = runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        return runner

    # ---- answering

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path.removeprefix("/v1")
        self.calls[f"{request.method} /{path.split('/')[1]}"] += 1
        if path == "/stats":
            return _json(self.stats())
        if path == "/script":
            self.script(*await request.json())
            return _json({"queued": len(self._script)})
        key = request.headers.get("Authorization", "").removeprefix("Bearer ")
        self.keys_seen.add(key)
        if key == BAD_KEY or not (key or self.keyless):
            return _error("401")
        if path == "/chat/completions":
            return await self._chat(request, key)
        if path == "/models":
            return _json({"object": "list", "data": [{"id": "stub", "object": "model"}]})
        if path.startswith("/files"):
            return await self._file(request, path.split("/")[2:])
        if path.startswith("/batches"):
            return await self._batch(request, path.split("/")[2:])
        return _error("404")

    async def _chat(self, request: web.BaseRequest, key: str) -> web.StreamResponse:
        body = json.loads(await request.read())
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        try:
            crowded = self.max_in_flight is not None and self.in_flight > self.max_in_flight
            fault = "429" if crowded else (self._script.pop(0) if self._script else "ok")
            if fault == "ok" and self.rule:
                fault = self.rule(body) or "ok"
            if self.slots and self.in_flight > self.slots + self.queue:
                fault = "503"
            self.outcomes[fault if isinstance(fault, str) else str(fault.get("status", 200))] += 1
            await self._work(crowded or fault == "503")
            return await self._answer(request, body, fault, key)
        finally:
            self.in_flight -= 1

    async def _work(self, refused: bool) -> None:
        """Take the time of an answer, in one of the slots."""
        if self.slots and not refused:
            self._places = self._places or asyncio.Semaphore(self.slots)
            async with self._places:
                await asyncio.sleep(self.latency)
        elif self.latency and not refused:
            await asyncio.sleep(self.latency)

    async def _answer(
        self, request: web.BaseRequest, body: dict[str, Any], fault: str | dict, key: str
    ) -> web.StreamResponse:
        if isinstance(fault, dict):
            return self._otherwise(body, fault)
        name, _, option = fault.partition(" ")
        if name in STATUS_FAULTS:
            return _error(name, headers=_retry_headers(option))
        if name == "echo-key":
            return _error("401", message=f"Incorrect API key provided: {key}. Header: Bearer {key}")
        if name == "hang":
            await asyncio.sleep(3600)
        if name == "reset":
            request.transport.abort()
            return web.Response()
        completion = self._complete(body, name)
        self._bill(body, completion["usage"])
        if name == "reset-after":
            request.transport.abort()
            return web.Response()
        if name == "malformed":
            return web.Response(body=json.dumps(completion)[:-40], content_type="application/json")
        if name == "html":
            return web.Response(text="<html>It works</html>", content_type="text/html")
        if name == "no-choices":
            completion["choices"] = []
        if name == "no-usage":
            del completion["usage"]
        return _json(completion)

    def _otherwise(self, body: dict[str, Any], other: dict[str, Any]) -> web.Response:
        if "status" in other:
            said = other.get("body", "")
            data = said if isinstance(said, bytes) else (
                said.encode() if isinstance(said, str) else json.dumps(said).encode()
            )  # fmt: skip
            kind = "text/html" if isinstance(said, str | bytes) else "application/json"
            headers = other.get("headers")
            return web.Response(body=data, status=other["status"], headers=headers,
                                content_type=kind)  # fmt: skip
        return _json(self._exchanged(body, other))

    def _exchanged(self, body: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
        completion = self._complete(body, "ok")
        self._bill(body, completion["usage"])
        choice = completion["choices"][0]
        choice |= {name: other[name] for name in ("finish_reason", "message") if name in other}
        return completion | {n: other[n] for n in ("usage", "choices") if n in other}

    def _bill(self, body: dict[str, Any], usage: dict[str, Any]) -> None:
        self.answered += 1
        self.input += usage["prompt_tokens"]
        self.output += usage["completion_tokens"]
        if self.keep_log:
            self.log.append((body, usage))

    def _complete(self, body: dict[str, Any], fault: str) -> dict[str, Any]:
        """A completion of the request; a token is four characters here."""
        text = {"empty": "", "filter": ""}.get(fault)
        text = self.reply(body) if text is None else text
        stops = body.get("stop") or []
        for stop in [stops] if isinstance(stops, str) else stops:
            text = text.partition(stop)[0]
        cap = body.get("max_completion_tokens") or body.get("max_tokens") or 4096
        if fault == "length":
            text, cap = (text * 99)[: 4 * cap], cap
        reason = {"filter": "content_filter", "length": "length"}.get(fault, "stop")
        if len(text) > 4 * cap:
            text, reason = text[: 4 * cap], "length"
        prompt = sum(4 + len(m["content"]) // 4 for m in body["messages"])
        output = -(-len(text) // 4)
        self._made += 1
        return {
            "id": f"chatcmpl-{self._made}", "object": "chat.completion",
            "created": int(time.time()), "model": body["model"],
            "choices": [{
                "index": 0, "finish_reason": reason, "logprobs": None,
                "message": {"role": "assistant", "content": text, "refusal": None},
            }],
            "usage": {
                "prompt_tokens": prompt, "completion_tokens": output,
                "total_tokens": prompt + output, "prompt_tokens_details": {"cached_tokens": 0},
            },
        }  # fmt: skip

    # ---- files and batches

    async def _file(self, request: web.BaseRequest, rest: list[str]) -> web.StreamResponse:
        if request.method == "POST":
            form = await request.post()
            upload = form["file"]
            content = upload.file.read() if hasattr(upload, "file") else str(upload).encode()
            return _json(self._store(content, str(form["purpose"]), upload.filename))
        if not rest:
            return _json({"object": "list", "data": [f["card"] for f in self._files.values()]})
        if rest[0] not in self._files:
            return _error("404", message=f"No such File object: {rest[0]}")
        if request.method == "DELETE":
            del self._files[rest[0]]
            return _json({"id": rest[0], "object": "file", "deleted": True})
        stored = self._files[rest[0]]
        return web.Response(body=stored["content"]) if rest[1:] else _json(stored["card"])

    def _store(self, content: bytes, purpose: str, filename: str) -> dict[str, Any]:
        self._made += 1
        card = {
            "id": f"file-{self._made}", "object": "file", "bytes": len(content),
            "created_at": int(time.time()), "filename": filename, "purpose": purpose,
            "status": "processed",
        }  # fmt: skip
        self._files[card["id"]] = {"card": card, "content": content}
        return card

    async def _batch(self, request: web.BaseRequest, rest: list[str]) -> web.StreamResponse:
        if request.method == "POST" and not rest:
            return self._new_batch(await request.json())
        if not rest:
            batches = list(reversed(self._batches.values()))
            return _json(
                {"object": "list", "data": [_public(b) for b in batches], "has_more": False}
            )
        if rest[0] not in self._batches:
            return _error("404", message=f"No batch with id {rest[0]}")
        batch = self._batches[rest[0]]
        if rest[1:] == ["cancel"]:
            batch["status"] = "cancelled"
        else:
            self._advance(batch)
        return _json(_public(batch))

    def _new_batch(self, body: dict[str, Any]) -> web.StreamResponse:
        if body["input_file_id"] not in self._files:
            return _error("400", message=f"No such File object: {body['input_file_id']}")
        self._made += 1
        now = int(time.time())
        batch = {
            "id": f"batch_{self._made}", "object": "batch", "endpoint": body["endpoint"],
            "errors": None, "input_file_id": body["input_file_id"], "completion_window": "24h",
            "status": "validating", "output_file_id": None, "error_file_id": None,
            "created_at": now, "in_progress_at": None, "expires_at": now + 86400,
            "completed_at": None, "metadata": body.get("metadata"),
            "request_counts": {"total": 0, "completed": 0, "failed": 0}, "_polls": 0,
        }  # fmt: skip
        self._batches[batch["id"]] = batch
        return _json(_public(batch))

    def _advance(self, batch: dict[str, Any]) -> None:
        """Each time a batch is asked for it gets on: validating, in_progress, finalizing, done."""
        if batch["status"] in ("completed", "failed", "expired", "cancelled"):
            return
        batch["_polls"] += 1
        rows = self._files[batch["input_file_id"]]["content"].splitlines()
        total = batch["request_counts"]["total"] = len(rows)
        if batch["_polls"] < self.batch_polls:
            batch["status"] = "in_progress"
            batch["request_counts"]["completed"] = total * batch["_polls"] // self.batch_polls
            return
        if self.batch_end == "failed":
            batch["status"] = "failed"
            fault = {"code": "invalid_json_line", "line": 1, "message": "This line is not valid."}
            batch["errors"] = {"object": "list", "data": [fault]}
            return
        self._finish(batch, [json.loads(row) for row in rows])

    def _finish(self, batch: dict[str, Any], rows: list[dict[str, Any]]) -> None:
        good, bad = [], []
        for row in rows:
            fault = self._row_script.pop(0) if self._row_script else "ok"
            if fault == "ok" and self.rule:
                fault = self.rule(row["body"]) or "ok"
            if fault == "unsent":  # neither file names it
                continue
            failed = isinstance(fault, dict) and "status" in fault
            failed = failed or str(fault) in STATUS_FAULTS or fault == "expired"
            (bad if failed else good).append(self._batch_row(row, fault))
        batch |= {
            "status": self.batch_end, "completed_at": int(time.time()),
            "request_counts": {"total": len(rows), "completed": len(good), "failed": len(bad)},
        }  # fmt: skip
        for field, lines in (("output_file_id", good), ("error_file_id", bad)):
            if lines:
                content = "".join(json.dumps(line) + "\n" for line in lines).encode()
                batch[field] = self._store(content, "batch_output", f"{field}.jsonl")["id"]

    def _batch_row(self, row: dict[str, Any], fault: str) -> dict[str, Any]:
        line = {"id": f"batch_req_{self._made}", "custom_id": row["custom_id"], "error": None}
        if fault == "expired":
            error = {
                "code": "batch_expired",
                "message": "This request could not be executed in time.",
            }
            return line | {"response": None, "error": error}
        if isinstance(fault, dict) and "row_error" in fault:
            return line | {"response": None, "error": fault["row_error"]}
        if isinstance(fault, dict):
            status = fault.get("status", 200)
            body = fault["body"] if "status" in fault else self._exchanged(row["body"], fault)
        elif fault in STATUS_FAULTS:
            status, body = STATUS_OF.get(fault) or int(fault), _error_body(fault)
        else:
            status, body = 200, self._complete(row["body"], fault)
            self._bill(row["body"], body["usage"])
        return line | {"response": {"status_code": status, "request_id": "r", "body": body}}


def default_reply(body: dict[str, Any]) -> str:
    """A short, always equal answer; a whole transcript where the prompt asks for one."""
    asked = body["messages"][-1]["content"]
    number = len(body["messages"])
    if any("[Human]" in m["content"] and "[AI]" in m["content"] for m in body["messages"]):
        return (
            f"[Human] Can you tell me about it ({len(asked)})?\n[AI] It is a large subject.\n"
            "[Human] Where do I begin?\n[AI] Begin with a small example.\n"
            "[Human] And then?\n[AI] Then write one yourself."
        )
    return f"Message {number}: {asked[:60].strip()} is worth a closer look, would you agree?"


def _retry_headers(option: str) -> dict[str, str]:
    name, _, value = option.partition("=")
    if name == "retry-after-date":
        return {"Retry-After": formatdate(time.time() + float(value), usegmt=True)}
    return {name: value} if name else {}


def _error_body(fault: str, message: str | None = None) -> dict[str, Any]:
    kind, code, text = STATUS_FAULTS[fault]
    return {"error": {"message": message or text, "type": kind, "param": None, "code": code}}


def _error(
    fault: str, *, message: str | None = None, headers: dict[str, str] | None = None
) -> web.Response:
    status = STATUS_OF.get(fault) or int(fault)
    return _json(_error_body(fault, message), status=status, headers=headers)


def _json(data: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        body=json.dumps(data).encode(), status=status, headers=headers,
        content_type="application/json",
    )  # fmt: skip


def _public(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in batch.items() if not name.startswith("_")}


async def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--latency", type=float, default=0.0, help="seconds a chat call takes")
    parser.add_argument("--port", type=int, default=0, help="0 chooses a free one")
    parser.add_argument("--max-in-flight", type=int, help="more chat calls at once get a 429")
    parser.add_argument("--faults", nargs="*", default=[], help="queued for the first chat calls")
    parser.add_argument("--log", action="store_true", help="keep the bodies of answered calls")
    options = parser.parse_args()
    stub = StubServer(latency=options.latency)
    stub.max_in_flight, stub.keep_log = options.max_in_flight, options.log
    stub.script(*options.faults)
    await stub.start(options.port)
    print(stub.url, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_main())
    sys.exit(0)
