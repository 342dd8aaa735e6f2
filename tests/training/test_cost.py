"""Cost: every product of every step, counted by hand and by the meter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tune_stn.data.splits import Split
from tune_stn.nn.response import ResponseSize
from tune_stn.space import SearchSpace, Uniform
from tune_stn.training import Trainer
from tune_stn.training.cost import CostMeter, plain_step_flops

BATCH, HPS = 8, 2
IN, HIDDEN, OUT = 36, 16, 3
ONE, TWO = IN * HIDDEN, HIDDEN * OUT  # multiplications of an example in each layer


def products(*terms: int, rows: int = BATCH) -> int:
    """Operations: two for each multiplication of each row."""
    return 2 * rows * sum(terms)


# Forward; weight gradients of both layers; the gradient of the second layer's input.
PLAIN = products(ONE, TWO, ONE, TWO, TWO)
# All gates in one pass over a batch, weight and bias response; their backward pass costs the same.
GATES = products(2 * HPS * (HIDDEN + OUT))
GATES_OF_ONE_ROW = products(2 * HPS * (HIDDEN + OUT), rows=1)


def low_rank(rank: int) -> tuple[int, int, int, int]:
    """Multiplications of both layers with A stacked under W, and of both B."""
    return IN * (HIDDEN + rank), HIDDEN * (OUT + rank), rank * HIDDEN, rank * OUT


R1, R2, B1, B2 = low_rank(4)
TRAIN: dict[ResponseSize, int] = {
    "gate": PLAIN + 2 * GATES,
    "full": 2 * PLAIN + 2 * GATES,
    # Forward; gradients of the stacked weights and of the second input; gradients of B and of its input.
    4: products(R1, R2, B1, B2, R1, R2, R2, 2 * B1, 2 * B2) + 2 * GATES,
}
RESPONSE: dict[ResponseSize, int] = {
    # Values of both layers, the second layer's map of the tangent, and backward through that map.
    "gate": products(ONE, TWO, TWO, TWO) + 2 * GATES,
    # And V x with the gradient of V.
    "full": products(ONE, TWO, TWO, TWO, ONE, TWO, ONE, TWO) + 2 * GATES,
    # And A x, then B; the gradients of A, of B and of B's input.
    4: products(ONE, TWO, TWO, TWO, 4 * IN, 4 * HIDDEN, B1, B2, 4 * IN, 4 * HIDDEN, 2 * B1, 2 * B2) + 2 * GATES,
}
PERTURBED_HYPER: dict[ResponseSize, int] = {
    # Forward and the gradient of the second layer's input: no weight has one.
    "gate": products(ONE, TWO, TWO) + 2 * GATES,
    "full": 2 * products(ONE, TWO, TWO) + 2 * GATES,
    4: products(R1, R2, B1, B2, R2, B2) + 2 * GATES,
}
MEAN_HYPER: dict[ResponseSize, int] = {
    # Merged weights: a plain network, with the gradients of the merged weights.
    "gate": PLAIN + 2 * GATES_OF_ONE_ROW,
    "full": PLAIN + 2 * GATES_OF_ONE_ROW,
    4: PLAIN + 2 * GATES_OF_ONE_ROW + products(4 * IN * HIDDEN, 4 * HIDDEN * OUT, rows=1),
}
SIZES: tuple[ResponseSize, ...] = ("gate", "full", 4)


@pytest.fixture
def bare(make_task: Any) -> Any:
    """The small MLP with dropout alone: every product is one of a layer."""

    def bare(**settings: Any) -> Any:
        return make_task(
            space=SearchSpace({"one": Uniform(0.0, 0.9), "two": Uniform(0.0, 0.9)}),
            start={"one": 0.1, "two": 0.1},
            dropout={"0": "one", "3": "two"},
            augmentations=(),
            penalties=(),
            **settings,
        )

    return bare


def per_step(trainer: Trainer) -> dict[str, int]:
    """What the meter charges for each kind of step."""
    trainer.run_epoch()
    return trainer.meter._per_step


def test_plain_step_by_hand(bare: Any) -> None:
    trainer = Trainer(bare(), algorithm="fixed")
    assert per_step(trainer) == {"train": PLAIN}
    assert trainer.meter.epoch_flops == 3 * PLAIN


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tune_scales", [True, False])
def test_stn_steps_by_hand(bare: Any, size: ResponseSize, tune_scales: bool) -> None:
    hyper = PERTURBED_HYPER if tune_scales else MEAN_HYPER
    trainer = Trainer(bare(response=size, tune_scales=tune_scales), algorithm="stn")
    assert per_step(trainer) == {"train": TRAIN[size], "hyper": hyper[size]}
    assert trainer.meter.epoch_flops == 3 * PLAIN


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tune_scales", [True, False])
def test_delta_stn_steps_by_hand(bare: Any, size: ResponseSize, tune_scales: bool) -> None:
    hyper = PERTURBED_HYPER if tune_scales else MEAN_HYPER
    trainer = Trainer(bare(response=size, tune_scales=tune_scales), algorithm="delta-stn")
    assert per_step(trainer) == {"train": PLAIN, "response": RESPONSE[size], "hyper": hyper[size]}
    assert trainer.meter.epoch_flops == 3 * PLAIN


@pytest.mark.parametrize("size", SIZES)
def test_a_response_step_on_a_quarter_of_the_batch_costs_a_quarter(bare: Any, size: ResponseSize) -> None:
    trainer = Trainer(bare(response=size, response_share=0.25), algorithm="delta-stn")
    assert per_step(trainer) == {"train": PLAIN, "response": RESPONSE[size] // 4, "hyper": PERTURBED_HYPER[size]}


@pytest.mark.parametrize("algorithm", ["fixed", "stn", "delta-stn"])
def test_a_batch_in_parts_costs_what_it_costs_whole(bare: Any, algorithm: str) -> None:
    """A gate-only response: V of a larger one would be made for each part."""
    whole, parts = (Trainer(bare(accumulate=count, response="gate"), algorithm=algorithm) for count in (1, 4))
    assert per_step(whole) == per_step(parts)


def test_tangents_through_a_plain_layer_are_counted(bare: Any) -> None:
    """There torch, not a response layer, multiplies by the tangent, inside its own derivative formula.

    That formula multiplies the weight's tangent too, which is a zero without memory: no work, but the counter takes it
    for some, so a plain layer counts for one product too many, never too few.
    """
    trainer = Trainer(bare(response={"1": "full"}), algorithm="delta-stn")
    gates = products(2 * HPS * HIDDEN)
    assert per_step(trainer)["response"] == products(3 * ONE, (3 + 1) * TWO) + 2 * gates


def test_convolutions_are_counted_with_their_tangents(make_task: Any) -> None:
    task = make_task(
        "cnn",
        response={"2": "full", "6": None, "9": None},
        penalties=(),
        space=SearchSpace({"dropout": Uniform(0.0, 0.9)}),
        start={"dropout": 0.1},
        augmentations=(),
    )
    one, two, three = 36 * 4 * 9, 9 * 6 * 4 * 9, 54 * 3  # positions x out x in x kernel
    gates = products(2 * 4)
    trainer = Trainer(task, algorithm="delta-stn")
    steps = per_step(trainer)
    assert steps["train"] == products(one, one, 3 * two, 3 * three)
    assert steps["response"] == products(3 * one, (3 + 1) * two, (3 + 1) * three) + 2 * gates


def test_products_of_a_step_compared_with_a_plain_one(bare: Any) -> None:
    """Gates aside, a gate-only STN step costs a plain one and a full one costs two; a Delta-STN cycle in between."""
    steps = {size: per_step(Trainer(bare(response=size), algorithm="stn")) for size in SIZES}
    assert steps["gate"]["train"] - 2 * GATES == PLAIN
    assert steps["full"]["train"] - 2 * GATES == 2 * PLAIN
    assert PLAIN < steps[4]["train"] - 2 * GATES < 2 * PLAIN
    response = per_step(Trainer(bare(response="full"), algorithm="delta-stn"))["response"] - 2 * GATES
    assert response <= 5 / 3 * PLAIN


@pytest.mark.parametrize("network", ["mlp", "cnn", "batch-norm"])
def test_plain_run_costs_exactly_one_an_epoch(make_task: Any, network: str) -> None:
    trainer = Trainer(make_task(network), algorithm="fixed")
    assert [trainer.run_epoch()["cost"] for _ in range(4)] == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("valid_steps", [1, 3])
def test_cost_adds_up_all_steps(bare: Any, valid_steps: int) -> None:
    """3 training steps an epoch, a cycle of 2: hyper-steps after steps 2, 4 and 6."""
    trainer = Trainer(bare(response="full", train_steps=2, valid_steps=valid_steps), algorithm="delta-stn")
    costs = [trainer.run_epoch()["cost"] for _ in range(2)]
    train, hyper = PLAIN + RESPONSE["full"], valid_steps * PERTURBED_HYPER["full"]
    assert costs == [(3 * train + hyper) / (3 * PLAIN), (6 * train + 3 * hyper) / (3 * PLAIN)]


def test_warm_up_costs_no_hyper_step(bare: Any) -> None:
    trainer = Trainer(bare(warmup_epochs=1), algorithm="stn")
    assert trainer.run_epoch()["cost"] == TRAIN["gate"] / PLAIN


@pytest.mark.parametrize("algorithm", ["fixed", "stn", "delta-stn"])
def test_cost_is_deterministic_and_the_same_at_every_seed(make_task: Any, algorithm: str) -> None:
    costs = [Trainer(make_task(), algorithm=algorithm, seed=seed).run_epoch()["cost"] for seed in (0, 0, 1)]
    assert costs[0] == costs[1] == costs[2]


def test_penalty_through_a_low_rank_response_is_charged(make_task: Any) -> None:
    """Weight decay multiplies the factors out."""
    task = make_task(
        response=4,
        augmentations=(),
        space=SearchSpace({"dropout": Uniform(0.0, 0.9), "decay": Uniform(0.0, 1.0)}),
        start={"dropout": 0.1, "decay": 0.1},
    )
    # The gates once more; the product A B of each layer, and its gradients with respect to A and B.
    expected = TRAIN[4] + 2 * GATES + 3 * products(4 * ONE, 4 * TWO, rows=1)
    assert per_step(Trainer(task, algorithm="stn"))["train"] == expected


@pytest.mark.parametrize("algorithm", ["fixed", "stn", "delta-stn"])
def test_evaluation_is_not_counted(make_task: Any, algorithm: str) -> None:
    task = make_task()
    splits = task.data(0)
    large = Split(splits.test.inputs.repeat(50, 1), splits.test.targets.repeat(50))
    long = type(splits)(train=splits.train, valid=splits.valid, test=large)
    costs = [Trainer(task, algorithm=algorithm, splits=s).run_epoch()["cost"] for s in (splits, long)]
    assert costs[0] == costs[1]


@pytest.mark.parametrize("algorithm", ["fixed", "stn", "delta-stn"])
def test_cost_goes_on_after_a_resume(make_task: Any, algorithm: str) -> None:
    whole, first, second = (Trainer(make_task(), algorithm=algorithm) for _ in range(3))
    expected = [whole.run_epoch()["cost"] for _ in range(3)]
    assert first.run_epoch()["cost"] == expected[0]
    second.load_state_dict(first.state_dict())
    assert second.meter.cost == expected[0]
    assert [second.run_epoch()["cost"] for _ in range(2)] == expected[1:]


def test_counting_changes_nothing_in_the_model(make_task: Any) -> None:
    task = make_task("batch-norm")
    trainer = Trainer(task, algorithm="stn")
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    plain_step_flops(task, trainer.model, next(trainer.splits.train.batches(8, torch.Generator())))
    after = trainer.model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


def test_meter_counts_a_kind_once_and_charges_it_every_time() -> None:
    meter, layer = CostMeter(100), nn.Linear(5, 2)
    for rows in (10, 1):
        with meter.step("a"):
            layer(torch.ones(rows, 5))
    assert meter.spent_flops == 2 * (2 * 10 * 5 * 2)
    assert meter.cost == 4.0


def test_model_without_products_is_refused() -> None:
    with pytest.raises(ValueError, match="cost is undefined"):
        CostMeter(0)
