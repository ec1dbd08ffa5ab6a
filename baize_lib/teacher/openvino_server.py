"""OpenVINO behind the interface of OpenAI's chat API, in two threads of this process.

Every step writes one token of each answer under way ("continuous batching"), and what a prompt has
in common with an earlier one is not read again: on a CPU with AVX-512 or AMX that is several times
faster than llama.cpp.

    address, key = serve_openvino(Path("qwen2.5-coder-1.5b-instruct-q4_k_m.gguf"), 48, 2048)
    client = openai.OpenAI(base_url=address, api_key=key)
"""

import asyncio
import atexit
import itertools
import queue
import secrets
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from baize_lib.config import BaizeError
from baize_lib.teacher.web import ChatRequest, Written, serve_api


def serve_openvino(model_file: Path, slots: int, context: int) -> tuple[str, str]:
    """Serve a GGUF file until this process ends; gives (address, key).

    `slots` answers are written at the same time, and more requests wait; `context` is the tokens a
    prompt and its answer may have together.
    """
    engine = _Engine(model_file, slots, context)
    key = secrets.token_urlsafe(24)
    threading.Thread(target=engine.work, daemon=True).start()
    atexit.register(engine.stop)
    return serve_api(engine.answer, [model_file.stem], key=key), key


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
        self.tokenizer, self.context = self.pipeline.get_tokenizer(), context
        self.inbox: queue.Queue[tuple | None] = queue.Queue()
        self.ended = threading.Event()

    def read(self, asked: ChatRequest) -> tuple[Any, Any]:
        """A request as (prompt's tokens, settings); a ValueError says what is wrong with it."""
        messages = [{"role": row.role, "content": row.text} for row in asked.messages]
        text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        ids = self.tokenizer.encode(text, add_special_tokens=False).input_ids
        room = self.context - ids.get_size()
        most = asked.most or max(room, 1)
        if most > room:
            raise ValueError(f"{ids.get_size()} prompt + {most} tokens are over {self.context}")
        config = self.pipeline.get_config()  # knows the model's end-of-text tokens
        config.max_new_tokens, config.repetition_penalty = most, asked.repeat_penalty
        config.stop_strings = set(asked.stop)
        if asked.temperature > 0:
            config.do_sample, config.rng_seed = True, asked.seed or 0
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

    async def answer(self, asked: ChatRequest) -> AsyncIterator[tuple[str, Written]]:
        """A request's whole answer, once it is written."""
        ids, config = self.read(asked)
        future: Future = Future()
        self.inbox.put((future, ids, config))
        found = await asyncio.wrap_future(future)
        text = self.tokenizer.decode(found.generated_ids)
        for stop in config.stop_strings:  # OpenVINO cuts off whole tokens only
            text = text.partition(stop)[0]
        reason = "stop" if found.finish_reason.name == "STOP" else "length"
        yield text, Written(reason, ids.get_size(), len(found.generated_ids))

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
