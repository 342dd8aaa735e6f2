"""What holds for every augmentation, whatever it does."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tune_stn.data.augment import (
    Augmentation,
    ColourJitter,
    Cutout,
    InputDropout,
    InputNoise,
    InputScale,
    LabelAugmentation,
    LabelSmoothing,
    Mixup,
    RandomAffine,
    RandomFlip,
    colour,
)
from tune_stn.space.sample import Sample

MEAN, STD = (0.5, 0.45, 0.4), (0.25, 0.2, 0.3)
COLOUR = ColourJitter(
    brightness="brightness", contrast="contrast", saturation="saturation", hue="hue", mean=MEAN, std=STD
)
AFFINE = RandomAffine(translation="translation", rotation="rotation", scale="scale", shear="shear")
VALUES = {
    Cutout(max_holes=3): (2.0, 4.0),
    InputDropout(): (0.4,),
    InputScale(): (0.3,),
    InputNoise(): (0.3,),
    COLOUR: (0.3, 0.5, 0.9, 0.5),
    ColourJitter(hue="hue"): (0.3,),
    AFFINE: (0.2, 30.0, 0.4, 20.0),
    RandomAffine(rotation="rotation", padding="border"): (90.0,),
    RandomFlip(): (),
    LabelSmoothing(classes=4): (0.3,),
    Mixup(classes=4): (0.7,),
}
Either = Augmentation | LabelAugmentation
each = pytest.mark.parametrize("augment", VALUES, ids=lambda augment: f"{type(augment).__name__}-{augment.names}")
tunable = pytest.mark.parametrize(
    "augment",
    [augment for augment in VALUES if augment.names],
    ids=lambda augment: f"{type(augment).__name__}-{augment.names}",
)
FORMATS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}


def images(batch: int = 6, side: int = 7, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normalised images whose pixels before were in [0.2, 0.8], and never 0 as they are."""
    pixels = torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(9), dtype=dtype) * 0.6 + 0.2
    return (pixels - torch.tensor(MEAN, dtype=dtype)[:, None, None]) / torch.tensor(STD, dtype=dtype)[:, None, None]


def sample(augment: Either, *, rows: int = 1, dtype: torch.dtype = torch.float32) -> Sample:
    values = zip(augment.names, VALUES[augment], strict=True)
    return Sample({name: torch.full((rows,), value, dtype=dtype) for name, value in values})


