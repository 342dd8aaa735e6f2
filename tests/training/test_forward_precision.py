"""Reduced precision and compiled code: the same training, but for the rounding."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tune_stn.nn.penalties import ActivationNorm, WeightDecay
from tune_stn.nn.self_tuning import SelfTuningModel
from tune_stn.training import Trainer
from tune_stn.training.stepper import Stepper

Stir = Callable[[SelfTuningModel], None]
ALGORITHMS = ("fixed", "stn", "delta-stn")
NETWORKS = ("mlp", "cnn", "batch-norm")


def gradients(stepper: Stepper) -> dict[str, Tensor]:
    """Of base, response and hyperparameters, those there are, each as one vector."""
    groups = {name: stepper.parameters(name) for name in stepper.optimizers}
    return {
        name: torch.cat([p.grad.flatten() for p in group if p.grad is not None])
        for name, group in groups.items()
        if group
    }


# bfloat16 -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_bfloat16_trains_and_all_that_is_kept_is_float32(make_task: Any, algorithm: str, network: str) -> None:
    trainers = [Trainer(make_task(network, precision=p), algorithm=algorithm) for p in ("float32", "bfloat16")]
    reports = []
    for trainer in trainers:
        for _ in range(3):
            report = trainer.run_epoch()
            assert all(math.isfinite(value) for value in report.values())
        reports.append(report)
    assert reports[1]["val_loss"] == pytest.approx(reports[0]["val_loss"], rel=0.1)
    assert reports[1]["val_loss"] != reports[0]["val_loss"]
    assert reports[1]["cost"] == reports[0]["cost"]
    state = trainers[1].model.state_dict()
    assert {tensor.dtype for tensor in state.values() if tensor.is_floating_point()} == {torch.float32}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "algorithm", "size"),
    # Every two of network, rule and size meet.
    [
        (network, algorithm, ("full", "gate", 2)[(i + j) % 3])
        for i, network in enumerate(NETWORKS)
        for j, algorithm in enumerate(ALGORITHMS)
    ],
)
def test_bfloat16_gradients_are_those_of_float32_but_for_rounding(
    make_task: Any, stir: Stir, algorithm: str, network: str, size: Any
) -> None:
    """Without dropout, whose draws depend on the type; at a tenth of the norm, as bfloat16 has 8 bits."""
    found = []
    for precision in ("float32", "bfloat16"):
        settings = {"precision": precision, "hyper_clip_norm": None, "optimizer_args": {}, "response": size}
        trainer = Trainer(make_task(network, **settings), algorithm=algorithm)
        stir(trainer.model)
        trainer.model.eval()
        torch.manual_seed(0)
        trainer.rule.train_step(trainer.splits.train.take(torch.arange(8)))
        if trainer.rule.tunes:
            trainer.rule.hyper_step(trainer.splits.valid.take(torch.arange(8)))
        found.append(gradients(trainer.stepper))
    for name, exact in found[0].items():
        assert exact.norm() > 1e-4
        assert found[1][name].dtype == torch.float32
        assert 0 < (found[1][name] - exact).norm() < 0.1 * exact.norm(), name


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_only_the_network_is_in_bfloat16(make_task: Any, algorithm: str) -> None:
    """Its products are; outputs, losses, penalties and what the task's own functions see are float32."""
    seen: list[torch.dtype] = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append(outputs.dtype)
        return nn.functional.cross_entropy(outputs, targets)

    trainer = Trainer(make_task(precision="bfloat16", loss=loss), algorithm=algorithm)
    inner: list[torch.dtype] = []
    trainer.model.network.get_submodule("2").register_forward_hook(lambda m, i, output: inner.append(output.dtype))
    trainer.run_epoch()
    assert set(inner) == {torch.bfloat16}
    assert set(seen) == {torch.float32}


class UsersLSTM(nn.LSTM):
    """Has no response layer, so it stays torch's own."""


class Summary(nn.Module):
    """An LSTM reads an example by parts."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = UsersLSTM(6, 8, num_layers=2, batch_first=True)
        self.drop = nn.Dropout()
        self.head = nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs, _ = self.lstm(inputs.unflatten(1, (6, 6)))
        result: Tensor = self.head(self.drop(outputs[:, -1]))
        return result


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_torchs_own_lstm_runs_in_bfloat16_on_every_processor(make_task: Any, algorithm: str) -> None:
    """It raises under autocast where the processor has no bfloat16. What helps there is over after the pass."""
    trainer = Trainer(make_task(model=Summary, dropout={"drop": "dropout"}, precision="bfloat16"), algorithm=algorithm)
    assert type(trainer.model.network.get_submodule("lstm")) is UsersLSTM
    report = trainer.run_epoch()
    assert trainer.diverged is None
    assert all(math.isfinite(value) for value in report.values())
    assert torch.backends.mkldnn.enabled


# torch.compile ------------------------------------------------------------------------------------------------------


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Compilation up to the graphs of forward and backward, which need no C++ compiler; counts them."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    stats: dict[str, int] = counters["stats"]
    return stats


# While it traces, torch looks at the gradient of every input, that of a hyper-step's response input too.
traces = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


@pytest.mark.slow
@traces
@pytest.mark.parametrize(
    ("network", "algorithm"), [*(("mlp", algorithm) for algorithm in ALGORITHMS), ("batch-norm", "delta-stn")]
)
def test_compiled_run_is_the_uncompiled_one(
    make_task: Any, traced: dict[str, int], algorithm: str, network: str
) -> None:
    """Each kind of pass is compiled once. Cost is counted the same, though torch's counter sees no compiled code."""
    task = {"penalties": (WeightDecay("decay"), ActivationNorm("input_scale", "2" if network == "mlp" else "3"))}
    runs = []
    for compiled in (False, True):
        trainer = Trainer(make_task(network, compile=compiled, **task), algorithm=algorithm)
        runs.append([trainer.run_epoch() for _ in range(2)])
    for expected, report in zip(*runs, strict=True):
        del expected["device_time_s"]
        assert report["cost"] == expected["cost"]
        assert {key: report[key] for key in expected} == pytest.approx(expected, rel=1e-5)
    # Training, evaluation and hyper-steps (those of Delta-STN evaluate what its base step trains); its response steps.
    of_responses = 1 if network == "mlp" else 0
    assert traced["unique_graphs"] == {"fixed": 2, "stn": 3, "delta-stn": 3 + of_responses}[algorithm]


@pytest.mark.slow
@traces
def test_compiled_bfloat16_in_parts(make_task: Any, traced: dict[str, int]) -> None:
    """All of it together still trains."""
    task = make_task("cnn", compile=True, precision="bfloat16", accumulate=2)
    report = Trainer(task, algorithm="stn").run_epoch()
    assert all(math.isfinite(value) for value in report.values())
    assert traced["unique_graphs"] > 0


def test_only_what_asks_for_it_is_compiled(make_task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(torch, "compile", refuse)
    Trainer(make_task(), algorithm="stn")
    with pytest.raises(AssertionError):
        Trainer(make_task(compile=True), algorithm="stn")
