"""What the tasks on CIFAR-10 share: its images, how they are augmented, and the follow-up's training."""

from __future__ import annotations

from collections.abc import Mapping

from tune_stn.data import cifar10
from tune_stn.data.augment import Augmentation, ColourJitter, Cutout, RandomAffine, RandomFlip
from tune_stn.data.normalise import Normalise
from tune_stn.data.splits import Splits, official_splits
from tune_stn.space import Domain, Integer, Uniform
from tune_stn.tasks.settings import Training

# Mean and standard deviation of the training pixels of each channel, in units of the full range.
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

COLOUR = ColourJitter(
    brightness="brightness", contrast="contrast", saturation="saturation", hue="hue", mean=MEAN, std=STD
)
COLOUR_SPACE: Mapping[str, Domain] = {
    "hue": Uniform(0.0, 0.5),
    **{name: Uniform(0.0, 1.0) for name in ("contrast", "saturation", "brightness")},
}

# The Delta-STN authors' ten: where an image is, its colour, and what is cut out of it.
AUGMENTATIONS: tuple[Augmentation, ...] = (
    RandomFlip(),
    RandomAffine(rotation="rotation", translation="translation", scale="scale", shear="shear"),
    COLOUR,
    Cutout(max_holes=5),
)
AUGMENTATION_SPACE: Mapping[str, Domain] = {
    "rotation": Uniform(0.0, 45.0),
    "translation": Uniform(0.0, 0.5),
    "scale": Uniform(0.0, 0.5),
    "shear": Uniform(0.0, 45.0),
    **COLOUR_SPACE,
    "cutout_length": Integer(2, 24),
    "cutout_holes": Integer(0, 5),
}
AUGMENTATION_START: Mapping[str, float] = {
    **dict.fromkeys(AUGMENTATION_SPACE, 0.05),
    "rotation": 5.0,
    "shear": 5.0,
    "cutout_length": 4,
    "cutout_holes": 1,
}
# Theirs for AlexNet and VGG16; all else that they set is the default here.
TRAINING = Training(
    epochs=200,
    batch_size=128,
    lr=0.03,
    optimizer_args={"momentum": 0.9},
    lr_schedule="MultiStepLR",
    lr_schedule_args={"milestones": [60, 120, 180], "gamma": 0.2},
    warmup_epochs=5,
)


def load(train_images: int, valid_images: int, test_images: int, data_dir: str | None, seed: int) -> Splits:
    """Splits of the official images, kept as bytes and normalised batch by batch."""
    return official_splits(
        *cifar10.load(data_dir),
        train_images=train_images,
        valid_images=valid_images,
        test_images=test_images,
        prepare=Normalise(MEAN, STD),
        seed=seed,
    )
