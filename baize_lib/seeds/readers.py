"""Reading questions as they are published: MedQuAD, Stack Exchange, Quora, tables, the hub.

`read_source` streams: a file of gigabytes passes through in flat memory. A broken file costs only
its broken part, whose place (file and line, or byte) is written down in a `Tally`.

    tally = Tally()
    for place, seed in read_source("Posts.xml", tally): ...
    tally.problems     # ['Posts.xml byte 18223: not well-formed (invalid token): …']
"""

import csv
import gzip
import html
import json
import re
import zipfile
import zlib
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any
from xml.etree import ElementTree

from baize_lib.config import BaizeError, data_dir
from baize_lib.seeds.seed import BUILT_IN, CHINESE, Seed, Tally

__all__ = [
    "read_source",
    "Mirror",
    "MIRRORS",
]


@dataclass(frozen=True, slots=True)
class Mirror:
    """Where a source lies as parquet on the Hugging Face hub (datasets >= 4 runs no scripts)."""

    path: str
    config: str | None = None
    columns: tuple[str, ...] | None = None  # read only these


MIRRORS = {
    "quora": Mirror("sentence-transformers/quora-duplicates-mining", "questions"),
    "stackoverflow": Mirror("mikex86/stackoverflow-posts", None, ("Id", "PostTypeId", "Title")),
    "medquad": Mirror("lavita/MedQuAD"),
}

_Rows = Iterator[tuple[str, Seed]]


def read_source(source: str, tally: Tally) -> _Rows:
    """Yield (place, seed as published) for every question; the sources are `load_seeds`'s.

    Raises:
        BaizeError: there is no such source, or its kind is not known.
    """
    if source in BUILT_IN + CHINESE:
        yield from _read_path(data_dir() / "seeds" / f"{source}.jsonl", tally)
    elif source.startswith("hf:"):
        yield from _read_hub(source.removeprefix("hf:"), tally)
    elif Path(source).expanduser().exists():
        yield from _read_path(Path(source).expanduser(), tally)
    else:
        names = ", ".join([*BUILT_IN, *CHINESE, *(f"hf:{name}" for name in MIRRORS)])
        raise BaizeError(
            f"no seeds called {source!r}: use {names}, or the path of a file, folder or zip"
        )


def _read_path(path: Path, tally: Tally) -> _Rows:
    if path.is_dir():
        for name in _readable(str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()):
            yield from _read_path(path / name, tally)
    elif path.suffix.lower() == ".zip":
        with _reporting(str(path), tally), zipfile.ZipFile(path) as archive:
            for name in _readable(archive.namelist()):
                with _reporting(f"{path}!{name}", tally), archive.open(name) as file:
                    yield from _read_file(file, f"{path}!{name}", tally)
    elif path.suffix.lower() == ".parquet":
        yield from _read_hub("parquet", tally, stem=path.stem, data_files=str(path))
    elif _reader_for(path.name):
        with _reporting(str(path), tally), path.open("rb") as file:
            yield from _read_file(file, str(path), tally)
    else:
        raise BaizeError(
            f"{path}: seeds are read from {', '.join(_READERS)}, .parquet, .zip, each but the last "
            "two also as .gz: convert the file, or unpack it first if it is a .7z"
        )


def _readable(names: Iterator[str]) -> list[str]:
    """The data files of a folder or zip, in order; plain text (a readme, a licence) only where
    there is nothing else."""
    files = sorted(n for n in names if _reader_for(n) and not n.startswith("__MACOSX"))
    return [n for n in files if _reader_for(n) is not _read_text] or files


@contextmanager
def _reporting(place: str, tally: Tally) -> Iterator[None]:
    """Whatever makes a file unreadable is reported under its name; what came before is kept."""
    try:
        yield
    except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        tally.broken(place, error)


def _read_file(file: IO[bytes], place: str, tally: Tally) -> _Rows:
    packed = place.lower().endswith(".gz")
    with gzip.open(file) if packed else nullcontext(file) as unpacked:
        yield from _reader_for(place)(unpacked, place, tally)


def _reader_for(name: str):
    return _READERS.get(Path(name.lower().removesuffix(".gz")).suffix)


def _stem(place: str) -> str:
    return Path(place.removesuffix(".gz")).stem


# Lines, records and tables.


def _lines(file: IO[bytes]) -> Iterator[tuple[int, str]]:
    """(line number, text) of a UTF-8 file with or without byte-order mark; a broken byte becomes
    U+FFFD, which a cleaning rule finds."""
    for number, raw in enumerate(file, start=1):
        raw = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
        yield number, raw.decode("utf-8", "replace")


def _read_text(file: IO[bytes], place: str, tally: Tally) -> _Rows:
    for number, line in _lines(file):
        if line.strip():
            yield f"{place}:{number}", Seed(f"{_stem(place)}-{number}", line, _stem(place))


