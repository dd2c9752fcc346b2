"""Tensors that ranks hold parts of (the fsdp engine's DTensors): made whole, split, saved and loaded in parts.

Parts are saved through `torch.distributed.checkpoint` as safetensors: nothing in them is a pickle, which DCP's own
format would execute, and any number of ranks can load them.

What other engines do without is imported where it is used: DTensor and DCP take a second, which each process waits for.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

Tensors = dict[str, Tensor]


def is_split(value: Any) -> bool:
    """Whether it is a DTensor."""
    return hasattr(value, "device_mesh")


def whole(tensor: Tensor) -> Tensor:
    """The tensor; one that is split, gathered: every rank must call."""
    return tensor.full_tensor() if is_split(tensor) else tensor


def split_like(tensor: Tensor, own: Tensor) -> Tensor:
    """A whole tensor, of which every rank keeps the part that it holds of `own`."""
    if not is_split(own) or is_split(tensor):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(own.device), own.device_mesh, own.placements, src_data_rank=None)


def on_cpu(tensors: dict[str, DTensor], group: ProcessGroup) -> Tensors:
    """Copies of the rank's parts, for the ranks of `group`."""
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor

    mesh = DeviceMesh.from_group(group, "cpu")
    return {
        name: DTensor.from_local(
            tensor.to_local().detach().to("cpu", copy=True), mesh, tensor.placements,
            run_check=False, shape=tensor.shape, stride=tensor.stride(),
        )
        for name, tensor in tensors.items()
    }  # fmt: skip


def save(tensors: Tensors, folder: Path, group: ProcessGroup) -> None:
    """Each rank writes its parts; every rank of `group` must call.

    Raises:
        OSError: on every rank, where any could not write.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException

    writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        dcp.save(tensors, storage_writer=writer, process_group=group)
    except CheckpointException as error:
        raise OSError(f"{folder} could not be written: {' '.join(str(error).split())[-300:]}") from error


def load_optimizer_tensors(folder: Path, parameters: list[nn.Parameter]) -> dict[int, dict[str, Tensor]]:
    """What `save` wrote of an optimizer, under the names `INDEX.NAME`: parameter's index -> name -> tensor.

    Those of a parameter's shape are split as it is; each rank reads its part, without waiting for others.
    """
    import torch.distributed.checkpoint as dcp

    reader = dcp.HuggingFaceStorageReader(str(folder))
    targets = {}
    for key, found in reader.read_metadata().state_dict_metadata.items():
        own = parameters[int(key.partition(".")[0])]
        make = torch.empty_like if found.size == own.shape else lambda _, own=own, found=found, **options: torch.empty(
            found.size, device=own.device, **options
        )  # fmt: skip
        targets[key] = make(own.detach(), dtype=found.properties.dtype)
    dcp.load(targets, storage_reader=reader, no_dist=True)
    states: dict[int, dict[str, Any]] = {}
    for key, tensor in targets.items():
        index, _, name = key.partition(".")
        states.setdefault(int(index), {})[name] = tensor
    return states
