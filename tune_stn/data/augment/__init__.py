"""Augmentations with hyperparameters of their own for each example, on the batch tensor and its device.

An augmentation knows its hyperparameters by name and reads their values from a `Sample`: shape `(batch,)`,
or `(1,)` where the batch shares one. A value of 0 leaves an example exactly as it is. Draws come from the global
generator of the inputs' device, which the training loop seeds, and their number does not depend on the values: a
seed gives all values the same noise. None uses a product that a flop counter counts: cost is the network's.
"""

from tune_stn.data.augment.augmentation import Augmentation, LabelAugmentation
from tune_stn.data.augment.colour import ColourJitter
from tune_stn.data.augment.cutout import Cutout
from tune_stn.data.augment.geometry import RandomAffine, RandomFlip
from tune_stn.data.augment.input import InputDropout, InputNoise, InputScale
from tune_stn.data.augment.labels import LabelSmoothing, Mixup

__all__ = [
    "Augmentation",
    "ColourJitter",
    "Cutout",
    "InputDropout",
    "InputNoise",
    "InputScale",
    "LabelAugmentation",
    "LabelSmoothing",
    "Mixup",
    "RandomAffine",
    "RandomFlip",
]