def _read_jsonl(file: IO[bytes], place: str, tally: Tally) -> _Rows:
    for number, line in _lines(file):
        try:
            row = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError) as error:
            tally.broken(f"{place}:{number}", error)
            continue
        if row is not None:
            yield from _from_row(row, f"{place}:{number}", number, _stem(place), tally)


def _read_table(file: IO[bytes], place: str, tally: Tally) -> _Rows:
    """CSV or TSV, the delimiter told by the header. A line whose quotes do not close is left out,
    and reading goes on with the line after it, not after whatever the open quote swallowed."""
    lines = _lines(file)
    _, header = next(lines, (0, ""))
    delimiter = max(",\t;", key=header.count)
    try:
        names = next(csv.reader([header.strip()], delimiter=delimiter), [])
    except csv.Error as error:
        tally.broken(f"{place}:1", error)
        return
    if not _columns({name.strip().lower() for name in names}):
        tally.broken(f"{place}:1", f"no column question, text or title in {header.strip()[:80]!r}")
        return
    again: deque[tuple[int, str]] = deque()  # lines given back after a fault
    taken: list[tuple[int, str]] = []  # lines of the present record

    def feed() -> Iterator[str]:
        while line := again.popleft() if again else next(lines, None):
            taken.append(line)
            yield line[1]

    while True:
        taken.clear()
        try:
            values = next(csv.reader(feed(), delimiter=delimiter, strict=True))
        except StopIteration:
            return
        except csv.Error as error:
            tally.broken(f"{place}:{taken[0][0]}", error)
            again.extendleft(reversed(taken[1:]))
            continue
        if values:
            number = taken[0][0]
            row = dict(zip(names, values, strict=False))
            yield from _from_row(row, f"{place}:{number}", number, _stem(place), tally)


def _columns(names) -> tuple[str, ...]:
    """The fields that hold a question: two in a table of pairs, else one, else none."""
    for columns in (("question1", "question2"), ("sentence1", "sentence2")):
        if columns[0] in names:
            return columns
    return tuple(name for name in ("question", "text", "title", "prompt") if name in names)[:1]


def _from_row(row: Any, place: str, number: int, source: str, tally: Tally) -> _Rows:
    """The one or two seeds in a record with named fields."""
    if not isinstance(row, Mapping):
        tally.broken(place, f"a record with named fields was expected, not {type(row).__name__}")
        return
    fields = {str(key).strip().lower(): value for key, value in row.items()}
    if str(fields.get("posttypeid", 1)) != "1":
        tally.drop("a post that is not a question")
        return
    columns = _columns(fields)
    if not columns:
        tally.broken(place, f"no field question, text or title among {', '.join(fields)[:80]}")
    for k, column in enumerate(columns, start=1):
        name = fields.get(f"qid{k}") or fields.get("id") or fields.get("qid")
        name = str(number if name is None else name)
        name = f"{source}-{name}" if name.isdigit() else name
        if len(columns) == 2 and not fields.get(f"qid{k}"):
            name += f"-{k}"
        if isinstance(text := fields.get(column), str):
            yield place, Seed(name, text, str(fields.get("source") or source))
        else:
            tally.broken(place, f"{column} is missing or not a text")


# Stack Exchange.


