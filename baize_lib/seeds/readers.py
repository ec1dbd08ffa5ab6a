"""Reading questions as they are published: MedQuAD, Stack Exchange, Quora, tables, the hub.

`read_source` streams: a file of gigabytes passes through in flat memory. A broken file costs only
its broken part, whose place (file and line) is written down.

    seeds = Seeds()
    for seed in read_source("Posts.xml", seeds): ...
    seeds.problems     # ['Posts.xml:18223: not well-formed (invalid token): …']
"""

import html
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any
from xml.etree import ElementTree

from baize_lib.config import BaizeError, data_dir
from baize_lib.files import compiled, written
from baize_lib.seeds.records import READ_ERRORS, lines, records_of
from baize_lib.seeds.seed import BUILT_IN, CHINESE, Seed, Seeds

_WRITTEN = written(__file__, "seeds.toml")
MIRRORS: dict[str, dict[str, Any]] = _WRITTEN["mirrors"]
PATTERN = compiled(_WRITTEN["pattern"])
ENDINGS = (".xml", ".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt")


def read_source(source: str, tally: Seeds, column: str | None = None) -> Iterator[Seed]:
    """Yield the seed as published of every question; the sources are `load_seeds`'s.

    A BaizeError says so where there is no such source, or its kind is not known.
    """
    if source in BUILT_IN + CHINESE:
        yield from _read_path(data_dir() / "seeds" / f"{source}.jsonl", tally, None)
    elif source.startswith("hf:"):
        yield from _read_hub(source.removeprefix("hf:"), tally, column)
    elif source.strip() and Path(source).expanduser().exists():
        yield from _read_path(Path(source).expanduser(), tally, column)
    else:
        names = ", ".join([*BUILT_IN, *CHINESE, *(f"hf:{name}" for name in MIRRORS)])
        raise BaizeError(
            f"no seeds called {source!r:.200}: use {names}, the path of a file, folder or zip, or "
            "a list of questions"
        )


def _read_path(path: Path, tally: Seeds, column: str | None) -> Iterator[Seed]:
    """The seeds of every data file at `path`, in a folder or in a zip, each perhaps packed."""
    from fsspec.implementations.local import LocalFileSystem
    from fsspec.implementations.zip import ZipFileSystem

    is_zip = path.suffix.lower() == ".zip"
    try:
        files = ZipFileSystem(str(path)) if is_zip else LocalFileSystem()
    except (*READ_ERRORS, zipfile.BadZipFile) as error:
        tally.broken(str(path), error)
        return
    names = [n for n in files.find("" if is_zip else str(path)) if not n.startswith("__MACOSX")]
    names = [n for n in names if n.lower().removesuffix(".gz").endswith(ENDINGS)]
    if not names and path.is_file() and not is_zip:
        raise BaizeError(
            f"{path}: seeds are read from {', '.join(ENDINGS)}, .zip, each but the last also as "
            ".gz: convert the file, or unpack it first if it is a .7z"
        )
    # plain text, a readme or a licence, only where there is nothing else
    for name in [n for n in names if ".txt" not in Path(n.lower()).suffixes] or names:
        place = f"{path}!{name}" if is_zip else name
        try:
            with files.open(name, compression="infer") as file:
                yield from _read_file(file, place, tally, column)
        except (*READ_ERRORS, NotImplementedError) as error:  # what came before is kept
            tally.broken(place, error)


def _read_file(file: IO[bytes], place: str, tally: Seeds, column: str | None) -> Iterator[Seed]:
    """The seeds of an open file; its ending, and of XML its first element, say what it is."""
    name = Path(place.rpartition("!")[2])
    name = name.with_suffix("") if name.suffix.lower() == ".gz" else name
    source, rows = name.stem, None
    if name.suffix.lower() == ".xml":
        root = re.search(rb"<\s*([A-Za-z]\w*)", file.read(4096))
        file.seek(0)
        if not root or root[1] not in (b"posts", b"row"):
            yield from _read_medquad(file, place, tally)
            return
        source, rows = "stackexchange", _posts(file, place)
    elif name.suffix.lower() == ".txt":
        rows, column = ((f"{place}:{number}", line) for number, line in lines(file)), None
    yield from _from_records(rows or records_of(file, place), source, tally, column)


# ---- Records with named fields -------------------------------------------------------------------


def _from_records(
    rows: Iterator[tuple[str, Any]], source: str, tally: Seeds, column: str | None
) -> Iterator[Seed]:
    """The seeds of records: texts, rows with a question, pages of the Stack Exchange API."""
    for number, (place, row) in enumerate(rows, start=1):
        if isinstance(row, str):
            row = {"text": row}
        if not isinstance(row, Mapping):
            what = f"a record with named fields was expected, not {type(row).__name__}"
            tally.broken(place, row if isinstance(row, ValueError) else what)
        elif isinstance(row.get("items"), list):
            items = ((f"{place} item {i}", item) for i, item in enumerate(row["items"], start=1))
            yield from _from_records(items, source, tally, column)
        elif "error_message" in row:
            tally.broken(place, f"the API answered with an error: {row['error_message']}")
        else:
            line = place.rpartition(":")[2]
            fields = {str(key).strip().lower(): value for key, value in row.items()}
            own = (fields.get("id"), fields.get("qid"), line if line.isdigit() else number)
            own = next(str(name) for name in own if name is not None)
            yield from _from_row(fields, own, place, source, tally, column)


