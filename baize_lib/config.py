"""Where the course's files live, and the one error it raises on purpose.

>>> Run(Path("runs/mine")).train_file.as_posix()
'runs/mine/corpus/train.jsonl'
"""

import os
from dataclasses import dataclass
from pathlib import Path

import platformdirs

__all__ = ["BaizeError", "Run", "data_dir", "runs_dir", "cache_dir"]


class BaizeError(Exception):
    """An error a user can act on: its text says what is wrong, with what, and what to do."""


def data_dir() -> Path:
    """The course's `data/` folder: in the clone, or inside the installed package."""
    package = Path(__file__).resolve().parent
    in_clone = package.parent / "data"
    return in_clone if in_clone.is_dir() else package / "_data"


def runs_dir() -> Path:
    """Where runs are written: `BAIZE_RUNS`, else `runs/` in the clone or the working folder."""
    if chosen := os.environ.get("BAIZE_RUNS"):
        return Path(chosen).expanduser().resolve()
    clone = Path(__file__).resolve().parent.parent
    return (clone if (clone / "pyproject.toml").is_file() else Path.cwd()) / "runs"


def cache_dir() -> Path:
    """Where models are kept: `BAIZE_CACHE`, else the user's cache folder."""
    if chosen := os.environ.get("BAIZE_CACHE"):
        return Path(chosen).expanduser().resolve()
    return Path(platformdirs.user_cache_dir("baize-course", appauthor=False))


@dataclass(frozen=True, slots=True)
class Run:
    """The files of one run, `runs/<name>/`: each notebook reads the one before it wrote."""

    path: Path

    @property
    def calls_file(self) -> Path:
        return self.path / "calls.sqlite"

    @property
    def self_chat(self) -> Path:
        return self.path / "self_chat.jsonl"

    @property
    def corpus_dir(self) -> Path:
        return self.path / "corpus"

    @property
    def train_file(self) -> Path:
        return self.corpus_dir / "train.jsonl"

    @property
    def validation_file(self) -> Path:
        return self.corpus_dir / "validation.jsonl"

    @property
    def adapter_dir(self) -> Path:
        return self.path / "adapter"

    @property
    def answers_file(self) -> Path:
        return self.path / "answers.jsonl"
