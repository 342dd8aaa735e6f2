"""Tensors in memory, splits, batches, augmentation, and readers of standard files."""

from tune_stn.data.augment import Cutout, InputDropout, InputScale
from tune_stn.data.batches import Batch
from tune_stn.data.corpus import Vocabulary, read_words
from tune_stn.data.dataset import DatasetSplit
from tune_stn.data.source import DataError
from tune_stn.data.splits import Split, Splits, random_splits
from tune_stn.data.text import Text

__all__ = [
    "Batch",
    "Cutout",
    "DataError",
    "DatasetSplit",
    "InputDropout",
    "InputScale",
    "Split",
    "Splits",
    "Text",
    "Vocabulary",
    "random_splits",
    "read_words",
]
