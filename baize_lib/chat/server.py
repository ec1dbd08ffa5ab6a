"""The chatbot behind the interface of OpenAI's chat API, so that other programs can talk to it.

"base", "own layout" and each adapter are models by name. The course's own teacher client can ask
too: your student may be the next run's teacher.

    address = serve(chat, port=0, wait=False)     # "http://127.0.0.1:41231/v1"
    client = openai.OpenAI(base_url=address, api_key="none")
    client.chat.completions.create(model="tuned", messages=[{"role": "user", "content": "Hello"}])
"""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator

from baize_lib.chat.model import ChatModel
from baize_lib.dialogue import Message
from baize_lib.teacher.web import ChatRequest, Written, serve_api

__all__ = ["serve"]


def serve(
    chat: ChatModel, port: int = 8000, *, host: str = "127.0.0.1", key: str = "", wait: bool = True
) -> str:
    """Serve `chat` until this process ends or Ctrl-C; returns the address that clients need.

    Args:
        port: 0 takes a free one.
        host: "127.0.0.1" can be reached from this machine only; others need a `key`.
        key: what a client must send as its API key; "" takes any.
        wait: stay here; else serve from a thread and return at once.
    """

    async def answer(asked: ChatRequest) -> AsyncIterator[tuple[str, Written]]:
        if asked.model not in chat.models:
            raise LookupError(f"no model {asked.model!r} here: use {', '.join(chat.models)}")
        if asked.repeat_penalty != 1:
            raise ValueError("repeat_penalty is not known here: leave it out")
        async for piece in _follow(chat, asked):
            yield piece

    address = serve_api(answer, chat.models, host=host, port=port, key=key)
    if wait:
        print(f"{', '.join(chat.models)} at {address} (Ctrl-C ends it)", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
    return address


async def _follow(chat: ChatModel, asked: ChatRequest) -> AsyncIterator[tuple[str, Written]]:
    """What `chat.follow` yields, from a thread that ends when nobody listens any more."""
    loop, queue, gone = asyncio.get_running_loop(), asyncio.Queue(), threading.Event()
    roles = {"developer": "system"}
    messages = [Message(roles.get(row.role, row.role), row.text) for row in asked.messages]

    def work() -> None:
        end: Exception | None = None
        try:
            for piece in chat.follow(
                messages, asked.model, max_tokens=asked.most or 256, stop=asked.stop,
                temperature=asked.temperature, top_p=asked.top_p, seed=asked.seed,
            ):  # fmt: skip
                loop.call_soon_threadsafe(queue.put_nowait, piece)
                if gone.is_set():
                    break
        except Exception as error:  # noqa: BLE001 - raised again where it is awaited
            end = error
        loop.call_soon_threadsafe(queue.put_nowait, end)

    loop.run_in_executor(None, work)
    try:
        while isinstance(piece := await queue.get(), tuple):
            text, answer = piece
            reason = "length" if answer.stopped_by == "length" else "stop"
            yield text, Written(reason, answer.num_read, answer.num_tokens)
        if piece is not None:
            raise piece
    finally:
        gone.set()
