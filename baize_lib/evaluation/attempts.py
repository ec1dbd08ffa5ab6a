"""Ask the article's prompts, keep every answer, and show the first one.

Qualitative comparisons mislead when the best of several samples is shown. So each reply that is
generated goes to `answers.jsonl` before anybody sees it, and the tables show attempt 1, whatever
came later. Asking again gives back what is in the log:

    attempts = ask(chat, load_prompts(origin="article"), log=run.answers_file)
    graded = grade(load_prompts(), attempts)
    score_table(load_prompts(), graded)           # with the error of each check
    health(attempts)                              # do replies stop, repeat themselves, leak tags?

A first attempt belongs to a prompt, a model and an adapter. Other seeds or sampling settings make
no new first attempt; a newly trained adapter does, and the log keeps those of the old one.
"""

import asyncio
import datetime
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baize_lib.config import BaizeError
from baize_lib.dialogue import Message
from baize_lib.evaluation.prompts import Prompt
from baize_lib.files import read_jsonl, repair_tail, sha256_of

if TYPE_CHECKING:
    from baize_lib.chat.model import ChatModel
    from baize_lib.teacher.client import Teacher

__all__ = ["ask", "ask_teacher", "first_attempts"]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One conversation with one model: the log's line for each of its turns.

    `of` counts the attempts this model made at this prompt; `number` 1 is the one that counts.
    """

    prompt: str
    model: str
    adapter: str
    number: int
    of: int
    turns: tuple[dict[str, Any], ...]

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


def read_attempts(log: Path | str) -> list[Attempt]:
    """Every attempt in the log, finished or not, oldest first; [] when there is no log yet."""
    logged = _lines_by_attempt(log)
    made = Counter(key[:4] for key in logged)
    return [
        Attempt(
            key[0], key[2], key[3], key[4], made[key[:4]], tuple(turns[i] for i in sorted(turns))
        )
        for key, turns in logged.items()
    ]


def first_attempts(
    log: Path | str,
    prompts: Iterable[Prompt],
    *,
    adapters: Mapping[str, str] | None = None,
    picked: Mapping[tuple[str, str], int] | None = None,
) -> list[Attempt]:
    """Attempt 1 of each model at each prompt, as far as the log has it.

    Args:
        adapters: which adapter (its hash) a model had; by default the one it answered with last.
        picked: show another attempt instead, by (prompt id, model); its `label` will say so.

    Raises:
        BaizeError: a picked attempt is not in the log.
    """
    logged, picked = read_attempts(log), picked or {}
    of_model = {attempt.model: attempt.adapter for attempt in logged} | dict(adapters or {})
    found = {
        (a.prompt, a.model, a.number, a.turns[0]["prompt_hash"], len(a.turns)): a
        for a in logged
        if a.adapter == of_model[a.model]
    }
    shown = []
    for prompt in prompts:
        for model in of_model:
            number = picked.get((prompt.id, model), 1)
            attempt = found.get((prompt.id, model, number, prompt.hash, len(prompt.turns)))
            if attempt:
                shown.append(attempt)
            elif number != 1:
                raise BaizeError(f"{log} has no attempt {number} of {model} at {prompt.id}")
    return shown


def _lines_by_attempt(log: Path | str) -> dict[tuple[Any, ...], dict[int, dict[str, Any]]]:
    """(prompt, prompt_hash, model, adapter, attempt) -> {turn: line}. The earliest line wins."""
    found: dict[tuple[Any, ...], dict[int, dict[str, Any]]] = {}
    if Path(log).is_file():
        for line in read_jsonl(log, torn_tail_ok=True):
            key = tuple(line[k] for k in ("prompt", "prompt_hash", "model", "adapter", "attempt"))
            found.setdefault(key, {}).setdefault(line["turn"], line)
    return found


def _append(log: Path | str, lines: Iterable[dict[str, Any]]) -> None:
    """Add lines, on the disk when this returns; a line torn by a crash is mended first.

    Processes take turns, so that none takes the line another is writing for a torn one.
    """
    rows = [json.dumps(line, ensure_ascii=False).encode("utf-8", "replace") for line in lines]
    from filelock import FileLock

    path = Path(log)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        repair_tail(path)
        with path.open("ab") as file:
            file.write(b"".join(row + b"\n" for row in rows))
            file.flush()
            os.fsync(file.fileno())


# ---- Asking


def ask(
    chat: "ChatModel",
    prompts: Sequence[Prompt],
    models: Sequence[str] = ("base", "own layout", "tuned"),
    *,
    log: Path | str,
    attempts: int = 1,
    batch_size: int = 12,
    seed: int = 0,
    **sampling: Any,
) -> list[Attempt]:
    """Ask each model each prompt; what is in the log already is not asked again.

    Args:
        models: names the chat model knows: "base" (in Baize's layout), "own layout" (the same
            weights through the chat template they were tuned with), and adapters like "tuned".
        attempts: how many attempts there should be in the log; attempt n runs with seed + n - 1.
        sampling: passed on to `chat.replies` (max_tokens, temperature, language…) and logged.

    Returns:
        Attempt 1 of every prompt and model.
    """
    adapters = {model: _adapter_hash(chat, model) for model in models}
    for model, adapter in adapters.items():
        layout = "own" if model == "own layout" else "baize"
        who = {"model": model, "layout": layout, "adapter": adapter, "base": _base_name(chat)}
        for number in range(1, attempts + 1):
            options = {**sampling, "seed": seed + number - 1}
            for turn in range(max((len(p.turns) for p in prompts), default=0)):
                waiting = _unanswered(log, prompts, who, number, turn)
                for batch in _batches(waiting, batch_size):
                    messages = [conversation for _, conversation in batch]
                    answers = chat.replies(messages, model=model, **options)
                    _append(log, [
                        _line(prompt, turn, number, who, options, {
                            "text": a.text, "stopped_by": a.stopped_by,
                            "num_tokens": a.num_tokens, "seconds": a.seconds,
                        })
                        for (prompt, _), a in zip(batch, answers, strict=True)
                    ])  # fmt: skip
    return [a for a in first_attempts(log, prompts, adapters=adapters) if a.model in models]


async def ask_teacher(
    teacher: "Teacher",
    prompts: Sequence[Prompt],
    *,
    log: Path | str,
    name: str | None = None,
    attempts: int = 1,
    seed: int = 0,
    **sampling: Any,
) -> list[Attempt]:
    """The same for a model behind an OpenAI-compatible address, a `teacher.Teacher`.

    Its calls are in the run's table of paid calls like any others, so what they cost is in "spent",
    and an answer that was paid for is not paid for again.

    Args:
        name: the model's column; by default the teacher's model name.
        sampling: passed on to `teacher.chat`, which needs `max_tokens`.

    Raises:
        BaizeError: what the teacher raises, for one when the budget ends; run it again to go on.
    """
    who = {"model": name or teacher.model, "layout": "own", "adapter": ""}

    async def converse(prompt: Prompt, number: int) -> None:
        options = {**sampling, "seed": seed + number - 1}
        for turn in range(len(prompt.turns)):
            for _, conversation in _unanswered(log, [prompt], who, number, turn):
                rows = [{"role": m.role, "content": m.content} for m in conversation]
                reply = await teacher.chat(
                    rows, purpose="evaluation", subject=prompt.id, part=f"turn {turn + 1}",
                    attempt=number, **options,
                )  # fmt: skip
                stopped = "end" if reply.finish_reason == "stop" else reply.finish_reason
                _append(log, [_line(prompt, turn, number, who, options, {
                    "text": reply.text, "num_tokens": reply.usage.output, "stopped_by": stopped,
                    "seconds": reply.seconds, "cost_usd": reply.cost_usd,
                })])  # fmt: skip

    try:
        async with asyncio.TaskGroup() as group:
            for number in range(1, attempts + 1):
                for prompt in prompts:
                    group.create_task(converse(prompt, number))
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from failed
    return [a for a in first_attempts(log, prompts) if a.model == who["model"]]


def _unanswered(
    log: Path | str, prompts: Iterable[Prompt], who: Mapping[str, str], number: int, turn: int
) -> list[tuple[Prompt, list[Message]]]:
    """The prompts that wait for an answer to `turn`, each with its conversation so far."""
    logged = _lines_by_attempt(log)
    waiting = []
    for prompt in prompts:
        said = logged.get((prompt.id, prompt.hash, who["model"], who["adapter"], number), {})
        if turn < len(prompt.turns) and turn not in said:
            conversation: list[Message] = []
            for question, line in zip(prompt.turns, (said[i] for i in range(turn)), strict=False):
                conversation += [Message("user", question), Message("assistant", line["text"])]
            waiting.append((prompt, [*conversation, Message("user", prompt.turns[turn])]))
    return waiting


def _batches(waiting: list[tuple[Prompt, list[Message]]], size: int) -> Iterator[list]:
    """Batches of like length, so that little is padded."""
    by_length = sorted(waiting, key=lambda item: sum(len(m.content) for m in item[1]))
    for start in range(0, len(by_length), size):
        yield by_length[start : start + size]


def _line(
    prompt: Prompt, turn: int, number: int, who: Mapping[str, str],
    options: Mapping[str, Any], answer: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    return {
        "prompt": prompt.id, "prompt_hash": prompt.hash, "turn": turn, "attempt": number, **who,
        "sampling": {k: v for k, v in options.items() if k != "seed"}, "seed": options["seed"],
        **answer, "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


def _adapter_hash(chat: "ChatModel", model: str) -> str:
    """16 hex digits that name the adapter's weights; "" for a model without one."""
    folder = getattr(chat, "adapters", {}).get(model)
    return sha256_of(Path(folder) / "adapter_model.safetensors")[:16] if folder else ""


def _base_name(chat: "ChatModel") -> str:
    """Which base model "base" is, and in which precision, for whoever reads the log later."""
    base = getattr(chat, "base", None)
    return f"{base.name} in {base.precision}" if base else ""
