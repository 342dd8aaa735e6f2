"""Equal doses: what is measured of each hyperparameter, and how its step follows.

What `auto` shares with `progress-ratio` is tested in test_progress_ratio.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tune_stn.data.batches import Batch
from tune_stn.data.splits import Split, Splits
from tune_stn.nn.penalties import WeightDecay
from tune_stn.space import LogUniform, Sample, SearchSpace, Tunable, Uniform
from tune_stn.tasks import Task, get_task
from tune_stn.training import Trainer
from tune_stn.training.rules.auto import DISTANCE, RATE, SHARE, Auto


@torch.enable_grad()
def made(task: Task, **more: Any) -> tuple[Trainer, Auto, Batch]:
    trainer = Trainer(task, algorithm="auto", **more)
    trainer.model.train()
    assert isinstance(trainer.rule, Auto)
    return trainer, trainer.rule, trainer.splits.train.take(torch.arange(8))


def hyper_of(trainer: Trainer) -> Tunable:
    assert isinstance(trainer.model.hyper, Tunable)
    return trainer.model.hyper


# Doses ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def decays(make_task: Any) -> Task:
    """Two weight decays, one for each layer, and a dropout."""
    task: Task = make_task(
        space=SearchSpace({"dropout": Uniform(0.0, 0.9), "one": LogUniform(1e-3, 1.0), "two": Uniform(0.0, 0.5)}),
        start={"dropout": 0.4, "one": 0.1, "two": 0.3},
        penalties=(WeightDecay("one", "1.*"), WeightDecay("two", "4.*")),
        augmentations=(),
    )
    return task


@pytest.mark.usefixtures("double")
@torch.no_grad()
def test_doses_are_the_finite_differences_of_the_loss(decays: Task) -> None:
    """A penalty of value * |W|^2 / 2: whatever else is in the loss and is drawn there is the same on both sides."""
    trainer, rule, batch = made(decays)
    hyper = hyper_of(trainer)

    def halves(name: str, path: str) -> float:
        """Half the square of the weights, times the difference of values."""
        raw = float(hyper.raw[list(hyper.space).index(name)])
        high, low = (hyper.space[name].transform(torch.tensor(raw + side)) for side in (DISTANCE, -DISTANCE))
        return float((high - low) * trainer.model.get_parameter(f"network.{path}").square().sum() / 2)

    for step in range(3):
        assert rule.counts == [1] * step + [0] * (3 - step)
        rule.direction(batch)  # measures one
    assert rule.counts == [1, 1, 1]
    expected = [halves("one", "1.weight"), halves("two", "4.weight")]
    assert rule.doses[1:].tolist() == pytest.approx(expected, rel=1e-5)
    # Its loss is nearly straight so near: the dose is the derivative with respect to the raw coordinate.
    raw = hyper.raw.detach().clone().requires_grad_()
    with torch.enable_grad():
        value = hyper.space["two"].transform(raw[2])
    (slope,) = torch.autograd.grad(value, raw)
    assert float(rule.doses[2]) == pytest.approx(
        float(slope[2]) * float(trainer.model.get_parameter("network.4.weight").square().sum()) / 2, rel=0.05
    )
    # And the loss with dropout, from the same masks.
    masks = torch.get_rng_state()
    losses = []
    for side in (DISTANCE, -DISTANCE):
        torch.set_rng_state(masks)
        moved = hyper.raw + side * torch.tensor([1.0, 0.0, 0.0])
        part = batch.part(0, round(SHARE * len(batch)))
        losses.append(float(rule.training_loss(part, Sample(hyper.values(moved[None])))))
    torch.set_rng_state(masks)
    assert float(rule.doses[0]) == pytest.approx(losses[0] - losses[1], rel=1e-5)


@torch.no_grad()
def test_a_new_measurement_enters_an_average(decays: Task) -> None:
    """A mean of the first ten, in which the first counts no more than another, then a running one; one dose a time."""
    trainer, rule, batch = made(decays)
    found: list[float] = []
    for number in range(1, 31):
        before = rule.doses.clone()
        trainer.model.get_parameter("network.1.weight").mul_(1.1)
        rule.measure(1, batch)
        assert torch.equal(before[[0, 2]], rule.doses[[0, 2]])
        rate = max(RATE, 1 / number)
        found.append((float(rule.doses[1]) - (1 - rate) * float(before[1])) / rate)
    assert found == pytest.approx([found[0] * 1.21**n for n in range(30)], rel=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("rows", [2, 3, 5])
def test_a_small_batch_is_enough_for_batch_norm(make_task: Any, rows: int) -> None:
    """Which takes no batch of a single example; its running statistics and torch's random state stay as they are."""
    trainer, rule, _ = made(make_task("batch-norm", batch_size=rows))
    network = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    stream = torch.get_rng_state()
    rule.measure(0, trainer.splits.train.take(torch.arange(rows)))
    assert torch.equal(torch.get_rng_state(), stream)
    assert all(torch.equal(tensor, network[name]) for name, tensor in trainer.model.state_dict().items())


