"""Delta-STN: the response step against double backward, and what it must leave alone."""

from __future__ import annotations

import copy
import math
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from tune_stn.data.batches import Batch
from tune_stn.nn.observe import Activations
from tune_stn.nn.penalties import ActivationNorm, TemporalActivationNorm, WeightDecay
from tune_stn.space import Sample
from tune_stn.training import Trainer
from tune_stn.training.forward import Forward
from tune_stn.training.objectives import training_loss
from tune_stn.training.rules.delta_stn import DeltaSTN

NETWORKS = ("mlp", "cnn", "batch-norm")


def made(make_task: Any, stir: Any, network: str, **settings: Any) -> tuple[Trainer, Batch]:
    trainer = Trainer(make_task(network, optimizer_args={}, **settings), algorithm="delta-stn")
    stir(trainer.model)
    trainer.model.train()
    return trainer, trainer.splits.train.take(torch.arange(8))


def response_step(trainer: Trainer, batch: Batch) -> None:
    assert isinstance(trainer.rule, DeltaSTN)
    trainer.rule.response_step(batch)


def linearised_loss(forward: Forward, batch: Batch, sample: Sample) -> Tensor:
    """Training loss of f(x; 0) + d/ds f(x; s h), the derivative by torch's double backward; the same of activations."""
    h = sample.response_input
    assert h is not None
    plain = forward.observed

    def predict(batch: Batch, sample: Sample) -> tuple[Tensor, Activations]:
        paths = sorted({path for penalty in forward.task.penalties for path in penalty.paths})

        def at(s: Tensor) -> tuple[Tensor, ...]:
            outputs, activations = plain(batch, Sample(sample.values, h * s))
            return outputs, *(activations[path][0] for path in paths)

        values, tangents = torch.autograd.functional.jvp(at, torch.zeros(()), torch.ones(()), create_graph=True)
        outputs, *activations = (value + tangent for value, tangent in zip(values, tangents, strict=True))
        return outputs, {path: [activation] for path, activation in zip(paths, activations, strict=True)}

    with mock.patch.object(forward, "observed", predict):
        return training_loss(forward, batch, sample)


def double_backward_gradients(trainer: Trainer, batch: Batch, sample: Sample) -> list[Tensor]:
    response = trainer.stepper.parameters("response")
    return list(torch.autograd.grad(linearised_loss(trainer.forward, batch, sample), response))


