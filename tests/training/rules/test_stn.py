"""STN: weights and response learn together at fresh perturbations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tune_stn.space import Sample, Tunable
from tune_stn.training import Trainer, objectives


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("size", ["full", "gate", 2])
def test_step_is_one_of_gradient_descent_on_per_example_networks(
    make_task: Any, stir: Any, monkeypatch: pytest.MonkeyPatch, size: Any
) -> None:
    """By hand: each example through its own network of effective weights, one optimizer over all parameters."""
    task = make_task(optimizer_args={}, response=size)
    trainer = Trainer(task, algorithm="stn")
    stir(trainer.model)
    model, parameters = trainer.model, trainer.stepper.parameters("base", "response")
    model.eval()  # the noise of dropout and augmentation is not the point here
    monkeypatch.setattr(objectives, "augmented", lambda task, batch, sample: batch)
    batch = trainer.splits.train.take(torch.arange(8))
    drawn: list[Sample] = []
    draw = model.perturbed_sample

    def keep(rows: int, **kwargs: Any) -> Sample:
        drawn.append(draw(rows, **kwargs))
        return drawn[0]

    model.perturbed_sample = keep  # type: ignore[method-assign]
    before = [p.detach().clone() for p in parameters]
    loss = trainer.rule.train_step(batch)
    after = [p.detach().clone() for p in parameters]
    for parameter, value in zip(parameters, before, strict=True):
        parameter.data.copy_(value)
    total = torch.zeros(())
    (sample,) = drawn
    assert sample.response_input is not None
    for i, h in enumerate(sample.response_input):
        x, norm = batch.inputs[i], torch.zeros(())
        layers = list(model.response_layers())
        for index, layer in enumerate(layers):
            weight, bias = effective(layer, h)
            norm = norm + weight.square().sum()
            x = weight @ x + bias
            x = torch.relu(x) if index < len(layers) - 1 else x
        total = total + F.cross_entropy(x, batch.targets[i]) + sample["decay"][i] / 2 * norm
    expected = total / len(batch)
    assert torch.allclose(loss, expected, rtol=1e-12)
    gradients = torch.autograd.grad(expected, parameters)
    for then, now, gradient in zip(before, after, gradients, strict=True):
        assert torch.allclose(now, then - 0.05 * gradient, rtol=1e-10, atol=1e-14)


def effective(layer: Any, h: Tensor) -> tuple[Tensor, Tensor]:
    """W + diag(u) V and b + c * b' of one response input."""
    unit, offset = (layer.gate @ h).chunk(2)
    shift = offset if layer.size == "gate" else offset * layer.response_bias
    return layer.weight + unit[:, None] * layer.response_matrix(), layer.bias + shift


@pytest.mark.parametrize("warmup_epochs", [0, 5])
def test_every_step_draws_afresh_in_warm_up_too(make_task: Any, warmup_epochs: int) -> None:
    trainer = Trainer(make_task(warmup_epochs=warmup_epochs), algorithm="stn")
    hyper, drawn = trainer.model.hyper, []
    assert isinstance(hyper, Tunable)
    draw = trainer.model.perturbed_sample

    def keep(rows: int, **kwargs: Any) -> Sample:
        sample = draw(rows, **kwargs)
        if not kwargs["keep_graph"]:
            drawn.append(sample)
        return sample

    trainer.model.perturbed_sample = keep  # type: ignore[method-assign]
    trainer.run_epoch()
    rates = torch.stack([sample["dropout"] for sample in drawn])
    assert rates.shape == (3, 8)
    assert len(rates.unique()) == 24  # each example of each step has its own


@pytest.mark.parametrize(("size", "shrink"), [("gate", 3**0.5), ("full", 1.0)])
def test_response_input_is_the_raw_coordinate_from_the_start(make_task: Any, size: Any, shrink: float) -> None:
    """Minus 3 at the start values, whatever they are; and its values are those of the same draw."""
    model = Trainer(make_task(response=size), algorithm="stn").model
    hyper = model.hyper
    assert isinstance(hyper, Tunable)
    for moved in (0.0, 1.5):
        with torch.no_grad():
            hyper.raw.add_(moved)
        sample = model.perturbed_sample(1000)
        assert sample.response_input is not None
        assert not sample.response_input.requires_grad
        away = sample.response_input * shrink + 3
        assert torch.allclose(away.mean(0), torch.full((3,), moved), atol=0.1)
        raw = away + hyper.origin
        assert torch.allclose(sample["dropout"], 0.9 * torch.sigmoid(raw[:, 0]), atol=1e-5)


def test_batch_norm_counts_a_batch_once(make_task: Any) -> None:
    trainer = Trainer(make_task("batch-norm"), algorithm="stn")
    trainer.run_epoch()
    norm = trainer.model.network.get_submodule("1")
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.num_batches_tracked == 3
