"""OpenVINO behind the interface of OpenAI's chat API, in two threads of this process.

Every step writes one token of each answer under way ("continuous batching"), and what a prompt has
in common with an earlier one is not read again: on a CPU with AVX-512 or AMX that is several times
faster than llama.cpp, which serves where OpenVINO has no wheel.

    address, key = serve_openvino(Path("qwen2.5-coder-1.5b-instruct-q4_k_m.gguf"))
    client = openai.OpenAI(base_url=f"{address}/v1", api_key=key)
    client.chat.completions.create(model="local", messages=[{"role": "user", "content": "Hello"}])
"""

import asyncio
import atexit
import itertools
import queue
import secrets
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from baize_lib.config import BaizeError

__all__ = ["serve_openvino"]


def serve_openvino(model_file: Path, *, slots: int = 48, context: int = 2048) -> tuple[str, str]:
    """Serve the GGUF file `model_file` until this process ends; gives (address, key).

    Args:
        slots: answers written at the same time; more requests wait.
        context: tokens a prompt and its answer may have together.
    """
    engine = _Engine(model_file, slots, context)
    key, port = secrets.token_urlsafe(24), queue.Queue()
    for work in (engine.work, lambda: asyncio.run(_serve(engine, key, port))):
        threading.Thread(target=work, daemon=True).start()
    atexit.register(engine.stop)
    return f"http://127.0.0.1:{port.get(timeout=60)}", key


class _Message(BaseModel):
    role: Literal["system", "user", "assistant"]
    content: str


class _Request(BaseModel, extra="forbid"):
    messages: list[_Message] = Field(min_length=1)
    model: str = ""
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(1, ge=0, le=2)
    top_p: float = Field(1, gt=0, le=1)
    seed: int = Field(0, ge=0, lt=2**63)
    stop: str | list[str] = []
    repeat_penalty: float = Field(1, gt=0, le=2)


class _Engine:
    """The model, and the one thread that steps its batch."""

    def __init__(self, model_file: Path, slots: int, context: int) -> None:
        import openvino_genai as genai

        plan = genai.SchedulerConfig()
        plan.max_num_seqs, plan.enable_prefix_caching = slots, True
        plan.num_kv_blocks = slots * -(-context // 32)  # 32 tokens in a block on a CPU
        try:
            self.pipeline = genai.ContinuousBatchingPipeline(str(model_file), plan, "CPU", {}, {})
        except RuntimeError as error:
            raise BaizeError(f"OpenVINO can't read {model_file}; use llama.cpp: {error}") from error
        self.tokenizer = self.pipeline.get_tokenizer()
        self.name, self.context = model_file.stem, context
        self.inbox: queue.Queue[tuple | None] = queue.Queue()
        self.ended = threading.Event()

    def read(self, body: bytes) -> tuple[Any, Any]:
        """A request as (prompt's tokens, settings); a ValueError says what is wrong with it."""
        asked = _Request.model_validate_json(body)
        messages = [message.model_dump() for message in asked.messages]
        text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        ids = self.tokenizer.encode(text, add_special_tokens=False).input_ids
        room = self.context - ids.get_size()
        most = asked.max_completion_tokens or asked.max_tokens or max(room, 1)
        if most > room:
            raise ValueError(f"{ids.get_size()} prompt + {most} tokens are over {self.context}")
        config = self.pipeline.get_config()  # knows the model's end-of-text tokens
        config.max_new_tokens, config.repetition_penalty = most, asked.repeat_penalty
        config.stop_strings = {asked.stop} if isinstance(asked.stop, str) else set(asked.stop)
        if asked.temperature > 0:
            config.do_sample, config.rng_seed = True, asked.seed
            config.temperature, config.top_p = asked.temperature, asked.top_p
        return ids, config

    def work(self) -> None:
        """Step the batch while there is one, else wait for a request; until `stop`."""
        live: dict[Future, Any] = {}
        numbers = itertools.count()
        while True:
            while not live or not self.inbox.empty():
                if (job := self.inbox.get()) is None:
                    return self.ended.set()
                future, ids, config = job
                live[future] = self.pipeline.add_request(next(numbers), ids, config)
            error = None
            try:
                self.pipeline.step()
            except RuntimeError as failure:  # OpenVINO's: no answer of this batch can go on
                error = failure
            over = [future for future, handle in live.items() if _over(future, handle, error)]
            for future in over:
                del live[future]
            # A step holds Python's lock: leave a moment to send answers and take what follows.
            time.sleep(0.01 if over else 0.001)

    def answer(self, ids: Any, config: Any, found: Any) -> dict[str, Any]:
        """A finished answer as OpenAI's API writes it."""
        text = self.tokenizer.decode(found.generated_ids)
        for stop in config.stop_strings:  # OpenVINO cuts off whole tokens only
            text = text.partition(stop)[0]
        reason = "stop" if found.finish_reason.name == "STOP" else "length"
        message = {"role": "assistant", "content": text}
        read, written = ids.get_size(), len(found.generated_ids)
        usage = {"prompt_tokens": read, "completion_tokens": written}
        return {
            "id": f"chatcmpl-{secrets.token_hex(12)}", "object": "chat.completion",
            "created": int(time.time()), "model": self.name,
            "choices": [{"index": 0, "message": message, "finish_reason": reason}],
            "usage": usage | {"total_tokens": read + written},
        }  # fmt: skip

    def stop(self) -> None:
        """End the thread between two steps: the interpreter must not go away under it."""
        self.inbox.put(None)
        self.ended.wait(30)


def _over(future: Future, handle: Any, error: Exception | None) -> bool:
    """Hand over a finished answer, or drop one that failed or that nobody waits for any more."""
    if future.cancelled() or error:
        handle.cancel()
    elif handle.get_status().name == "RUNNING":
        return False
    if future.set_running_or_notify_cancel():
        found = handle.read_all() if not error else []
        if found:
            future.set_result(found[0])
        else:
            future.set_exception(error or RuntimeError("the cache is full: ask for fewer at once"))
    return True


async def _serve(engine: _Engine, key: str, port: queue.Queue[int]) -> None:
    from aiohttp import web

    def refuse(status: int, text: str) -> web.Response:
        kind = "invalid_request_error" if status < 500 else "server_error"
        return web.json_response({"error": {"message": text, "type": kind}}, status=status)

    @web.middleware
    async def guard(request: web.Request, handler: Any) -> web.StreamResponse:
        given = request.headers.get("Authorization", "").encode()
        if not secrets.compare_digest(given, f"Bearer {key}".encode()):
            return refuse(401, "wrong key: send the one that serve_openvino gave")
        return await handler(request)

    async def chat(request: web.Request) -> web.Response:
        try:
            ids, config = engine.read(await request.read())
        except (ValueError, RuntimeError) as error:
            return refuse(400, f"bad request: {error}")
        future: Future = Future()
        engine.inbox.put((future, ids, config))
        try:
            found = await asyncio.wrap_future(future)
        except RuntimeError as error:
            return refuse(500, f"OpenVINO failed: {error}")
        return web.json_response(engine.answer(ids, config, found))

    async def models(_: web.Request) -> web.Response:
        model = {"id": engine.name, "object": "model"}
        return web.json_response({"object": "list", "data": [model]})

    app = web.Application(middlewares=[guard], client_max_size=8 << 20)
    app.add_routes([web.post("/v1/chat/completions", chat), web.get("/v1/models", models)])
    # handler_cancellation: when a client goes away, its answer is not written to its end.
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port.put(runner.addresses[0][1])
    await asyncio.Event().wait()
