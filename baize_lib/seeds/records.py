"""Records out of files as people have them: JSON lines, JSON lists, one JSON object, tables.

A record comes with its place, and a fault comes as a ValueError in its stead, so nothing is lost
in silence and nothing after a fault is lost with it:

    for place, record in records(Path("dump.json")):
        ...     # ("dump.json:1", {"question": "Why?"}), ("dump.json:7", ValueError(...)), ...

Everything streams: a list of gigabytes passes through in the memory of its longest record, and a
record of more than 4 MB is a fault itself, as no question or dialogue is so long.
"""

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

LONGEST = 1 << 22  # bytes of a line, characters of a JSON value
BLOCK = 1 << 16
READ_ERRORS = (OSError, EOFError, RuntimeError, zlib.error)  # a damaged archive or disk
Records = Iterator[tuple[str, Any]]


def records(path: Path) -> Records:
    """(place, record or ValueError) of a .jsonl, .json, .csv, .tsv or .parquet file, or a .gz."""
    try:
        if path.suffix.lower() == ".parquet":
            yield from _rows_of_parquet(path)
        else:
            with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
                yield from records_of(file, str(path))
    except READ_ERRORS as error:
        yield str(path), ValueError(error)


def records_of(file: IO[bytes], place: str) -> Records:
    """The same from an open, unpacked file; the ending of its name says whether it is a table."""
    table = place.lower().removesuffix(".gz").endswith((".csv", ".tsv"))
    for number, record in _table(file) if table else _json(file):
        yield f"{place}:{number}", record


def lines(file: IO[bytes]) -> Iterator[tuple[int, str | ValueError]]:
    """(line number, text) of a UTF-8 file with or without byte-order mark; a broken byte becomes
    U+FFFD, which a cleaning rule finds. A blank line counts, and is left out."""
    number = 0
    while raw := file.readline(LONGEST):
        number += 1
        if number == 1 and raw.startswith((b"\xff\xfe", b"\xfe\xff")):
            yield number, ValueError("it is UTF-16: save it as UTF-8")
            return
        if len(raw) == LONGEST and not raw.endswith(b"\n"):
            while (rest := file.readline(LONGEST)) and not rest.endswith(b"\n"):
                pass
            yield number, ValueError("a line of more than 4 MB")
        elif raw.strip():
            yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8", "replace")


# ---- JSON ----------------------------------------------------------------------------------------

_NAMED_LIST = re.compile(rb'\{\s*"(?:items|data|rows)"\s*:\s*\[')  # {"items": [ …
_PRINTED = re.compile(rb'\{[ \t]*\r?\n\s*["}]')  # an object over many lines
_BETWEEN = re.compile(r"[\s,]*")
_NEXT = re.compile(r"\}\s*,?\s*(?=\{)")  # the value after a broken one


def _json(file: IO[bytes]) -> Iterator[tuple[int, Any]]:
    """(line, value): from a value a line, or from a list or printed objects over many lines."""
    head = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    file.seek(0)
    is_list = head[:1] == b"[" or bool(_NAMED_LIST.match(head))
    if is_list or _PRINTED.match(head):
        yield from _values(io.TextIOWrapper(file, "utf-8-sig", errors="replace"), is_list)
        return
    for number, line in lines(file):
        try:
            yield number, json.loads(line) if isinstance(line, str) else line
        except (ValueError, RecursionError) as error:
            yield number, ValueError(error)


def _values(file: io.TextIOWrapper, is_list: bool) -> Iterator[tuple[int, Any]]:
    """The values of a JSON list, or printed one after another, each as soon as it is here."""
    decode = json.JSONDecoder().raw_decode
    text, line, lost, closed = file.read(BLOCK), 1, False, not is_list
    at = text.index("[") + 1 if is_list else 0
    line += text.count("\n", 0, at)
    while True:
        start = _BETWEEN.match(text, at).end()
        line, at = line + text.count("\n", at, start), start
        if at == len(text):
            text, at = file.read(BLOCK), 0
            if not text:
                break
        elif text[at] == "]" and is_list and not lost:
            return
        elif text[at] in "]}" and lost:  # a bracket of the broken value, or the last one
            closed, at = True, at + 1
        else:
            try:
                value, end = decode(text, at)
            except (ValueError, RecursionError) as error:
                wanted = max(BLOCK, len(text) - at)  # perhaps the rest of it has not been read
                if len(text) - at < LONGEST and (more := file.read(wanted)):
                    text, at = text[at:] + more, 0
                    continue
                yield line, ValueError(error)
                lost = True
                text, at, line = _after_fault(file, text, at, line)
            else:
                yield line, value
                line, at, closed = line + text.count("\n", at, end), end, not is_list
    if not closed:
        yield line, ValueError("the list is not closed: the file may be cut short")


def _after_fault(file: io.TextIOWrapper, text: str, at: int, line: int) -> tuple[str, int, int]:
    """(text, position, line) of the next object after the one at `at`, or of the file's end."""
    while not (found := _NEXT.search(text, at + 1)):
        cut = max(at, len(text) - 80)  # the sign of the next object may lie across two blocks
        more = file.read(BLOCK)
        if not more:
            return "", 0, line
        text, line, at = text[cut:] + more, line + text.count("\n", at, cut), 0
    return text, found.end(), line + text.count("\n", at, found.end())


# ---- Tables --------------------------------------------------------------------------------------


def _table(file: IO[bytes]) -> Iterator[tuple[int, Any]]:
    """Rows of CSV or TSV as dicts, the delimiter told by the header.

    A row whose quotes do not close is a fault, and reading goes on with the line after it, not
    after whatever the open quote swallowed.
    """
    rows = lines(file)
    number, header = next(rows, (1, ""))
    delimiter = max(",\t;", key=str(header).count)
    try:
        names = _fields(str(header), delimiter)
        if isinstance(header, ValueError) or "\r" in header.strip():
            raise ValueError(f"{header!s:.60}: its lines do not end as they should")
    except (ValueError, csv.Error) as error:
        yield number, ValueError(error)
        return
    ahead: list[tuple[int, Any]] = []  # lines that an open quote had taken in, last one first

    def following() -> tuple[int, Any] | None:
        return ahead.pop() if ahead else next(rows, None)

    while first := following():
        fields, taken = _row(first[1], following, delimiter)
        if isinstance(fields, ValueError):
            ahead.extend(reversed(taken))
        elif "".join(fields[len(names) :]).strip():
            fields = ValueError(
                f"{len(fields)} fields, and the header has {len(names)}: put a text that holds a "
                f"{delimiter!r} in quotes"
            )
        else:
            fields = dict(zip(names, fields, strict=False))
        yield first[0], fields


def _row(text: Any, following: Callable[[], Any], delimiter: str) -> tuple[Any, list]:
    """(fields or ValueError, the lines it went on over while its quotes were open, at most 100)."""
    taken: list[tuple[int, Any]] = []
    while isinstance(text, str):
        try:
            return _fields(text, delimiter), taken
        except csv.Error as error:
            more = following() if "unexpected end" in str(error) and len(taken) < 100 else None
            taken += [more] if more else []
            text = text + more[1] if more and isinstance(more[1], str) else ValueError(error)
    return text, taken


def _fields(text: str, delimiter: str) -> list[str]:
    return next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), [])


def _rows_of_parquet(path: Path) -> Records:
    from pyarrow import ArrowException, parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(1000):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path} row {number}", row
    except ArrowException as error:
        yield f"{path} row {number + 1}", ValueError(error)
