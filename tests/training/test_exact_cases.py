"""Cases with exact answers, trained by the project's own layers and update rules.

Expectations over the perturbation are Gauss-Hermite sums: each node stands once in the batch and carries its weight in
the targets, so a fixed point is compared to its formula without a Monte-Carlo error.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares
from torch import Tensor, nn

from tune_stn.data.splits import Split, Splits
from tune_stn.nn.observe import Activations
from tune_stn.nn.response import ResponseLayer
from tune_stn.space import Normal, Sample, SearchSpace, Tunable
from tune_stn.tasks import Task, Training
from tune_stn.training import Trainer

pytestmark = pytest.mark.usefixtures("double")


def normal_nodes(count: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of the standard normal: sums of f(node) * weight are E f for polynomials up to 2 count - 1."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    return torch.tensor(nodes), torch.tensor(weights / math.sqrt(2 * math.pi))


@dataclass(frozen=True)
class FromWeight:
    """A penalty written as a function of the sample and of the first layer's effective weights, `(rows, out, in)`."""

    names: tuple[str, ...]
    function: Callable[[Sample, Tensor], Tensor]
    paths: tuple[str, ...] = ()

    def __call__(self, network: nn.Module, sample: Sample, activations: Activations) -> Tensor:
        layer = next(m for m in network.modules() if isinstance(m, (ResponseLayer, nn.Linear)))
        return self.function(sample, effective_weight(layer, sample.response_input))


