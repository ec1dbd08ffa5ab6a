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

    Port 0 takes a free one. The default `host` can be reached from this machine only; others need a
    `key`, which clients then send as their API key. Without `wait` it serves from a thread.
    """

    async def answer(asked: ChatRequest) -> AsyncIterator[tuple[str, Written]]:
        if asked.model not in chat.models:
            raise LookupError(f"no model {asked.model!r} here: use {', '.join(chat.models)}")
        if asked.repeat_penalty != 1:
            raise ValueError("repeat_penalty is not known here: leave it out")
        roles = {"developer": "system"}
        pieces = chat.follow(
            [Message(roles.get(row.role, row.role), row.text) for row in asked.messages],
            asked.model, max_tokens=asked.most or 256, stop=asked.stop, seed=asked.seed,
            temperature=asked.temperature, top_p=asked.top_p,
        )  # fmt: skip
        # a token at a time, so that nothing more is written for a client that has gone
        while piece := await asyncio.to_thread(next, pieces, None):
            text, so_far = piece
            reason = "length" if so_far.stopped_by == "length" else "stop"
            yield text, Written(reason, so_far.num_read, so_far.num_tokens)

    address = serve_api(answer, chat.models, host=host, port=port, key=key)
    if wait:
        print(f"{', '.join(chat.models)} at {address} (Ctrl-C ends it)", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
    return address