def _read_api(file: IO[bytes], place: str, tally: Tally) -> _Rows:
    """The API's answers: a page `{"items": [{"title": …, "question_id": …}]}`, or a list of pages
    or of records. Titles come with HTML entities."""
    try:
        pages = json.loads(file.read().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # the message has the line, or the byte
        tally.broken(place, error)
        return
    number = 0
    for page in pages if isinstance(pages, list) else [pages]:
        if isinstance(page, dict) and "error_message" in page:
            tally.broken(place, f"the API answered with an error: {page['error_message']}")
            continue
        items = page.get("items", [page]) if isinstance(page, dict) else [page]
        for item in items if isinstance(items, list) else [items]:
            number += 1
            where = f"{place} item {number}"
            if isinstance(item, dict) and isinstance(item.get("title"), str):
                name = f"stackexchange-{item.get('question_id', number)}"
                yield where, Seed(name, html.unescape(item["title"]), "stackexchange")
            else:
                yield from _from_row(item, where, number, _stem(place), tally)


def _read_xml(file: IO[bytes], place: str, tally: Tally) -> _Rows:
    """A Stack Exchange dump if the first element says so, otherwise MedQuAD."""
    head = file.read(4096)
    root = re.search(rb"<\s*([A-Za-z]\w*)", head)
    if root and root[1] in (b"posts", b"row"):
        yield from _read_posts(file, head, place, tally)
    else:
        yield from _read_medquad(file, head, place, tally)


_ROW = re.compile(rb"<row(?=\s)")  # "<" cannot stand inside an attribute, so this starts a row
_IS_QUESTION = re.compile(rb"""PostTypeId\s*=\s*["']1["']""")
_BLOCK, _LONGEST_ROW = 1 << 20, 1 << 24  # bytes; a post's body is at most 30,000 characters


def _read_posts(file: IO[bytes], head: bytes, place: str, tally: Tally) -> _Rows:
    """`<row Id="4" PostTypeId="1" Title="…" Body="…" />` and so on for gigabytes.

    Cut at each `<row`, and only questions are parsed: one torn row cannot hide those after it,
    and answers, most of the bytes, cost no more than a search.
    """
    tail, at, in_row = head, 0, False  # at: the byte at which the tail begins
    for block in chain(iter(lambda: file.read(_BLOCK), b""), [b""]):
        *pieces, tail = _ROW.split(tail + block)
        for piece in pieces if block else [*pieces, tail]:
            if in_row:  # before the first row there is only the file's head
                yield from _read_row(piece, f"{place} byte {at - 4}", tally)
            at, in_row = at + len(piece) + 4, True
        if len(tail) > _LONGEST_ROW:
            tally.broken(f"{place} byte {at - 4}", "a row that does not end")
            tail, at, in_row = b"", at + len(tail), False


def _read_row(piece: bytes, place: str, tally: Tally) -> _Rows:
    if not _IS_QUESTION.search(piece):
        tally.drop("a post that is not a question")
        return
    attributes = piece.split(b"<")[0].rstrip().removesuffix(b">").removesuffix(b"/")
    try:
        post = ElementTree.fromstring(b"<row" + attributes + b"/>")
    except ElementTree.ParseError as error:
        tally.broken(place, error)
        return
    if title := post.get("Title"):
        yield place, Seed(f"stackexchange-{post.get('Id')}", html.unescape(title), "stackexchange")
    else:
        tally.broken(place, "a question without a Title")


# MedQuAD (Ben Abacha & Demner-Fushman 2019, CC BY 4.0).


def _read_medquad(file: IO[bytes], head: bytes, place: str, tally: Tally) -> _Rows:
    """One document; the questions before a fault in it are kept."""
    parser = ElementTree.XMLPullParser(["start", "end"])
    publisher = subject = ""
    try:
        for block in chain([head], iter(lambda: file.read(_BLOCK), b"")):
            parser.feed(block)
            for event, element in parser.read_events():
                publisher = publisher or element.get("source", "")
                if event == "end" and element.tag == "Focus":
                    subject = (element.text or "").strip()
                elif event == "end" and element.tag == "Question":
                    name = f"medquad-{publisher}-{element.get('qid', '')}"
                    seed = Seed(name, element.text or "", "medquad")
                    yield from _mend_medquad(place, seed, subject, tally)
        parser.close()
    except ElementTree.ParseError as error:
        tally.broken(f"{place}:{error.position[0]}", error)


_HOLE = re.compile(r"(\(are\)|\bfor|\bprevent|\bcauses?|\bdiagnose)\s+\?")
_LEAFLET = re.compile(
    r"what i need to know about|(is|are\)|causes|for|of) causes of|: ", re.IGNORECASE
)


def _mend_medquad(place: str, seed: Seed, subject: str, tally: Tally) -> _Rows:
    """MedQuAD's questions were made from templates ("What is (are) {Focus} ?"): mend what reads
    badly, drop what a missing subject or a leaflet's title in place of a disease has spoilt."""
    if not subject and _HOLE.search(seed.text):
        tally.drop("MedQuAD: no subject", seed.text)
    elif _LEAFLET.search(seed.text):
        tally.drop("MedQuAD: a leaflet's title in the question", seed.text)
    else:
        text = re.sub(r"(\s*\?)+\s*$", "?", seed.text.strip().replace("is (are)", "is"))
        yield place, Seed(seed.id, text[:1].upper() + text[1:], seed.source)


# The Hugging Face hub.


def _read_hub(name: str, tally: Tally, stem: str = "", **options: Any) -> _Rows:
    """Stream the train split of a data set on the hub, of a local folder, or of a parquet file."""
    import datasets

    mirror = MIRRORS.get(name, Mirror(name))
    stem = stem or Path(name).name
    if mirror.columns:
        options["columns"] = list(mirror.columns)
    number = 0
    try:
        for row in datasets.load_dataset(
            mirror.path, mirror.config, split="train", streaming=True, **options
        ):
            number += 1
            for place, seed in _from_row(row, f"hf:{name} row {number}", number, stem, tally):
                if name == "medquad":
                    yield from _mend_medquad(place, seed, row.get("question_focus") or "", tally)
                else:
                    yield place, seed
    except Exception as error:
        fault = f"{type(error).__name__}: {str(error).strip()[:300]}"
        if not number:
            raise BaizeError(
                f"hf:{name} ({mirror.path}) could not be read ({fault}): check the name and the "
                "network; a data set with a loading script needs its parquet copy; offline, use "
                "'general' or a file"
            ) from error
        tally.broken(f"hf:{name} row {number + 1}", fault)


_READERS = {
    ".xml": _read_xml,
    ".json": _read_api,
    ".jsonl": _read_jsonl,
    ".csv": _read_table,
    ".tsv": _read_table,
    ".txt": _read_text,
}
