"""Label smoothing and mixup against references written example by example."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional as F

from tune_stn.data.augment import LabelAugmentation, LabelSmoothing, Mixup
from tune_stn.data.augment.labels import class_probabilities, partner_share
from tune_stn.space.sample import Sample

STRENGTHS = [0.0, 1e-30, 1e-3, 0.2, 0.5, 1.0]


def seeded(augment: LabelAugmentation, inputs: Tensor, targets: Tensor, **values: list[float]) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return augment(inputs, targets, Sample({name: torch.tensor(value) for name, value in values.items()}))


def test_smoothing_is_the_slow_smoothing() -> None:
    rates, targets = [0.0, 0.1, 1.0, 0.3], torch.tensor([0, 2, 1, 1])
    inputs = torch.randn(4, 5)
    same, found = seeded(LabelSmoothing(classes=3), inputs, targets, label_smoothing=rates)
    assert same is inputs
    for i, rate in enumerate(rates):
        for k in range(3):
            assert float(found[i, k]) == pytest.approx((1 - rate) * (k == int(targets[i])) + rate / 3, abs=1e-7)


def test_loss_is_that_of_torchs_label_smoothing() -> None:
    outputs, targets = torch.randn(5, 3), torch.tensor([0, 2, 1, 1, 0])
    _, smoothed = seeded(LabelSmoothing(classes=3), outputs, targets, label_smoothing=[0.2])
    expected = F.cross_entropy(outputs, targets, label_smoothing=0.2)
    torch.testing.assert_close(F.cross_entropy(outputs, smoothed), expected)


def test_mixup_is_the_slow_mixup() -> None:
    inputs, targets = torch.rand(6, 2, 3), torch.tensor([0, 1, 2, 3, 0, 1])
    mixed, probabilities = seeded(Mixup(classes=4), inputs, targets, mixup=STRENGTHS)
    torch.manual_seed(0)
    partners = torch.randperm(6).tolist()
    share = partner_share(torch.tensor(STRENGTHS), torch.rand(2, 6)).tolist()
    for i, partner in enumerate(partners):
        torch.testing.assert_close(mixed[i], (1 - share[i]) * inputs[i] + share[i] * inputs[partner])
        expected = torch.zeros(4)
        expected[int(targets[i])] += 1 - share[i]
        expected[int(targets[partner])] += share[i]
        torch.testing.assert_close(probabilities[i], expected)
    assert torch.equal(mixed[0], inputs[0])


@pytest.mark.parametrize("strength", [0.05, 0.2, 0.5, 1.0, 4.0])
def test_share_has_the_distribution_of_the_lesser_part(strength: float) -> None:
    draws = torch.rand(2, 20_000, generator=torch.Generator().manual_seed(0))
    share = partner_share(torch.tensor([strength]), draws)
    for x in (1e-4, 0.01, 0.1, 0.3, 0.45):
        expected = 2 * stats.beta.cdf(x, strength, strength)  # of B <= x and of 1 - B <= x, which exclude each other
        five_sigma = 5 * (expected * (1 - expected) / 20_000) ** 0.5
        assert float((share <= x).double().mean()) == pytest.approx(expected, abs=five_sigma + 1e-9)


def test_share_at_the_ends_of_everything() -> None:
    """No strength, tiny ones, and draws of exactly 0 or as near to 1 as they come give no NaN."""
    edges = torch.tensor([0.0, 2**-24, 0.25, 0.5, 0.75, 1 - 2**-24])
    draws = torch.stack([edges.repeat_interleave(6), edges.repeat(6)])
    for strength in [*STRENGTHS, 1e-45]:
        share = partner_share(torch.tensor([strength]), draws)
        assert bool(((share >= 0) & (share <= 0.5)).all())
        if strength <= 1e-30:
            assert bool((share == 0).all())


def test_share_grows_with_strength_from_none() -> None:
    draws = torch.rand(2, 1000, generator=torch.Generator().manual_seed(0))
    shares = [partner_share(torch.tensor([strength]), draws) for strength in STRENGTHS]
    for weaker, stronger in pairwise(shares):
        assert bool((weaker <= stronger).all())


@pytest.mark.parametrize("augment", [LabelSmoothing("x", classes=3), Mixup("x", classes=3)])
def test_probabilities_stay_probabilities(augment: LabelAugmentation) -> None:
    given = torch.rand(5, 3, dtype=torch.float64).softmax(1)
    for value in (0.0, 0.5, 1.0):
        _, found = seeded(augment, torch.randn(5, 2), given, x=[value])
        assert found.dtype == torch.float64
        torch.testing.assert_close(found.sum(1), torch.ones(5, dtype=torch.float64))
        assert bool((found >= 0).all())
        if value == 0:
            assert torch.equal(found, given)


def test_one_after_the_other() -> None:
    inputs, targets = torch.randn(8, 4), torch.arange(8) % 3
    mixed, probabilities = seeded(Mixup(classes=3), inputs, targets, mixup=[1.0])
    _, both = seeded(LabelSmoothing(classes=3), mixed, probabilities, label_smoothing=[0.3])
    torch.testing.assert_close(both, 0.7 * probabilities + 0.1)


def test_every_token_of_a_text_is_smoothed() -> None:
    tokens = torch.tensor([[2, 0, 1], [1, 1, 2]])
    sample = Sample({"label_smoothing": torch.tensor([0.3, 0.6])})
    _, smoothed = LabelSmoothing(classes=3)(torch.zeros(2, 3), tokens, sample)
    one_by_one = [LabelSmoothing(classes=3)(torch.zeros(2), tokens[:, at], sample)[1] for at in range(3)]
    torch.testing.assert_close(smoothed, torch.stack(one_by_one, 1), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.zeros((), dtype=torch.int64), r"torch.int64 of shape \(\)"),
        (torch.zeros(4), r"torch.float32 of shape \(4,\)"),
        (torch.zeros(4, 5), r"probabilities of shape \(batch, ..., 3\)"),
    ],
)
def test_other_targets_are_refused(targets: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        class_probabilities(targets, 3)


@pytest.mark.parametrize("make", [LabelSmoothing, Mixup])
def test_one_class_is_refused(make: type[LabelSmoothing]) -> None:
    with pytest.raises(ValueError, match="classes=1: accepted is 2 or more"):
        make(classes=1)
