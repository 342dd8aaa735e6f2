"""A task is checked where it is made, before anything is trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tune_stn.data.augment import InputScale, LabelSmoothing, Mixup
from tune_stn.data.splits import Split, Splits
from tune_stn.nn import WeightDecay
from tune_stn.nn.penalties import ActivationNorm
from tune_stn.space import SearchSpace, Uniform
from tune_stn.tasks import TASKS, Task, Training, accuracy, get_task
from tune_stn.tasks.task import counted
from tune_stn.training import Trainer

SPACE = SearchSpace({"rate": Uniform(0, 0.9), "scale": Uniform(0, 1), "decay": Uniform(0, 1)})


def splits(seed: int) -> Splits:
    split = Split(torch.ones(4, 2), torch.zeros(4, dtype=torch.int64))
    return Splits(split, split, split)


def make(**changes: Any) -> Task:
    settings: dict[str, Any] = {
        "name": "mine",
        "model": lambda: nn.Sequential(nn.Dropout(), nn.Linear(2, 2)),
        "data": splits,
        "space": SPACE,
        "start": {"rate": 0.1, "scale": 0.1, "decay": 0.1},
        "dropout": {"0": "rate"},
        "augmentations": (InputScale("scale"),),
        "penalties": (WeightDecay("decay"),),
    }
    return Task(**{**settings, **changes})


def test_defaults() -> None:
    task = make()
    assert task.training == Training()
    assert task.metrics == task.weight_dropout == {}
    assert task.label_augmentations == ()
    assert task.norms is False
    assert task.loss is nn.functional.cross_entropy


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dropout": {}}, "hyperparameter 'rate' of task 'mine' is read by nothing, so nothing can be learned"),
        ({"augmentations": ()}, "hyperparameter 'scale' of task 'mine' is read by nothing"),
        ({"penalties": ()}, "hyperparameter 'decay' of task 'mine' is read by nothing"),
        ({"dropout": {"0": "rates"}}, "task 'mine' reads 'rates', not in its space: rate, scale, decay"),
        ({"augmentations": (InputScale("scales"),)}, "task 'mine' reads 'scales', not in its space"),
        ({"penalties": (WeightDecay(),)}, "task 'mine' reads 'weight_decay', not in its space"),
        ({"weight_dropout": {"1": "weights"}}, "task 'mine' reads 'weights', not in its space"),
        ({"label_augmentations": (Mixup(classes=2),)}, "task 'mine' reads 'mixup', not in its space"),
        ({"start": {"rate": 0.95, "scale": 0.1, "decay": 0.1}}, r"start value 0\.95 of 'rate' is outside \[0, 0\.9\]"),
        ({"start": {"rate": 0.1, "decay": 0.1}}, "no start value for scale"),
        ({"start": {"rate": 0.1, "scale": 0.1, "decay": 0.1, "more": 1}}, "unknown hyperparameter 'more'"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_a_hyperparameter_may_have_several_readers() -> None:
    space = SearchSpace({"shared": Uniform(0, 0.9)})
    task = make(
        space=space,
        start={"shared": 0.1},
        dropout={"0": "shared"},
        augmentations=(InputScale("shared"),),
        penalties=(WeightDecay("shared"),),
    )
    assert list(task.space) == ["shared"]


@pytest.mark.parametrize(
    "reader",
    [
        {"dropout": {"0": "rate"}},
        {"weight_dropout": {"1": "rate"}},
        {"augmentations": (InputScale("rate"),)},
        {"label_augmentations": (LabelSmoothing("rate", classes=2),)},
        {"penalties": (WeightDecay("rate"),)},
        {"penalties": (ActivationNorm("rate", "1"),)},
    ],
    ids=str,
)
def test_any_one_reader_is_enough(reader: dict[str, Any]) -> None:
    nobody: dict[str, Any] = {"dropout": {}, "augmentations": (), "penalties": ()}
    space = SearchSpace({"rate": Uniform(0, 0.9)}, per_batch=["rate"])
    assert list(make(space=space, start={"rate": 0.1}, **{**nobody, **reader}).space) == ["rate"]
    with pytest.raises(ValueError, match=r"bind it to a dropout module or a layer's weights by path, an augmentation"):
        make(space=space, start={"rate": 0.1}, **nobody)


def test_accuracy_is_the_share_of_hits() -> None:
    outputs = torch.tensor([[0.1, 0.9], [2.0, -1.0], [0.3, 0.2], [-5.0, -4.0]])
    assert float(accuracy(outputs, torch.tensor([1, 0, 1, 1]))) == 0.75
    assert float(accuracy(outputs, torch.tensor([0, 1, 1, 0]))) == 0.0


# A tied decoder, normalisation, and the positions of a transformer.
STAYS = ("weight shared with embedding", "norms=False", "no response layer for LanguageTransformer")


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_built_in_task_is_one_for_every_method(name: str) -> None:
    """What holds for each: bindings meet dropout modules, the model is drawn by the global seed alone."""
    from tune_stn.nn import self_tuning

    task = get_task(name)
    assert task.name == name
    assert task.description
    torch.manual_seed(0)
    first = task.model()
    bindings = {"dropout": task.dropout, "weight_dropout": task.weight_dropout}
    model = self_tuning(first, task.space, start=task.start, response="gate", **bindings)
    assert set(model.conversion.bound.values()) == {name for binding in bindings.values() for name in binding.values()}
    assert all(reason.startswith(STAYS) for reason in model.conversion.plain.values())
    torch.manual_seed(0)
    again = task.model().state_dict()
    assert all(torch.equal(value, again[key]) for key, value in first.state_dict().items())
    assert model.hyper.mean_values() == pytest.approx(dict(task.start), rel=1e-4)


def test_one_hyperparameter_alone_is_tuned() -> None:
    whole = get_task("digits-mlp")
    task = whole.tuning_only("dropout_1")
    assert list(task.space) == list(task.start) == ["dropout_1"]
    assert task.space.fixed == {name: value for name, value in whole.start.items() if name != "dropout_1"}
    for algorithm in ("fixed", "stn", "delta-stn"):
        report = Trainer(task, algorithm=algorithm).run_epoch()
        assert [key for key in report if key.startswith("hp/")] == ["hp/dropout_1"]
    with pytest.raises(ValueError, match="unknown hyperparameter 'dropout_7'; task 'digits-mlp' has dropout_input"):
        whole.tuning_only("dropout_7")
    with pytest.raises(ValueError, match="all hyperparameters would be fixed"):
        whole.tuning_only()


def test_to_a_regression_a_target_of_minus_a_hundred_is_a_number() -> None:
    targets = torch.tensor([-100, 3, 4])
    assert [counted(loss, targets) for loss in (F.mse_loss, nn.HuberLoss())] == [3, 3]
    assert counted(nn.CrossEntropyLoss(), targets) == 2
    assert counted(F.cross_entropy, targets) is None  # as the batch says, which leaves it out
