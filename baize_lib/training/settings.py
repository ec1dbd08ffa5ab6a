"""How to train: the settings of a run, presets of them for known bases, and runs as YAML files.

    python -m baize_lib.training.fit run.yaml
    accelerate launch --num_processes 8 -m baize_lib.training.fit run.yaml

    base: huggyllama/llama-7b      # a name in the table of models, a hub name or a folder
    precision: bfloat16            # default auto
    preset: 7B                     # Baize's settings for that size; default ours
    settings: {num_epochs: 2}      # any field of `TrainingSettings`, over the preset's
    train: corpus/train.jsonl
    validation: corpus/validation.jsonl
    adapter: adapter               # the folder to write
    shard: true                    # spread the base over the processes (FSDP)

>>> PRESETS["7B"].settings.lr, PRESETS["7B"].published
(0.0002, {'hours': 9.0, 'gigabytes': 26.0})
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Literal, TypeVar

import yaml

from baize_lib.config import BaizeError
from baize_lib.models.shapes import Shape

__all__ = ["TrainingSettings", "PRESETS"]

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """How to train. The defaults suit the course's own student; `PRESETS` holds Baize's.

    Attributes:
        dropout: of LoRA's input. On a CPU the article's 0.05 costs speed: masks to draw, and
            one micro-batch at a time.
        targets: names of the layers that get an adapter, or "all-linear": every linear layer of
            the text model but its head.
        batch_size: dialogues per optimiser step.
        compute: the precision of training's products: "float32", "bfloat16", or "auto": the base's
            own, but bfloat16 on a CPU with instructions for it.
        micro_tokens: padded tokens computed at once; less saves memory and changes nothing else.
        max_length: tokens of one dialogue; longer ones are cut at a turn.
        loss_on: "replies", or "all" as in Baize v1.
        end_token: end each reply with the end token, which is learnt too; Baize v1 had none.
        warmup: optimiser steps until `lr` is reached, at most a tenth of all.
        schedule: "cosine" or "linear", both down to zero.
        checkpoint_every: optimiser steps between checkpoints; 0 for none.
    """

    rank: int = 8
    alpha: float = 16
    dropout: float = 0.0
    targets: tuple[str, ...] | str = "all-linear"
    rslora: bool = False
    dora: bool = False
    lr: float = 1e-3
    num_epochs: int = 2
    batch_size: int = 8
    compute: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    micro_tokens: int = 1024
    max_length: int = 512
    loss_on: Literal["replies", "all"] = "replies"
    end_token: bool = True
    warmup: int = 100
    schedule: Literal["cosine", "linear"] = "cosine"
    max_grad_norm: float = 1.0
    seed: int = 0
    language: str = "en"
    gradient_checkpointing: bool = False
    checkpoint_every: int = 10


@dataclass(frozen=True, slots=True)
class Preset:
    """A base, the precision to load it in, settings that suit it, and their source.

    `published` is what its authors report of their own run: hours, and gigabytes of memory.
    """

    base: str
    config: dict[str, str | int | bool]
    source: str
    settings: TrainingSettings
    precision: str = "auto"
    published: dict[str, float] = field(default_factory=dict)

    @property
    def shape(self) -> Shape:
        return Shape.of(self.config)


def checked(kind: type[_T], said: Mapping[str, object], where: str) -> _T:
    """`said` as an instance of the dataclass `kind`.

    Raises:
        BaizeError: a key that nothing reads, or a value of another type; `where` is named.
    """
    from pydantic import TypeAdapter, ValidationError

    known = [f.name for f in fields(kind)]
    if not isinstance(said, Mapping):
        raise BaizeError(f"{where}: expected `key: value` pairs, not {said!r}")
    if unknown := [str(key) for key in said if key not in known]:
        raise BaizeError(f"{where}: unknown {', '.join(unknown)}; known are {', '.join(known)}")
    try:
        return TypeAdapter(kind).validate_python(dict(said))
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "something"
        raise BaizeError(f"{where}: {name} is {first['input']!r}: {first['msg']}") from error


def _read_presets() -> dict[str, Preset]:
    text = Path(__file__).with_name("presets.yaml").read_text(encoding="utf-8")
    return {name: checked(Preset, said, name) for name, said in yaml.safe_load(text).items()}


PRESETS = _read_presets()


def preset_of(name: str) -> Preset:
    """The preset called `name`; a BaizeError lists those there are."""
    if name not in PRESETS:
        raise BaizeError(f"preset {name!r} is unknown: use one of {', '.join(PRESETS)}")
    return PRESETS[name]


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
    base: str = "smollm2-135m"
    precision: str = "auto"
    shard: bool = False
    settings: TrainingSettings = TrainingSettings()


def read_run_file(path: Path | str) -> RunFile:
    """Read and check a run file.

    Raises:
        BaizeError: it is missing, not YAML, lacks `train` or `adapter`, or has a key or a type of
            value that nothing reads; the message names it and what would do.
    """
    try:
        said = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise BaizeError(f"run file {path} cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BaizeError(f"run file {path} is not YAML ({error})") from error
    if not isinstance(said, dict):
        raise BaizeError(f"run file {path} is not a list of `key: value` lines")
    settings, start = said.pop("settings", None) or {}, asdict(TrainingSettings())
    if "preset" in said:
        preset = preset_of(said.pop("preset"))
        start = asdict(preset.settings)
        said = {"base": preset.base, "precision": preset.precision} | said
    checked(TrainingSettings, settings, f"settings in {path}")
    if missing := [key for key in ("train", "adapter") if key not in said]:
        raise BaizeError(f"{path} does not say {' and '.join(missing)}: add `{missing[0]}: PATH`")
    return checked(RunFile, said | {"settings": start | settings}, str(path))
