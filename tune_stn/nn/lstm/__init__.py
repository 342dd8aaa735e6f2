"""The response form of `nn.LSTM`, from the layer down to its loops over time.

`layer` is the module; `kernel` differentiates a whole sequence by hand; `recurrence` has the loops over time that the
kernel calls, on a CPU, and `graph` the same for a GPU; `autocast` has torch's own LSTM run where it would raise.
"""

from tune_stn.nn.lstm.layer import ResponseLSTM

__all__ = ["ResponseLSTM"]
