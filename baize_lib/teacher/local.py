"""A teacher on this machine, asked like any other teacher.

Two engines. `openvino` (openvino-genai) writes one token of every answer under way in each step and
does not read a prompt's beginning twice: on a CPU with AVX-512 or AMX several times faster.
`llama.cpp` (xllamacpp) runs everywhere, takes grammars, and serves all other weights.

    async with local_teacher("qwen-1.5b", calls=Calls(run.calls_file)) as teacher:
        line = await self_chat("Why do cats purr?", teacher)
"""

import asyncio
import atexit
import functools
import importlib.util
import itertools
import secrets
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from baize_lib.config import BaizeError
from baize_lib.models.weights import MODELS, model_file
from baize_lib.teacher.client import Teacher
from baize_lib.teacher.errors import Failure, Reply, read_refusal
from baize_lib.teacher.prices import FREE, Price, Usage

__all__ = ["local_teacher", "teacher_for"]

WEAK = "smollm2-135m"  # held to a form by grammars and worked examples
FAST = ("qwen-1.5b",)  # weights that OpenVINO was seen to read and write well
SETTINGS = {  # of a request, and what OpenVINO calls them
    "max_tokens": "max_new_tokens",
    "repeat_penalty": "repetition_penalty",
    "seed": "rng_seed",
    "temperature": "temperature",
    "top_p": "top_p",
}
SLOTS = {"openvino": 48, "llama.cpp": 8}  # calls answered at once; chosen by measurement


def local_teacher(
    name: str = WEAK, *, slots: int | None = None, context: int = 2048, engine: str | None = None,
    **options: Any,
) -> Teacher:  # fmt: skip
    """A model of `models.weights`, or a GGUF file, as a teacher on this machine.

    The engine runs in this process, once for the same arguments, and ends with it. The same call
    with the same seed gives the same text when alone; among others, rounding may part the ways.

    Args:
        name: a key of `MODELS`, which is fetched if it is not here yet, or a path.
        slots: calls answered at the same time; more wait. None takes what was measured best.
        context: tokens a dialogue may have, prompt and reply.
        engine: "openvino" or "llama.cpp"; None takes the faster one that this machine has.
        options: `calls` or `budget`, as of `Teacher`.
    """
    has_openvino = importlib.util.find_spec("openvino_genai") is not None
    engine = engine or ("openvino" if has_openvino and name in FAST else "llama.cpp")
    if engine not in SLOTS:
        raise BaizeError(f"engine={engine!r} is not known: use one of {', '.join(SLOTS)}")
    slots = slots or (4 if name == WEAK else SLOTS[engine])
    options |= {"price": FREE, "max_concurrency": slots, "timeout": 600.0, "weak": name == WEAK}
    known, file = name if name in MODELS else Path(name).stem, model_file(name)
    if engine == "openvino":
        return _OpenVinoTeacher(known, _OpenVino(file, slots, context), **options)
    address, key = _llama_cpp(file, slots, context)
    return Teacher(known, base_url=address, api_key=key, **options)


def teacher_for(
    name: str, *, price: Price | None = None, max_calls: int | None = None, **options: Any
) -> Teacher:
    """The teacher a tier or `BAIZE_TEACHER` names: weights on this machine, or a hosted model.

    `name` is a key of `MODELS`, the path of a GGUF file, or a model at `OPENAI_BASE_URL`, whose
    `price` is looked up if it is None. `max_calls` may be in flight at once; None: as many as the
    server bears. `options` are `calls` or `budget`, as of `Teacher`.
    """
    if name in MODELS or name.endswith(".gguf"):
        return local_teacher(name, slots=max_calls, **options)
    return Teacher(name, price=price, max_concurrency=max_calls or 256, **options)


_servers: list[Any] = []  # kept alive here; llama.cpp's server stops when its object goes


