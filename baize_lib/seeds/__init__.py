"""seeds"""

from baize_lib.seeds.clean import RULES, Seeds, clean, iter_seeds, load_seeds, mix
from baize_lib.seeds.readers import MIRRORS, Mirror, read_source
from baize_lib.seeds.seed import BUILT_IN, CHINESE, Seed, Tally

__all__ = [
    "Seeds",
    "load_seeds",
    "iter_seeds",
    "clean",
    "mix",
    "RULES",
    "read_source",
    "Mirror",
    "MIRRORS",
    "Seed",
    "Tally",
    "BUILT_IN",
    "CHINESE",
]
