"""Files that survive a crash, JSON lines that name the place of a fault, and a room's own data.

A reader of a half-written file is the bug behind most lost data: `write_atomic` makes a file appear
whole or not at all.

>>> import tempfile, pathlib
>>> path = pathlib.Path(tempfile.mkdtemp()) / "a.jsonl"
>>> write_jsonl(path, [{"n": 1}, {"n": 2}]), list(read_jsonl(path))
(2, [{'n': 1}, {'n': 2}])
"""

import contextlib
import functools
import hashlib
import json
import mmap
import os
import re
import secrets
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from baize_lib.config import BaizeError

__all__ = ["write_atomic", "write_jsonl", "read_jsonl", "sha256_of"]


@contextlib.contextmanager
def _replacing(path: Path | str) -> Iterator[BinaryIO]:
    """A new file, which takes the place of `path` once all of it is on the disk."""
    path = Path(path)
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with new.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError as error:
        raise BaizeError(
            f"{path} cannot be written ({error.strerror}): free some disk space or choose another "
            "folder with BAIZE_RUNS, and run again; the earlier file, if any, is unchanged"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            new.unlink()


def write_atomic(path: Path | str, data: str | bytes) -> None:
    """Write `data` so that a reader sees the old file or the whole new one, never a part."""
    with _replacing(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def write_jsonl(path: Path | str, rows: Iterable[dict[str, Any]]) -> int:
    """Write one JSON object a line, atomically. Returns the number of rows."""
    with _replacing(path) as file:
        lines = (json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
        return len([file.write(line) for line in lines])


def read_jsonl(path: Path | str, *, torn_tail_ok: bool = False) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of a UTF-8 file, one a line; a BaizeError names the line that is none.

    `torn_tail_ok` passes over a last line that a crash cut off: an object's beginning, or zeros.
    """
    path = Path(path)
    if not path.is_file():
        raise BaizeError(f"{path} does not exist: check the name, or run the notebook before this")
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)  # a byte-order mark is allowed
                if not isinstance(row, dict):
                    raise ValueError(f"a JSON object was expected, not {type(row).__name__}")
            except ValueError as error:
                if torn_tail_ok and line.startswith((b"{", b"\0")) and not line.endswith(b"\n"):
                    return
                raise BaizeError(
                    f"{path}:{number} is not a JSON object ({error}): mend or delete that line"
                ) from error
            yield row


def repair_tail(path: Path) -> None:
    """Mend the last line of a JSONL file that a crash tore: end it if it is whole, else cut it."""
    if not path.exists() or not path.stat().st_size:
        return
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start = content.rfind(b"\n") + 1
        torn = content[start:]
    try:
        json.loads(torn)
    except ValueError:
        os.truncate(path, start)
    else:
        with path.open("ab") as file:
            file.write(b"\n")


def sha256_of(path: Path | str) -> str:
    """The SHA-256 of a file as 64 hex digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def text_hash(text: str) -> str:
    """A short, stable name for a text: 16 hex digits of its SHA-256.

    >>> text_hash("What is LoRA?")
    '9ed868d336bd4da2'
    """
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


def written(room: str, name: str) -> dict[str, Any]:
    """The TOML file beside a room (its `__file__`): words, names and patterns are data."""
    return tomllib.loads(Path(room).with_name(name).read_text(encoding="utf-8"))


def compiled(patterns: Mapping[str, str]) -> dict[str, re.Pattern[str]]:
    """Verbose patterns by name, upper and lower case alike, line by line; %(name)s is another."""
    flags = re.VERBOSE | re.IGNORECASE | re.MULTILINE
    return {
        name: re.compile(re.sub(r"%\((\w+)\)s", lambda other: patterns[other[1]], text), flags)
        for name, text in patterns.items()
    }


@functools.cache
def template(path: Path, *, escape: bool = True) -> Any:
    """The Jinja2 template in a file; what is put into it is escaped as HTML."""
    from jinja2 import Environment, StrictUndefined

    engine = Environment(autoescape=escape, undefined=StrictUndefined, trim_blocks=True)
    return engine.from_string(path.read_text(encoding="utf-8"))
