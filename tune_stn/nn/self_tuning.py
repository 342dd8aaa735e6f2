"""Turn a user's own network into a self-tuning one, without a change to its `forward`."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from tune_stn.nn.conv import ResponseConv
from tune_stn.nn.dropout import ChannelDropout, UnitDropout
from tune_stn.nn.linear import ResponseLinear
from tune_stn.nn.response import ResponseLayer, ResponseSize, check_response_size
from tune_stn.nn.slot import Slot
from tune_stn.space.sample import Sample
from tune_stn.space.search_space import SearchSpace
from tune_stn.space.tunable import Constants, Tunable

# A new response layer or dropout is one file and one line here.
RESPONSES: dict[type[nn.Module], type[ResponseLayer]] = {
    nn.Linear: ResponseLinear,
    nn.Conv1d: ResponseConv,
    nn.Conv2d: ResponseConv,
    nn.Conv3d: ResponseConv,
}
DROPOUTS: dict[type[nn.Module], type[UnitDropout]] = {
    nn.Dropout: UnitDropout,
    nn.Dropout1d: ChannelDropout,
    nn.Dropout2d: ChannelDropout,
    nn.Dropout3d: ChannelDropout,
}
# Their forward reads the children's parameters past the children's forward, so a response there would be ignored.
OPAQUE = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


@dataclass(frozen=True)
class Conversion:
    """What `self_tuning` did to each module, by path.

    Attributes:
        responding: path -> response size in words.
        bound: path of a dropout module -> the hyperparameter it reads.
        plain: path of a module with parameters that was left as it was -> why.
    """

    responding: dict[str, str] = field(default_factory=dict)
    bound: dict[str, str] = field(default_factory=dict)
    plain: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{path or 'the model itself'}: response {size}" for path, size in self.responding.items()]
        lines += [f"{path or 'the model itself'}: reads {name}" for path, name in self.bound.items()]
        lines += [f"{path or 'the model itself'}: left plain ({reason})" for path, reason in self.plain.items()]
        return "\n".join(lines)


class SelfTuningModel(nn.Module):
    """A network whose layers read the current hyperparameter sample, and the hyperparameters themselves.

    Made by `self_tuning`. Calling it outside `using` evaluates at the mean of the hyperparameters.

    Attributes:
        network: the converted copy of the user's network.
        hyper: the tunable state, or constants where nothing is tuned inside the run.
        conversion: what was converted, bound and left plain.
        centred: whether the response input is the offset from the mean (Delta-STN) or the raw coordinate (STN).
    """

    def __init__(
        self,
        network: nn.Module,
        hyper: Tunable | Constants,
        slot: Slot,
        conversion: Conversion,
        *,
        centred: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.hyper = hyper
        self.slot = slot
        self.conversion = conversion
        self.centred = centred
        self.training = network.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.slot.is_set:
            return self.network(*args, **kwargs)
        with self.using(self.mean_sample()):
            return self.network(*args, **kwargs)

    def using(self, sample: Sample) -> AbstractContextManager[None]:
        """Make `sample` the one that layers read inside the block."""
        return self.slot.using(sample)

    def mean_sample(self, *, keep_graph: bool = False) -> Sample:
        """Everybody at the mean hyperparameters: one row, so that responses merge into plain layers.

        With `keep_graph` the response input carries gradients to the raw coordinates, as a hyper-step needs.
        """
        if isinstance(self.hyper, Constants) or not self.conversion.responding:
            return self.hyper.constant_sample()
        if self.centred and not keep_graph:
            return self.hyper.constant_sample()  # an offset of zero: the base network itself
        return self._sample(self.hyper, self.hyper.raw[None], keep_graph=keep_graph)

    def perturbed_sample(self, rows: int, *, keep_graph: bool = False, linearise: bool = False) -> Sample:
        """A draw around the mean for each of `rows` examples. Needs a tunable state."""
        assert isinstance(self.hyper, Tunable)
        return self._sample(self.hyper, self.hyper.perturbed(rows), keep_graph=keep_graph, linearise=linearise)

    def _sample(self, hyper: Tunable, raw: Tensor, *, keep_graph: bool, linearise: bool = False) -> Sample:
        response_input = raw - hyper.raw.detach() if self.centred else raw
        if not keep_graph:
            response_input = response_input.detach()
        return Sample(hyper.values(raw), response_input, linearise)

    def response_layers(self) -> Iterator[ResponseLayer]:
        for module in self.network.modules():
            if isinstance(module, ResponseLayer):
                yield module

    def response_parameters(self) -> list[nn.Parameter]:
        """Parameters that describe the response, each once."""
        return [parameter for layer in self.response_layers() for parameter in layer.response_parameters()]

    def base_parameters(self) -> list[nn.Parameter]:
        """Trainable parameters of the network proper, each once; frozen ones are not among them."""
        response = {id(parameter) for parameter in self.response_parameters()}
        return [p for p in self.network.parameters() if p.requires_grad and id(p) not in response]


def self_tuning(
    model: nn.Module,
    space: SearchSpace,
    *,
    start: Mapping[str, float],
    dropout: Mapping[str, str] | None = None,
    response: ResponseSize | Mapping[str, ResponseSize | None] | None = "gate",
    scale: float = 1.0,
    tuned: bool = True,
    centred: bool = False,
    seed: int = 0,
) -> SelfTuningModel:
    """A self-tuning copy of `model`; the original is untouched and its `forward` is used as it is.

    Linear and convolution layers get a response, dropout modules named in `dropout` read their rate from the current
    hyperparameter sample. Shared modules stay shared, frozen layers stay frozen. Whatever is not converted keeps
    working and is listed, with the reason, in `result.conversion.plain`.

    Args:
        model: any network whose layers take `(batch, ...)`.
        space: the hyperparameters.
        start: start value of each hyperparameter.
        dropout: path of a dropout module, or a pattern such as `"encoder.*"`, -> hyperparameter that is its rate.
            The first matching entry counts. Dropout modules that match none keep their own fixed rate.
        response: size of the responses: "full", a rank, "gate" or None (no response), or a mapping from path or
            pattern to size, of which the first match counts (no match: no response).
        scale: start value of the perturbation scales, in raw units.
        tuned: whether the hyperparameters are a tunable state or constants.
        centred: whether responses see the offset from the mean (Delta-STN) instead of the raw coordinate (STN).
        seed: seeds the response parameters alone; the base parameters are those of `model`.

    Raises:
        ValueError: a path matches no module, a hyperparameter is unknown, a start value is outside its domain, a
            dropout module to be bound has hooks, or the model cannot be copied.

    Example:
        >>> net = self_tuning(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 2)),
        ...                   SearchSpace({"rate": Uniform(0, 0.9)}), start={"rate": 0.2}, dropout={"2": "rate"})
    """
    dropout = dict(dropout or {})
    for name in dropout.values():
        if name not in space:
            raise ValueError(f"dropout binds the unknown hyperparameter {name!r}; the space has {', '.join(space)}")
    sizes: Mapping[str, ResponseSize | None] = response if isinstance(response, Mapping) else {"*": response}
    sizes = {path: None if size is None else check_response_size(size) for path, size in sizes.items()}
    try:
        network = copy.deepcopy(model)
    except RuntimeError as error:
        raise ValueError(
            "the model cannot be copied because it holds a tensor with a graph, as pruning, an old-style weight norm "
            f"or a kept output leave it ({str(error).split(' at ')[0]}): convert it before, or use parametrizations"
        ) from error
    converter = _Converter(network, space, dropout, sizes, seed)
    network = converter.run()
    hyper = Tunable(space, start, scale=scale) if tuned else Constants(space, start)
    reference = next(network.parameters(), None)
    if reference is not None:
        hyper.to(reference.device)
    return SelfTuningModel(network, hyper, converter.slot, converter.conversion, centred=centred)


class _Converter:
    """One pass over the modules of a network, replacing them in place."""

    def __init__(
        self,
        network: nn.Module,
        space: SearchSpace,
        dropout: Mapping[str, str],
        sizes: Mapping[str, ResponseSize | None],
        seed: int,
    ) -> None:
        self.network = network
        self.space = space
        self.dropout = dropout
        self.sizes = sizes
        self.slot = Slot()
        self.conversion = Conversion()
        self.generator = torch.Generator().manual_seed(seed)
        # A parameter held by several modules is tied; a module met again is the same module, and no tie.
        self.holders = Counter(id(p) for m in network.modules() for p in m.parameters(recurse=False))
        self.unmatched = set(dropout)
        self.unmatched_sizes = set(sizes) - {"*"}

    def run(self) -> nn.Module:
        """Replace what can be replaced and give the network back (a single layer is itself replaced)."""
        replaced: dict[int, nn.Module] = {}
        opaque: set[int] = set()
        for path, module in self.network.named_modules():
            if isinstance(module, OPAQUE):
                opaque.update(id(inner) for inner in module.modules())
            new = self.convert(path, module, inside_opaque=id(module) in opaque)
            if new is not None:
                replaced[id(module)] = new
        if self.unmatched:
            found = [path for path, module in self.network.named_modules() if type(module) in DROPOUTS]
            raise ValueError(
                f"dropout path {sorted(self.unmatched)[0]!r} matches no dropout module; there "
                + (f"are: {', '.join(found)}" if found else "is none in this model")
            )
        if self.unmatched_sizes:
            found = [*self.conversion.responding, *self.conversion.plain]
            raise ValueError(
                f"response path {sorted(self.unmatched_sizes)[0]!r} matches no module with parameters; there "
                + (f"are: {', '.join(found)}" if found else "is none in this model")
            )
        if id(self.network) in replaced:
            return replaced[id(self.network)]
        # With duplicates: a shared module is replaced at every place where it stands, by the same new one.
        for path, module in list(self.network.named_modules(remove_duplicate=False)):
            if id(module) in replaced:
                parent, _, name = path.rpartition(".")
                setattr(self.network.get_submodule(parent), name, replaced[id(module)])
        return self.network

    def convert(self, path: str, module: nn.Module, *, inside_opaque: bool) -> nn.Module | None:
        """The replacement of one module, or None; what is left plain is noted."""
        if type(module) in DROPOUTS:
            return self.bind_dropout(path, module)
        if not list(module.parameters(recurse=False)):
            return None
        self.unmatched_sizes.difference_update(p for p in self.sizes if fnmatchcase(path, p))
        size = _first_match(self.sizes, path)
        if reason := self.why_plain(module, size, inside_opaque):
            self.conversion.plain[path] = reason
            return None
        assert size is not None
        self.conversion.responding[path] = size if isinstance(size, str) else f"rank {size}"
        return RESPONSES[type(module)](module, len(self.space), size, self.slot, self.generator)

    def bind_dropout(self, path: str, module: nn.Module) -> nn.Module | None:
        matches = [pattern for pattern in self.dropout if fnmatchcase(path, pattern)]
        self.unmatched.difference_update(matches)
        if not matches:
            return None
        if has_hooks(module):
            raise ValueError(
                f"dropout module {path!r} has hooks, which its replacement would lose: register them after the "
                "conversion, or bind no hyperparameter to it"
            )
        name = self.dropout[matches[0]]
        self.conversion.bound[path] = name
        return DROPOUTS[type(module)](name, self.slot).train(module.training)

    def why_plain(self, module: nn.Module, size: ResponseSize | None, inside_opaque: bool) -> str | None:
        """Why a module with parameters gets no response, or None if it gets one."""
        if size is None:
            return "no response asked for"
        if any(nn.parameter.is_lazy(parameter) for parameter in module.parameters(recurse=False)):
            return "not initialised: run a batch through the model before its conversion"
        if type(module) not in RESPONSES:
            return f"no response layer for {type(module).__name__}"
        if inside_opaque:
            return "its parent reads the parameters directly"
        if has_hooks(module):
            return "has hooks, which a replacement would lose"
        weight = module.weight
        assert isinstance(weight, Tensor)
        if not weight.requires_grad:
            return "frozen"
        if self.holders[id(weight)] > 1:
            return "weight shared with another module"
        return None


def has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def _first_match(sizes: Mapping[str, ResponseSize | None], path: str) -> ResponseSize | None:
    for pattern, size in sizes.items():
        if fnmatchcase(path, pattern):
            return size
    return None
