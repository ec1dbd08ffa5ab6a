"""Files that survive a crash: atomic writes, and JSON lines that name the place of a fault.

A reader of a half-written file is the bug behind most lost data. `write_atomic` makes a file appear
whole or not at all; `read_jsonl` tells which line of which file is broken.

>>> import tempfile, pathlib
>>> path = pathlib.Path(tempfile.mkdtemp()) / "a.jsonl"
>>> write_jsonl(path, [{"n": 1}, {"n": 2}])
2
>>> [row["n"] for row in read_jsonl(path)]
[1, 2]
"""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from baize_lib.config import BaizeError

__all__ = [
    "write_atomic",
    "write_jsonl",
    "read_jsonl",
    "repair_tail", "sha256_of",
    "text_hash",
]


def write_atomic(path: Path | str, data: str | bytes) -> None:
    """Write `data` to `path` so that a reader sees the old file or the whole new one, never a part.

    Raises:
        BaizeError: the folder cannot be written or the disk is full; the old file is untouched.
    """
    _replace(Path(path), [data.encode("utf-8") if isinstance(data, str) else data])


def write_jsonl(path: Path | str, rows: Iterable[dict[str, Any]]) -> int:
    """Write one JSON object a line, atomically. Returns the number of rows."""
    count = 0

    def lines() -> Iterator[bytes]:
        nonlocal count
        for row in rows:
            count += 1
            yield json.dumps(row, ensure_ascii=False).encode("utf-8") + b"\n"

    _replace(Path(path), lines())
    return count


def read_jsonl(path: Path | str, *, torn_tail_ok: bool = False) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of a file, one a line; blank lines are skipped.

    Args:
        path: a UTF-8 file; a byte-order mark is allowed.
        torn_tail_ok: skip a last line cut off by a crash (one without a final newline that is not
            JSON) instead of raising.

    Raises:
        BaizeError: the file is missing, or a line is not a JSON object; it names file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise BaizeError(
            f"{path} does not exist: check the name, or run the notebook that makes it"
        )
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            line = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError(f"a JSON object was expected, not {type(row).__name__}")
            except ValueError as error:
                if torn_tail_ok and not raw.endswith(b"\n"):
                    return
                raise BaizeError(
                    f"{path}:{number} is not a JSON object ({error}): mend or delete that line"
                ) from error
            yield row


def repair_tail(path: Path) -> None:
    """Mend the last line of a JSONL file that a crash tore: end it if it is whole, else cut it."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        size = start = file.seek(0, os.SEEK_END)
        tail = b""
        while start and b"\n" not in tail:
            start = max(0, start - (1 << 16))
            file.seek(start)
            tail = file.read(size - start)
        torn = tail.rpartition(b"\n")[2]
        if not torn:
            return
        try:
            json.loads(torn)
        except ValueError:
            file.truncate(size - len(torn))
        else:
            file.seek(0, os.SEEK_END)
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


def _replace(path: Path, chunks: Iterable[bytes]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise BaizeError(
            f"{path} cannot be written ({error.strerror}): choose a writable folder with BAIZE_RUNS"
        ) from error
    try:
        with os.fdopen(handle, "wb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o666 & ~_umask())
        Path(name).replace(path)
    except OSError as error:
        raise BaizeError(
            f"{path} was not written ({error.strerror}): free some disk space and run again; "
            "the earlier file, if any, is unchanged"
        ) from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            Path(name).unlink()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
