"""Where the course's files live, and the one error it raises on purpose.

>>> Run(Path("runs/mine")).train_file.as_posix()
'runs/mine/corpus/train.jsonl'
"""

import os
from dataclasses import dataclass
from pathlib import Path

import platformdirs

__all__ = ["BaizeError", "Run", "data_dir"]

_PACKAGE = Path(__file__).resolve().parent


class BaizeError(Exception):
    """An error a user can act on: its text says what is wrong, with what, and what to do."""


def data_dir() -> Path:
    """The course's `data/` folder: in the clone, or inside the installed package."""
    in_clone = _PACKAGE.parent / "data"
    return in_clone if in_clone.is_dir() else _PACKAGE / "_data"


def runs_dir() -> Path:
    """Where runs are written: `BAIZE_RUNS`, else `runs/` in the clone or the working folder."""
    if chosen := os.environ.get("BAIZE_RUNS"):
        return Path(chosen).expanduser().resolve()
    is_clone = (_PACKAGE.parent / "pyproject.toml").is_file()
    return (_PACKAGE.parent if is_clone else Path.cwd()) / "runs"


def cache_dir() -> Path:
    """Where models are kept: `BAIZE_CACHE`, else the user's cache folder."""
    if chosen := os.environ.get("BAIZE_CACHE"):
        return Path(chosen).expanduser().resolve()
    return Path(platformdirs.user_cache_dir("baize-course", appauthor=False))


@dataclass
class Run:
    """The files of one run, `runs/<name>/`: each notebook reads the one before it wrote."""

    path: Path

    def __post_init__(self) -> None:
        self.calls_file = self.path / "calls.sqlite"
        self.self_chat = self.path / "self_chat.jsonl"
        self.corpus_dir = self.path / "corpus"
        self.train_file = self.corpus_dir / "train.jsonl"
        self.validation_file = self.corpus_dir / "validation.jsonl"
        self.adapter_dir = self.path / "adapter"
        self.answers_file = self.path / "answers.jsonl"
