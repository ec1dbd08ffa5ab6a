"""The chatbot behind the interface of OpenAI's chat API, so that other programs can talk to it.

"base", "own layout" and each adapter are models by name. The course's own teacher client can ask
too: your student may be the next run's teacher.

    address = serve(chat, port=0, wait=False)     # "http://127.0.0.1:41231/v1"
    client = openai.OpenAI(base_url=address, api_key="none")
    client.chat.completions.create(model="tuned", messages=[{"role": "user", "content": "Hello"}])
"""

import asyncio
import contextlib
import json
import secrets
import socket
import threading
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator

from baize_lib.chat.model import ChatModel
from baize_lib.config import BaizeError
from baize_lib.dialogue import Message

__all__ = ["serve"]


class _Part(BaseModel):
    type: Literal["text"]
    text: str


class _Row(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_Part]

    @property
    def message(self) -> Message:
        parts = self.content
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        return Message("system" if self.role == "developer" else self.role, text)


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


def serve(chat: ChatModel, port: int = 8000, *, wait: bool = True) -> str:
    """Serve `chat` until this process ends or Ctrl-C; returns the address that clients need.

    Port 0 takes a free one. Only this machine can reach it, and others through `ssh -L`. Without
    `wait` it serves from a thread.
    """
    from aiohttp import web

    try:
        listening = socket.create_server(("127.0.0.1", port))
    except (OSError, OverflowError) as error:
        what = f"port {port} cannot be used ({error})"
        raise BaizeError(f"{what}: choose another, or 0 for a free one") from error
    threading.Thread(
        target=web.run_app, args=(_app(chat),), daemon=True,
        # when a client goes away, its answer is not written to its end
        kwargs={"sock": listening, "handler_cancellation": True, "handle_signals": False,
                "access_log": None, "print": None},
    ).start()  # fmt: skip
    address = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
    if wait:
        print(f"{', '.join(chat.models)} at {address} (Ctrl-C ends it)", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
    return address


def _app(chat: ChatModel) -> Any:
    from aiohttp import web

    def refuse(status: int, text: str) -> web.Response:
        kind = "invalid_request_error" if status < 500 else "server_error"
        return web.json_response({"error": {"message": text, "type": kind}}, status=status)

    async def complete(request: web.Request) -> web.StreamResponse:
        try:
            asked = ChatRequest.model_validate_json(await request.read())
            if asked.model in chat.models:
                return await _answer(request, asked, _follow(chat, asked))
            known = ", ".join(chat.models)
            return refuse(404, f"no model {asked.model!r} here: use {known}")
        except ValidationError as error:
            first = error.errors()[0]
            return refuse(400, f"{'.'.join(map(str, first['loc']))}: {first['msg']}")
        except (ValueError, BaizeError) as error:
            return refuse(400, f"bad request: {error}")
        except RuntimeError as error:
            return refuse(500, f"the model failed: {error}")

    async def names(_: web.Request) -> web.Response:
        rows = [{"id": name, "object": "model", "owned_by": "you"} for name in chat.models]
        return web.json_response({"object": "list", "data": rows})

    app = web.Application(client_max_size=8 << 20)
    app.add_routes([web.post("/v1/chat/completions", complete), web.get("/v1/models", names)])
    return app


async def _follow(chat: ChatModel, asked: ChatRequest) -> AsyncIterator[tuple[str, Any]]:
    """What `chat.follow` yields, a token at a time: none is written when nobody listens."""
    pieces = chat.follow(
        [row.message for row in asked.messages], asked.model, stop=asked.stop, seed=asked.seed,
        max_tokens=asked.max_completion_tokens or asked.max_tokens or 256,
        temperature=asked.temperature, top_p=asked.top_p,
    )  # fmt: skip
    while piece := await asyncio.to_thread(next, pieces, None):
        yield piece


async def _answer(request: Any, asked: ChatRequest, pieces: AsyncIterator[tuple[str, Any]]) -> Any:
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
        said = _choice(_reason(done), message={"role": "assistant", "content": text})
        return web.json_response(head | said | _usage(done))
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)

    async def send(body: dict[str, Any]) -> None:
        await response.write(f"data: {json.dumps(head | body)}\n\n".encode())

    await send(_choice(None, delta={"role": "assistant", "content": text}))
    async for part, done in pieces:  # noqa: B007
        if part:
            await send(_choice(None, delta={"content": part}))
    await send(_choice(_reason(done), delta={}))
    if asked.stream_options.get("include_usage"):
        await send({"choices": []} | _usage(done))
    await response.write(b"data: [DONE]\n\n")
    return response


def _reason(done: Any) -> str:
    return "length" if done.stopped_by == "length" else "stop"


def _choice(reason: str | None, **said: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, **said, "finish_reason": reason}]}


def _usage(done: Any) -> dict[str, Any]:
    counts = {"prompt_tokens": done.num_read, "completion_tokens": done.num_tokens}
    return {"usage": counts | {"total_tokens": done.num_read + done.num_tokens}}
