"""A converted network together with its hyperparameters."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from tune_stn.nn.conversion import Conversion, replace_everywhere
from tune_stn.nn.dropout import UnitDropout
from tune_stn.nn.first_order import first_order
from tune_stn.nn.observe import is_observed
from tune_stn.nn.plain import copied, plain_modules
from tune_stn.nn.probe import batch_axis, without_batch_axis
from tune_stn.nn.response import Responding
from tune_stn.nn.rows import count_rows
from tune_stn.nn.slot import Slot
from tune_stn.space.sample import Draw, Sample
from tune_stn.space.tunable import Constants, Tunable

# Calls in training, after which a network that no `SelfTuner` has taken up warns of it.
UNTUNED_CALLS = 50


class _Forward:
    """`forward` of a network, with the signature of the user's own.

    It is no property: tools set a forward of their own on an instance (autocast of accelerate), and look at the one of
    the class (transformers).
    """

    def __get__(self, net: SelfTuningModel | None, owner: type | None = None) -> Callable[..., Any]:
        if net is None:
            return SelfTuningModel.call

        @functools.wraps(net.network.forward)
        def forward(*args: Any, **kwargs: Any) -> Any:
            return net.call(*args, **kwargs)

        return forward


class _OwnClass:
    """`forward` of the user's converted network, where that is called in the place of the self-tuning one."""

    def __init__(self, net: SelfTuningModel) -> None:
        self.net = net
        functools.update_wrapper(self, net.network.forward)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        network = self.net.network
        self.net.slot.called = True
        if isinstance(self.net.slot.current, Sample):
            return type(network).forward(network, *args, **kwargs)
        self.net.training = network.training
        return self.net.call(*args, **kwargs)


