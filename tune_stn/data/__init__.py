"""Tensors in memory, splits, batches, augmentation, and readers of standard files."""

from tune_stn.data.augment import Cutout, InputDropout, InputScale
from tune_stn.data.errors import DataError
from tune_stn.data.splits import Split, Splits, random_splits

__all__ = ["Cutout", "DataError", "InputDropout", "InputScale", "Split", "Splits", "random_splits"]
