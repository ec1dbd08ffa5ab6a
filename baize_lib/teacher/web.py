"""OpenAI's chat API in front of an engine of one's own: what may be asked, how answers are sent.

An engine is a function that takes a request and yields (text, state) until its answer is whole:

    async def parrot(asked: ChatRequest) -> AsyncIterator[tuple[str, Written]]:
        yield asked.messages[-1].text, Written("stop", read=1, written=1)

    client = openai.OpenAI(base_url=serve_api(parrot, ["parrot"]), api_key="none")
"""

import hmac
import json
import secrets
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator

from baize_lib.config import BaizeError


class Written(NamedTuple):
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
    stop: Annotated[
        list[str], BeforeValidator(lambda stop: [stop] if isinstance(stop, str) else stop)
    ] = []
    repeat_penalty: float = Field(1, gt=0, le=2)
    n: Literal[1] = 1
    stream: bool = False
    stream_options: dict[str, bool] = {}
    user: str = ""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        return {name: value for name, value in body.items() if value is not None}

    @property
    def most(self) -> int | None:
        """The cap of the answer, tokens, if there is one."""
        return self.max_completion_tokens or self.max_tokens


Pieces = AsyncIterator[tuple[str, Written]]


def serve_api(
    engine: Callable[[ChatRequest], Pieces], models: Sequence[str], *, host: str = "127.0.0.1",
    port: int = 0, key: str = "",
) -> str:  # fmt: skip
    """Serve from a thread of this process until it ends; returns the address that clients need.

    A ValueError or BaizeError of the engine is the client's (400), a LookupError names a model that
    is not there (404), a RuntimeError is its own (500). Port 0 takes a free one. With a `key`,
    clients must send it; an address that others can reach is refused without one.
    """
    from aiohttp import web

    if host not in ("127.0.0.1", "localhost") and not key:
        raise BaizeError(f"host={host!r} lets other machines in: give a key that they must send")
    try:
        listening = socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        text = f"port {port} of {host} cannot be used ({error}): choose another, or port=0"
        raise BaizeError(text) from error
    server = threading.Thread(
        target=web.run_app, args=(_app(engine, models, key),), daemon=True,
        # when a client goes away, its answer is not written to its end
        kwargs={"sock": listening, "handler_cancellation": True, "handle_signals": False,
                "access_log": None, "print": None},
    )  # fmt: skip
    server.start()
    return f"http://{host}:{listening.getsockname()[1]}/v1"


def _app(engine: Callable[[ChatRequest], Pieces], models: Sequence[str], key: str) -> Any:
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
            return _refuse(404, str(error))
        except (ValueError, BaizeError) as error:
            return _refuse(400, f"bad request: {error}")
        except RuntimeError as error:
            return _refuse(500, f"the engine failed: {error}")

    async def names(_: web.Request) -> web.Response:
        rows = [{"id": name, "object": "model", "owned_by": "you"} for name in models]
        return web.json_response({"object": "list", "data": rows})

    app = web.Application(middlewares=[guard], client_max_size=8 << 20)
    app.add_routes([web.post("/v1/chat/completions", complete), web.get("/v1/models", names)])
    return app


def _refuse(status: int, text: str) -> Any:
    from aiohttp import web

    kind = "invalid_request_error" if status < 500 else "server_error"
    return web.json_response({"error": {"message": text, "type": kind}}, status=status)


async def _answer(request: Any, asked: ChatRequest, pieces: Pieces) -> Any:
    """Send an answer whole, or as the server-sent events of a client that wants to stream."""
    from aiohttp import web

    text, done = await anext(pieces)  # what is wrong shows before anything is sent
    head = {
        "id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()),
        "model": asked.model, "object": "chat.completion" + ".chunk" * asked.stream,
    }  # fmt: skip
    if not asked.stream:
        async for part, done in pieces:  # noqa: B007 - the last one counts
            text += part
        said = _choice(done.finish_reason, message={"role": "assistant", "content": text})
        return web.json_response(head | said | _usage(done))
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)

    async def send(body: dict[str, Any]) -> None:
        await response.write(f"data: {json.dumps(head | body)}\n\n".encode())

    await send(_choice(None, delta={"role": "assistant", "content": text}))
    async for part, done in pieces:  # noqa: B007
        if part:
            await send(_choice(None, delta={"content": part}))
    await send(_choice(done.finish_reason, delta={}))
    if asked.stream_options.get("include_usage"):
        await send({"choices": []} | _usage(done))
    await response.write(b"data: [DONE]\n\n")
    return response


def _choice(reason: str | None, **said: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, **said, "finish_reason": reason}]}


def _usage(done: Written) -> dict[str, Any]:
    counts = {"prompt_tokens": done.read, "completion_tokens": done.written}
    return {"usage": counts | {"total_tokens": done.read + done.written}}
