"""First messages to start dialogues from: read as they are published, cleaned, mixed."""

from baize_lib.seeds.clean import clean, load_seeds, mix
from baize_lib.seeds.seed import BUILT_IN, Seed

__all__ = ["Seed", "BUILT_IN", "load_seeds", "clean", "mix"]
