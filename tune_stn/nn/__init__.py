"""Response layers, regularisers that read a sample, and the conversion of a user's network."""

from tune_stn.nn.conv import ResponseConv
from tune_stn.nn.dropout import ChannelDropout, UnitDropout
from tune_stn.nn.linear import ResponseLinear
from tune_stn.nn.penalties import WeightDecay
from tune_stn.nn.response import ResponseLayer, ResponseSize
from tune_stn.nn.self_tuning import Conversion, SelfTuningModel, self_tuning
from tune_stn.nn.slot import Slot

__all__ = [
    "ChannelDropout",
    "Conversion",
    "ResponseConv",
    "ResponseLayer",
    "ResponseLinear",
    "ResponseSize",
    "SelfTuningModel",
    "Slot",
    "UnitDropout",
    "WeightDecay",
    "self_tuning",
]
