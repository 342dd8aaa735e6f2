"""Rates that a user's own code reads as one number, such as `F.dropout(x, self.p, self.training)`.

The number follows the sample in force where the whole batch has one rate. Where each example has its own, no number is
right, so reading it is an error that says what to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from tune_stn.nn.slot import Slot
from tune_stn.space.sample import Sample

# Above it, the few units kept are scaled up so far that training diverges before the gradient can turn back.
MAX_RATE = 0.95
BOUND = "_bound_numbers"


@dataclass(frozen=True)
class SharedRate:
    """A rate as one number.

    Attributes:
        path: What reads it, for messages.
        rate: The hyperparameter.
        slot: Where the current sample is read.
    """

    path: str
    rate: str
    slot: Slot

    def __call__(self) -> float:
        """The rate in force.

        Raises:
            ValueError: Each example has its own.
            RuntimeError: A CUDA graph is recorded, which would keep the number of its recording.
        """
        rates = self.slot.sample[self.rate]
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                f"the model's own code reads {self.path!r} as one number, which a CUDA graph would keep as it is now: "
                "train with cuda_graphs=False, or have the forward pass call an nn.Dropout module"
            )
        if rates.shape[0] != 1:
            raise ValueError(
                f"the model's own code reads {self.path!r} as one number, but {self.rate!r} has a value for each of "
                f"{rates.shape[0]} examples: draw it per batch, SearchSpace(..., per_batch=[{self.rate!r}]); have the "
                "forward pass call an nn.Dropout module; leave it out of dropout=, and it keeps its own rate; or use "
                "algorithm='auto', which draws nothing"
            )
        return min(float(rates), MAX_RATE)


def candidates(module: nn.Module) -> Iterator[str]:
    """Names of the attributes of a module that can be a rate of dropout: numbers from 0 to 1."""
    for name, value in vars(module).items():
        if isinstance(value, (float, int)) and not isinstance(value, bool) and 0 <= value <= 1:
            yield name


def looks_like_a_rate(module: nn.Module, name: str) -> bool:
    """Whether a pattern such as `"*"` means this number too: not `eps`, no counter, no rate of whole layers."""
    return "drop" in name and "layerdrop" not in name and isinstance(vars(module)[name], float)


def bind(module: nn.Module, name: str, rate: SharedRate) -> None:
    """Have the attribute `name` of a module give the rate in force, by a property of a class of its own.

    The rates lie in the module and not in the class, so that a copy of the network reads the sample of the copy.
    """
    kind = type(module)
    module.__dict__.setdefault(BOUND, {})[name] = rate
    module.__class__ = type(kind.__name__, (kind,), {"__module__": kind.__module__, name: _property(name)})


def release(module: nn.Module, sample: Sample) -> None:
    """Undo `bind` for each number of a module; they have their values at a sample of one row from then on."""
    for name, rate in module.__dict__.pop(BOUND, {}).items():
        module.__class__ = type(module).__mro__[1]
        module.__dict__[name] = float(sample[rate.rate])


def _property(name: str) -> property:
    def read(module: nn.Module) -> float:
        rate: Callable[[], float] = module.__dict__[BOUND][name]
        return rate()

    def write(module: nn.Module, value: object) -> None:
        rate: SharedRate = module.__dict__[BOUND][name]
        raise AttributeError(
            f"{rate.path!r} was set to {value!r}, but reads the hyperparameter {rate.rate!r}: leave it out of "
            "dropout={...} to set it by hand"
        )

    return property(read, write)
