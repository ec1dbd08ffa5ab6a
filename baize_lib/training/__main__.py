"""The command `python -m baize_lib.training RUN.yaml`: train as a run file says (see `settings`).

Several processes of it, started by `accelerate launch`, train as one; only the first prints.
"""

import contextlib
import io
import sys
from collections.abc import Sequence

from baize_lib.config import BaizeError
from baize_lib.corpus.formats import read_dialogues
from baize_lib.models.base import load_base
from baize_lib.training.fit import fit
from baize_lib.training.settings import read_run_file
from baize_lib.training.step import join


def main(arguments: Sequence[str]) -> int:
    """Train as the run file says; returns the exit status."""
    if len(arguments) != 1:
        print("usage: python -m baize_lib.training RUN.yaml (settings.py says what is in it)")
        return 2
    unheard = contextlib.redirect_stdout(io.StringIO()) if join().rank else contextlib.nullcontext()
    try:
        with unheard:
            file = read_run_file(arguments[0])
            train = list(read_dialogues(file.train))
            validation = list(read_dialogues(file.validation)) if file.validation else []
            base = load_base(file.base, file.precision)
            result = fit(base, train, validation, file.adapter, file.settings, on_step=print)
            losses = (result.loss_before, result.loss_after)
            before, after = ("unknown" if loss is None else f"{loss:.4f}" for loss in losses)
            print(
                f"{result.num_tokens:,} tokens in {result.seconds:.0f} s, "
                f"{result.tokens_per_second:.0f} tokens/s; held-out loss {before} before, {after} "
                f"after; adapter in {result.adapter_dir}"
            )
    except BaizeError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
