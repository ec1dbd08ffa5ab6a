"""Records out of files as people have them: JSON lines, JSON lists, one JSON object, tables.

A record comes with its place, and a fault comes as a ValueError in its stead, so nothing is lost
in silence. Everything streams, and a record of more than 4 MB is a fault itself:

    for place, record in records(Path("dump.jsonl")):
        ...     # ("dump.jsonl:1", {"question": "Why?"}), ("dump.jsonl:7", ValueError(...)), ...
"""

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any

LONGEST = 1 << 22  # bytes of a line, characters of a JSON value
BLOCK = 1 << 16
OPEN_LINES = 100  # that a row may go on over while its quotes are open
READ_ERRORS = (OSError, EOFError, RuntimeError, zlib.error)  # a damaged archive or disk
_Line = tuple[int, str | ValueError]  # its number and its text, or what is wrong with it
_Numbered = Iterator[tuple[int, Any]]  # (line or row, record or ValueError)


def records(path: Path) -> Iterator[tuple[str, Any]]:
    """(place, record or ValueError) of a .jsonl, .json, .csv, .tsv or .parquet file, or a .gz."""
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            yield from records_of(file, str(path))
    except READ_ERRORS as error:
        yield str(path), ValueError(error)


def records_of(file: IO[bytes], place: str) -> Iterator[tuple[str, Any]]:
    """The same from an open, unpacked file; the ending of its name says what it is."""
    ending = Path(place.lower().removesuffix(".gz")).suffix
    read = {".csv": _table, ".tsv": _table, ".parquet": _parquet}.get(ending, _json)
    for number, record in read(file):
        yield f"{place}:{number}", record


def lines(file: IO[bytes]) -> Iterator[_Line]:
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

_NAMED_LIST = re.compile(rb'\{\s*"(?:items|data|rows)"\s*:\s*\[\s*[]{]')  # {"items": [{ …
_PRINTED = re.compile(rb'\{[ \t]*\r?\n\s*["}]')  # an object over many lines
_BETWEEN = re.compile(r"[\s,]*")


def _json(file: IO[bytes]) -> _Numbered:
    """From a value a line, or from a list or printed objects over many lines."""
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


def _values(file: io.TextIOWrapper, is_list: bool) -> _Numbered:
    """The values of a JSON list, or printed one after another; nothing tells where a broken one
    ends, so it is the last."""
    decode = json.JSONDecoder().raw_decode
    text, line = file.read(BLOCK), 1
    at = text.index("[") + 1 if is_list else 0
    line += text.count("\n", 0, at)
    while True:
        start = _BETWEEN.match(text, at).end()
        line, at = line + text.count("\n", at, start), start
        if at == len(text):
            text, at = file.read(BLOCK), 0
            if not text:
                break
        elif is_list and text[at] == "]":
            if re.search(r"[\[{]", text[at:] + file.read(BLOCK)):
                yield line, ValueError("the list ends here; what follows it is not read")
            return
        else:
            try:
                value, end = decode(text, at)
            except (ValueError, RecursionError) as error:
                wanted = max(BLOCK, len(text) - at)  # perhaps the rest of it has not been read
                if len(text) - at > LONGEST or not (more := file.read(wanted)):
                    yield line, ValueError(f"{error}; what follows it is not read")
                    return
                text, at = text[at:] + more, 0
            else:
                yield line, value
                line, at = line + text.count("\n", at, end), end
    if is_list:
        yield line, ValueError("the list is not closed: the file may be cut short")


# ---- Tables --------------------------------------------------------------------------------------


def _table(file: IO[bytes]) -> _Numbered:
    """Rows of CSV or TSV as dicts, the delimiter told by the header. After a row whose quotes do
    not close, reading goes on with the next line, not after whatever the open quote swallowed."""
    rows = lines(file)
    number, header = next(rows, (1, ""))
    delimiter = max(",\t;", key=str(header).count)
    _, names = _first_row([(number, header)], delimiter)
    if "\r" in str(header).strip():
        names = ValueError(f"{header:.60}: its lines do not end as they should")
    if isinstance(names, ValueError):
        yield number, names
        return
    ahead = [*islice(rows, OPEN_LINES)]
    while ahead:
        taken, fields = _first_row(ahead, delimiter)
        if isinstance(fields, ValueError):
            row = fields
        elif "".join(fields[len(names) :]).strip():
            row = ValueError(
                f"{len(fields)} fields, and the header has {len(names)}: put a text that holds a "
                f"{delimiter!r} in quotes"
            )
        else:
            row = dict(zip(names, fields, strict=False))
        yield ahead[0][0], row
        ahead = [*ahead[taken:], *islice(rows, taken)]


def _first_row(ahead: list[_Line], delimiter: str) -> tuple[int, list[str] | ValueError]:
    """(lines it takes, fields) of the row that begins on the first line."""
    text, fault = "", None
    for taken, (_, line) in enumerate(ahead, start=1):
        if isinstance(line, ValueError):
            return 1, fault or line
        text += line
        row = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        try:
            return taken, next(row, [])
        except csv.Error as error:
            fault = ValueError(error)
            if "unexpected end" not in str(error):  # so its quotes are not open
                break
    return 1, fault


def _parquet(file: IO[bytes]) -> _Numbered:
    from pyarrow import ArrowException, parquet

    number = 0
    try:
        batches = parquet.ParquetFile(file).iter_batches(1000)
        for number, row in enumerate((row for b in batches for row in b.to_pylist()), start=1):
            yield number, row
    except ArrowException as error:
        yield number + 1, ValueError(error)
