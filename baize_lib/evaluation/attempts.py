"""Ask the article's prompts, keep every answer, and show the first one.

A comparison misleads when the best of several samples is shown. So each reply goes to
`answers.jsonl` before anybody sees it, and attempt 1 is shown; asking again gives what is there:

    attempts = ask(chat, load_prompts(origin="article"), log=run.answers_file)

A first attempt belongs to a prompt, a model and an adapter. Other seeds or sampling settings make
no new first attempt; a newly trained adapter does, and the log keeps those of the old one.
"""

import asyncio
import datetime
import itertools
import json
import operator
import os
from collections import Counter
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baize_lib.chat.model import ChatModel
from baize_lib.config import BaizeError
from baize_lib.dialogue import Message
from baize_lib.evaluation.prompts import Prompt
from baize_lib.files import read_jsonl, repair_tail, sha256_of
from baize_lib.teacher.client import Teacher

__all__ = ["ask", "ask_teacher", "first_attempts"]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One conversation with one model."""

    prompt: str
    model: str
    adapter: str
    number: int  # 1 is the one that counts
    of: int  # so many attempts this model made at this prompt
    turns: tuple[dict[str, Any], ...]  # the log's line for each turn

    @property
    def replies(self) -> list[str]:
        return [line["text"] for line in self.turns]

    @property
    def label(self) -> str:
        """How a page must call it."""
        if self.number == 1:
            return "first attempt" if self.of == 1 else f"first attempt of {self.of}"
        return f"picked, attempt {self.number} of {self.of}"


# ---- The log

_KEY = ("prompt", "prompt_hash", "model", "adapter", "attempt")
_LINE = {*_KEY, "turn", "text", "layout", "sampling", "seed", "stopped_by", "num_tokens"}


def read_attempts(log: Path | str) -> dict[tuple[Any, ...], Attempt]:
    """Every attempt in the log by its `_KEY`, finished or not, oldest first; {} before any log.

    A BaizeError names a line that is no answer.
    """
    found: dict[tuple[Any, ...], dict[int, dict[str, Any]]] = {}
    lines = read_jsonl(log, torn_tail_ok=True) if Path(log).is_file() else ()
    for number, line in enumerate(lines, start=1):
        if missing := ", ".join(sorted(_LINE - line.keys())):
            raise BaizeError(f"{log}:{number} is no answer, without {missing}: mend or delete it")
        key = tuple(line[name] for name in _KEY)
        found.setdefault(key, {}).setdefault(line["turn"], line)  # the earliest line counts
    made = Counter(key[:-1] for key in found)
    return {
        key: Attempt(key[0], *key[2:], made[key[:-1]], tuple(turns[i] for i in sorted(turns)))
        for key, turns in found.items()
    }


def first_attempts(
    log: Path | str,
    prompts: Iterable[Prompt],
    *,
    adapters: Mapping[str, str] | None = None,
    picked: Mapping[tuple[str, str], int] | None = None,
) -> list[Attempt]:
    """Attempt 1 of each model at each prompt, as far as the log has it.

    `adapters` says which adapter (its hash) a model had, by default the one it answered with last.
    `picked` shows another attempt instead, by (prompt id, model), and its `label` will say so; a
    BaizeError if it is not in the log.
    """
    logged, shown = read_attempts(log), []
    of_model = {a.model: a.adapter for a in logged.values()} | dict(adapters or {})
    for prompt in prompts:
        for model, adapter in of_model.items():
            number = (picked or {}).get((prompt.id, model), 1)
            attempt = logged.get((prompt.id, prompt.hash, model, adapter, number))
            if attempt and len(attempt.turns) == len(prompt.turns):
                shown.append(attempt)
            elif number != 1:
                raise BaizeError(f"{log} has no attempt {number} of {model} at {prompt.id}")
    return shown


def _append(log: Path | str, lines: Iterable[Mapping[str, Any]]) -> None:
    """Add lines, on the disk when this returns; a line torn by a crash is mended first.

    Processes take turns, so that none takes the line another is writing for a torn one.
    """
    from filelock import FileLock

    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    rows = [json.dumps({**line, "created": now}, ensure_ascii=False) for line in lines]
    path = Path(log)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        repair_tail(path)
        with path.open("ab") as file:
            file.write("".join(f"{row}\n" for row in rows).encode("utf-8", "replace"))
            file.flush()
            os.fsync(file.fileno())


# ---- Asking


def ask(
    chat: ChatModel,
    prompts: Sequence[Prompt],
    models: Sequence[str] = ("base", "own layout", "tuned"),
    *,
    log: Path | str,
    attempts: int = 1,
    batch_size: int = 24,
    seed: int = 0,
    **sampling: Any,
) -> list[Attempt]:
    """Ask each model each prompt that the log has no answer to; returns the first attempts.

    Args:
        models: "base" (in Baize's layout), "own layout" (the same weights through the chat template
            they were tuned with), and adapters by name.
        attempts: how many there should be in the log; attempt n runs with seed + n - 1.
        sampling: passed on to `chat.replies` (max_tokens, temperature, language…) and logged.
    """
    weights = {m: Path(f) / "adapter_model.safetensors" for m, f in chat.adapters.items()}
    adapters = {m: sha256_of(weights[m])[:16] if m in weights else "" for m in models}
    base = f"{chat.base.name} in {chat.base.precision}"
    for model, number in itertools.product(models, range(1, attempts + 1)):
        layout = "own" if model == "own layout" else "baize"
        who = {"model": model, "layout": layout, "adapter": adapters[model], "base": base}
        asked = {**who, "sampling": sampling, "seed": seed + number - 1}
        while waiting := _unanswered(log, prompts, number, asked):  # once a turn
            waiting.sort(key=lambda item: sum(len(m.content) for m in item[1]))
            for start in range(0, len(waiting), batch_size):
                lines, talks = zip(*waiting[start : start + batch_size], strict=True)
                said = chat.replies([*talks], model=model, seed=asked["seed"], **sampling)
                kept = ("text", "stopped_by", "num_tokens", "seconds")
                told = [{name: getattr(answer, name) for name in kept} for answer in said]
                _append(log, map(operator.or_, lines, told))
    return [a for a in first_attempts(log, prompts, adapters=adapters) if a.model in models]


async def ask_teacher(
    teacher: Teacher, prompts: Sequence[Prompt], *, log: Path | str, name: str | None = None,
    **sampling: Any,
) -> list[Attempt]:  # fmt: skip
    """The same for a model behind an OpenAI-compatible address; its calls are paid for once.

    Its column is called `name`, by default the teacher's model name; `sampling` goes to
    `teacher.chat`, which needs `max_tokens`. Raises what that raises: run it again to go on.
    """
    who = {"model": name or teacher.model, "layout": "own", "adapter": ""}

    async def converse(prompt: Prompt) -> None:
        while waiting := _unanswered(log, [prompt], 1, who | {"sampling": sampling, "seed": 0}):
            ((line, talk),) = waiting
            reply = await teacher.chat(
                talk, purpose="evaluation", subject=prompt.id, part=f"turn {line['turn'] + 1}",
                attempt=1, seed=0, **sampling,
            )  # fmt: skip
            stopped = "end" if reply.finish_reason == "stop" else reply.finish_reason
            _append(log, [line | {
                "text": reply.text, "num_tokens": reply.usage.output, "stopped_by": stopped,
                "seconds": reply.seconds, "cost_usd": reply.cost_usd,
            }])  # fmt: skip

    await together(map(converse, prompts))
    return [a for a in first_attempts(log, prompts) if a.model == who["model"]]


async def together(work: Iterable[Coroutine[Any, Any, Any]]) -> list[Any]:
    """The results in order; the first failure stops the rest and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each) for each in work]
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from failed
    return [task.result() for task in tasks]


def _unanswered(
    log: Path | str, prompts: Iterable[Prompt], number: int, asked: Mapping[str, Any]
) -> list[tuple[dict[str, Any], list[Message]]]:
    """How the next line of each unfinished prompt begins, and its talk up to the question."""
    logged, waiting = read_attempts(log), []
    for prompt in prompts:
        line = {"prompt": prompt.id, "prompt_hash": prompt.hash, "turn": 0, "attempt": number}
        line |= asked
        before = logged.get(tuple(line[name] for name in _KEY))
        said = before.replies if before else []
        if len(said) < len(prompt.turns):
            talk: list[Message] = []
            for question, reply in zip(prompt.turns, said, strict=False):
                talk += [Message("user", question), Message("assistant", reply)]
            question = Message("user", prompt.turns[len(said)])
            waiting.append((line | {"turn": len(said)}, [*talk, question]))
    return waiting