def test_a_small_share_of_a_batch_is_more_than_one_example_for_batch_norms(make_task: Any) -> None:
    report = Trainer(make_task("batch-norm", response_share=0.01), algorithm="delta-stn").run_epoch()
    assert math.isfinite(report["train_loss"])


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("size", ["full", "gate", 2])
@pytest.mark.parametrize("share", [1.0, 0.25])
def test_response_gradient_equals_double_backward(
    make_task: Any, stir: Any, network: str, size: Any, share: float
) -> None:
    """Same network, same draws, same dropout masks: relative error 1e-10 at most. A share is the first of the batch."""
    trainer, batch = made(make_task, stir, network, response=size, response_share=share)
    model = trainer.model
    rows = round(share * len(batch))
    sample = model.perturbed_sample(rows, linearise=True)
    reference = copy.deepcopy(trainer)
    asked: list[int] = []
    model.perturbed_sample = lambda rows, **kwargs: asked.append(rows) or sample  # type: ignore[method-assign,func-returns-value]
    torch.manual_seed(7)
    response_step(trainer, batch)
    torch.manual_seed(7)
    expected = double_backward_gradients(reference, Batch(batch.inputs[:rows], batch.targets[:rows]), sample)
    assert asked == [rows]
    for parameter, gradient in zip(trainer.stepper.parameters("response"), expected, strict=True):
        assert parameter.grad is not None
        assert gradient.norm() > 1e-6
        assert (parameter.grad - gradient).norm() <= 1e-10 * gradient.norm()


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    ("network", "penalty"),
    [
        ("mlp", ActivationNorm("input_scale", "2")),
        ("mlp", ActivationNorm("input_scale", "3")),  # a dropout of torch's own
        ("cnn", ActivationNorm("input_scale", "4")),
        ("cnn", TemporalActivationNorm("input_scale", "2", time_axis=2)),
        ("batch-norm", ActivationNorm("input_scale", "1")),
    ],
)
def test_penalties_see_activations_to_first_order(make_task: Any, stir: Any, network: str, penalty: Any) -> None:
    """By double backward to 1e-10, and by central differences of the whole objective in a random direction."""
    start = {"dropout": 0.2, "input_scale": 0.9, "decay": 1e-1}
    settings = {"start": start, "penalties": (penalty, WeightDecay("decay")), "response": "full"}
    trainer, batch = made(make_task, stir, network, **settings)
    model = trainer.model
    sample = model.perturbed_sample(len(batch), linearise=True)
    reference = copy.deepcopy(trainer)
    of_reference = reference.stepper.parameters("response")
    model.perturbed_sample = lambda rows, **kwargs: sample  # type: ignore[method-assign]
    torch.manual_seed(7)
    response_step(trainer, batch)
    of_step = trainer.stepper.parameters("response")
    gradient = torch.cat([p.grad.flatten() for p in of_step if p.grad is not None])

    def objective(flat: Tensor) -> Tensor:
        nn.utils.vector_to_parameters(flat, of_reference)
        torch.manual_seed(7)
        return linearised_loss(reference.forward, batch, sample)

    at = nn.utils.parameters_to_vector(of_reference).detach()
    exact = torch.cat([g.flatten() for g in torch.autograd.grad(objective(at), of_reference)])
    assert (gradient - exact).norm() <= 1e-10 * exact.norm()
    direction = torch.randn(at.shape, generator=torch.Generator().manual_seed(1))
    up, down = (float(objective(at + step * direction).detach()) for step in (1e-6, -1e-6))
    assert float(gradient @ direction) == pytest.approx((up - down) / 2e-6, rel=1e-6)
    # The penalty is a part of it that matters.
    only = {**settings, "penalties": (WeightDecay("decay"), WeightDecay("input_scale"))}
    reference.forward.task = make_task(network, **only)
    without = torch.cat([g.flatten() for g in torch.autograd.grad(objective(at), of_reference)])
    assert (without - exact).norm() > 1e-3 * exact.norm()


@pytest.mark.parametrize(("share", "rows"), [(1.0, 8), (0.5, 4), (0.3, 3), (0.01, 2)])
def test_share_is_rounded_up_and_of_the_response_step_alone(make_task: Any, share: float, rows: int) -> None:
    trainer = Trainer(make_task(response_share=share), algorithm="delta-stn")
    seen: list[tuple[int, bool]] = []
    outputs = trainer.forward.outputs

    def note(batch: Batch, sample: Sample) -> Any:
        seen.append((len(batch), sample.linearise))
        return outputs(batch, sample)

    trainer.forward.outputs = note  # type: ignore[method-assign]
    trainer.run_epoch()
    assert {size for size, linearise in seen if linearise} == {rows}
    assert seen[:2] == [(8, False), (rows, True)]


@pytest.mark.usefixtures("double")
def test_masks_of_that_comparison_matter(make_task: Any, stir: Any) -> None:
    """Without the same masks the two would not agree: the test above sees dropout."""
    trainer, batch = made(make_task, stir, "mlp", response="full")
    sample = trainer.model.perturbed_sample(len(batch), linearise=True)
    gradients = []
    for seed in (7, 8):
        torch.manual_seed(seed)
        gradients.append(double_backward_gradients(trainer, batch, sample)[0])
    assert (gradients[0] - gradients[1]).norm() > 1e-2 * gradients[0].norm()


@pytest.mark.parametrize("network", NETWORKS)
def test_response_step_leaves_everything_else_alone(make_task: Any, stir: Any, network: str) -> None:
    trainer, batch = made(make_task, stir, network, response="full")
    base, learned, hyper = (trainer.stepper.parameters(name) for name in ("base", "response", "hyper"))
    response = {id(parameter) for parameter in learned}
    others = {n: t.clone() for n, t in trainer.model.state_dict(keep_vars=True).items() if id(t) not in response}
    before = [parameter.detach().clone() for parameter in learned]
    response_step(trainer, batch)
    now = trainer.model.state_dict()
    assert len(others) > len(base)
    assert all(torch.equal(tensor, now[name]) for name, tensor in others.items())
    assert not any(torch.equal(p, then) for p, then in zip(learned, before, strict=True))
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())
    assert all(parameter.grad is None for parameter in [*base, *hyper])


