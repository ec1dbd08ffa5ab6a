"""A training run as one YAML file, the same on one processor and on eight cards.

python -m baize_lib.train run.yaml
accelerate launch --num_processes 8 -m baize_lib.train run.yaml

base: huggyllama/llama-7b      # "embedded", a hub name or a folder
precision: bfloat16            # default auto
preset: 7B                     # the article's settings for that size; default ours
settings: {num_epochs: 2}      # any field of `Settings`, over the preset's
train: corpus/train.jsonl
validation: corpus/validation.jsonl
adapter: adapter               # the folder to write
shard: true                    # spread the base over the processes (FSDP)
"""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from baize_lib.batches import Settings
from baize_lib.config import BaizeError
from baize_lib.presets import preset_of

__all__ = ["RunFile", "read_run_file"]


@dataclass(frozen=True, slots=True)
class RunFile:
    """What a run file says; paths are relative to the working folder.

    Attributes:
        train: a corpus in chat format, one dialogue a line; `validation` likewise, or None.
        adapter: the folder to write.
    """

    train: Path
    adapter: Path
    validation: Path | None = None
    base: str = "embedded"
    precision: str = "auto"
    shard: bool = False
    settings: Settings = Settings()  # noqa: RUF009 (frozen)


def read_run_file(path: Path | str) -> RunFile:
    """Read and check a run file.

    Raises:
        BaizeError: it is missing, not YAML, lacks `train` or `adapter`, or has a key or a type of
            value that nothing reads; the message names it and what would do.
    """
    import yaml

    try:
        said = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise BaizeError(f"run file {path} cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BaizeError(f"run file {path} is not YAML ({error})") from error
    if not isinstance(said, dict):
        raise BaizeError(f"run file {path} is not a list of `key: value` lines")
    given, name = said.pop("settings", None) or {}, said.pop("preset", None)
    start = Settings()
    if name is not None:
        try:
            preset = preset_of(name)
        except BaizeError as error:
            raise BaizeError(f"{path}: {error}") from error
        start = preset.settings
        said = {"base": preset.base, "precision": preset.precision} | said
    settings = replace(start, **_checked(given, start, f"settings in {path}"))
    missing = [key for key in ("train", "adapter") if key not in said]
    if missing:
        raise BaizeError(f"{path} does not say {' and '.join(missing)}: add `{missing[0]}: PATH`")
    example = RunFile(Path(), Path(), Path())
    return RunFile(**_checked(said, example, str(path)), settings=settings)


def _checked(given: Any, example: Any, where: str) -> dict[str, Any]:
    """`given` as keyword arguments of `example`'s class, each of its type."""
    known = {f.name: type(getattr(example, f.name)) for f in fields(example)}
    known.pop("settings", None)
    if not isinstance(given, dict):
        raise BaizeError(f"{where}: expected `key: value` pairs, not {given!r}")
    unknown = [str(key) for key in given if key not in known]
    if unknown:
        raise BaizeError(f"{where}: unknown {', '.join(unknown)}; known are {', '.join(known)}")
    return {key: _as(value, known[key], f"{where}: {key}") for key, value in given.items()}


def _as(value: Any, kind: type, name: str) -> Any:
    if isinstance(value, list) and kind in (tuple, str):  # targets: a list, or "all-linear"
        return tuple(map(str, value))
    if kind is tuple and isinstance(value, str):
        return value
    if kind is float and not isinstance(value, bool):
        try:  # YAML reads 2e-4 as text
            return float(value)
        except (TypeError, ValueError):
            pass
    if issubclass(kind, Path) and isinstance(value, str):
        return Path(value)
    if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    raise BaizeError(f"{name} is {value!r}, and should be of type {kind.__name__}")
