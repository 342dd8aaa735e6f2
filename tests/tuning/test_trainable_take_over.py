"""Taking over from another trial, as the population's scheduler told it: by `STNTrainable`, from checkpoints."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pyarrow.parquet as pq
import pytest
import torch
from ray import tune

from tune_stn.training import CheckpointError
from tune_stn.tuning.trainable import POPULATION, SCHEDULE_FILE, STNTrainable

CONFIG = {"task": "digits-mlp", "seed": 3, "epochs": 8, "warmup_epochs": 0, "train_images": 100, "hidden": 16}
MEASURED = ("device_time_s", "device_time_increment_s", "peak_memory_bytes")


class Named(STNTrainable):
    """A trial with a name, which Tune gives to those that it starts."""

    trial_id = "loser"


def trial(name: str, *, told: Mapping[str, Any] | None = None, **more: Any) -> STNTrainable:
    made = type("Trial", (Named,), {"trial_id": name})(CONFIG | ({POPULATION: told} if told else {}) | more)
    return cast(STNTrainable, made)


def told(number: int = 1, winner: str = "winner", checkpoint: str = "checkpoint_000001", widen: float = 2.0) -> Any:
    """What a comparison came to: one loser takes over from one winner."""
    exploit = {"trial_id": winner, "checkpoint": f"{winner}/{checkpoint}", "branch": f"{number}.0", "widen": widen}
    return {"round": number, "stopped": [], "exploits": {"loser": exploit}}


def steps(one: STNTrainable, epochs: int) -> list[dict[str, Any]]:
    """Reports without their times."""
    return [{k: v for k, v in one.step().items() if k not in MEASURED} for _ in range(epochs)]


def save(one: STNTrainable, folder: Path, number: int) -> tune.Checkpoint:
    folder = folder / one.trial_id / f"checkpoint_{number:06d}"
    folder.mkdir(parents=True)
    one.save_checkpoint(str(folder))
    return tune.Checkpoint(str(folder))


@pytest.fixture
def saved(tmp_path: Path) -> dict[str, Any]:
    """A winner after three epochs and a loser after two, from other start values, and the checkpoints they saved."""
    winner, loser = trial("winner", hp={"dropout_1": 0.1}), trial("loser", hp={"dropout_1": 0.8}, lr=0.01)
    losses = [report["best_val_loss"] for report in steps(loser, 2)]
    steps(winner, 3)
    checkpoints = {"winner": save(winner, tmp_path, 1), "loser": save(loser, tmp_path, 0)}
    return {"winner": winner, "loser": loser, "best": losses[-1], "checkpoints": checkpoints}


def taken_over(saved: dict[str, Any], **more: Any) -> STNTrainable:
    child = trial("loser", told=told(**more), hp={"dropout_1": 0.1})  # the winner's config
    child.restore(saved["checkpoints"]["loser"])
    return child


def test_a_trial_that_is_told_to_takes_over(saved: dict[str, Any], tmp_path: Path) -> None:
    child, winner, loser = taken_over(saved), saved["winner"].trainer, saved["loser"].trainer
    for name, value in winner.model.network.state_dict().items():
        assert torch.equal(child.trainer.model.get_parameter(f"network.{name}").detach(), value)
    assert torch.equal(child.trainer.model.hyper.raw, winner.model.hyper.raw)
    scale = winner.model.hyper.scale()
    assert torch.equal(child.trainer.model.hyper.scale() > scale, scale < 0.5)
    (report,) = steps(child, 1)
    assert (report["epoch"], report["parent_trial_id"], report["segment"]) == (4, "winner", "1.0")
    assert report["cost"] == pytest.approx(loser.meter.cost + report["cost_increment"])
    assert report["best_val_loss"] == min(saved["best"], report["val_loss"])
    frame = pq.read_table(Path(save(child, tmp_path, 9).path) / SCHEDULE_FILE).to_pandas()
    sources = frame[frame["hp"] == "dropout_1"]["source"].tolist()
    own = ["start"] + ["stn"] * (len(loser.schedule.steps) - 1)
    assert sources == [*own, "exploit"] + ["stn"] * (len(sources) - len(own) - 1)
    assert frame["value"][1] == pytest.approx(0.8)
    assert child.trainer.stepper.optimizers["base"].param_groups[0]["lr"] == 0.1  # of the winner, not its own 0.01


def test_it_is_done_once(saved: dict[str, Any], tmp_path: Path) -> None:
    """After a failure the trial goes on where it was; only the next comparison can tell it to take over again."""
    child = taken_over(saved)
    steps(child, 1)
    checkpoint = save(child, tmp_path, 1)
    expected = steps(child, 2)
    for number in (1, 0):
        again = trial("loser", told=told(number), hp={"dropout_1": 0.1})
        again.restore(checkpoint)
        assert again.trainer.epoch == 4
        assert steps(again, 2) == expected
    twice = trial("loser", told=told(2), hp={"dropout_1": 0.1})
    twice.restore(checkpoint)
    assert (twice.trainer.epoch, twice.segment) == (3, "2.0")
    assert twice.trainer.schedule.sources.count("exploit") == 2
    assert twice.trainer.meter.cost == pytest.approx(expected[0]["cost"] - expected[0]["cost_increment"])


def test_it_is_done_again_where_it_was_not_saved_and_comes_out_the_same(saved: dict[str, Any]) -> None:
    assert steps(taken_over(saved), 3) == steps(taken_over(saved), 3)


def test_a_clone_goes_a_way_of_its_own(saved: dict[str, Any]) -> None:
    """Even where nothing is widened; and so do two losers that take over the same state."""
    ways = [taken_over(saved, widen=1.0), taken_over(saved, widen=1.0, number=2), saved["winner"]]
    assert len({steps(one, 1)[0]["val_loss"] for one in ways}) == 3


def test_others_are_not_concerned(saved: dict[str, Any]) -> None:
    winner = trial("winner", told=told(), hp={"dropout_1": 0.1})
    winner.restore(saved["checkpoints"]["winner"])
    assert steps(winner, 2) == steps(saved["winner"], 2)
    assert winner.parent_trial_id == ""


def test_a_winners_checkpoint_that_is_gone_is_replaced_by_its_newest(saved: dict[str, Any], tmp_path: Path) -> None:
    steps(saved["winner"], 1)
    save(saved["winner"], tmp_path, 2)
    shutil.rmtree(saved["checkpoints"]["winner"].path)
    assert taken_over(saved).trainer.epoch == 4
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*nobody"):
        taken_over(saved, winner="nobody")
