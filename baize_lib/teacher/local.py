"""teacher.local: moved."""

import atexit
import functools
import secrets
from typing import Any

from baize_lib.config import Tier
from baize_lib.teacher.budget import Budget
from baize_lib.teacher.client import Teacher
from baize_lib.teacher.keys import Secret
from baize_lib.teacher.prices import price_of

__all__ = [
    "local_teacher",
    "teacher_for",
]


def local_teacher(
    *, num_slots: int = 4, context: int = 2048, budget: Budget | None = None
) -> Teacher:
    """The embedded model behind its own server, on a free loopback port with a random key.

    Args:
        num_slots: calls answered at the same time; more wait.
        context: tokens a dialogue may have, prompt and reply.

    The server runs in this process, once for the same arguments, and ends with it. It keeps the
    prompts it has read, so each turn of a dialogue reads only what is new. The same call with the
    same seed gives the same text on a quiet server; among others, rounding may part the ways.
    """
    address, key = _local_server(num_slots, context)
    return Teacher(
        "embedded", base_url=f"{address}/v1", api_key=key, price=price_of("embedded"),
        budget=budget, max_concurrency=num_slots, timeout=600.0,
    )  # fmt: skip


_servers: list[Any] = []  # kept alive here; llama.cpp's server stops when its object goes


@functools.cache
def _local_server(num_slots: int, context: int) -> tuple[str, Secret]:
    import xllamacpp

    from baize_lib.models import embedded_model_file

    key = Secret(secrets.token_urlsafe(24))
    params = xllamacpp.CommonParams()
    params.model.path = str(embedded_model_file())
    params.n_parallel, params.n_ctx = num_slots, num_slots * context
    params.hostnames, params.port, params.api_keys = ["127.0.0.1"], 0, [key.reveal()]
    params.cpuparams.n_threads = _free_cores()
    params.cache_ram_mib = 256  # prompts kept for the next turn; llama.cpp's default is 8 GiB
    params.verbosity, params.ui = 0, False
    _servers.append(xllamacpp.Server(params))
    atexit.register(_servers.clear)
    return _servers[-1].listening_address, key


def _free_cores() -> int:
    """Physical cores that nothing else is using: llama.cpp's threads wait for the slowest one, so
    that sharing one core of two was measured 5 to 10 times slower than using the other alone. The
    quietest of four looks counts: what is busy for a moment only is no reason to halve the speed.
    """
    import psutil

    share = min(psutil.cpu_percent(interval=0.25) for _ in range(4)) / 100
    busy = share * (psutil.cpu_count() or 1)
    return max(1, (psutil.cpu_count(logical=False) or 1) - round(busy))


def teacher_for(tier: Tier, budget: Budget | None = None) -> Teacher:
    """The teacher of a tier, under `budget` or the tier's own cap."""
    budget = budget or Budget(usd=tier.budget_usd)
    return (
        local_teacher(budget=budget)
        if tier.teacher == "embedded"
        else Teacher(tier.teacher, budget=budget)
    )
