"""Which module of a user's network is replaced by what."""

from __future__ import annotations

from torch import nn

from tune_stn.nn.attention import ResponseMultiheadAttention
from tune_stn.nn.conv import ResponseConv
from tune_stn.nn.conv_transpose import ResponseConvTranspose
from tune_stn.nn.dropout import BranchDropout, ChannelDropout, SequenceDropout, UnitDropout
from tune_stn.nn.embedding import ResponseEmbedding
from tune_stn.nn.linear import ResponseLinear
from tune_stn.nn.lstm import ResponseLSTM
from tune_stn.nn.modules import LockedDropout, StochasticDepth
from tune_stn.nn.norm import (
    ResponseBatchNorm1d,
    ResponseBatchNorm2d,
    ResponseBatchNorm3d,
    ResponseGroupNorm,
    ResponseLayerNorm,
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
    LockedDropout: SequenceDropout,
    StochasticDepth: BranchDropout,
}
# Response layers that drop weights (`Responding.weight_mask`).
WEIGHT_DROPOUTS: set[type[Responding]] = {
    ResponseLinear,
    ResponseConv,
    ResponseConvTranspose,
    ResponseEmbedding,
    ResponseLSTM,
}


def drops_activations(module: nn.Module) -> bool:
    """Whether `dropout` of `self_tuning` can bind the module."""
    return type(module) in DROPOUTS or hasattr(RESPONSES.get(type(module)), "dropout_rate")


def drops_weights(module: nn.Module) -> bool:
    """Whether `weight_dropout` of `self_tuning` can bind the module."""
    return RESPONSES.get(type(module)) in WEIGHT_DROPOUTS