def test_base_parameters_need_gradients_again_after_an_error(make_task: Any, stir: Any) -> None:
    trainer, batch = made(make_task, stir, "batch-norm")
    with pytest.raises(RuntimeError):
        response_step(trainer, Batch(batch.inputs[:, :5], batch.targets))
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())
    assert trainer.model.network.get_submodule("1").track_running_stats is True


def test_batch_norm_trains_and_counts_a_batch_once(make_task: Any) -> None:
    trainer = Trainer(make_task("batch-norm"), algorithm="delta-stn")
    norm = trainer.model.network.get_submodule("1")
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.running_mean is not None
    before = norm.running_mean.clone(), norm.weight.detach().clone()
    trainer.run_epoch()
    assert norm.num_batches_tracked == 3
    assert not torch.equal(norm.running_mean, before[0])
    assert not torch.equal(norm.weight, before[1])
    assert trainer.diverged is None


def test_batch_norm_without_running_statistics_stays_so(make_task: Any) -> None:
    def model() -> nn.Module:
        norm = nn.BatchNorm1d(16, track_running_stats=False)
        return nn.Sequential(nn.Linear(36, 16), norm, nn.ReLU(), nn.Dropout(), nn.Linear(16, 3))

    trainer = Trainer(make_task("batch-norm", model=model), algorithm="delta-stn")
    trainer.run_epoch()
    assert trainer.model.network.get_submodule("1").track_running_stats is False


def test_base_step_is_that_of_a_fixed_run(make_task: Any, stir: Any) -> None:
    """At the mean hyperparameters with a zero response, whatever the response parameters are."""
    weights = []
    for algorithm in ("fixed", "delta-stn"):
        trainer = Trainer(make_task(), algorithm=algorithm)
        stir(trainer.model)
        trainer.model.train()
        torch.manual_seed(1)
        response = [p.detach().clone() for p in trainer.stepper.parameters("response")]
        step = trainer.rule.base_step if isinstance(trainer.rule, DeltaSTN) else trainer.rule.train_step
        step(trainer.splits.train.take(torch.arange(8)))
        after = trainer.stepper.parameters("response")
        assert all(torch.equal(p, then) for p, then in zip(after, response, strict=True))
        weights.append([p.detach().clone() for p in trainer.stepper.parameters("base")])
    assert all(torch.allclose(one, other, rtol=1e-5, atol=1e-7) for one, other in zip(*weights, strict=True))


def test_evaluation_is_that_of_the_base_network(make_task: Any, stir: Any) -> None:
    trainer, batch = made(make_task, stir, "cnn")
    sample = trainer.model.mean_sample()
    assert sample.response_input is None
    hyper_sample = trainer.model.mean_sample(keep_graph=True)
    assert hyper_sample.response_input is not None
    assert not hyper_sample.response_input.any()
    trainer.model.eval()
    assert torch.allclose(
        trainer.forward.outputs(batch, sample), trainer.forward.outputs(batch, hyper_sample), atol=1e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "layer",
    [nn.Tanh(), nn.GELU(), nn.SiLU(), nn.LayerNorm(16), nn.Softmax(-1), nn.Dropout(0.3), nn.ReLU(inplace=True)],
    ids=lambda layer: type(layer).__name__,
)
@pytest.mark.parametrize("size", ["full", "gate", 2])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.usefixtures("double")
def test_usual_layers_between_responses_train(make_task: Any, layer: nn.Module, size: Any, bias: bool) -> None:
    """In double precision: before a softmax, a step moves a response by about the last bit of single precision."""

    def model() -> nn.Module:
        return nn.Sequential(
            nn.Linear(36, 16, bias=bias), copy.deepcopy(layer).double(), nn.Dropout(), nn.Linear(16, 3)
        )

    trainer = Trainer(make_task(model=model, dropout={"2": "dropout"}, response=size), algorithm="delta-stn")
    response = trainer.stepper.parameters("response")
    before = [parameter.detach().clone() for parameter in response]
    trainer.run_epoch()
    assert trainer.diverged is None
    assert not any(torch.equal(p, then) for p, then in zip(response, before, strict=True))
