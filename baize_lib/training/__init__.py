"""training"""

from baize_lib.training.batches import encode_all, epoch_steps, micro_batches, padding_waste
from baize_lib.training.fast_cpu import attend, lean
from baize_lib.training.fit import Fit, Step, add_adapter, fit, main
from baize_lib.training.lora import attach, detach, read_card, select
from baize_lib.training.loss import SLICE, backward, held_out_loss, lane_tokens, lanes
from baize_lib.training.planner import (
    ARTICLE_RUNS,
    DEVICES,
    Corpus,
    Device,
    Measured,
    Plan,
    corpus_of,
    measure,
    plan,
    this_machine,
)
from baize_lib.training.settings import (
    ARTICLE_SETTINGS,
    PRESETS,
    Preset,
    RunFile,
    TrainingSettings,
    preset_of,
    read_run_file,
)
from baize_lib.training.several import Team, join, shard
from baize_lib.training.tokens import IGNORED, Encoded, encode, mask_html, prompt_ids

__all__ = [
    "Preset",
    "PRESETS",
    "preset_of",
    "IGNORED",
    "Encoded",
    "encode",
    "prompt_ids",
    "mask_html",
    "lean",
    "attend",
    "RunFile",
    "read_run_file",
    "TrainingSettings",
    "ARTICLE_SETTINGS",
    "read_card",
    "attach",
    "select",
    "detach",
    "encode_all",
    "padding_waste",
    "epoch_steps",
    "micro_batches",
    "Team",
    "join",
    "shard",
    "backward",
    "held_out_loss",
    "lanes",
    "lane_tokens",
    "SLICE",
    "Device",
    "DEVICES",
    "this_machine",
    "Corpus",
    "corpus_of",
    "Measured",
    "measure",
    "Plan",
    "plan",
    "ARTICLE_RUNS",
    "Step",
    "Fit",
    "fit",
    "add_adapter",
    "main",
]
