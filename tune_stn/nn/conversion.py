"""The pass over a network that replaces its modules."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from tune_stn.nn import numbers
from tune_stn.nn.norm import ResponseNorm
from tune_stn.nn.patterns import Patterns
from tune_stn.nn.plain import MEMORY, remember
from tune_stn.nn.registry import dropout_form, drops_activations, drops_weights, response_form
from tune_stn.nn.response import ResponseSize, size_in_words
from tune_stn.nn.slot import Slot
from tune_stn.space.search_space import SearchSpace


@dataclass(frozen=True)
class Conversion:
    """What `self_tuning` did to each module, by path.

    Attributes:
        responding: Path -> response size in words.
        bound: Path of a module that drops activations, or of a number that is a rate, or `path (weights)` of a module
            whose weights are dropped, -> the hyperparameter that is the rate.
        plain: Path of a module with parameters that was left as it was -> the reason.
    """

    responding: dict[str, str] = field(default_factory=dict)
    bound: dict[str, str] = field(default_factory=dict)
    plain: dict[str, str] = field(default_factory=dict)

    @property
    def left_plain(self) -> str:
        """What is plain and why, in one line."""
        return "; ".join(f"{path} ({reason})" for path, reason in self.plain.items())

    def __str__(self) -> str:
        lines = [f"{path or 'the model itself'}: response {size}" for path, size in self.responding.items()]
        lines += [f"{path or 'the model itself'}: reads {name}" for path, name in self.bound.items()]
        lines += [f"{path or 'the model itself'}: left plain ({reason})" for path, reason in self.plain.items()]
        return "\n".join(lines)


class Converter:
    """One pass over the modules of a network, replacing them in place."""

    def __init__(
        self,
        space: SearchSpace,
        *,
        dropout: Patterns[str],
        weight_dropout: Patterns[str],
        sizes: Patterns[ResponseSize | None],
        norms: bool,
        why: str,
        seed: int,
        without_response: Mapping[str, str],
    ) -> None:
        self.space = space
        self.dropout = dropout
        self.weight_dropout = weight_dropout
        self.sizes = sizes
        self.norms = norms
        self.why = why
        self.without_response = without_response
        self.slot = Slot()
        self.conversion = Conversion()
        self.generator = torch.Generator().manual_seed(seed)
        # Parameter -> modules that hold it: several, if it is tied. A module met again is the same one, and no tie.
        self.holders: dict[int, dict[str, nn.Module]] = defaultdict(dict)

    def run(self, network: nn.Module) -> nn.Module:
        """Replace what can be replaced and give the network back (a single layer is itself replaced)."""
        modules = dict(network.named_modules())
        for path, module in modules.items():
            for parameter in module.parameters(recurse=False):
                self.holders[id(parameter)][path] = module
        replaced: dict[int, nn.Module] = {}
        inside_opaque: set[int] = set()
        inside_replaced: set[int] = set()
        for path, module in modules.items():
            self.check_batch_axis(path, module)
            if id(module) in inside_replaced:
                continue
            new = self.convert(path, module, inside_opaque=id(module) in inside_opaque)
            inner = {id(child) for child in module.modules()}
            if new is not None:
                replaced[id(module)] = new
                inside_replaced |= inner
            elif isinstance(module, nn.MultiheadAttention):
                inside_opaque |= inner
        self.bind_numbers({path: m for path, m in modules.items() if id(m) not in inside_replaced})
        self.dropout.check_all_matched(
            "dropout module", (p for p, m in modules.items() if drops_activations(m)), hint=without_a_module(modules)
        )
        self.weight_dropout.check_all_matched(
            "layer whose weights can be dropped", (p for p, m in modules.items() if drops_weights(m))
        )
        self.sizes.check_all_matched("module with parameters", [*self.conversion.responding, *self.conversion.plain])
        return replace_everywhere(network, replaced)

    def convert(self, path: str, module: nn.Module, *, inside_opaque: bool) -> nn.Module | None:
        """The replacement of one module, or None; what is bound, and what is left plain, is noted."""
        kind = type(module)
        rate = self.dropout.match(path) if drops_activations(module) else None
        weight_rate = self.weight_dropout.match(path) if drops_weights(module) else None
        stays = self.why_it_stays(module, inside_opaque)
        if stays and (rate or weight_rate):
            raise ValueError(f"{path!r} cannot be replaced by one that reads {rate or weight_rate!r}: {stays}")
        bound = {path: rate, f"{path} (weights)": weight_rate}
        self.conversion.bound.update({place: name for place, name in bound.items() if name})
        if form := dropout_form(module):
            if not rate:
                return None
            dropout = form.in_place_of(module, rate, self.slot)
            dropout.path = path or "the model itself"
            remember(dropout, module)
            return dropout
        if not list(module.parameters(recurse=False)):
            return None
        size = self.sizes.match(path)
        plain = self.why_plain(path, module, size, stays)
        if plain:
            self.conversion.plain[path] = plain
            # A fused LSTM has no tangents, so one that another layer's response reaches is replaced all the same.
            if not (rate or weight_rate or (kind is nn.LSTM and not stays and self.sizes.entries != {"*": None})):
                return None
        responding = response_form(module)
        assert responding is not None
        new = responding(module, len(self.space), None if plain else size, self.slot, self.generator)
        remember(new, module)
        if not plain:
            words = size_in_words(new.size)
            self.conversion.responding[path] = f"{words} (automatic: {self.why})" if self.why else words
        if rate:
            new.dropout_rate, new.path = rate, path or "the model itself"
        if weight_rate:
            new.weight_rate = weight_rate
        return new

    def bind_numbers(self, modules: Mapping[str, nn.Module]) -> None:
        """Have the numbers that `dropout` names follow the sample, in modules that stay.

        A path names any number; a pattern only one that is a rate by its name, or `"*"` would mean each `eps` too.
        """
        for path, module in modules.items():
            if drops_activations(module):
                continue
            for name in list(numbers.candidates(module)):
                place = f"{path}.{name}" if path else name
                if not (place in self.dropout.entries or numbers.looks_like_a_rate(module, name)):
                    continue
                if rate := self.dropout.match(place):
                    numbers.bind(module, name, numbers.SharedRate(place, rate, self.slot))
                    self.conversion.bound[place] = rate

    def check_batch_axis(self, path: str, module: nn.Module) -> None:
        """Refuse torch's transformer blocks in their sequence-first form, if examples are to have their own responses.

        Their linear layers would take the positions for the examples: an error, or worse, none if there are as many.
        """
        if not isinstance(module, (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)):
            return
        per_example = self.space.keys() - self.space.per_batch
        if per_example and not module.self_attn.batch_first and self.sizes.match(f"{path}.linear1") is not None:
            raise ValueError(
                f"{path!r} is a {type(module).__name__} with batch_first=False, so its layers cannot tell which "
                "example a row belongs to: make it with batch_first=True (the weights are the same), or have all "
                "hyperparameters drawn per batch: SearchSpace(..., per_batch=[...])"
            )

    def why_plain(self, path: str, module: nn.Module, size: ResponseSize | None, stays: str | None) -> str | None:
        """Why a module with parameters gets no response, or None if it gets one."""
        if size is None:
            return "no response asked for"
        if reason := stays or self.without_response.get(path):
            return reason
        form = response_form(module)
        if form is not None and issubclass(form, ResponseNorm) and not self.norms:
            return "norms=False: its affine part stays plain"
        for name, weight in module.named_parameters(recurse=False):
            if "bias" in name:
                continue
            if not weight.requires_grad:
                return "frozen"
            holders = self.holders[id(weight)]
            # An embedding responds though a decoder shares its weight; the decoder does not.
            embeddings = (m for at, m in holders.items() if type(m) is nn.Embedding and at not in self.without_response)
            first = next(embeddings, None)
            if len(holders) > 1 and module is not first:
                return f"weight shared with {', '.join(other for other in holders if other != path)}"
        return None

    def why_it_stays(self, module: nn.Module, inside_opaque: bool) -> str | None:
        """Why a module cannot be replaced, response or not, or None if it can."""
        kind = type(module)
        if any(nn.parameter.is_lazy(parameter) for parameter in module.parameters(recurse=False)):
            return "not initialised: run a batch through the model before its conversion"
        form = response_form(module)
        if not form and not dropout_form(module):
            return f"no response layer for {kind.__name__}"
        if inside_opaque and form:
            return "its parent reads the parameters directly"
        if has_hooks(module):
            return "has hooks, which a replacement would lose: register them after the conversion"
        return form.why_not(module) if form else None


def without_a_module(modules: Mapping[str, nn.Module]) -> str:
    """How to tune a dropout that is no module of a known class."""
    found = [
        f"{path}.{name}" if path else name
        for path, module in modules.items()
        if not drops_activations(module)
        for name in numbers.candidates(module)
        if numbers.looks_like_a_rate(module, name) or name in ("p", "rate")
    ]
    return ". A functional dropout, or one of a class of its own, is tuned by the path of the number that it reads" + (
        f": {', '.join(found)}" if found else ", self.p say; or use an nn.Dropout"
    )


def has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def replace_everywhere(network: nn.Module, replaced: Mapping[int, nn.Module]) -> nn.Module:
    """Put the new modules in the place of the old, by id, wherever a module holds one.

    That is among its children, as a plain attribute, or in a list, tuple or dict that is one.

    Returns:
        The network, or what is in its place.
    """
    for module in list(network.modules()):
        attributes = vars(module)
        for name, value in list(attributes.items()):
            if name == MEMORY:
                continue
            if id(value) in replaced:
                attributes[name] = replaced[id(value)]
            elif isinstance(value, dict):  # torch's own, of the children, as well
                value.update({key: replaced[id(item)] for key, item in value.items() if id(item) in replaced})
            elif isinstance(value, list):
                value[:] = [replaced.get(id(item), item) for item in value]
            elif type(value) is tuple:
                attributes[name] = tuple(replaced.get(id(item), item) for item in value)
    return replaced.get(id(network), network)