@functools.cache
def _llama_cpp(file: Path, slots: int, context: int) -> tuple[str, str]:
    """Serve a GGUF file on a free loopback port; gives the address and the random key it asks."""
    try:
        import xllamacpp
    except ImportError as error:
        raise BaizeError(
            f"no engine for a model on this machine ({error}): pip install xllamacpp or "
            "openvino-genai, or name a server of your own with OPENAI_BASE_URL and BAIZE_TEACHER"
        ) from error
    params, key = xllamacpp.CommonParams(), secrets.token_urlsafe(24)
    params.model.path = str(file)
    params.n_parallel, params.n_ctx = slots, slots * context
    params.hostnames, params.port, params.api_keys = ["127.0.0.1"], 0, [key]
    params.cpuparams.n_threads = _free_cores()
    params.cache_ram_mib = 256  # prompts kept for the next turn; llama.cpp's default is 8 GiB
    params.verbosity, params.ui = 0, False
    _servers.append(xllamacpp.Server(params))
    atexit.register(_servers.clear)
    return f"{_servers[-1].listening_address}/v1", key


def _free_cores() -> int:
    """Physical cores in the quietest of four looks: a shared one makes all 5 to 10 times slower."""
    import psutil

    share = min(psutil.cpu_percent(interval=0.25) for _ in range(4)) / 100
    busy = share * (psutil.cpu_count() or 1)
    return max(1, (psutil.cpu_count(logical=False) or 1) - round(busy))


@functools.cache
class _OpenVino:
    """A model in OpenVINO; whoever waits for an answer steps the batch for all."""

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
        self.numbers, self.pause = itertools.count(), 0.001
        self.under_way: asyncio.Task[None] | None = None
        self.stepping = threading.Lock()
        atexit.register(self.stepping.acquire)  # the interpreter must not go away under a step

    async def answer(self, request: Mapping[str, Any]) -> Reply | Failure:
        """The answer to a request of `Teacher`, once it is written."""
        text = self.tokenizer.apply_chat_template(request["messages"], add_generation_prompt=True)
        ids = self.tokenizer.encode(text, add_special_tokens=False).input_ids
        size, most = ids.get_size(), request["max_tokens"]
        if other := request.keys() - {"model", "messages", "stop", *SETTINGS}:
            return read_refusal(400, f"not supported: {', '.join(other)}", {})
        if size + most > self.context:
            why = f"{size} prompt + {most} tokens are over the context of {self.context}"
            return read_refusal(400, why, {})
        config = self.pipeline.get_config()  # knows the model's end-of-text tokens
        config.do_sample = request.get("temperature", 1.0) > 0
        for name in SETTINGS if config.do_sample else ("max_tokens", "repeat_penalty"):
            if name in request:
                setattr(config, SETTINGS[name], request[name])
        config.stop_strings = set(request.get("stop", ()))
        found = await self.generate(self.pipeline.add_request(next(self.numbers), ids, config))
        self.pause = 0.01
        text = self.tokenizer.decode(found.generated_ids)
        for stop in config.stop_strings:  # OpenVINO cuts off whole tokens only
            text = text.partition(stop)[0]
        reason = "stop" if found.finish_reason.name == "STOP" else "length"
        return Reply(text, reason, Usage(size, 0, len(found.generated_ids)))

    async def generate(self, handle: Any) -> Any:
        """What one request of the batch came to, or a RuntimeError."""
        try:
            while handle.get_status().name == "RUNNING":
                if self.under_way is None or self.under_way.done():
                    self.under_way = asyncio.create_task(self.step())
                await asyncio.shield(self.under_way)
            for found in handle.read_all():
                return found
            raise RuntimeError("the cache is full: ask for fewer at once")
        finally:  # if a step failed, or nobody waits for the answer any more
            if handle.get_status().name == "RUNNING":
                handle.cancel()

    async def step(self) -> None:
        """One more token of every answer."""
        # a step holds Python's lock: first a pause, a longer one after an answer, to keep it
        pause, self.pause = self.pause, 0.001
        await asyncio.sleep(pause)
        with self.stepping:
            self.pipeline.step()


class _OpenVinoTeacher(Teacher):
    """A `Teacher` whose calls are answered in this process, all in one batch."""

    def __init__(self, model: str, engine: _OpenVino, **options: Any) -> None:
        super().__init__(model, base_url="http://127.0.0.1/v1", **options)
        self._engine = engine

    async def _send(self, request: dict[str, Any], bound: Usage) -> Reply | Failure:
        try:
            return await self._engine.answer(request)
        except RuntimeError as error:  # OpenVINO's: no answer of this batch can go on
            return read_refusal(500, f"the engine failed: {error}", {})