class SelfTuningModel(nn.Module):
    """A network whose layers read the current hyperparameter sample, and the hyperparameters themselves.

    Made by `self_tuning`, and called as the user's network is. In training mode, a call draws a sample for its batch
    where the response wants one (STN); in evaluation mode, and where nothing responds, it is at the mean. `using` is
    for those who want another one. What it has not itself, such as `config`, is that of the user's network.

    Attributes:
        network: The converted copy of the user's network.
        hyper: The tunable state, or constants where nothing is tuned inside the run.
        conversion: Record of what was converted, bound and left plain.
        centred: Whether the response input is the offset from the mean (Delta-STN) or the raw coordinate, counted from
            the start (STN).
        response_origin: The response input of STN at the start values; None where it is the raw coordinate itself.
        shrink: Divisor of STN's response input.
        draws: Whether a call in training mode, outside `using`, draws a sample for its batch instead of using the mean.
            Default: it draws where the response is that of STN.
        tuned_by: Name of the algorithm of the `SelfTuner` that tunes the hyperparameters in a loop of one's own, ""
            before there is one.
    """

    def __init__(
        self,
        network: nn.Module,
        hyper: Tunable | Constants,
        slot: Slot,
        conversion: Conversion,
        *,
        centred: bool = False,
        response_origin: float | None = -3.0,
        shrink_gates: bool = True,
        looked: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.hyper = hyper
        self.slot = slot
        self.conversion = conversion
        self.centred = centred
        # In the papers the response input is the raw coordinate itself, which is about -3 at their start values (.05 of
        # a domain). Gates learn at a speed of its square and in a direction of its sign: there, that a stronger
        # regulariser sets training back. Counted from the start, every start value is as good as theirs
        # (experiments/start_values.py). The responses that can be expressed are the same.
        self.response_origin = response_origin
        # A gate scales a trained weight at once, where V still has to grow: over many hyperparameters, too fast.
        gates_only = all(layer.size in ("gate", None) for layer in self.response_layers())
        self.shrink = math.sqrt(len(hyper.space)) if shrink_gates and gates_only else 1.0
        self.training = network.training
        self._looked = looked  # whether any layer's first axis is not the batch
        self.draws = isinstance(hyper, Tunable) and not centred and bool(conversion.responding)
        self.register_state_dict_post_hook(_add_advice)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_leave_advice_out)  # type: ignore[no-untyped-call]
        self.tuned_by = ""
        # Torch's name: DistributedDataParallel leaves them alone, as their gradient is no part of a training step's.
        state = (*hyper.named_parameters(prefix="hyper"), *hyper.named_buffers(prefix="hyper"))
        self._ddp_params_and_buffers_to_ignore = [name for name, _ in state]
        self._untuned_calls = 0

    forward = _Forward()

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """The forward pass: that of the user's network, at the sample of `using`, or at one of its own."""
        self.slot.called = True
        current = self.slot.current
        if isinstance(current, Sample):
            if not (self._looked or torch.compiler.is_compiling()):
                self._check_batch_axes(current, args, kwargs)
            return self._called(current, args, kwargs)
        sample = self._own_sample(args, kwargs) if current is None else current.of(examples(args, kwargs))
        if not self._looked:
            self._check_batch_axes(sample, args, kwargs)
        called = functools.partial(self._called, sample)
        with self.using(sample):
            return (first_order(called) if sample.linearise else called)(args, kwargs)

    def _called(self, sample: Sample, args: Any, kwargs: Any) -> Any:
        outputs = self.network(*args, **kwargs)
        # Compiled code has its own way of running parts of it again.
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            self.slot.replay(outputs, sample)
        return outputs

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in ("save_pretrained", "push_to_hub") and self.conversion.responding:
                raise AttributeError(
                    f"{name} of a self-tuning network would write responses that no plain model reads: "
                    f"net.to_plain().{name}(...)"
                ) from None
            if name == "network" or name.startswith("__"):  # it is not there yet; and a copy is of this class
                raise
            own = getattr(self.network, name)
        if "slot" in vars(self):
            self.slot.called = True  # a method of the user's may run layers itself
        return own

    def using(self, sample: Sample | Draw) -> AbstractContextManager[None]:
        """Make `sample` the one that layers read inside the block."""
        return self.slot.using(sample)

    def sample(self, rows: int) -> Sample:
        """The sample that the network reads, or will read, for a batch of `rows` examples.

        For augmentations and penalties of one's own, inside a closure of `SelfTuner` or a block of `using`; elsewhere
        it is the mean.
        """
        current = self.slot.current
        if current is None:
            self.slot.read.update(self.hyper.space)
            return self.mean_sample()
        return current.of(rows) if isinstance(current, Draw) else current

    def hyperparameters(self) -> dict[str, float]:
        """The value of each hyperparameter: its mean, where it is perturbed."""
        self.slot.read.update(self.hyper.space)  # whoever asks may use them
        return self.hyper.mean_values()

    def to_plain(self) -> nn.Module:
        """An ordinary module of the user's class, trained: what one deploys, saves or hands on.

        It gives the outputs of this network in evaluation mode. Responses are merged into the weights at the tuned
        hyperparameters, dropouts have their tuned rates, and the names of its `state_dict` are those of the user's
        model. It is a copy, in the mode that the network is in. Where an embedding that responds shares its weight
        with a decoder, the two no longer share it, since the embedding alone responds.
        """
        twin = copied(self)
        vars(twin.network).pop("forward", None)  # of `in_own_class`
        plain = replace_everywhere(twin.network, plain_modules(twin.eval().network, twin.mean_sample()))
        return plain.train(self.training)

    def in_own_class(self) -> nn.Module:
        """The converted network, of the user's class, for a library that wants one of its own: a Lightning module, say.

        A call of it is a call of this network. Its methods must call it as a whole, `self(x)`, and not a part of it.
        The hyperparameters are not among its parameters.
        """
        vars(self.network)["forward"] = _OwnClass(self)
        return self.network

    @staticmethod
    def of_own_class(module: nn.Module) -> SelfTuningModel | None:
        """The self-tuning network whose `in_own_class` a module is; None if it is of no one."""
        forward = vars(module).get("forward")
        return forward.net if isinstance(forward, _OwnClass) else None

    def _check_batch_axes(self, sample: Sample, args: Any, kwargs: Any) -> None:
        """Refuse, once, layers that would take something else for the examples, of which each is to have its own.

        Raises:
            ValueError: There is one; the message names it.
        """
        rows = 1 if sample.response_input is None else len(sample.response_input)
        # Where the examples are along another axis than the first, whoever gave the sample knows; see `is_observed`.
        if rows == 1 or rows != count_rows((args, kwargs)) or is_observed(self.network):
            return

        def axis_of(module: nn.Module) -> int | None:
            if isinstance(module, UnitDropout):
                return module.batch_axis
            holds_responses = isinstance(module, (nn.LSTM, nn.MultiheadAttention))  # their parameters are in children
            responds = isinstance(module, Responding) and (holds_responses or list(module.response_parameters()))
            return batch_axis(module) if responds else None

        with self.using(self.hyper.constant_sample()):
            found = without_batch_axis(self.network, args, kwargs, axis_of)
        if found:
            path, reason = next(iter(found.items()))
            raise ValueError(
                f"{path!r} is to have hyperparameters for each example, but {reason}. Give the conversion a batch, "
                "self_tuning(..., inputs=batch), and it leaves such layers plain; or name it: "
                f"response={{{path!r}: None, '*': 'gate'}}"
            )
        self._looked = True

    def _own_sample(self, args: Any, kwargs: Any) -> Sample:
        """What a call reads that nobody gave a sample: in training a draw, or the network does not learn to respond."""
        if self.training and not self.tuned_by and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            self._count_untuned_call()
        if self.training and self.draws:
            return self.perturbed_sample(examples(args, kwargs))
        return self.mean_sample()

    def _count_untuned_call(self) -> None:
        """Warn, once, that a loop trains the network and nothing tunes its hyperparameters."""
        self._untuned_calls += 1
        if self._untuned_calls == UNTUNED_CALLS and isinstance(self.hyper, Tunable):
            warnings.warn(
                f"the self-tuning network was called {UNTUNED_CALLS} times in training, and nothing tunes its "
                "hyperparameters: train it with SelfTuner(net, optimizer); in Lightning, with the callback of "
                "tune_stn.integrations.lightning; in Hugging Face's Trainer, with that of "
                "tune_stn.integrations.transformers. To hold them, give self_tuning(..., tuned=False)",
                stacklevel=2,
            )

    def mean_sample(self, *, keep_graph: bool = False) -> Sample:
        """All examples at the mean hyperparameters, in one row, so that responses merge into plain layers.

        With `keep_graph` the response input carries gradients to the raw coordinates, as a hyper-step needs.
        """
        if isinstance(self.hyper, Constants) or not self.conversion.responding:
            return self.hyper.constant_sample()
        if self.centred and not keep_graph:
            return self.hyper.constant_sample()  # an offset of zero: the base network itself
        return self._sample(self.hyper, self.hyper.raw[None], keep_graph=keep_graph)

    def perturbed_draw(self, *, keep_graph: bool = False, linearise: bool = False) -> Draw:
        """As `perturbed_sample`, for as many examples as the network will see."""
        return Draw(functools.partial(self.perturbed_sample, keep_graph=keep_graph, linearise=linearise))

    def perturbed_sample(self, rows: int, *, keep_graph: bool = False, linearise: bool = False) -> Sample:
        """A draw around the mean for each of `rows` examples. Needs a tunable state."""
        assert isinstance(self.hyper, Tunable)
        return self._sample(self.hyper, self.hyper.perturbed(rows), keep_graph=keep_graph, linearise=linearise)

    def _sample(self, hyper: Tunable, raw: Tensor, *, keep_graph: bool, linearise: bool = False) -> Sample:
        if self.centred:
            response_input = raw - hyper.raw.detach()
        elif self.response_origin is None:
            response_input = raw / self.shrink
        else:
            response_input = (raw - hyper.origin + self.response_origin) / self.shrink
        if not keep_graph:
            response_input = response_input.detach()
        return Sample(hyper.values(raw), response_input, linearise)

    def response_layers(self) -> Iterator[Responding]:
        for module in self.network.modules():
            if isinstance(module, Responding):
                yield module

    def response_parameters(self) -> list[nn.Parameter]:
        """Parameters that describe the response, each once."""
        return [parameter for layer in self.response_layers() for parameter in layer.response_parameters()]

    def base_parameters(self) -> list[nn.Parameter]:
        """Trainable parameters of the network proper, each once; frozen ones are not among them."""
        response = {id(parameter) for parameter in self.response_parameters()}
        return [p for p in self.network.parameters() if p.requires_grad and id(p) not in response]


# A plain network that is given the state of a self-tuning one names the entries that it does not expect: this one too.
ADVICE = "(the state of a self-tuning network: a plain one loads that of net.to_plain())"


def _add_advice(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    state[prefix + ADVICE] = torch.empty(0)


def _leave_advice_out(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    state.pop(prefix + ADVICE, None)


def examples(args: Any, kwargs: Any) -> int:
    """The number of examples in what a network is called with.

    Raises:
        ValueError: There is no tensor with an axis.
    """
    count = count_rows((args, kwargs))
    if count is not None:
        return count
    raise ValueError(
        "the self-tuning network was called with no tensor that has an axis, so it cannot draw hyperparameters for "
        "each example of the batch: give it one, or call it inside `with net.using(net.perturbed_sample(rows)):`"
    )
