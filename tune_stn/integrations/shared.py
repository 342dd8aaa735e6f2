"""What the callbacks for other libraries share: the network in a module, its mode, and validation batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, SequentialSampler

from tune_stn.nn.model import SelfTuningModel
from tune_stn.training.rules import Rule
from tune_stn.training.seeds import derive_seed


class ValidationBatches:
    """The batches of a loader, pass after pass, with random draws of their own.

    So the loop beside them draws what it would draw without them.

    Args:
        loader: What is iterated over, again and again.
        seed: The seed of the order, and of whatever else the loader draws from torch's global generator.

    Example:
        >>> batches = ValidationBatches(DataLoader(dataset, 50, shuffle=True))
        >>> x, y = batches.draw()
    """

    def __init__(self, loader: Iterable[Any], *, seed: int = 0) -> None:
        self.loader = loader
        self._random = torch.Generator().manual_seed(derive_seed(seed, "validation order")).get_state()
        self._pass: Iterator[Any] | None = None
        self._begun = self._random  # the random state at the beginning of the pass
        self._taken = 0  # batches of the pass

    def draw(self) -> Any:
        """The next batch.

        Raises:
            ValueError: The loader has none.
        """
        with self._own_random():
            for _ in range(2):
                if self._pass is None:
                    self._pass = self._begun_pass()
                for batch in self._pass:
                    self._taken += 1
                    return batch
                self._pass = None
        raise ValueError("the validation data has no batch: a hyper-step needs one")

    def state_dict(self) -> dict[str, Any]:
        """Where the present pass began, how far it is, and the random state: tensors and plain values only."""
        taken = None if self._pass is None else self._taken
        return {"begun": self._begun, "taken": taken, "random": self._random}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state: the batches of the present pass that were taken are read again, and left."""
        self._pass = None
        if state["taken"] is not None:
            self._random = state["begun"].cpu()
            with self._own_random():
                self._pass = self._begun_pass()
                for _ in range(state["taken"]):
                    next(self._pass)
            self._taken = state["taken"]
        self._random = state["random"].cpu()

    def _begun_pass(self) -> Iterator[Any]:
        self._begun, self._taken = torch.get_rng_state(), 0
        return iter(self.loader)

    @contextmanager
    def _own_random(self) -> Iterator[None]:
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._random)
            yield
            self._random = torch.get_rng_state()


def shuffled(loader: Any, *, batch_size: int | None = None) -> Any:
    """A loader of the same examples in random order, if the one given is in order of the data set; else itself.

    A validation loader needs no order, and a hyper-step needs batches that are like the whole split.

    Args:
        loader: A `DataLoader`, or any other iterable of batches.
        batch_size: The number of examples in a batch; None for that of the loader.
    """
    batch_size = batch_size or getattr(loader, "batch_size", None)
    if not isinstance(loader, DataLoader) or not isinstance(loader.sampler, SequentialSampler) or not batch_size:
        return loader
    return DataLoader(
        loader.dataset,
        batch_size=batch_size,
        shuffle=True,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        worker_init_fn=loader.worker_init_fn,
    )


def check_steps(rule: type[Rule], steps: int, train_steps: int) -> None:
    """Refuse a run that is to tune and ends before its first hyper-step.

    Raises:
        ValueError: It does.
    """
    if rule.tunes and steps < train_steps:
        raise ValueError(
            f"{rule.name!r} would tune nothing: the run of {steps} optimizer steps is over before its first "
            f"hyper-step, which comes after {train_steps}: train for longer, or give SelfTuningCallback(..., "
            "train_steps=...)"
        )


def find_network(module: nn.Module) -> SelfTuningModel:
    """The one self-tuning network of a module.

    Raises:
        ValueError: There is none, or there are several.
    """
    if (whole := SelfTuningModel.of_own_class(module)) is not None:
        return whole
    found = {path: part for path, part in module.named_modules() if isinstance(part, SelfTuningModel)}
    if not found:
        raise ValueError(
            f"{type(module).__name__} is not self-tuning and has no self-tuning network, so there is nothing to "
            "tune: make its network so, self.net = self_tuning(self.net, space, start=..., dropout=...), or all of it, "
            "and train self_tuning(module, space, ...).in_own_class()"
        )
    if len(found) > 1:
        raise ValueError(
            f"{type(module).__name__} has {len(found)} self-tuning networks, {', '.join(found)}: put them into one "
            "module, and call self_tuning once"
        )
    (net,) = found.values()
    return net


@contextmanager
def in_mode_of(net: SelfTuningModel, module: nn.Module) -> Iterator[None]:
    """Inside the block, what is outside of the network is in its mode: in a hyper-step, evaluation."""
    inside = {id(part) for part in net.modules()}
    outside = [(part, part.training) for part in module.modules() if id(part) not in inside]
    for part, _ in outside:
        part.training = net.training
    try:
        yield
    finally:
        for part, mode in outside:
            part.training = mode