def effective_weight(layer: nn.Module, response_input: Tensor | None) -> Tensor:
    """W + diag(U h) V, shape `(rows, out, in)`."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if response_input is None:
        return weight[None]
    assert isinstance(layer, ResponseLayer)
    return weight + layer.gates(response_input)[0][..., None] * layer.response_matrix()


def freeze_draws(trainer: Trainer, noise: Tensor) -> None:
    """Perturb by these standard normal numbers, `(rows, n)`, in place of fresh ones."""
    hyper = trainer.model.hyper
    assert isinstance(hyper, Tunable)
    hyper.perturbed = lambda rows: hyper.raw + hyper.scale() * noise  # type: ignore[method-assign]


def train(trainer: Trainer, steps: int) -> None:
    """Steps of the rule on the whole training split, hyperparameters frozen."""
    trainer.model.train()
    for _ in range(steps):
        (batch,) = trainer.splits.train.whole(len(trainer.splits.train))
        trainer.rule.train_step(batch)


def settle(trainer: Trainer, steps: int = 100) -> None:
    """Train, then go on to the very point at which the rule's own step moves nothing.

    Gradient descent gets to such points slowly (the response's gradient is of the order of the perturbation), so a root
    finder takes over. It sees nothing but the gradients of `train_step`, and leaves V where training brought it: with U
    free, V is one too many, and V = U = 0 is a saddle.
    """
    train(trainer, steps)
    everything = trainer.stepper.parameters("base", "response")
    v = [layer.response_weight for layer in trainer.model.response_layers() if layer.size == "full"]
    parameters = [p for p in everything if all(p is not one for one in v)]
    for optimizer in trainer.stepper.optimizers.values():
        optimizer.param_groups[0]["lr"] = 0.0

    def gradients(flat: Any) -> Any:
        nn.utils.vector_to_parameters(torch.tensor(flat), parameters)
        train(trainer, 1)
        return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]).numpy().copy()

    start = nn.utils.parameters_to_vector(parameters).detach().numpy()
    found = least_squares(gradients, start, xtol=1e-15, ftol=1e-15, gtol=1e-15, x_scale="jac", max_nfev=500)
    gradients(found.x)
    assert max(float(p.grad.abs().max()) for p in everything if p.grad is not None) < 1e-9  # V's as well


def learned(trainer: Trainer) -> tuple[Tensor, Tensor]:
    """The first layer's effective weight at the mean, `(out, in)`, and its Jacobian by the raw coordinates,
    `(out, in, n)`: as a hyper-step sees them, whatever the response input is."""
    hyper, layer = trainer.model.hyper, next(trainer.model.response_layers())
    assert isinstance(hyper, Tunable)
    (weight,) = effective_weight(layer, trainer.model.mean_sample(keep_graph=True).response_input)
    rows = [torch.autograd.grad(entry, hyper.raw, retain_graph=True)[0] for entry in weight.flatten()]
    return weight.detach(), torch.stack(rows).view(*weight.shape, -1)


# One-dimensional ridge: loss (w - 1)^2 / 2, penalty e^lambda w^2 / 2 ------------------------------------------------


def one_dimensional_ridge(start: float, scale: float, *, lr: float) -> Task:
    nodes, weights = normal_nodes(40)
    share = weights * len(nodes)  # a mean over rows with these factors is the expectation

    def penalty(sample: Sample, weight: Tensor) -> Tensor:
        return share * sample["log_penalty"].exp() * weight[:, 0, 0].square() / 2

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return (targets[:, 1:] * (outputs - targets[:, :1]).square() / 2).mean()

    batch = Split(torch.ones(40, 1), torch.stack([torch.ones(40), share], 1))
    return Task(
        name="one-dimensional ridge",
        model=lambda: nn.Linear(1, 1, bias=False),
        data=lambda seed: Splits(batch, batch, batch),
        space=SearchSpace({"log_penalty": Normal()}),
        start={"log_penalty": start},
        loss=loss,
        penalties=(FromWeight(("log_penalty",), penalty),),
        training=Training(scale=scale, batch_size=40, response="full", lr=lr),
    )


def fit_ridge(algorithm: str, start: float, scale: float) -> tuple[float, float]:
    """Fixed point of the rule: the weight at the mean and its derivative."""
    trainer = Trainer(one_dimensional_ridge(start, scale, lr=0.02), algorithm=algorithm)
    freeze_draws(trainer, normal_nodes(40)[0][:, None])
    settle(trainer)
    weight, jacobian = learned(trainer)
    return float(weight), float(jacobian)


def exact_fixed_point(algorithm: str, start: float, scale: float) -> tuple[float, float]:
    """Closed form, from E e^z, E e^z z and E e^z z^2 of z = scale * N(0, 1)."""
    variance = scale**2
    moment = [math.exp(start + variance / 2) * m for m in (1, variance, variance + variance**2)]
    if algorithm == "stn":  # both equations together: E[(w - 1) + e^l w] = 0 and its product with z
        system = np.array([[1 + moment[0], moment[1]], [moment[1], variance + moment[2]]])
        weight, slope = np.linalg.solve(system, [1.0, 0.0])
    else:
        weight = 1 / (1 + math.exp(start))
        slope = -weight * moment[1] / (variance + moment[2])
    return float(weight), float(slope)


PRINTED = {
    ("stn", -1.0): (0.6943, -0.1903),
    ("delta-stn", -1.0): (0.7311, -0.2004),
    ("stn", 1.0): (0.2885, -0.1298),
    ("delta-stn", 1.0): (0.2689, -0.1210),
}
TRUTH = {-1.0: (0.7311, -0.1966), 1.0: (0.2689, -0.1966)}


@pytest.mark.slow
@pytest.mark.parametrize(("algorithm", "start"), list(PRINTED))
def test_one_dimensional_ridge_at_scale_one(algorithm: str, start: float) -> None:
    """Fixed points to 1e-8 of their closed forms, and to the four printed digits."""
    found = fit_ridge(algorithm, start, 1.0)
    assert found == pytest.approx(exact_fixed_point(algorithm, start, 1.0), abs=1e-8)
    assert found == pytest.approx(PRINTED[algorithm, start], abs=6e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("algorithm", "start"), list(PRINTED))
def test_one_dimensional_ridge_at_a_small_scale_is_the_truth(algorithm: str, start: float) -> None:
    """Both rules within 1.3e-3 of the best response and its derivative (reference: the same bound)."""
    found = fit_ridge(algorithm, start, 0.1)
    weight = 1 / (1 + math.exp(start))
    assert (weight, -weight * (1 - weight)) == pytest.approx(TRUTH[start], abs=6e-5)
    assert found == pytest.approx((weight, -weight * (1 - weight)), abs=1.3e-3)
    assert found == pytest.approx(exact_fixed_point(algorithm, start, 0.1), abs=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["stn", "delta-stn"])
def test_fresh_draws_have_the_same_fixed_point(algorithm: str) -> None:
    """The rules' own random draws in place of the nodes: within 1e-2, an average over the last steps."""
    rows = 4096
    task = one_dimensional_ridge(-1.0, 1.0, lr=0.2)

    def penalty(sample: Sample, weight: Tensor) -> Tensor:
        return sample["log_penalty"].exp() * weight[:, 0, 0].square() / 2

    batch = Split(torch.ones(rows, 1), torch.ones(rows, 2))
    trainer = Trainer(
        Task(
            **{
                **{name: getattr(task, name) for name in ("name", "model", "space", "start", "loss", "training")},
                "data": lambda seed: Splits(batch, batch, batch),
                "penalties": (FromWeight(("log_penalty",), penalty),),
            }
        ),
        algorithm=algorithm,
    )
    trainer.model.get_parameter("network.response_weight").data.fill_(1.0)
    # The response input is the raw coordinate itself, about -1: at -3, gradient descent would take 20 times as long.
    trainer.model.response_origin = None
    torch.manual_seed(0)
    train(trainer, 150)
    tail = []
    for _ in range(150):
        train(trainer, 1)
        weight, jacobian = learned(trainer)
        tail.append((float(weight), float(jacobian)))
    assert np.mean(tail, 0).tolist() == pytest.approx(PRINTED[algorithm, -1.0], abs=1e-2)


# Quadratic training loss w'Aw/2 + w'B lambda + c'w ------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["stn", "delta-stn"])
@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_quadratic_training_loss_has_an_exact_affine_response(algorithm: str, scale: float) -> None:
    """Theta = -A^-1 B to 1e-9 for any scale and any draws: the best response itself is affine."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(3, 3, generator=generator)
    a = torch.eye(3) + 0.2 * root @ root.T
    b, c = torch.randn(3, 2, generator=generator), torch.randn(3, generator=generator)
    names, rows = ("one", "two"), 64

    def coupling(sample: Sample, weight: Tensor) -> Tensor:
        values = torch.stack([sample[name] for name in names], -1)
        return (weight[:, :, 0] * (values @ b.T)).sum(-1)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return ((outputs @ a * outputs).sum(-1) / 2 + outputs @ c).mean()

    batch = Split(torch.ones(rows, 1), torch.zeros(rows))
    start = torch.tensor([0.4, -0.8])
    task = Task(
        name="quadratic",
        model=lambda: nn.Linear(1, 3, bias=False),
        data=lambda seed: Splits(batch, batch, batch),
        space=SearchSpace({name: Normal() for name in names}),
        start=dict(zip(names, start.tolist(), strict=True)),
        loss=loss,
        penalties=(FromWeight(names, coupling),),
        training=Training(scale=scale, batch_size=rows, response="full", lr=0.01),
    )
    trainer = Trainer(task, algorithm=algorithm)
    freeze_draws(trainer, torch.randn(rows, 2, generator=generator))
    settle(trainer)
    weight, jacobian = learned(trainer)
    assert torch.allclose(jacobian[:, 0], -torch.linalg.solve(a, b), rtol=0, atol=1e-9)
    assert torch.allclose(weight[:, 0], -torch.linalg.solve(a, b @ start + c), rtol=0, atol=1e-9)


# Shallow linear network with an L2-regularised Jacobian: y = s'Qx, penalty e^lambda |Q's|^2 -------------------------


@dataclass(frozen=True)
class ShallowLinear:
    """Data X = U diag(d) V', targets t, and the exact best response at a log penalty."""

    examples: int = 12
    features: int = 3

    @property
    def data(self) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(4)
        inputs = torch.randn(self.examples, self.features, generator=generator)
        return inputs, inputs @ torch.tensor([1.0, -2.0, 0.5]) + 0.3 * torch.randn(self.examples, generator=generator)

    def parts(self, *, mean: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """V', s0, and of the gate's argument `2 log d - lambda` the part before lambda."""
        inputs, targets = self.data
        u, d, vt = torch.linalg.svd(inputs, full_matrices=False)
        return vt, (u.T @ targets) / d, 2 * d.log() - (math.log(self.examples) if mean else 0.0), d

    def beta(self, log_penalty: Tensor, *, mean: bool = False) -> Tensor:
        vt, s0, shift, _ = self.parts(mean=mean)
        return vt.T @ (torch.sigmoid(shift - log_penalty) * s0)

    def beta_slope(self, log_penalty: float, *, mean: bool = False) -> Tensor:
        vt, s0, shift, _ = self.parts(mean=mean)
        gate = torch.sigmoid(shift - log_penalty)
        return -vt.T @ (gate * (1 - gate) * s0)


CASE = ShallowLinear()


@pytest.mark.parametrize("log_penalty", [-2.0, 0.0, 1.5])
@pytest.mark.parametrize("mean", [False, True])
def test_gated_units_are_a_stationary_point_and_ridge_regression(log_penalty: float, mean: bool) -> None:
    """Gradient 0, beta the ridge solution (1e-12) and its slope by autograd and by the formula (1e-12)."""
    inputs, targets = CASE.data
    vt, s0, shift, _ = CASE.parts(mean=mean)
    s = s0.clone().requires_grad_()
    q = (torch.sigmoid(shift - log_penalty)[:, None] * vt).requires_grad_()
    errors = (inputs @ q.T @ s - targets).square()
    fit = errors.mean() if mean else errors.sum()
    loss = fit + math.exp(log_penalty) * (q.T @ s).square().sum()
    assert max(float(g.abs().max()) for g in torch.autograd.grad(loss, (s, q))) < 1e-12
    beta = (q.T @ s).detach()
    count = CASE.examples if mean else 1
    gram = inputs.T @ inputs / count + math.exp(log_penalty) * torch.eye(CASE.features)
    assert torch.allclose(beta, torch.linalg.solve(gram, inputs.T @ targets / count), rtol=0, atol=1e-12)
    slope = torch.autograd.functional.jacobian(lambda x: CASE.beta(x, mean=mean), torch.tensor(log_penalty))
    assert torch.allclose(slope, CASE.beta_slope(log_penalty, mean=mean), rtol=0, atol=1e-12)
    difference = CASE.beta(torch.tensor(log_penalty + 1e-5), mean=mean) - CASE.beta(
        torch.tensor(log_penalty - 1e-5), mean=mean
    )
    assert torch.allclose(difference / 2e-5, slope, rtol=0, atol=1e-9)


def shallow_task(log_penalty: float, scale: float, nodes: int) -> Task:
    """Each example at each node; the network's Jacobian with respect to x is the weight Q's itself."""
    inputs, targets = CASE.data
    weights = normal_nodes(nodes)[1]
    share = (weights * nodes).repeat_interleave(CASE.examples)

    @dataclass(frozen=True)
    class JacobianPenalty:
        names: tuple[str, ...] = ("log_penalty",)
        paths: tuple[str, ...] = ()

        def __call__(self, network: nn.Module, sample: Sample, activations: Activations) -> Tensor:
            first, second = network.get_submodule("0"), network.get_submodule("1")
            assert isinstance(second.weight, Tensor)
            jacobian = second.weight[0] @ effective_weight(first, sample.response_input)
            norm = sample["log_penalty"].exp() * jacobian.square().sum(-1)
            return norm * share if len(norm) == len(share) else norm

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return (targets[:, 1] * (outputs[:, 0] - targets[:, 0]).square()).mean()

    batch = Split(inputs.repeat(nodes, 1), torch.stack([targets.repeat(nodes), share], 1))
    return Task(
        name="shallow linear",
        model=lambda: nn.Sequential(
            nn.Linear(CASE.features, CASE.features, bias=False), nn.Linear(CASE.features, 1, bias=False)
        ),
        data=lambda seed: Splits(batch, batch, batch),
        space=SearchSpace({"log_penalty": Normal()}),
        start={"log_penalty": log_penalty},
        loss=loss,
        penalties=(JacobianPenalty(),),
        training=Training(
            scale=scale, batch_size=len(batch), response={"0": "gate", "1": None}, optimizer="Adam", lr=0.02
        ),
    )


@pytest.mark.slow
@pytest.mark.parametrize(("algorithm", "log_penalty"), [("stn", 1.0), ("delta-stn", -1.0)])
def test_gate_only_response_learns_the_best_response(algorithm: str, log_penalty: float) -> None:
    """From random weights, at a small scale: beta and its slope within 2e-3 (STN, scale 0.1) or 1e-3 (Delta-STN, 0.05).

    beta = Q's alone is compared, Q is not unique.
    """
    nodes, scale, tolerance = (5, 0.1, 2e-3) if algorithm == "stn" else (5, 0.05, 1e-3)
    trainer = Trainer(shallow_task(log_penalty, scale, nodes), algorithm=algorithm)
    freeze_draws(trainer, normal_nodes(nodes)[0].repeat_interleave(CASE.examples)[:, None])
    settle(trainer, 300)
    second = trainer.model.get_parameter("network.1.weight")[0].detach()
    weight, jacobian = learned(trainer)
    truth = CASE.beta(torch.tensor(log_penalty), mean=True), CASE.beta_slope(log_penalty, mean=True)
    assert truth[1].abs().max() > 0.2  # there is something to learn
    assert torch.allclose(second @ weight, truth[0], rtol=0, atol=tolerance)
    assert torch.allclose(torch.einsum("o,oin->i", second, jacobian), truth[1], rtol=0, atol=tolerance)
