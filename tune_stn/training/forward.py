"""The forward pass of a network on batches of a task."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from tune_stn.data.batches import Batch
from tune_stn.nn.first_order import first_order, map_tensors, to_first_order
from tune_stn.nn.lstm import ResponseLSTM
from tune_stn.nn.lstm.autocast import lstms_run
from tune_stn.nn.lstm.graph import Graphed
from tune_stn.nn.model import SelfTuningModel
from tune_stn.nn.observe import Activations, observing
from tune_stn.nn.penalties import NORMS
from tune_stn.space.sample import Sample
from tune_stn.tasks.task import Task

# Torch, as of 2.13, cannot trace the tangents of norms and attention; those of an LSTM, which is not compiled, would
# have to pass between compiled code and other.
WITHOUT_COMPILED_TANGENTS = (nn.LSTM, nn.MultiheadAttention, *NORMS)


class Forward:
    """Outputs of a network at a sample, as the task's settings want them: compiled or not, and in which precision.

    Args:
        task: The task, of which batches, precision and penalties are.
        model: The network; its mode, training or evaluation, is that of the caller.
    """

    def __init__(self, task: Task, model: SelfTuningModel) -> None:
        self.task = task
        self.model = model
        self._network: Callable[..., Any] = model
        self._first_order = first_order(model)
        self._observed = sorted({path for penalty in task.penalties for path in penalty.paths})
        if task.training.compile:
            self._compile()

    def outputs(self, batch: Batch, sample: Sample) -> Any:
        """Outputs at a sample, to first order in the response where the sample says `linearise`.

        They are in the training's precision inside the network and in that of the inputs outside. A recurrent network
        begins at the state before the batch, and leaves the one after it.
        """
        network = self._first_order if sample.linearise else self._network
        reduced = self.task.training.precision == "bfloat16"
        device = batch.device.type
        available = torch.amp.is_autocast_available(device)
        precision = torch.autocast(device, torch.bfloat16, enabled=reduced) if available else nullcontext()
        lstms = lstms_run(self.model, device) if reduced else nullcontext()
        with self.model.using(sample), precision, lstms:
            outputs, state = call(self.task, self.model, batch, network)
        # A response step looks at the same batch as the base step before it, which has left the state already.
        if batch.carry is not None and self.task.recurrent and not sample.linearise:
            batch.carry.leave(state, batch.rows)
        return map_tensors(_as_single, outputs) if reduced else outputs

    def observed(self, batch: Batch, sample: Sample) -> tuple[Any, Activations]:
        """Outputs at a sample, and the activations that the penalties want to see."""
        if not self._observed:
            return self.outputs(batch, sample), {}
        seen_as = to_first_order if sample.linearise else None
        with observing(self.model.network, self._observed, seen_as) as activations:
            return self.outputs(batch, sample), activations

    def record_loops(self) -> None:
        """From now on replay the loops of LSTMs over time as CUDA graphs."""
        graphed = Graphed(fuse=torch.compile if self.task.training.compile else None)
        for module in self.model.modules():
            if isinstance(module, ResponseLSTM):
                module.recurrence = graphed

    def _compile(self) -> None:
        model = self.model
        for module in model.modules():
            if isinstance(module, nn.LSTM):  # its loop over time would be unrolled: a minute for ten steps
                module.forward = torch.compiler.disable(module.forward)  # type: ignore[method-assign,no-untyped-call]
        # The method, not the module: that would be wrapped in another, which warns of every hook on its way.
        self._network = torch.compile(model.forward)
        if not any(isinstance(module, WITHOUT_COMPILED_TANGENTS) for module in model.modules()):
            self._first_order = torch.compile(first_order(model.forward))


def call(
    task: Task, model: SelfTuningModel, batch: Batch, network: Callable[..., Any] | None = None
) -> tuple[Any, Any]:
    """The network's outputs on a batch and, of a recurrent one, its state after it.

    Args:
        task: The task.
        model: The network.
        batch: The batch.
        network: What is called in its place, with the same arguments: a compiled one, say. Default `model` itself.

    Raises:
        TypeError: A recurrent network gave no pair, or an input that is named is no argument of the network.
    """
    network = model if network is None else network
    args, kwargs = arguments(model.network, batch.inputs)
    if not task.recurrent:
        return network(*args, **kwargs), None
    result = network(*args, None if batch.carry is None else batch.carry.before(batch.rows), **kwargs)
    if not (isinstance(result, tuple) and len(result) == 2):
        raise TypeError(
            f"the recurrent network of task {task.name!r} gave {type(result).__name__}: it is called as "
            "model(inputs, state), with None for the state at the beginning, and gives (outputs, state)"
        )
    return result


def eagerly(compiled: bool) -> AbstractContextManager[None]:
    """Inside the block, nothing is compiled: for what looks into each module or operator.

    Args:
        compiled: Whether there is anything to hold back: the compiler takes two seconds to import.
    """
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def arguments(network: nn.Module, inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How a network is called with the inputs of a batch, by position and by name.

    Inputs are one argument; but a mapping of which a key is an argument of the network's `forward` is given by name.

    Raises:
        TypeError: Another key of such a mapping is none.
    """
    if not isinstance(inputs, Mapping):
        return (inputs,), {}
    names, takes_any = _parameters(type(network).forward)
    if names.isdisjoint(inputs):
        return (inputs,), {}
    if unknown := [] if takes_any else sorted(set(inputs) - names):
        raise TypeError(
            f"the forward of {type(network).__name__} has no argument {unknown[0]!r}: leave it out of the "
            f"inputs of a split; it takes {', '.join(sorted(names))}"
        )
    return (), dict(inputs)


@cache
def _parameters(forward: Callable[..., Any]) -> tuple[frozenset[str], bool]:
    """The names of the arguments of a class's forward, and whether it takes any other."""
    parameters = list(inspect.signature(forward).parameters.values())[1:]
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
    return frozenset(parameter.name for parameter in parameters if parameter.kind in named), takes_any


def _as_single(outputs: Tensor) -> Tensor:
    # Losses are summed over many classes and examples, which half a mantissa cannot hold.
    return outputs.float() if outputs.is_floating_point() else outputs
