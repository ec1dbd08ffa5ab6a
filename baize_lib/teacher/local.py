"""A teacher on this machine: weights behind a server of their own, asked like any other teacher.

Two engines. `openvino` (openvino-genai, `openvino_server`) answers many prompts at once and keeps
what it has read; it serves the capable teacher where there is a wheel for it. `llama.cpp`
(xllamacpp) runs everywhere, takes grammars, and serves all other weights.

    async with local_teacher("qwen-1.5b", calls=Calls(run.calls_file)) as teacher:
        line = await self_chat("Why do cats purr?", teacher)
"""

import atexit
import functools
import importlib.util
import secrets
from pathlib import Path
from typing import Any

from baize_lib.config import BaizeError
from baize_lib.models.weights import MODELS, model_file
from baize_lib.teacher.client import Teacher
from baize_lib.teacher.keys import as_key
from baize_lib.teacher.prices import FREE, Price

__all__ = ["local_teacher", "teacher_for"]

WEAK = "smollm2-135m"  # held to a form by grammars and worked examples
FAST = ("qwen-1.5b",)  # weights that OpenVINO was seen to read and write well
SLOTS = {"openvino": 48, "llama.cpp": 8}  # calls answered at once; chosen by measurement


def local_teacher(
    name: str = WEAK, *, slots: int | None = None, context: int = 2048, engine: str | None = None,
    **options: Any,
) -> Teacher:  # fmt: skip
    """A model of `models.weights`, or a GGUF file, on a free loopback port with a random key.

    The server runs in this process, once for the same arguments, and ends with it. The same call
    with the same seed gives the same text on a quiet server; among others, rounding may part the
    ways.

    Args:
        name: a key of `MODELS` or the path of a GGUF file; it is fetched if it is not here yet.
        slots: calls answered at the same time; more wait. None takes what was measured best.
        context: tokens a dialogue may have, prompt and reply.
        engine: "openvino" or "llama.cpp"; None takes the faster one that this machine has.
        options: `calls` or `budget`, as of `Teacher`.

    Raises:
        BaizeError: the weights or the engine are not to be had; the text says what to do.
    """
    has_openvino = importlib.util.find_spec("openvino_genai") is not None
    engine = engine or ("openvino" if has_openvino and name in FAST else "llama.cpp")
    if engine not in SLOTS:
        raise BaizeError(f"engine={engine!r} is not known: use one of {', '.join(SLOTS)}")
    slots = slots or (4 if name == WEAK else SLOTS[engine])
    address, key = _serve(model_file(name), engine, slots, context)
    return Teacher(
        name if name in MODELS else Path(name).stem, base_url=address, api_key=as_key(key),
        price=FREE, max_concurrency=slots, timeout=600.0, weak=name == WEAK, **options,
    )  # fmt: skip


_servers: list[Any] = []  # kept alive here; llama.cpp's server stops when its object goes


@functools.cache
def _serve(file: Path, engine: str, slots: int, context: int) -> tuple[str, str]:
    """(address, key) of a server, begun when it is first asked for."""
    if engine == "openvino":
        from baize_lib.teacher.openvino_server import serve_openvino

        return serve_openvino(file, slots=slots, context=context)
    try:
        import xllamacpp
    except ImportError as error:
        raise BaizeError(
            f"no engine for a model on this machine ({error}): pip install xllamacpp or "
            "openvino-genai, or name a server of your own with OPENAI_BASE_URL and BAIZE_TEACHER"
        ) from error
    key = secrets.token_urlsafe(24)
    params = xllamacpp.CommonParams()
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
    """Physical cores that nothing else is using: llama.cpp's threads wait for the slowest one, so
    that sharing one core of two was measured 5 to 10 times slower than using the other alone. The
    quietest of four looks counts: what is busy for a moment only is no reason to halve the speed.
    """
    import psutil

    share = min(psutil.cpu_percent(interval=0.25) for _ in range(4)) / 100
    busy = share * (psutil.cpu_count() or 1)
    return max(1, (psutil.cpu_count(logical=False) or 1) - round(busy))


def teacher_for(
    name: str, *, price: Price | None = None, max_calls: int | None = None, **options: Any
) -> Teacher:
    """The teacher a tier or `BAIZE_TEACHER` names: weights on this machine, or a hosted model.

    Args:
        name: a key of `MODELS`, the path of a GGUF file, or a model at `OPENAI_BASE_URL`.
        price: USD per million tokens of a hosted one; None looks it up.
        max_calls: calls in flight at most; None as many as the server bears.
        options: `calls` or `budget`, as of `Teacher`.
    """
    if name in MODELS or name.endswith(".gguf"):
        return local_teacher(name, slots=max_calls, **options)
    return Teacher(name, price=price, max_concurrency=max_calls or 256, **options)