def apply(augment: Either, inputs: Tensor, drawn: Sample, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs and class probabilities, from draws of that seed."""
    targets = torch.eye(4)[torch.arange(len(inputs)) % 4]
    torch.manual_seed(seed)
    if isinstance(augment, (LabelSmoothing, Mixup)):
        return augment(inputs, targets, drawn)
    return augment(inputs, drawn), targets


def equal(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@tunable
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_shared_value_is_that_value_for_each(augment: Either, dtype: torch.dtype) -> None:
    inputs = images(dtype=dtype)
    shared = apply(augment, inputs, sample(augment))
    assert equal(shared, apply(augment, inputs, sample(augment, rows=6)))
    assert not equal(shared, apply(augment, inputs, Sample({name: torch.zeros(1) for name in augment.names})))


@tunable
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_zero_is_exactly_no_change(augment: Either, dtype: torch.dtype) -> None:
    """On images out of any range too, of even and odd sides."""
    for side, rows in itertools.product((7, 8), (1, 6)):
        inputs = 100 * images(side=side, dtype=dtype)
        inputs_out, probabilities = apply(augment, inputs, Sample({name: torch.zeros(rows) for name in augment.names}))
        assert torch.equal(inputs_out, inputs)
        assert torch.equal(probabilities, torch.eye(4)[torch.arange(6) % 4])


@tunable
def test_example_depends_on_its_own_values_only(augment: Either) -> None:
    """The noise is the same whatever the values, so changing one example's leaves the others bit for bit."""
    inputs = images()
    changed = {name: values.clone() for name, values in sample(augment, rows=6).values.items()}
    for values in changed.values():
        values[2] = 0
    before, after = apply(augment, inputs, sample(augment)), apply(augment, inputs, Sample(changed))
    others = torch.tensor([0, 1, 3, 4, 5])
    assert equal((before[0][others], before[1][others]), (after[0][others], after[1][others]))
    assert torch.equal(after[0][2], inputs[2])
    assert after[1][2].tolist() == [0, 0, 1, 0]


@each
def test_seed_decides(augment: Either) -> None:
    inputs = images()
    first = apply(augment, inputs, sample(augment), seed=1)
    assert equal(first, apply(augment, inputs, sample(augment), seed=1))
    assert equal(first, apply(augment, inputs, sample(augment), seed=2)) == isinstance(augment, LabelSmoothing)


@each
def test_as_many_draws_whatever_the_values(augment: Either) -> None:
    states = []
    for scale in (0.0, 1.0):
        drawn = {name: scale * values for name, values in sample(augment).values.items()}
        apply(augment, images(), Sample(drawn))
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


@each
@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_inputs_stay_and_outputs_are_like_them(
    augment: Either, dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    """Float64 hyperparameters do not promote float32 inputs, and half precision stays half."""
    inputs = images().to(dtype).to(memory_format=memory_format)
    original = inputs.clone()
    result, probabilities = apply(augment, inputs, sample(augment, rows=6, dtype=torch.float64))
    assert torch.equal(inputs, original)
    assert (result.dtype, result.shape) == (dtype, inputs.shape)
    assert result.is_contiguous(memory_format=memory_format)
    assert bool(result.isfinite().all())
    assert probabilities.dtype == torch.float32


@each
@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)
def test_memory_format_changes_no_value(augment: Either, memory_format: torch.memory_format) -> None:
    plain = apply(augment, images(), sample(augment))
    other = apply(augment, images().to(memory_format=memory_format), sample(augment))
    torch.testing.assert_close(other, plain, rtol=0, atol=1e-5)


@each
def test_autocast_changes_nothing(augment: Either) -> None:
    plain = apply(augment, images(), sample(augment))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert equal(apply(augment, images(), sample(augment)), plain)


@each
def test_costs_nothing_that_a_meter_counts(augment: Either) -> None:
    colour._constants.cache_clear()  # they too
    with FlopCounterMode(display=False) as counter:
        apply(augment, images(side=9), sample(augment))
    assert counter.get_total_flops() == 0


@tunable
@pytest.mark.parametrize(("batch", "rows"), [(4, 3), (1, 4)])
def test_values_for_another_batch_are_refused(augment: Either, batch: int, rows: int) -> None:
    with pytest.raises(ValueError, match=rf"{augment.names[0]} has shape \({rows},\), but the batch has {batch}"):
        apply(augment, images(batch), sample(augment, rows=rows))


@pytest.mark.parametrize(
    "augment",
    [InputDropout(), InputScale(), InputNoise(), COLOUR, AFFINE, RandomFlip(), Mixup(classes=4)],
    ids=lambda augment: type(augment).__name__,
)
def test_integer_inputs_are_refused(augment: Either) -> None:
    with pytest.raises(ValueError, match="floating-point"):
        apply(augment, images().to(torch.uint8), sample(augment))


@each
def test_is_a_frozen_record(augment: Either) -> None:
    with pytest.raises(FrozenInstanceError):
        setattr(augment, fields(augment)[0].name, "other")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: Cutout("n", "side", max_holes=2), ("n", "side")),
        (lambda: InputDropout("p"), ("p",)),
        (lambda: InputScale("s"), ("s",)),
        (lambda: InputNoise("s"), ("s",)),
        (lambda: ColourJitter(hue="h", brightness="b"), ("b", "h")),
        (lambda: RandomAffine(shear="d", translation="t"), ("t", "d")),
        (lambda: RandomFlip(), ()),
        (lambda: LabelSmoothing("r", classes=2), ("r",)),
        (lambda: Mixup("a", classes=2), ("a",)),
    ],
)
def test_names_are_those_given(make: Callable[[], Either], names: tuple[str, ...]) -> None:
    assert make().names == names


@pytest.mark.parametrize("make", [ColourJitter, RandomAffine])
def test_one_that_reads_nothing_is_refused(make: Callable[[], Either]) -> None:
    with pytest.raises(ValueError, match="reads no hyperparameter: name at least one, or leave it out"):
        make()


@pytest.mark.parametrize("augment", [COLOUR, AFFINE], ids=["colour", "affine"])
def test_each_use_has_the_same_noise_alone_and_together(augment: ColourJitter | RandomAffine) -> None:
    """So leaving one hyperparameter out of a space changes nothing about the others."""
    alone = type(augment)(**{augment.names[-1]: augment.names[-1]})
    values = {name: torch.zeros(1) for name in augment.names} | {augment.names[-1]: torch.tensor([0.3])}
    inputs = images().abs().clamp(max=1)
    if isinstance(augment, ColourJitter):
        augment = ColourJitter(brightness="brightness", contrast="contrast", saturation="saturation", hue="hue")
    assert equal(apply(alone, inputs, Sample(values)), apply(augment, inputs, Sample(values)))
