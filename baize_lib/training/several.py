"""Several processes that train as one: a step's dialogues shared out, their gradients added up.

`accelerate launch` starts the processes; alone, everything here does nothing. The adapter is small
and every process has the whole of it. The frozen base may be *sharded* (FSDP: each process keeps a
slice of every layer and all of them put a layer together when it is its turn), so that a model
trains on cards that could not hold it.

    team = join()                        # Team(rank=0, size=1) in a notebook
    team.batches(rows, micro_tokens)     # this process's share
    team.add_up(gradients)               # now the gradient of the whole step, everywhere
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from baize_lib.config import BaizeError
from baize_lib.models.base import Base
from baize_lib.training.lora import text_model
from baize_lib.training.tokens import IGNORED, Encoded, micro_batches

if TYPE_CHECKING:
    from torch import Tensor, device

__all__: list[str] = []

_NOTHING = Encoded([0], [IGNORED])  # a row without a label: it is computed and teaches nothing


@dataclass(frozen=True, slots=True)
class Team:
    """This process's number and how many there are."""

    rank: int = 0
    size: int = 1
    in_step: bool = False  # all compute equally many micro-batches, because the base is sharded

    def batches(self, rows: Sequence[Encoded], micro_tokens: int) -> list[list[Encoded]]:
        """This process's micro-batches of a step's rows; at least one."""
        shares = [list(micro_batches(rows[r :: self.size], micro_tokens)) for r in range(self.size)]
        mine, count = shares[self.rank], max(map(len, shares)) if self.in_step else 1
        return mine + [[_NOTHING]] * (count - len(mine))

    def add_up(self, tensors: Sequence["Tensor"]) -> None:
        """Replace each tensor by its sum over all processes, in one message."""
        from torch.distributed import all_reduce
        from torch.nn.utils import parameters_to_vector, vector_to_parameters

        if self.size > 1:
            flat = parameters_to_vector(tensors)
            all_reduce(flat)
            vector_to_parameters(flat, tensors)

    def total(self, number: float, device: "device") -> float:
        """The sum of every process's `number`; none goes on before all have come here."""
        import torch

        held = torch.tensor(number, dtype=torch.float64, device=device)
        self.add_up([held])
        return held.item()


def join(*, in_step: bool = False) -> Team:
    """The team that `accelerate launch` (or torchrun) has started; one process if none did."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return Team(in_step=in_step)
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())
    return Team(state.process_index, state.num_processes, in_step)


def shard(base: Base, adapter: Sequence["Tensor"]) -> None:
    """Spread the base's frozen layers over the team's devices; the `adapter` and the head, which
    the loss uses outside the model's own pass, stay whole.
    """
    from accelerate import PartialState
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        launch = "accelerate launch --num_processes 2 -m baize_lib.training.fit RUN.yaml"
        raise BaizeError(f"shard needs several processes: start with `{launch}`")
    inner, state = text_model(base.model), PartialState()
    if base.precision in ("int8", "nf4") or not hasattr(inner, "layers"):
        what = f"{base.name} in {base.precision}"
        raise BaizeError(f"{what} cannot be sharded: use a LLaMA-like base in bfloat16")
    whole = {base.model.get_output_embeddings().weight, *adapter}
    for weight in whole:
        weight.data = weight.data.to(state.device)
    mesh = init_device_mesh(state.device.type, (state.num_processes,))
    for part in (*inner.layers, inner):
        fully_shard(part, mesh=mesh, ignored_params=whole)
