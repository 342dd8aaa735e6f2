"""Turn a user's own network into a self-tuning one, without a change to its `forward`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from tune_stn.nn.conversion import Conversion, Converter
from tune_stn.nn.model import SelfTuningModel
from tune_stn.nn.patterns import Patterns
from tune_stn.nn.plain import copied
from tune_stn.nn.probe import batch_axis, without_batch_axis, without_call
from tune_stn.nn.registry import DROPOUTS, RESPONSES, WEIGHT_DROPOUTS, dropout_form, response_form
from tune_stn.nn.response import ResponseSize, check_response_size
from tune_stn.space.search_space import SearchSpace
from tune_stn.space.tunable import Constants, Tunable

__all__ = ["DROPOUTS", "RESPONSES", "WEIGHT_DROPOUTS", "Conversion", "SelfTuningModel", "self_tuning"]


def self_tuning(
    model: nn.Module,
    space: SearchSpace,
    *,
    start: Mapping[str, float],
    dropout: Mapping[str, str] | None = None,
    weight_dropout: Mapping[str, str] | None = None,
    response: ResponseSize | Mapping[str, ResponseSize | None] | None = "gate",
    norms: bool = False,
    why: str = "",
    scale: float = 1.0,
    tuned: bool = True,
    centred: bool = False,
    response_origin: float | None = -3.0,
    shrink_gates: bool = True,
    seed: int = 0,
    inputs: Tensor | tuple[Any, ...] | Mapping[str, Any] | None = None,
) -> SelfTuningModel:
    """A self-tuning copy of `model`; the original is untouched and its `forward` is used as it is.

    Layers of the types in `RESPONSES` get a response, modules named in `dropout` and `weight_dropout` read their rate
    from the current hyperparameter sample. Shared modules stay shared, frozen layers stay frozen; a weight that an
    embedding shares (with a decoder, say) responds in the embedding alone. Whatever is not converted keeps working and
    is listed, with the reason, in `result.conversion.plain`.

    Args:
        model: Any network whose layers take `(batch, ...)`.
        space: The hyperparameters.
        start: Name -> start value of each hyperparameter.
        dropout: Path of a dropout module, or of a layer with a dropout of its own, or of a number that the model's code
            reads (`"block.p"` for `F.dropout(x, self.p)`), or a pattern such as `"encoder.*"`, -> hyperparameter that
            is its rate. The first matching entry counts; of numbers, patterns mean those with "drop" in their name.
            What matches none keeps its own fixed rate. A rate that code reads as a number, `self.drop.p` included, is
            one for the batch: it follows a rule without response (auto), or one that `space.per_batch` names. Default
            none.
        weight_dropout: Path or pattern of a layer -> hyperparameter that is the rate at which its weights are dropped
            (DropConnect; whole rows of an embedding). The batch shares the weights, so `space.per_batch` must name it.
            Default none.
        response: Size of the responses: "full", a rank, "gate" or None (no response), or a mapping from path or pattern
            to size, of which the first match counts (no match: no response). Default "gate".
        norms: Whether the affine parts of normalisation layers respond. Default False.
        why: Reason for this size of response, where it was chosen for the user; `result.conversion.responding` shows
            it. Default none.
        scale: Start value of the perturbation scales, in raw units. Default 1.
        tuned: Whether the hyperparameters are a tunable state or constants. Default True.
        centred: Whether responses see the offset from the mean (Delta-STN) instead of the raw coordinate (STN). Default
            False.
        response_origin: The response input of STN at the start values: it is the raw coordinate, moved so that it has
            this value there. None is the form of the papers, the raw coordinate itself. With `centred` it has no
            effect.
        shrink_gates: Whether the response input of STN is divided by the square root of the number of hyperparameters
            if all responses are gates. False is the form of the papers. With `centred` it has no effect.
        seed: Seed of the response parameters alone; the base parameters are those of `model`. Default 0.
        inputs: A batch as the model is called with, of any number of examples, on the model's device: a tensor, a tuple
            for `model(*inputs)`, or a mapping for `model(**inputs)`. With it, small batches go through the model, and
            layers whose first axis is not the batch (a table of positions), or whose weights are read by other code
            that does not call them, get no response and are listed. Without it, the network looks for the former when
            examples first have their own, and refuses to go on if there are any.

    Raises:
        TypeError: `space` is none.
        ValueError: a path matches no module, a hyperparameter is unknown or, for `weight_dropout`, not per batch, a
            start value is outside its domain, a module to be bound cannot be replaced or its first axis is not the
            batch.

    Example:
        >>> net = self_tuning(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 2)),
        ...                   SearchSpace({"rate": Uniform(0, 0.9)}), start={"rate": 0.2}, dropout={"2": "rate"})
    """
    if not isinstance(space, SearchSpace):
        raise TypeError(f"space is a {type(space).__name__}: give SearchSpace({{'dropout': Uniform(0, 0.9)}})")
    sizes: Mapping[str, ResponseSize | None] = response if isinstance(response, Mapping) else {"*": response}
    dropouts = _bindings("dropout", dropout, space)
    weight_dropouts = _bindings("weight_dropout", weight_dropout, space)
    for name in (weight_dropout or {}).values():
        if name not in space.per_batch and name not in space.fixed:
            raise ValueError(
                f"weight_dropout binds {name!r}, which is drawn for each example, but all examples of a batch share "
                f"the weights: name it in SearchSpace(..., per_batch=[{name!r}])"
            )
    network = copied(model)
    converter = Converter(
        space,
        dropout=dropouts,
        weight_dropout=weight_dropouts,
        sizes=Patterns(
            {path: None if size is None else check_response_size(size) for path, size in sizes.items()}, "response"
        ),
        norms=norms,
        why=why,
        seed=seed,
        without_response=_without_response(network, inputs, space, dropouts) if tuned else {},
    )
    network = converter.run(network)
    hyper = Tunable(space, start, scale=scale) if tuned else Constants(space, start)
    reference = next(network.parameters(), None)
    if reference is not None:
        hyper.to(reference.device)
    return SelfTuningModel(
        network,
        hyper,
        converter.slot,
        converter.conversion,
        centred=centred,
        response_origin=response_origin,
        shrink_gates=shrink_gates,
        looked=inputs is not None and not _is_lazy(model),
    )


def _is_lazy(model: nn.Module) -> bool:
    return any(nn.parameter.is_lazy(parameter) for parameter in model.parameters())


def _without_response(
    model: nn.Module,
    inputs: Tensor | tuple[Any, ...] | Mapping[str, Any] | None,
    space: SearchSpace,
    dropouts: Patterns[str],
) -> dict[str, str]:
    """Layers that cannot have a response, as a batch shows, by path, with the reason."""
    per_example = space.keys() - space.per_batch
    if inputs is None or _is_lazy(model):
        return {}
    kwargs = dict(inputs) if isinstance(inputs, Mapping) else {}
    args = () if kwargs else inputs if isinstance(inputs, tuple) else (inputs,)
    uncalled = without_call(model, args, kwargs, lambda module: response_form(module) is not None)
    if not per_example:
        return uncalled

    def axis_of(module: nn.Module) -> int | None:
        if not response_form(module) and not dropout_form(module):
            return None
        return batch_axis(module)

    found = without_batch_axis(model, args, kwargs, axis_of)
    for path, reason in found.items():
        rate = dropouts.match(path) if dropout_form(model.get_submodule(path)) else None
        if rate in per_example:
            raise ValueError(
                f"the dropout {path!r} reads {rate!r}, which is drawn for each example, but {reason}: name the "
                f"hyperparameter in SearchSpace(..., per_batch=[{rate!r}])"
            )
    return uncalled | found


def _bindings(keyword: str, bindings: Mapping[str, str] | None, space: SearchSpace) -> Patterns[str]:
    for name in (bindings or {}).values():
        if name not in space and name not in space.fixed:
            raise ValueError(f"{keyword} binds the unknown hyperparameter {name!r}; the space has {', '.join(space)}")
    return Patterns(bindings or {}, keyword)
