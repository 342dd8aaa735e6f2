"""`auto` without a hyper-step."""

from __future__ import annotations

from typing import Any

from tune_stn.methods import get_method
from tune_stn.tasks import get_task
from tune_stn.training import Trainer


def test_one_trial_of_auto_at_the_start_values(make_context: Any, draw: Any) -> None:
    method = get_method("frozen")
    plan = method.plan(make_context())
    assert method.algorithm == get_method("auto").algorithm
    assert plan.samples == 1
    assert draw(plan, 3) == [dict(get_task("digits-mlp").start)]
    assert method.plan(make_context(trials=5)).samples == 1  # another one would be the same


def test_no_hyper_step_ever_happens(make_context: Any) -> None:
    task = get_task("digits-mlp", epochs=12, train_images=100, hidden=16, warmup_epochs=0, train_steps=1)
    config = get_method("frozen").plan(make_context(task=task)).config
    losses = {}
    for name, settings in (("auto", {}), ("frozen", config)):
        trainer = Trainer(get_task(task, **settings), algorithm=get_method(name).algorithm, seed=1)
        losses[name] = [trainer.run_epoch() for _ in range(12)][-1]["val_loss"]
        assert (len(trainer.schedule.steps) > 1) == (name == "auto")
    assert losses["frozen"] != losses["auto"]
