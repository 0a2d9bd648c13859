"""Training in several processes, which torchrun starts: who they are and what they exchange.

Two placements. `data_parallel`: all train one model, each on its slice of every batch, and the
gradients are averaged over the batch. `replicas`: each trains other models, as it would alone.
"""

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from kd_pipeline.errors import ParameterError, ProcessesError
from kd_pipeline.events import Event, emit, listening_alone
from kd_pipeline.provenance import differences
from kd_pipeline.shards import Shard

JOIN_SECONDS = 300.0
"""Wait until all processes are there: on busy machines and network disks they start far apart."""
SILENCE_SECONDS = 1800.0
"""Wait for a process that lives and is silent; one that ends is noticed at once. A measurement of
validation by the first one must take less."""
_LOCAL_RANK, _ADDRESS, _PORT = "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"
_KEPT_BY_TORCHRUN = "TORCHELASTIC_USE_AGENT_STORE"
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

logger = logging.getLogger(__name__)
T = TypeVar("T")
Group = TypeVar("Group")


@dataclass(frozen=True)
class Processes:
    """The processes that train together, seen from one of them; by default it is alone."""

    rank: int = 0
    count: int = 1

    @classmethod
    def joined(cls) -> "Processes":
        """Those that `join` has brought together, or this one alone."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def is_first(self) -> bool:
        """Whether this process reports and writes for all."""
        return self.rank == 0

    def slice_of(self, batch_size: int) -> slice:
        """This process's examples of each batch; of two processes one may have one more."""
        return Shard(self.rank, self.count).slice_of(batch_size)

    def parallel(self, classifier: nn.Module) -> nn.Module:
        """A module whose backward pass averages gradients over the processes.

        Running statistics of batch norm stay each process's own: to send them would cost a message
        in every step, and what is kept is the first one's.
        """
        if self.count == 1:
            return classifier
        return DistributedDataParallel(classifier, forward_sync_buffers=False)

    def total(self, values: Tensor) -> Tensor:
        """The sum of a tensor on the CPU over all processes."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def from_first(self, make: Callable[[], T]) -> T:
        """What the first process makes, in all of them; the others make nothing."""
        if self.count == 1:
            return make()
        made = [make() if self.is_first else None]
        dist.broadcast_object_list(made)
        return cast(T, made[0])

    def check_alike(self, facts: Mapping[str, str]) -> None:
        """Refuse facts that are not those of the first process.

        Raises:
            ProcessesError: Naming a process and what differs.
        """
        found: list[Mapping[str, str]] = [facts] * self.count
        dist.all_gather_object(found, facts)
        _check_alike(found)

    def spread(self, groups: Sequence[Group], train: Callable[[Group], Sequence[T]]) -> list[T]:
        """What is trained of each group, in their order: each by one process, all in every one.

        Events of the other processes are emitted again in the first one, once all have ended.
        """
        if self.count == 1:
            return [one for group in groups for one in train(group)]
        if self.is_first and len(groups) < self.count:
            idle = self.count - len(groups)
            logger.warning("%d of %d processes have nothing to train here", idle, self.count)
        # How long the others train has no bound; torchrun ends all once one has failed.
        group = dist.new_group(timeout=timedelta(days=365), backend="gloo")
        patient, events = cast(dist.ProcessGroup, group), list[Event]()
        with ExitStack() as listening:
            if not self.is_first:
                listening.enter_context(listening_alone(events.append))
            own = [train(group) for group in groups[self.rank :: self.count]]
        found: list[tuple[list[Sequence[T]], list[Event]]] = [([], [])] * self.count
        dist.all_gather_object(found, (own, events), group=patient)
        dist.destroy_process_group(patient)
        if self.is_first:
            for event in (one for _, recorded in found for one in recorded):
                emit(event)
        places = (divmod(at, self.count) for at in range(len(groups)))
        return [one for turn, rank in places for one in found[rank][0][turn]]

    @contextmanager
    def naming_losses(self) -> Iterator[None]:
        """Put what torch raises where another process ends or is silent into words.

        Raises:
            ProcessesError: With torch's reason, which has the other one's address.
        """
        try:
            yield
        except RuntimeError as error:
            if self.count == 1 or not _is_of_peers(error):
                raise
            reason = next(iter(str(error).splitlines()), "")
            raise ProcessesError(
                f"process {self.rank} of {self.count} has lost another one, whose own error or "
                f"torchrun's summary names the cause; it waits {SILENCE_SECONDS:.0f} s at most "
                f"({reason})"
            ) from error


def join(
    rank: int, count: int, facts: Mapping[str, str], *, wait_seconds: float = JOIN_SECONDS
) -> Processes:
    """Meet the other processes that torchrun has started.

    Args:
        rank: Of this process, from 0 on.
        count: Of all.
        facts: What must be the same in all, such as digests of settings, by name.
        wait_seconds: Until all must be there.

    Raises:
        ProcessesError: If one does not come, or its facts differ from those of the first.
    """
    has_cuda, device = torch.cuda.is_available(), _local_rank()
    if has_cuda and device < torch.cuda.device_count():
        torch.cuda.set_device(device)
    store = _meeting_place(rank, count, timedelta(seconds=wait_seconds))
    _meet(store, rank, count, facts)
    backend = "cpu:gloo,cuda:nccl" if has_cuda else "gloo"
    silence = timedelta(seconds=SILENCE_SECONDS)
    dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=silence)
    return Processes(rank, count)


def leave() -> None:
    """End what `join` has begun."""
    if dist.is_initialized():
        dist.destroy_process_group()


def has_batch_norm(classifier: nn.Module) -> bool:
    """Whether any layer normalises by the batch while it trains; frozen ones do not."""
    norms = (layer for layer in classifier.modules() if isinstance(layer, _BATCH_NORMS))
    return any(norm.weight is None or norm.weight.requires_grad for norm in norms)


def check_own_device(device: str) -> None:
    """Refuse to share a CUDA device with another process.

    Raises:
        ParameterError: If this machine has fewer of them than processes.
    """
    if device == "cuda" and _local_rank() >= (available := torch.cuda.device_count()):
        rule = f"be below the number of this machine's CUDA devices, {available}"
        raise ParameterError(_LOCAL_RANK, rule, _local_rank())


def _local_rank() -> int:
    return int(os.environ.get(_LOCAL_RANK, "0"))


def _meeting_place(rank: int, count: int, wait: timedelta) -> Any:
    """A store of keys and values, which torchrun keeps, or else the first process."""
    address, port = os.environ.get(_ADDRESS, ""), os.environ.get(_PORT, "")
    keeps_it = rank == 0 and os.environ.get(_KEPT_BY_TORCHRUN) != "True"
    try:
        return dist.TCPStore(  # type: ignore[attr-defined]
            address, int(port), count, keeps_it, wait, wait_for_workers=False
        )
    except (dist.DistError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), "")
        raise ProcessesError(
            f"`{_ADDRESS}` and `{_PORT}` must be where process 0 is reached within "
            f"{wait.total_seconds():.0f} s, got '{address}:{port}' ({reason})"
        ) from error


def _meet(store: Any, rank: int, count: int, facts: Mapping[str, str]) -> None:
    names = [f"facts of process {one}" for one in range(count)]
    store.set(names[rank], json.dumps(facts))
    try:
        store.wait(names)
        found = [json.loads(store.get(name)) for name in names]
    except dist.DistError as error:
        missing, seconds = _missing(store, names), store.timeout.total_seconds()
        raise ProcessesError(
            f"{missing} of {count} did not answer within {seconds:.0f} s"
        ) from error
    _check_alike(found)


def _check_alike(facts: Sequence[Mapping[str, str]]) -> None:
    first, *others = facts
    for number, other in enumerate(others, start=1):
        if found := differences(other, first, left=f"process {number}", right="process 0"):
            raise ProcessesError(f"all processes must be alike; these differ: {', '.join(found)}")


def _missing(store: Any, names: Sequence[str]) -> str:
    try:
        return _named([one for one, name in enumerate(names) if not store.check([name])])
    except dist.DistError:
        return _named([0])  # It kept the store, and has ended.


def _named(ranks: Sequence[int]) -> str:
    return f"process{'es' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


def _is_of_peers(error: RuntimeError) -> bool:
    # gloo raises plain RuntimeErrors, which begin with a path of its sources.
    return isinstance(error, dist.DistError) or "gloo" in str(error)
