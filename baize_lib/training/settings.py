"""How to train: the settings of a run, presets of them for known bases, and runs as YAML files.

    python -m baize_lib.training run.yaml
    accelerate launch --num_processes 8 -m baize_lib.training run.yaml

    base: huggyllama/llama-7b      # a name in the table of models, a hub name or a folder
    precision: bfloat16            # default auto
    preset: 7B                     # Baize's settings for that size; default ours
    settings: {num_epochs: 2}      # any field of `TrainingSettings`, over the preset's
    train: corpus/train.jsonl
    validation: corpus/validation.jsonl
    adapter: adapter               # the folder to write

>>> PRESETS["7B"].settings.lr, PRESETS["7B"].published
(0.0002, {'hours': 9.0, 'gigabytes': 26.0})
"""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import ClassVar, Literal

import yaml
from pydantic import TypeAdapter, ValidationError

from baize_lib.config import BaizeError
from baize_lib.models.shapes import Shape

__all__ = ["TrainingSettings", "PRESETS"]


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """How to train. The defaults suit the course's own student; `PRESETS` holds Baize's."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}  # a key that nothing reads is refused

    rank: int = 8
    alpha: float = 16
    dropout: float = 0.0  # of LoRA's input; any slows a CPU, the article's 0.05 too
    targets: tuple[str, ...] | str = "all-linear"  # names of layers; or all, the head left out
    rslora: bool = False
    dora: bool = False
    lr: float = 1e-3
    num_epochs: int = 2
    batch_size: int = 8  # dialogues per optimiser step
    compute: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # see `compute_precision`
    micro_tokens: int = 1024  # padded tokens computed at once: less saves memory, changes no result
    max_length: int = 512  # tokens of one dialogue; longer ones are cut at a turn
    loss_on: Literal["replies", "all"] = "replies"  # "all" as in Baize v1
    end_token: bool = True  # end each reply with the end token, learnt too; Baize v1 had none
    warmup: int = 100  # optimiser steps until `lr` is reached, at most a tenth of all
    schedule: Literal["cosine", "linear"] = "cosine"  # both down to zero
    max_grad_norm: float = 1.0
    seed: int = 0
    language: str = "en"
    gradient_checkpointing: bool = False
    checkpoint_every: int = 10  # optimiser steps; 0 for never


@dataclass(frozen=True, slots=True)
class Preset:
    """A base and the settings that suit it; `presets.yaml` names the sources."""

    base: str
    config: dict[str, str | int | bool]
    settings: TrainingSettings
    precision: str = "auto"  # to load the base in
    published: dict[str, float] = field(default_factory=dict)  # its authors' hours and gigabytes

    @property
    def shape(self) -> Shape:
        return Shape.of(self.config)


@dataclass(frozen=True, slots=True)
class RunFile:
    """What a run file says; paths are relative to the working folder."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    train: Path  # a corpus in chat format, one dialogue a line
    adapter: Path  # the folder to write
    validation: Path | None = None
    base: str = "smollm2-135m"
    precision: str = "auto"
    settings: TrainingSettings = TrainingSettings()


_TABLE = Path(__file__).with_name("presets.yaml").read_text(encoding="utf-8")
PRESETS = TypeAdapter(dict[str, Preset]).validate_python(yaml.safe_load(_TABLE))


def preset_of(name: str) -> Preset:
    """The preset called `name`; a BaizeError lists those there are."""
    if str(name) not in PRESETS:
        raise BaizeError(f"preset {name!r} is unknown: use one of {', '.join(PRESETS)}")
    return PRESETS[str(name)]


def read_run_file(path: Path | str) -> RunFile:
    """Read and check a run file; a BaizeError names what is missing, wrong or read by nothing."""
    try:
        said = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise BaizeError(f"run file {path} cannot be read as YAML ({error})") from error
    settings = said.get("settings") or {} if isinstance(said, dict) else said
    if not isinstance(settings, dict):
        raise BaizeError(f"{path}: expected `key: value` lines, and such pairs as `settings`")
    if "preset" in said:
        preset = preset_of(said.pop("preset"))
        said = {"base": preset.base, "precision": preset.precision} | said
        settings = asdict(preset.settings) | settings
    kind, where = TrainingSettings, f"settings in {path}"
    try:
        settings = TypeAdapter(kind).validate_python(settings)
        kind, where = RunFile, str(path)
        return TypeAdapter(kind).validate_python(said | {"settings": settings})
    except ValidationError as error:
        wrong = "; ".join(f"{e['loc'][0]}: {e['msg'].lower()}" for e in error.errors())
        known = ", ".join(field.name for field in fields(kind))
        raise BaizeError(f"{where}: {wrong}; known are {known}") from error