# Steps ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("doses", "expected"),
    [
        ([0.3, 0.3, 0.3], [1, 1, 1]),
        ([0.02, 0.02, 0.2], [1, 1, 0.1]),
        ([0.002, 0.02, 0.04], [1, 1, 0.5]),
        # Raising one lowers the loss, or does nothing: it may go as fast as any.
        ([-0.5, 0.02, 0.04], [1, 1, 0.5]),
        ([0.0, 0.02, 0.2], [1, 1, 0.1]),
        # Where most do nothing, they are no measure for the others.
        ([-0.1, 0.0, 0.2], [1, 1, 1]),
        ([0.0, 0.0, 0.0], [1, 1, 1]),
        ([-0.1, -0.2, -0.3], [1, 1, 1]),
    ],
)
def test_steps_are_in_inverse_proportion_to_the_doses(
    decays: Task, monkeypatch: pytest.MonkeyPatch, doses: list[float], expected: list[float]
) -> None:
    _, rule, batch = made(decays)
    monkeypatch.setattr(rule, "measure", lambda index, batch: None)
    rule.doses = torch.tensor(doses)
    rule.counts = [1, 0, 1]
    assert rule.direction(batch).tolist() == [1, 1, 1]  # not yet known of all
    rule.counts = [2, 1, 1]
    assert rule.direction(batch).tolist() == pytest.approx(expected)


# Networks ------------------------------------------------------------------------------------------------------------


class Own(nn.Module):
    """Parameters of its own, and no layer that could respond."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(36, 3) / 6)
        self.dropout = nn.Dropout()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.dropout(inputs) @ self.matrix


def test_no_layer_needs_to_respond(make_task: Any) -> None:
    task = make_task(model=Own, dropout={"dropout": "dropout"})
    with pytest.raises(ValueError, match="no layer of the model"):
        Trainer(task, algorithm="stn")
    trainer = Trainer(task, algorithm="auto")
    values = [trainer.run_epoch()["hp/dropout"] for _ in range(6)]
    assert len(set(values)) > 2
    assert trainer.diverged is None


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("network", ["mlp", "cnn", "batch-norm"])
def test_without_hyper_steps_it_is_plain_training(make_task: Any, network: str) -> None:
    """The control `frozen`: its measurements leave weights, statistics of batch norms and draws alone."""
    epochs = 8
    task = make_task(network, epochs=epochs, warmup_epochs=epochs)
    plain, frozen = (Trainer(task, algorithm=name) for name in ("fixed", "auto"))
    for _ in range(epochs):
        expected, found = (trainer.run_epoch() for trainer in (plain, frozen))
        for name in ("train_loss", "val_loss", "test_loss"):
            assert found[name] == pytest.approx(expected[name], rel=1e-10)


def random_images(seed: int) -> Splits:
    """Of the shape of Fashion-MNIST."""
    generator = torch.Generator().manual_seed(seed)
    return Splits(
        *(
            Split(torch.randn(n, 1, 28, 28, generator=generator), torch.randint(10, (n,), generator=generator))
            for n in (640, 128, 128)
        )
    )


@pytest.mark.parametrize("name", ["digits-mlp", "fashion-mnist-mlp"])
def test_a_cycle_costs_at_most_two_fifths_more_than_plain_training(name: str) -> None:
    """By the meter, over epochs without warm-up."""
    task = get_task(name, epochs=10, warmup_epochs=0, **({} if name == "digits-mlp" else {"hidden": 300}))
    splits = task.data(0) if name == "digits-mlp" else random_images(0)
    trainer = Trainer(task, algorithm="auto", splits=splits)
    costs = [trainer.run_epoch()["cost"] for _ in range(5)]
    assert trainer.meter._per_step["hyper"] > 0
    assert 1.1 < costs[-1] / 5 <= 1.4
