"""Response layers, regularisers that read a sample, and the conversion of a user's network."""

from tune_stn.nn.attention import ResponseMultiheadAttention
from tune_stn.nn.conv import ResponseConv
from tune_stn.nn.conv_transpose import ResponseConvTranspose
from tune_stn.nn.conversion import Conversion
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
from tune_stn.nn.model import SelfTuningModel
from tune_stn.nn.modules import LockedDropout, StochasticDepth
from tune_stn.nn.norm import (
    ResponseBatchNorm1d,
    ResponseBatchNorm2d,
    ResponseBatchNorm3d,
    ResponseGroupNorm,
    ResponseLayerNorm,
    ResponseNorm,
    ResponseRMSNorm,
)
from tune_stn.nn.penalties import ActivationNorm, OptimizerWeightDecay, TemporalActivationNorm, WeightDecay
from tune_stn.nn.response import Responding, ResponseLayer, ResponseSize
from tune_stn.nn.self_tuning import self_tuning
from tune_stn.nn.slot import Slot

__all__ = [
    "ActivationNorm",
    "AlphaDropout",
    "BranchDropout",
    "ChannelAlphaDropout",
    "ChannelDropout",
    "Conversion",
    "LockedDropout",
    "OptimizerWeightDecay",
    "Responding",
    "ResponseBatchNorm1d",
    "ResponseBatchNorm2d",
    "ResponseBatchNorm3d",
    "ResponseConv",
    "ResponseConvTranspose",
    "ResponseEmbedding",
    "ResponseGroupNorm",
    "ResponseLSTM",
    "ResponseLayer",
    "ResponseLayerNorm",
    "ResponseLinear",
    "ResponseMultiheadAttention",
    "ResponseNorm",
    "ResponseRMSNorm",
    "ResponseSize",
    "ResponseTransposedLinear",
    "SelfTuningModel",
    "SequenceDropout",
    "Slot",
    "StochasticDepth",
    "TemporalActivationNorm",
    "UnitDropout",
    "WeightDecay",
    "self_tuning",
]
