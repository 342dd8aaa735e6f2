"""Two processes that train one self-tuning network do what one process does on the joined batches."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from tune_stn.nn import OptimizerWeightDecay, SelfTuningModel, WeightDecay, self_tuning
from tune_stn.space import LogUniform, SearchSpace
from tune_stn.training.self_tuner import SelfTuner

pytestmark = pytest.mark.slow

PROCESSES, STEPS = 2, 11  # of a run of a hundred: two hyper-steps of "auto"
SPACE = SearchSpace({"decay": LogUniform(1e-4, 1.0), "own": LogUniform(1e-4, 1.0)})


def trained(algorithm: str, rank: int | None) -> dict[str, torch.Tensor]:
    """The state of a network after some steps, on its part of each batch, or on whole batches."""
    torch.manual_seed(0)
    # In double precision: AdamW makes as much of the rounding of a small gradient as of a large one.
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x, y, xv, yv = torch.randn(16, 4), torch.randint(3, (16,)), torch.randn(8, 4), torch.randint(3, (8,))
    x, xv = x.double(), xv.double()
    net = self_tuning(
        model,
        SPACE,
        start={"decay": 1e-2, "own": 1e-2},
        response="gate" if algorithm == "stn" else None,
        centred=algorithm == "delta-stn",
    )
    own = OptimizerWeightDecay("own")
    parameters = [net.base_parameters(), net.response_parameters()]
    called: Any = net
    if rank is not None:
        x, y, xv, yv = (whole.chunk(PROCESSES)[rank] for whole in (x, y, xv, yv))
        torch.manual_seed(rank)
        called = DistributedDataParallel(net)
    weights = [p for p in parameters[0] if p.dim() >= 2]
    groups = [{"params": weights}, {"params": [p for p in parameters[0] if p.dim() < 2] + parameters[1]}]
    tuner = SelfTuner(
        called,
        torch.optim.AdamW(groups, lr=0.02),
        algorithm=algorithm,
        steps=100,
        decays=[] if algorithm == "stn" else [own],
    )
    penalties = [WeightDecay("decay"), *([WeightDecay("own")] if algorithm == "stn" else [])]

    def loss(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if rank is not None and torch.is_grad_enabled():  # gradients of weights are averaged, others not by the wrapper
            assert called.require_backward_grad_sync == net.training
        loss = F.cross_entropy(called(inputs), targets)
        sample = net.sample(len(inputs))
        return loss + sum(p(net.network, sample, {}).mean() for p in penalties) if net.training else loss

    for _ in range(STEPS):
        tuner.train_step(loss, x, y)
        tuner.hyper_step(loss, xv, yv)
    assert isinstance(net, SelfTuningModel)
    return {name: value for name, value in net.state_dict().items() if not name.startswith("(")}


def work(folder: Path, rank: int) -> None:
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # or it asks for the machine's name
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=PROCESSES)
    torch.save({algorithm: trained(algorithm, rank) for algorithm in ("auto", "stn")}, folder / f"{rank}.pt")
    with pytest.raises(ValueError, match=r"'delta-stn' has steps of the response alone, .* accepted are 'auto'"):
        trained("delta-stn", rank)
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def of_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, torch.Tensor]]]:
    folder = tmp_path_factory.mktemp("processes")
    context = torch.multiprocessing.get_context("spawn")
    processes = [context.Process(target=work, args=(folder, rank)) for rank in range(PROCESSES)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(100)
    assert [process.exitcode for process in processes] == [0] * PROCESSES
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["auto", "stn"])
def test_all_processes_hold_the_same_to_the_last_bit(of_processes: Any, algorithm: str) -> None:
    first, second = (states[algorithm] for states in of_processes)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    assert not torch.equal(first["hyper.raw"], first["hyper.origin"])


def test_it_is_what_one_process_holds_on_the_joined_batches(of_processes: Any) -> None:
    """Under "auto", whose steps draw nothing here; under "stn", each example has a draw of its own."""
    alone = trained("auto", None)
    for name, value in of_processes[0]["auto"].items():
        torch.testing.assert_close(value, alone[name], rtol=1e-4, atol=1e-5, msg=name)
