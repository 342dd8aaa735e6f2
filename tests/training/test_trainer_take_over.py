"""Taking over another run's state: what is the other's, what stays one's own, and streams of its own from there on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from tune_stn.data import splits
from tune_stn.space import Tunable
from tune_stn.training import Trainer, load_state, save_state

OWN = ("schedule", "records", "cost", "branch", "device_time_s", "last_good", "hp")
ALGORITHMS = ("stn", "auto")
STARTS = {"winner": 0.2, "loser": 0.7}


def trained(make_task: Any, who: str, epochs: int, algorithm: str = "stn", **more: Any) -> Trainer:
    trainer = Trainer(make_task(**more), algorithm=algorithm, seed=3, hp={"dropout": STARTS[who]})
    for _ in range(epochs):
        trainer.run_epoch()
    return trainer


def takes_over(loser: Trainer, winner: Trainer, *, branch: str = "1.0", widen: float = 1.0) -> Trainer:
    loser.take_over(winner.state_dict(), loser.state_dict(), cost=loser.meter.cost, branch=branch, widen=widen)
    return loser


def scales(trainer: Trainer) -> torch.Tensor:
    assert isinstance(trainer.model.hyper, Tunable)
    return trainer.model.hyper.scale().detach()


def losses(trainer: Trainer, epochs: int = 2) -> list[float]:
    return [trainer.run_epoch()["train_loss"] for _ in range(epochs)]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("network", ["mlp", "batch-norm"])
def test_everything_learned_is_the_winners(
    make_task: Any, network: str, algorithm: str, differences: Callable[[Trainer, Trainer], list[str]]
) -> None:
    winner, loser = (
        trained(make_task, who, epochs, algorithm, network=network) for who, epochs in (("winner", 3), ("loser", 2))
    )
    found = {path.split("/")[1] for path in differences(takes_over(loser, winner), winner)}
    assert "schedule" in found
    assert found <= set(OWN)
    assert (loser.epoch, loser.step) == (3, 9)
    assert loser.model.hyper.mean_values() == winner.model.hyper.mean_values()


def test_what_was_spent_and_the_schedule_stay_ones_own(make_task: Any) -> None:
    winner, loser = trained(make_task, "winner", 3), trained(make_task, "loser", 2)
    cost, seconds, steps = loser.meter.cost, loser.device_time_s, list(loser.schedule.steps)
    takes_over(loser, winner)
    assert loser.meter.cost == cost != winner.meter.cost
    assert loser.device_time_s == seconds
    assert loser.schedule.steps == [*steps, 9]
    assert loser.schedule.sources == ["start"] + ["stn"] * (len(steps) - 1) + ["exploit"]
    columns = loser.schedule.columns(loser.task.space, tuned=True)
    assert columns["value"][0] == pytest.approx(0.7)
    assert columns["value"][-3] == winner.model.hyper.mean_values()["dropout"]
    report = loser.run_epoch()
    assert report["epoch"] == 4
    assert report["cost"] == pytest.approx(cost + winner.meter.cost / 3, rel=0.2)


def test_cost_is_carried_over_to_another_network(make_task: Any) -> None:
    """Where a width is searched, too: the count is in epochs of the network at hand."""
    winner, loser = trained(make_task, "winner", 1, network="cnn"), Trainer(make_task("cnn"), algorithm="stn")
    own = trained(make_task, "loser", 2).state_dict()
    loser.take_over(winner.state_dict(), own, cost=4.25, branch="1.0", widen=1.0)
    assert loser.meter.cost == pytest.approx(4.25)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_winner_goes_on_as_if_nothing_had_been(make_task: Any, algorithm: str) -> None:
    winner, alone = trained(make_task, "winner", 2, algorithm), trained(make_task, "winner", 2, algorithm)
    losses(takes_over(trained(make_task, "loser", 2, algorithm), winner))
    assert losses(winner) == losses(alone)


def test_scales_are_widened_up_to_their_start(make_task: Any) -> None:
    winner = trained(make_task, "winner", 2, hyper_lr=0.3)
    before = scales(winner)
    assert not torch.equal(before, torch.full((3,), 0.5))
    loser = takes_over(trained(make_task, "loser", 1), winner, widen=1.5)
    torch.testing.assert_close(scales(loser), torch.maximum(before, (1.5 * before).clamp(max=0.5)))
    assert loser.schedule.scale[-1].tolist() == scales(loser).tolist()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_two_that_take_over_the_same_state_go_ways_of_their_own(make_task: Any, algorithm: str) -> None:
    winner = trained(make_task, "winner", 2, algorithm)
    children = [
        takes_over(trained(make_task, "loser", 2, algorithm), winner, branch=name) for name in ("1.0", "1.1", "1.0")
    ]
    first, second, again = (losses(child) for child in children)
    assert len({first[0], second[0], losses(winner)[0]}) == 3
    assert first == again


def test_data_order_is_the_branchs_too(make_task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    orders: list[list[list[int]]] = []
    trainers = [trained(make_task, "winner", 0) for _ in range(4)]
    for name in ("epoch_batches", "cycled_batches"):
        plain = getattr(splits, name)

        def noted(*arguments: Any, plain: Any = plain, **options: Any) -> Iterator[torch.Tensor]:
            seen = orders[-1]
            for indices in plain(*arguments, **options):
                seen.append(indices.tolist())
                yield indices

        monkeypatch.setattr(splits, name, noted)
    for trainer, branch in zip(trainers, ("", "1.0", "1.1", "1.0"), strict=True):
        trainer.branch = branch
        orders.append([])
        trainer.run_epoch()
    plain, one, other, again = orders
    assert one == again
    assert all(a != b for a, b in zip(plain + one, one + other, strict=True))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_resumed_bit_for_bit_after_a_take_over(
    make_task: Any, tmp_path: Any, algorithm: str, differences: Callable[[Trainer, Trainer], list[str]]
) -> None:
    loser, winner = (trained(make_task, who, 2, algorithm) for who in ("loser", "winner"))
    child = takes_over(loser, winner, widen=2.0)
    child.run_epoch()
    save_state(child.state_dict(), tmp_path / "state.pt")
    again = trained(make_task, "winner", 0, algorithm)  # the config that a loser is given
    again.load_state_dict(load_state(tmp_path / "state.pt"))
    assert losses(again) == losses(child)
    assert {path.split("/")[1] for path in differences(again, child)} <= {"hp"}


def test_a_run_that_tunes_nothing_cannot(make_task: Any) -> None:
    fixed = Trainer(make_task(), algorithm="fixed")
    with pytest.raises(ValueError, match="a run of 'fixed' cannot take over"):
        fixed.take_over(fixed.state_dict(), fixed.state_dict(), cost=1.0, branch="1.0", widen=2.0)
