"""OpenAI's chat API in front of an engine of one's own: what may be asked, how answers are sent.

An engine is a function that takes a request and yields (text, state) until its answer is whole:

    async def parrot(asked: ChatRequest) -> AsyncIterator[Piece]:
        yield asked.messages[-1].text, Written("stop", read=1, written=1)

    client = openai.OpenAI(base_url=serve_api(parrot, ["parrot"]), api_key="none")
"""

import asyncio
import hmac
import json
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from baize_lib.config import BaizeError

__all__ = ["ChatRequest", "Written", "serve_api"]


@dataclass(frozen=True, slots=True)
class Written:
    """How far an answer is: why it ended ("stop" or "length"), tokens read and written so far."""

    finish_reason: str
    read: int
    written: int


class _Part(BaseModel):
    type: Literal["text"]
    text: str


class _Row(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_Part]

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class ChatRequest(BaseModel, extra="forbid"):
    """What a client may ask for; a field that would be ignored is refused by its name."""

    model: str = ""
    messages: list[_Row] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(1, ge=0, le=2)
    top_p: float = Field(1, gt=0, le=1)
    seed: int | None = Field(None, ge=0, lt=2**63)
    stop: list[str] = []
    repeat_penalty: float = Field(1, gt=0, le=2)
    n: Literal[1] = 1
    stream: bool = False
    stream_options: dict[str, bool] = {}
    user: str = ""

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, body: Any) -> Any:
        """A field that is null was not sent; one stop is a list of one."""
        if isinstance(body, dict):
            body = {name: value for name, value in body.items() if value is not None}
            if isinstance(body.get("stop"), str):
                body["stop"] = [body["stop"]]
        return body

    @property
    def most(self) -> int | None:
        """The cap of the answer, tokens, if there is one."""
        return self.max_completion_tokens or self.max_tokens


Piece = tuple[str, Written]
Engine = Callable[[ChatRequest], AsyncIterator[Piece]]


def serve_api(
    engine: Engine, models: Sequence[str], *, host: str = "127.0.0.1", port: int = 0, key: str = ""
) -> str:
    """Serve from a thread of this process until it ends; returns the address that clients need.

    Args:
        engine: a ValueError or BaizeError it raises is the client's (400), a LookupError names a
            model that is not there (404), a RuntimeError is its own (500).
        port: 0 takes a free one.
        key: what a client must send as its API key; "" takes any.

    Raises:
        BaizeError: the port is in use, or an address that others can reach has no key.
    """
    if host not in ("127.0.0.1", "localhost", "::1") and not key:
        raise BaizeError(f"host={host!r} lets other machines in: give a key that they must send")
    began: Future[int] = Future()
    if not 0 <= port < 1 << 16:
        raise BaizeError(f"port {port} is none: choose one from 1 to 65535, or 0 for a free one")
    work = _serve(engine, models, host, port, key, began)
    threading.Thread(target=asyncio.run, args=(work,), daemon=True).start()
    try:
        return f"http://{host}:{began.result(timeout=60)}/v1"
    except OSError as error:
        raise BaizeError(
            f"port {port} of {host} cannot be used ({error.strerror}): choose another, or port=0 "
            "for a free one"
        ) from error


async def _serve(
    engine: Engine, models: Sequence[str], host: str, port: int, key: str, began: "Future[int]"
) -> None:
    from aiohttp import web

    @web.middleware
    async def guard(request: web.Request, handler: Any) -> web.StreamResponse:
        given = request.headers.get("Authorization", "").encode()
        if key and not hmac.compare_digest(given, f"Bearer {key}".encode()):
            return _refuse(401, "wrong key: send the one that the server was started with")
        return await handler(request)

    async def complete(request: web.Request) -> web.StreamResponse:
        try:
            asked = ChatRequest.model_validate_json(await request.read())
            return await _answer(request, asked, engine(asked))
        except ValidationError as error:
            first = error.errors()[0]
            return _refuse(400, f"{'.'.join(map(str, first['loc']))}: {first['msg']}")
        except LookupError as error:
            return _refuse(404, str(error), "model_not_found")
        except (ValueError, BaizeError) as error:
            return _refuse(400, f"bad request: {error}")
        except RuntimeError as error:
            return _refuse(500, f"the engine failed: {error}")

    async def names(_: web.Request) -> web.Response:
        rows = [{"id": name, "object": "model", "owned_by": "you"} for name in models]
        return web.json_response({"object": "list", "data": rows})

    app = web.Application(middlewares=[guard], client_max_size=8 << 20)
    app.add_routes([web.post("/v1/chat/completions", complete), web.get("/v1/models", names)])
    # handler_cancellation: when a client goes away, its answer is not written to its end.
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
    try:
        await runner.setup()
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        began.set_exception(error)
    else:
        began.set_result(runner.addresses[0][1])
        await asyncio.Event().wait()


def _refuse(status: int, text: str, code: str | None = None) -> Any:
    from aiohttp import web

    kind = "invalid_request_error" if status < 500 else "server_error"
    error = {"message": text, "type": kind, "code": code}
    return web.json_response({"error": error}, status=status)


async def _answer(request: Any, asked: ChatRequest, pieces: AsyncIterator[Piece]) -> Any:
    """Send an answer whole, or as the server-sent events of a client that wants to stream."""
    from aiohttp import web

    text, done = await anext(pieces)  # what is wrong shows before anything is sent
    if not asked.stream:
        async for part, done in pieces:  # noqa: B007 - the last one counts
            text += part
        message = {"message": {"role": "assistant", "content": text}}
        return web.json_response(_body(asked, "", message, done) | {"usage": _usage(done)})
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)

    async def send(body: dict[str, Any]) -> None:
        await response.write(f"data: {json.dumps(body)}\n\n".encode())

    await send(_body(asked, ".chunk", {"delta": {"role": "assistant", "content": text}}))
    async for part, done in pieces:  # noqa: B007
        if part:
            await send(_body(asked, ".chunk", {"delta": {"content": part}}))
    await send(_body(asked, ".chunk", {"delta": {}}, done))
    if asked.stream_options.get("include_usage"):
        await send(_body(asked, ".chunk", {}) | {"choices": [], "usage": _usage(done)})
    await response.write(b"data: [DONE]\n\n")
    return response


def _body(
    asked: ChatRequest, kind: str, said: dict[str, Any], done: Written | None = None
) -> dict[str, Any]:
    choice = {"index": 0, **said, "finish_reason": done.finish_reason if done else None}
    return {
        "id": f"chatcmpl-{secrets.token_hex(12)}", "object": f"chat.completion{kind}",
        "created": int(time.time()), "model": asked.model, "choices": [choice],
    }  # fmt: skip


def _usage(done: Written) -> dict[str, int]:
    total = done.read + done.written
    return {
        "prompt_tokens": done.read, "completion_tokens": done.written, "total_tokens": total,
    }  # fmt: skip
