"""Which module of a user's network is replaced by what."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from tune_stn.nn.attention import ResponseMultiheadAttention
from tune_stn.nn.conv import ResponseConv
from tune_stn.nn.conv_transpose import ResponseConvTranspose
from tune_stn.nn.dropout import (
    AlphaDropout,
    BranchDropout,
    ChannelAlphaDropout,
    ChannelDropout,
    SequenceDropout,
    UnitDropout,
)
from tune_stn.nn.embedding import ResponseEmbedding
from tune_stn.nn.linear import ResponseLinear, ResponseTransposedLinear
from tune_stn.nn.lstm import ResponseLSTM
from tune_stn.nn.modules import LockedDropout, StochasticDepth
from tune_stn.nn.norm import (
    ResponseBatchNorm1d,
    ResponseBatchNorm2d,
    ResponseBatchNorm3d,
    ResponseGroupNorm,
    ResponseLayerNorm,
    ResponseRMSNorm,
    ResponseRMSNormOfPackages,
    law_of,
)
from tune_stn.nn.response import Responding

# A new response layer is one file and one line here. With an attribute `dropout_rate` it drops activations of its own.
RESPONSES: dict[type[nn.Module], type[Responding]] = {
    nn.Linear: ResponseLinear,
    nn.Conv1d: ResponseConv,
    nn.Conv2d: ResponseConv,
    nn.Conv3d: ResponseConv,
    nn.ConvTranspose1d: ResponseConvTranspose,
    nn.ConvTranspose2d: ResponseConvTranspose,
    nn.ConvTranspose3d: ResponseConvTranspose,
    nn.Embedding: ResponseEmbedding,
    nn.LSTM: ResponseLSTM,
    nn.MultiheadAttention: ResponseMultiheadAttention,
    nn.LayerNorm: ResponseLayerNorm,
    nn.RMSNorm: ResponseRMSNorm,
    nn.GroupNorm: ResponseGroupNorm,
    nn.BatchNorm1d: ResponseBatchNorm1d,
    nn.BatchNorm2d: ResponseBatchNorm2d,
    nn.BatchNorm3d: ResponseBatchNorm3d,
}
# A new dropout likewise.
DROPOUTS: dict[type[nn.Module], type[UnitDropout]] = {
    nn.Dropout: UnitDropout,
    nn.Dropout1d: ChannelDropout,
    nn.Dropout2d: ChannelDropout,
    nn.Dropout3d: ChannelDropout,
    nn.AlphaDropout: AlphaDropout,
    nn.FeatureAlphaDropout: ChannelAlphaDropout,
    LockedDropout: SequenceDropout,
    StochasticDepth: BranchDropout,
}


def is_transposed_linear(module: nn.Module) -> bool:
    """Whether it is the `Conv1D` of transformers, a linear layer with a weight of shape `(in, out)`."""
    parameters, outputs = module._parameters, vars(module).get("nf")
    if type(module).__name__ != "Conv1D" or parameters.keys() != {"weight", "bias"}:
        return False
    weight, bias = parameters["weight"], parameters["bias"]
    return weight is not None and bias is not None and weight.shape[1:] == bias.shape == (outputs,)


def is_rms_norm(module: nn.Module) -> bool:
    """Whether it is one of the many RMS norms of packages, of which T5's is called a layer norm."""
    return type(module).__name__.lower().endswith(("rmsnorm", "layernorm")) and law_of(module) is not None


# Layers of packages that need not be installed: what they are known by, and what replaces them.
RESPONSES_BY_LOOK: list[tuple[Callable[[nn.Module], bool], type[Responding]]] = [
    (is_transposed_linear, ResponseTransposedLinear),
    (is_rms_norm, ResponseRMSNormOfPackages),
]


def response_form(module: nn.Module) -> type[Responding] | None:
    """The response layer that replaces a layer; None: it has none."""
    exact = RESPONSES.get(type(module))
    return exact or next((form for looks_right, form in RESPONSES_BY_LOOK if looks_right(module)), None)


def is_drop_path(module: nn.Module) -> bool:
    """Whether it is a DropPath or a StochasticDepth of timm, torchvision, transformers, or after their pattern."""
    name, attributes = type(module).__name__, vars(module)
    by_path = name.endswith("DropPath") and "drop_prob" in attributes
    return by_path or (name == "StochasticDepth" and "p" in attributes and attributes.get("mode") in ("row", "batch"))


# Dropouts of packages that need not be installed: what they are known by, and what replaces them.
DROPOUTS_BY_LOOK: list[tuple[Callable[[nn.Module], bool], type[UnitDropout]]] = [(is_drop_path, BranchDropout)]


def dropout_form(module: nn.Module) -> type[UnitDropout] | None:
    """What replaces a dropout module that is to read its rate; None of any other module.

    A class stands for those derived from it that leave its `forward` as it is.
    """
    for kind in type(module).__mro__:
        if kind in DROPOUTS and type(module).forward is kind.forward:
            return DROPOUTS[kind]
    return next((form for looks_right, form in DROPOUTS_BY_LOOK if looks_right(module)), None)


# Response layers that drop weights (`Responding.weight_mask`).
WEIGHT_DROPOUTS: set[type[Responding]] = {
    ResponseLinear,
    ResponseTransposedLinear,
    ResponseConv,
    ResponseConvTranspose,
    ResponseEmbedding,
    ResponseLSTM,
}


def drops_activations(module: nn.Module) -> bool:
    """Whether `dropout` of `self_tuning` can bind the module."""
    return dropout_form(module) is not None or hasattr(response_form(module), "dropout_rate")


def drops_weights(module: nn.Module) -> bool:
    """Whether `weight_dropout` of `self_tuning` can bind the module."""
    return response_form(module) in WEIGHT_DROPOUTS
