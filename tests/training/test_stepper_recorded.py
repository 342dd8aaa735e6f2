"""Steps replayed as CUDA graphs: on a CPU with a stand-in for these, on a GPU where there is one, and without either
what a recording asks of a step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tune_stn.data.normalise import Normalise
from tune_stn.data.splits import Split, Splits
from tune_stn.nn.cuda_graph import WARM_UP
from tune_stn.nn.penalties import ActivationNorm, WeightDecay
from tune_stn.tasks import Task, get_task
from tune_stn.training import Trainer

ALGORITHMS = ("fixed", "stn", "delta-stn")
Differences = Callable[[Trainer, Trainer], list[str]]
EPOCHS = 4
VISION = {
    "fashion-mnist-mlp": ({"hidden": 8}, (1, 28, 28)),
    "fashion-mnist-cnn": ({"hidden": 8}, (1, 28, 28)),
    "cifar10-alexnet": ({"width": 2}, (3, 32, 32)),
    "cifar10-vgg16": ({"width": 2}, (3, 32, 32)),
    "cifar10-resnet18": ({"width": 2}, (3, 32, 32)),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "algorithm", "settings"),
    # Each rule on each network, each of both with either settings.
    [
        (network, algorithm, ({}, {"accumulate": 2, "clip_norm": 0.1})[(i + j) % 2])
        for i, network in enumerate(("mlp", "cnn", "batch-norm"))
        for j, algorithm in enumerate(ALGORITHMS)
    ],
)
def test_replayed_steps_are_the_steps(
    make_task: Any, differences: Differences, replays: Any, algorithm: str, network: str, settings: dict[str, Any]
) -> None:
    """To the last bit, with penalties, dropout, augmentation and running statistics; and cost is counted the same."""
    task = make_task(
        network,
        train_steps=1,
        lr_schedule="StepLR",
        lr_schedule_args={"step_size": 2},
        penalties=(WeightDecay("decay"), ActivationNorm("input_scale", "2")),
        **settings,
    )
    usual, recorded = Trainer(task, algorithm=algorithm), Trainer(task, algorithm=algorithm)
    recorded.record_steps()
    for _ in range(EPOCHS):
        expected, report = usual.run_epoch(), recorded.run_epoch()
        del expected["device_time_s"], report["device_time_s"]
        assert report == expected
    assert differences(usual, recorded) == []
    kinds = {"fixed": 1, "stn": 2, "delta-stn": 3}[algorithm]
    assert replays.recorded == kinds
    assert replays.replayed > kinds


def test_a_run_taken_back_replays_on(make_task: Any, differences: Differences, replays: Any) -> None:
    """States are loaded into the tensors that were recorded."""
    trainers = []
    for recorded in (False, True):
        trainer = Trainer(make_task(train_steps=1), algorithm="stn")
        if recorded:
            trainer.record_steps()
        trainer.run_epoch()
        state = Trainer(make_task(train_steps=1), algorithm="stn").state_dict()
        trainer.run_epoch()
        trainer.load_state_dict(state)
        trainer.run_epoch()
        trainers.append(trainer)
    assert replays.replayed > 0
    assert differences(*trainers) == []


def test_only_what_asks_for_it_is_recorded(make_task: Any, replays: Any) -> None:
    """And nothing on a CPU."""
    for settings in ({}, {"cuda_graphs": True}):
        trainer = Trainer(make_task(train_steps=1, **settings), algorithm="stn")
        for _ in range(EPOCHS):
            trainer.run_epoch()
    assert replays.recorded == 0


@pytest.mark.slow
def test_a_carried_state_goes_through_python(replays: Any) -> None:
    """There, what is replayed are the loops over time."""
    tokens = {"train_tokens": 2000, "valid_tokens": 500, "test_tokens": 200}
    task = get_task("text-lstm", hidden=8, **tokens, vocabulary=50, batch_size=5, window=20, warmup_epochs=0)
    runs = []
    for recorded in (False, True):
        trainer = Trainer(task, algorithm="stn")
        if recorded:
            trainer.record_steps()
        runs.append(trainer.run_epoch()["val_loss"])
    assert runs[1] == pytest.approx(runs[0], rel=1e-5)
    # Two layers of one shape share theirs; hyper-steps and training steps too.
    assert replays.recorded == 2
    assert replays.replayed > 2 * WARM_UP


# What a recording asks of a step ------------------------------------------------------------------------------------


class StaysThere(TorchDispatchMode):
    """Refuses to move values between devices, which would halt a GPU and ends a recording."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_):
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
            kinds = {tensor.device.type for tensor in tensors}
            assert len(kinds) == 1, f"{func} from one to another of {kinds}"
        return result


def on_meta(task: Task, shape: tuple[int, ...], algorithm: str) -> Trainer:
    """Tensors without data stand in for those of a GPU, whose values would have to be waited for."""
    prepare = Normalise((0.5,) * shape[0], (0.25,) * shape[0])

    def split(images: int) -> Split:
        pixels = torch.randint(256, (images, *shape), dtype=torch.uint8)
        return Split(pixels, torch.randint(10, (images,)), prepare=prepare)

    return Trainer(task, algorithm=algorithm, device="meta", splits=Splits(split(8), split(8), split(8)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "algorithm"),
    # The rules' steps by all that a step has; then the layers of each network in two of its three ways.
    [
        *(("fashion-mnist-cnn", algorithm) for algorithm in ALGORITHMS),
        *((name, algorithm) for name in ("fashion-mnist-mlp", "cifar10-vgg16") for algorithm in ("stn", "fixed")),
        *((name, algorithm) for name in ("cifar10-alexnet", "cifar10-resnet18") for algorithm in ("stn", "delta-stn")),
    ],
)
def test_a_step_never_waits_for_the_device_nor_sends_to_it(name: str, algorithm: str) -> None:
    """Of the built-in tasks on images, from the draw of a batch to the step of the optimizer."""
    size, shape = VISION[name]
    trainer = on_meta(get_task(name, batch_size=8, **size), shape, algorithm)
    batches = trainer.splits.train.batches(8, torch.Generator())
    for batch in batches:  # constants come to the device with the first
        trainer.rule.train_step(batch)
        if trainer.rule.tunes:
            trainer.rule.hyper_step(batch)
    batch = next(trainer.splits.train.batches(8, torch.Generator()))
    with StaysThere():
        assert trainer.rule.train_step(batch).device.type == "meta"
        if trainer.rule.tunes:
            trainer.rule.hyper_step(batch)


def test_the_check_above_sees_what_is_sent() -> None:
    with StaysThere(), pytest.raises(AssertionError):
        torch.ones(2).to("meta")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("network", ["mlp", "cnn", "batch-norm"])
@pytest.mark.parametrize("compiled", [False, True])
def test_cuda_graphs_are_the_steps(make_task: Any, network: str, algorithm: str, compiled: bool) -> None:
    settings = {"train_steps": 1, "compile": compiled}
    usual, recorded = (
        Trainer(make_task(network, cuda_graphs=graphs, **settings), algorithm=algorithm, device="cuda")
        for graphs in (False, True)
    )
    for _ in range(EPOCHS):
        expected, report = usual.run_epoch(), recorded.run_epoch()
        del expected["device_time_s"], report["device_time_s"]
        assert report == pytest.approx(expected, rel=1e-4)