def _from_row(
    fields: dict[str, Any], own: str, place: str, source: str, tally: Seeds, column: str | None
) -> Iterator[Seed]:
    """The one or two seeds in a record, called `own`."""
    if str(fields.get("posttypeid", 1)) != "1":
        tally.drop("a post that is not a question")
        return
    wanted = [[column.strip().lower()]] if column else _WRITTEN["questions"]
    columns = next((names for names in wanted if names[0] in fields), ())
    if not columns:
        missing = repr(column) if column else "question, text or title"
        tally.broken(place, f"no field {missing} among {', '.join(fields)[:80]}: name it, column=…")
    for k, name in enumerate(columns, start=1):
        text, called = fields.get(name), own
        if len(columns) == 2:
            called = str(fields.get(f"qid{k}") or f"{own}-{k}")
        if not isinstance(text, str):
            tally.broken(place, f"{name} is missing or not a text")
        elif "question_id" in fields and name == "title":  # the API's titles are HTML
            called = f"stackexchange-{fields['question_id']}"
            yield Seed(called, html.unescape(text), "stackexchange")
        else:
            called = f"{source}-{called}" if called[:1].isdigit() else called
            yield Seed(called, text, str(fields.get("source") or source))


# ---- Stack Exchange and MedQuAD (Ben Abacha & Demner-Fushman 2019, CC BY 4.0) --------------------

_ROW = re.compile(r"<row\s[^<]*")  # "<" cannot stand inside an attribute
_IS_QUESTION = re.compile(r"""PostTypeId\s*=\s*["']1["']""")


def _posts(file: IO[bytes], place: str) -> Iterator[tuple[str, Any]]:
    """The rows `<row Id="4" PostTypeId="1" Title="…" Body="…" />` of a dump as records; only
    questions are parsed, each by itself, so that one torn row cannot hide those after it."""
    for number, line in lines(file):
        for row in [line] if isinstance(line, ValueError) else _ROW.findall(line):
            if isinstance(row, str) and not _IS_QUESTION.search(row):
                row = {"PostTypeId": 2}
            elif isinstance(row, str):
                whole = row.rstrip().removesuffix(">").removesuffix("/") + "/>"
                try:
                    row = ElementTree.fromstring(whole).attrib
                except ElementTree.ParseError as error:
                    row = ValueError(error)
            yield f"{place}:{number}", row


def _read_medquad(file: IO[bytes], place: str, tally: Seeds) -> Iterator[Seed]:
    """One document; the questions before a fault in it are kept."""
    publisher = ""
    try:
        for event, element in ElementTree.iterparse(file, ["start", "end"]):
            publisher = publisher or element.get("source", "")
            if event == "end" and element.tag == "Question":
                name = f"medquad-{publisher}-{element.get('qid', '')}"
                yield from _mend_medquad(Seed(name, element.text or "", "medquad"), tally)
            elif event == "end":
                element.clear()
    except ElementTree.ParseError as error:
        tally.broken(f"{place}:{error.position[0]}", error)


def _mend_medquad(seed: Seed, tally: Seeds) -> Iterator[Seed]:
    """MedQuAD's questions were made from templates ("What is (are) {Focus} ?"): mend what reads
    badly, drop what a missing subject or a leaflet's title in place of a disease has spoilt."""
    if PATTERN["hole"].search(seed.text):
        tally.drop("MedQuAD: no subject", seed.text)
    elif PATTERN["leaflet"].search(seed.text):
        tally.drop("MedQuAD: a leaflet's title in the question", seed.text)
    else:
        text = re.sub(r"(\s*\?)+\s*$", "?", seed.text.strip().replace("is (are)", "is"))
        yield Seed(seed.id, text[:1].upper() + text[1:], seed.source)


# ---- The Hugging Face hub ------------------------------------------------------------------------


def _read_hub(name: str, tally: Seeds, column: str | None) -> Iterator[Seed]:
    """Stream the train split of a data set on the hub, or of a local folder."""
    import datasets

    options, last = MIRRORS.get(name, {"path": name}), ""
    if column and "columns" in options:
        options = options | {"columns": [column]}
    try:
        data = datasets.load_dataset(**options, split="train", streaming=True)
        rows = ((f"hf:{name} row {i}", {"id": i} | row) for i, row in enumerate(data, start=1))
        for seed in _from_records(rows, Path(name).name, tally, column):
            last = seed.id
            yield from _mend_medquad(seed, tally) if name == "medquad" and not column else [seed]
    except Exception as error:
        fault = f"{type(error).__name__}: {str(error).strip()[:300]}"
        if not last:
            raise BaizeError(
                f"hf:{name} could not be read ({fault}): check the name and the network; a data "
                "set with a loading script needs its parquet copy; offline, use 'general' or a file"
            ) from error
        tally.broken(f"hf:{name} after {last}", fault)
