"""The questions: the article's six tests, and siblings of ours around them.

>>> load_prompts(origin="article", language="en")[0].turns
('What is the capital of Tanzania?',)
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from baize_lib.config import data_dir
from baize_lib.files import read_jsonl, text_hash

__all__ = ["load_prompts"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One question, or several asked in turn, and how to judge the answers."""

    id: str
    category: str  # its kind, a key of `checks.CHECKS`
    language: str
    origin: str  # "article", or "course" for the siblings we wrote around it
    turns: tuple[str, ...]
    good: str  # what a good answer contains
    why: str  # what the prompt is meant to show
    check: Mapping[str, Any] = field(repr=False)
    article: Mapping[str, Mapping[str, str]] = field(default_factory=dict, repr=False)  # verdicts
    twin: str = ""  # of an unsafe request its harmless look-alike, and the other way round

    @property
    def hash(self) -> str:
        """Names the words asked: change them, and earlier answers no longer count."""
        return text_hash(json.dumps(self.turns, ensure_ascii=False))


def load_prompts(
    *, category: str | None = None, language: str | None = None, origin: str | None = None
) -> list[Prompt]:
    """The prompts of `data/evaluation/`, all of them or those that match."""
    rows = read_jsonl(data_dir() / "evaluation" / "prompts.jsonl")
    prompts = [Prompt(**{**row, "turns": tuple(row["turns"])}) for row in rows]
    wanted = {"category": category, "language": language, "origin": origin}
    return [p for p in prompts if all(v in (None, getattr(p, k)) for k, v in wanted.items())]
