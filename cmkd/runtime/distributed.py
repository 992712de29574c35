"""Several processes on one machine or many, started by torchrun; nothing to do in a single one.

Gradients are averaged after the backward pass instead of by DistributedDataParallel: networks need
no wrapper, so the train scripts read alike for one process and many, and what is trained beside the
detector needs nothing of its own.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

TORCHRUN = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
LOST = ("Connection closed by peer", "Connection reset by peer", "remote process exited")


class EndedElsewhereError(Exception):
    """Another process has failed and printed why; this one has nothing to add."""


def start() -> None:
    """Join the other processes of a torchrun; only the first one prints to stdout."""
    if not is_torchrun():
        return
    if torch.cuda.is_available():
        if int(os.environ["LOCAL_RANK"]) >= torch.cuda.device_count():
            sys.exit(
                f"torchrun: this machine has {torch.cuda.device_count()} GPUs: lower "
                "--nproc_per_node"
            )
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    if rank() > 0:
        # Open as long as the process.
        sys.stdout = Path(os.devnull).open("w", errors="replace")  # noqa: SIM115


def is_torchrun() -> bool:
    """Whether torchrun started this process beside others.

    A part of its variables may be left in the environment by something else: then none is read,
    except that a number of processes without the rest ends the program.
    """
    present = [name for name in TORCHRUN if name in os.environ]
    if len(present) == len(TORCHRUN):
        return int(os.environ["WORLD_SIZE"]) > 1
    if len(present) > 1:
        missing = ", ".join(name for name in TORCHRUN if name not in present)
        sys.exit(
            f"{', '.join(present)} are set and {missing} not: start with torchrun, or unset them"
        )
    return False


def end() -> None:
    """Leave the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def lost_a_process(error: Exception) -> bool:
    """Whether a message between processes failed because another process ended."""
    return world_size() > 1 and any(text in str(error) for text in LOST)


def on_first(compute: Callable[[], Any]) -> Any:
    """Call `compute` in the first process; all processes get its result.

    Raises its error in the first process and `EndedElsewhereError` in the others.
    """
    if world_size() == 1:
        return compute()
    outcome, failure = [None, False], None
    if rank() == 0:
        try:
            outcome[0] = compute()
        except Exception as error:  # raised below, once the others know
            outcome[1], failure = True, error
    dist.broadcast_object_list(outcome)
    if failure:
        raise failure
    if outcome[1]:
        raise EndedElsewhereError
    return outcome[0]


def gather(value: Any) -> list[Any]:
    """The values of all processes by rank, in each of them."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def total(values: Tensor) -> Tensor:
    """Replace a tensor by its sum over all processes, and return it."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def copy_from_first(network: nn.Module) -> None:
    """Give every process the first one's parameters and buffers.

    The same seed can give other numbers on another kind of processor.
    """
    if world_size() > 1:
        for tensor in (*network.parameters(), *network.buffers()):
            dist.broadcast(tensor.data, src=0)


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Replace each gradient by its mean over all processes, in one message."""
    if world_size() == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:  # unused here, but maybe used in another process
            parameter.grad = torch.zeros_like(parameter)
    average([parameter.grad for parameter in parameters])


def average_norm_statistics(network: nn.Module) -> None:
    """Keep the running statistics of BatchNorm equal in all processes.

    Frozen ones do not change, and SyncBatchNorm (on CUDA) synchronises its own.
    """
    if world_size() == 1:
        return
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    if norms:
        average([value for norm in norms for value in (norm.running_mean, norm.running_var)])


def average(tensors: list[Tensor]) -> None:
    """Replace each tensor by its mean over all processes, in one message."""
    # torch.nn.utils.parameters_to_vector refuses the channels_last layout of the networks.
    means = total(torch.cat([tensor.flatten() for tensor in tensors])) / world_size()
    parts = means.split([tensor.numel() for tensor in tensors])
    for tensor, mean in zip(tensors, parts, strict=True):
        tensor.copy_(mean.view(tensor.shape))


def synchronise_norms(network: nn.Module) -> None:
    """Let every trainable BatchNorm see the batches of all processes (possible on CUDA only)."""
    if world_size() > 1 and next(network.parameters()).is_cuda:
        nn.SyncBatchNorm.convert_sync_batchnorm(network)
