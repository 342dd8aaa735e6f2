"""The population's scheduler: who is compared with whom, at what cost, and that nothing else decides."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import PurePosixPath
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tune_stn.tuning.scheduler import STNScheduler, _record, exploits
from tune_stn.tuning.trainable import POPULATION

losses = st.dictionaries(
    st.text("abcdefgh", min_size=1, max_size=3),
    st.one_of(st.floats(0, 10), st.sampled_from([math.inf, math.nan, -math.inf])),
    max_size=12,
)

# A stand-in for Tune and its trials ----------------------------------------------------------------------------------


class Member:
    """A trial as Tune shows it to a scheduler, and its training: a number that noise and its start decide."""

    def __init__(self, number: int, prefix: str, *, epoch_cost: float = 2.0) -> None:
        self.trial_id = f"{prefix}_{number:05d}"
        self.number, self.epoch_cost = number, epoch_cost
        self.config: dict[str, Any] = {"task": "digits-mlp", "start": number}
        self.status = "PENDING"
        self.saved: list[dict[str, Any]] = []
        self.last_result: dict[str, Any] = {}
        self.heard: dict[tuple[str, int], tuple[float, float]] = {}
        self.fresh()

    def fresh(self) -> None:
        self.state: dict[str, Any] = {"epoch": 0, "cost": 0.0, "x": float(self.config["start"]), "exploited": 0}
        self.state |= {"segment": "", "parent": ""}

    has_reported_at_least_once = property(lambda self: bool(self.last_result))

    def set_config(self, config: dict[str, Any]) -> None:
        self.config = config

    def is_finished(self) -> bool:
        return self.status in ("TERMINATED", "ERROR")

    @property
    def latest_checkpoint_result(self) -> Any:
        return SimpleNamespace(metrics=self.saved[-1]["metrics"]) if self.saved else None

    @property
    def checkpoint(self) -> Any:
        return SimpleNamespace(path=f"/storage/run/{self.trial_id}/checkpoint_{len(self.saved) - 1:06d}")

    def save(self) -> None:
        self.saved.append({"metrics": self.last_result, "state": dict(self.state)})

    def load(self, trials: dict[str, Member]) -> None:
        """As `STNTrainable` does it: from the newest checkpoint, or as told from that of another trial."""
        if not self.saved:
            self.fresh()
            return
        self.state = dict(self.saved[-1]["state"])
        population = self.config[POPULATION]
        exploit = population["exploits"].get(self.trial_id)
        if exploit and self.state["exploited"] < population["round"]:
            folder, name = PurePosixPath(exploit["checkpoint"]).parts
            assert folder == exploit["trial_id"] != self.trial_id
            winner = trials[folder].saved[int(name.removeprefix("checkpoint_"))]["state"]
            self.state |= {key: winner[key] for key in ("epoch", "x")}
            self.state |= {"exploited": population["round"], "segment": exploit["branch"], "parent": folder}

    def train(self) -> dict[str, Any]:
        state = self.state
        origin = state["segment"] or self.config["start"]
        noise = random.Random(f"{origin}/{state['epoch']}").random()
        state |= {"epoch": state["epoch"] + 1, "cost": state["cost"] + self.epoch_cost, "x": 0.9 * state["x"] + noise}
        self.last_result = {"cost": state["cost"], "epoch": state["epoch"], "val_loss": state["x"]}
        self.last_result["config"] = self.config
        heard = self.heard.setdefault((state["segment"], state["epoch"]), (state["x"], state["cost"]))
        assert heard == (state["x"], state["cost"])  # what is repeated after a failure is the same
        return dict(self.last_result)


class Controller:
    """The part of Tune's controller that starts, pauses and ends trials, with an order of events of its own."""

    def __init__(self, members: list[Member], scheduler: STNScheduler, *, slots: int, epochs: int, seed: int) -> None:
        self.trials, self.scheduler, self.slots, self.epochs = members, scheduler, slots, epochs
        self.random = random.Random(seed)
        self.enrol()

    def enrol(self) -> None:
        self.scheduler.set_search_properties(None, None)
        for number in range(len(self.trials)):
            self.scheduler.on_trial_add(
                SimpleNamespace(get_trials=lambda n=number: self.trials[: n + 1]), self.trials[number]
            )

    def get_trials(self) -> list[Member]:
        return self.trials

    def stop_trial(self, trial: Member) -> None:
        assert trial.status in ("PENDING", "PAUSED")
        self.scheduler.on_trial_remove(self, trial)
        trial.status = "TERMINATED"

    def _set_trial_status(self, trial: Member, status: str) -> None:
        trial.status = status

    def running(self) -> list[Member]:
        return [trial for trial in self.trials if trial.status == "RUNNING"]

    def start(self, trial: Member) -> None:
        if len(self.running()) < self.slots:
            trial.load({trial.trial_id: trial for trial in self.trials})
            trial.status = "RUNNING"

    def fail(self, trial: Member) -> None:
        """Its process dies; Tune tells the scheduler of it and queues it again, at the end."""
        trial.status = "PENDING"
        self.scheduler.on_trial_error(self, trial)
        self.trials.remove(trial)
        self.trials.append(trial)
        self.scheduler.on_trial_add(self, trial)

    def restore(self, scheduler: STNScheduler) -> None:
        """The driver dies; another one finds the trials, each at its newest checkpoint, in any order."""
        self.scheduler = scheduler
        for trial in self.trials:
            trial.status = trial.status if trial.is_finished() else "PENDING"
        self.random.shuffle(self.trials)
        self.enrol()

    def step(self) -> None:
        chosen = self.scheduler.choose_trial_to_run(self)
        assert self.scheduler.choose_trial_to_run(self) is chosen
        if chosen is not None:
            assert chosen.status in ("PENDING", "PAUSED")
            self.start(chosen)
        for trial in list(self.trials):
            if trial.status == "PENDING":
                self.start(trial)
        running = self.running()
        assert running, "nobody runs, and nobody is chosen"
        trial = self.random.choice(running)
        result = trial.train()
        if trial.state["epoch"] >= self.epochs or not math.isfinite(result["val_loss"]):
            trial.save()
            trial.status = "TERMINATED"
            self.scheduler.on_trial_complete(self, trial, result)
        elif self.scheduler.on_trial_result(self, trial, result) == "PAUSE":
            trial.save()
            trial.status = "PAUSED"

    def run(self, steps: int | None = None) -> Controller:
        while any(not trial.is_finished() for trial in self.trials) and steps != 0:
            self.step()
            steps = None if steps is None else steps - 1
        return self

    def outcome(self) -> list[dict[str, Any]]:
        """What every trial reported, under numbers instead of names."""
        number = {trial.trial_id: trial.number for trial in self.trials} | {"": None}
        trials = sorted(self.trials, key=lambda trial: trial.number)
        return [{"heard": trial.heard, "parent": number[trial.state["parent"]]} for trial in trials]


def population(
    size: int,
    *,
    slots: int = 2,
    length: int = 10,
    seed: int = 0,
    prefix: str = "a",
    costs: Sequence[float] = (2.0,),
    **more: Any,
) -> Controller:
    """Members of `length` epochs, which cost 2, compared each 4."""
    members = [Member(number, prefix, epoch_cost=costs[number % len(costs)]) for number in range(size)]
    return Controller(members, STNScheduler(**{"interval": 4.0, **more}), slots=slots, epochs=length, seed=seed)


# Who takes over from whom --------------------------------------------------------------------------------------------


def test_truncation_selection() -> None:
    eight = {name: float(loss) for loss, name in enumerate("abcdefgh")}
    assert exploits(eight, 0.25) == {"h": "a", "g": "b"}
    assert exploits(eight, 0.01) == {"h": "a"}
    assert exploits(eight, 0.5) == {"h": "a", "g": "b", "f": "c", "e": "d"}
    assert exploits({"a": 2.0, "b": 1.0, "c": 3.0}, 0.5) == {"c": "b"}
    assert exploits({"a": 2.0, "b": 1.0}, 0.25) == {"a": "b"}
    assert exploits({"a": 2.0}, 0.5) == exploits({}, 0.5) == {}


def test_those_without_a_finite_loss_lose_whatever_their_number() -> None:
    assert exploits({"a": math.nan, "b": math.inf, "c": 1.0, "d": 2.0, "e": -math.inf}, 0.25) == {
        "e": "c",
        "b": "d",
        "a": "c",
    }
    assert exploits({"a": math.inf, "b": math.nan}, 0.25) == {}
    assert exploits({"a": math.inf}, 0.25) == {}


@given(losses, st.floats(0.01, 0.5))
def test_nobody_takes_over_from_himself_a_loser_or_one_that_diverged(given: dict[str, float], fraction: float) -> None:
    pairs = exploits(given, fraction)
    assert not set(pairs) & set(pairs.values())
    assert all(math.isfinite(given[winner]) for winner in pairs.values())
    for loser, winner in pairs.items():
        assert not math.isfinite(given[loser]) or given[loser] >= given[winner]
    finite = [name for name in given if math.isfinite(given[name])]
    if finite:
        assert set(given) - set(finite) <= set(pairs)
        assert len(set(pairs) & set(finite)) <= len(given) / 2
        assert min(finite, key=given.__getitem__) not in pairs


# When ----------------------------------------------------------------------------------------------------------------


def records(controller: Controller) -> list[int]:
    return [trial.config[POPULATION]["round"] for trial in controller.trials]


def test_members_wait_at_a_milestone_until_all_have_come() -> None:
    """Two epochs of cost 2 to the first; with one slot for three."""
    controller = population(3, slots=1)
    controller.run(steps=4)
    assert [trial.status for trial in controller.trials] == ["PAUSED", "PAUSED", "PENDING"]
    assert records(controller) == [0, 0, 0]
    controller.run(steps=2)
    assert [trial.state["epoch"] for trial in controller.trials] == [2, 2, 2]
    controller.run(steps=1)
    assert records(controller) == [1, 1, 1]


def test_losses_are_compared_at_equal_cost_not_the_latest_ones() -> None:
    """A dear member has trained for fewer epochs when it is compared."""
    seen: list[dict[str, float]] = []

    class Noted(STNScheduler):
        def _compare(self, trials: Any, before: Any) -> dict[str, Any]:
            seen.append({trial.trial_id: trial.last_result["cost"] for trial in trials if not trial.is_finished()})
            return super()._compare(trials, before)

    members = [Member(number, "a", epoch_cost=cost) for number, cost in enumerate((1.0, 2.0, 3.0))]
    Controller(members, Noted(interval=6.0), slots=3, epochs=8, seed=1).run()
    assert seen[0] == {"a_00000": 6.0, "a_00001": 6.0, "a_00002": 6.0}
    assert all(max(costs.values()) - min(costs.values()) < 3.0 for costs in seen)
    assert len(seen) >= 2


def test_a_member_a_milestone_ahead_is_not_compared_with_the_others() -> None:
    controller = population(3, slots=3, quantile_fraction=0.5)
    for trial, cost in zip(controller.trials, (4.0, 5.0, 8.0), strict=True):
        trial.status = "PAUSED"
        trial.last_result = {"cost": cost, "epoch": 2, "val_loss": cost}
        trial.save()
    assert controller.scheduler.choose_trial_to_run(controller) is controller.trials[0]
    assert list(controller.trials[0].config[POPULATION]["exploits"]) == ["a_00001"]
    assert controller.scheduler._waits(controller.trials[2], controller.trials[2].config[POPULATION])


def test_no_comparison_in_the_grace_period() -> None:
    controller = population(2, grace_period=9.0).run()
    assert [trial.saved[0]["metrics"]["cost"] for trial in controller.trials] == [
        12.0,
        12.0,
    ]  # the first milestone after it


def test_a_last_member_does_not_wait() -> None:
    controller = population(1, length=20)
    controller.run()
    assert len(controller.trials[0].saved) == 1  # at its end
    assert records(controller) == [0]


def test_maximising_turns_the_order() -> None:
    for mode, loser in (("min", "a_00003"), ("max", "a_00000")):
        controller = population(4, slots=4, metric="accuracy", mode=mode)
        for number, trial in enumerate(controller.trials):
            trial.status = "PAUSED"
            trial.last_result = {"cost": 4.0, "epoch": 2, "accuracy": number / 4}
            trial.save()
        controller.scheduler.choose_trial_to_run(controller)
        assert list(controller.trials[0].config[POPULATION]["exploits"]) == [loser]


def test_stopped_losers_leave_one_at_a_time() -> None:
    controller = population(4, slots=2, length=12, on_loss="stop").run()
    epochs = sorted(trial.state["epoch"] for trial in controller.trials)
    assert epochs == [2, 4, 6, 12]
    best = max(controller.trials, key=lambda trial: trial.state["epoch"])
    assert all(not trial.state["parent"] for trial in controller.trials)
    first = {trial: trial.heard["", 2][0] for trial in controller.trials}
    assert (
        min(controller.trials, key=lambda trial: trial.state["epoch"]) is max(first, key=first.__getitem__) is not best
    )


@pytest.mark.parametrize(("budget", "whole"), [(1e9, 8), (100.0, 3), (60.0, 1)])
def test_losers_are_stopped_while_the_budget_does_not_last_to_the_end(budget: float, whole: int) -> None:
    """Ten epochs of cost 2 for each of eight: 160. Afterwards losers take over again."""
    controller = population(8, slots=3, interval=2.0, budget=budget, epochs=10).run()
    assert sum(trial.state["epoch"] == 10 for trial in controller.trials) >= whole
    assert sum(trial.state["cost"] for trial in controller.trials) <= budget
    assert any(trial.state["parent"] for trial in controller.trials) == (whole > 1)


# What nothing else decides -------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 7),
    slots=st.integers(1, 7),
    seed=st.integers(0, 9999),
    on_loss=st.sampled_from(["restart", "stop"]),
)
def test_the_outcome_depends_on_neither_slots_nor_timing_nor_names(
    size: int, slots: int, seed: int, on_loss: str
) -> None:
    costs = (2.0, 2.5)
    expected = population(size, slots=1, costs=costs, on_loss=on_loss).run().outcome()
    found = population(size, slots=slots, seed=seed, prefix=f"{seed:x}", costs=costs, on_loss=on_loss).run()
    assert found.outcome() == expected
    if size > 2 and on_loss == "restart":
        assert any(part["parent"] is not None for part in expected)


@settings(max_examples=60, deadline=None)
@given(
    accidents=st.lists(st.tuples(st.integers(1, 15), st.sampled_from(["fail", "restore", "both"])), max_size=4),
    slots=st.integers(1, 4),
    seed=st.integers(0, 9999),
    on_loss=st.sampled_from(["restart", "stop"]),
)
def test_neither_failures_nor_a_restore_change_the_outcome(
    accidents: list[tuple[int, str]], slots: int, seed: int, on_loss: str
) -> None:
    """What is told to a trial is neither lost nor done twice, and what a scheduler was told is in the trials."""
    expected = population(5, slots=1, on_loss=on_loss).run().outcome()
    controller = population(5, slots=slots, seed=seed, on_loss=on_loss)
    for steps, kind in accidents:
        controller.run(steps=steps)
        if kind != "restore" and controller.running():
            controller.fail(controller.random.choice(controller.running()))
        if kind != "fail":
            controller.restore(STNScheduler(interval=4.0, on_loss=on_loss))
    assert controller.run().outcome() == expected


@pytest.mark.parametrize("on_loss", ["restart", "stop"])
@pytest.mark.parametrize("known", range(5))
def test_a_restore_from_a_state_that_is_behind_for_some_trials(on_loss: str, known: int) -> None:
    """Tune saves a trial's config when it next starts the trial: the others come back with the one before."""
    expected = population(5, slots=1, on_loss=on_loss).run().outcome()
    controller = population(5, slots=1, on_loss=on_loss)
    while records(controller)[0] < 2:
        before = [dict(trial.config) for trial in controller.trials]
        statuses = [trial.status for trial in controller.trials]
        controller.step()
    for index, trial in enumerate(controller.trials):
        if index != known and trial.status != "RUNNING":
            trial.config, trial.status = before[index], statuses[index]
    controller.restore(STNScheduler(interval=4.0, on_loss=on_loss))  # type: ignore[arg-type]
    assert controller.run().outcome() == expected


def test_a_stopped_trial_that_tune_brings_back_is_stopped_again() -> None:
    """Tune does not save that a paused trial was stopped, so that it may come back many comparisons later."""
    expected = population(5, slots=2, on_loss="stop").run().outcome()
    controller = population(5, slots=2, on_loss="stop")
    configs = {trial.trial_id: trial.config for trial in controller.trials}
    while sum(trial.status == "TERMINATED" for trial in controller.trials) < 3:
        controller.step()
    for trial in controller.trials:
        if trial.is_finished():
            trial.config, trial.status = configs[trial.trial_id], "PAUSED"
    controller.restore(STNScheduler(interval=4.0, on_loss="stop"))
    assert controller.run().outcome() == expected


def test_configs_that_tune_takes_back_are_those_of_the_reports() -> None:
    """Where a config holds an object, Tune restores the trial's first one."""
    expected = population(5, slots=2).run().outcome()
    controller = population(5, slots=2)
    while len({*records(controller)}) > 1 or records(controller)[0] < 2 or len(controller.running()) < 2:
        controller.step()
    for trial in controller.trials:
        trial.config = {"task": "digits-mlp", "start": trial.number}
    controller.restore(STNScheduler(interval=4.0))
    assert controller.run().outcome() == expected


@pytest.mark.parametrize("seed", range(8))
def test_a_restore_before_all_have_reported_since_a_comparison(seed: int) -> None:
    """Tune brings back first who reported last: the others must not take its place in the comparisons for theirs."""
    expected = population(5, slots=1).run().outcome()
    controller = population(5, slots=1)
    while len({_record(trial.last_result.get("config", {}))["round"] for trial in controller.trials}) < 2:
        controller.step()
    for trial in controller.trials:
        trial.config = {"task": "digits-mlp", "start": trial.number}
    controller.random = random.Random(seed)
    controller.restore(STNScheduler(interval=4.0))
    assert controller.run().outcome() == expected


def test_enrolling_again_changes_nothing() -> None:
    controller = population(3)
    configs = [trial.config for trial in controller.trials]
    controller.enrol()
    assert all(trial.config is before for trial, before in zip(controller.trials, configs, strict=True))


def test_a_member_that_is_added_later_joins_where_the_others_are() -> None:
    controller = population(2, length=12)
    while records(controller) != [2, 2]:
        controller.step()
    late = Member(2, "a")
    controller.trials.append(late)
    controller.scheduler.on_trial_add(controller, late)
    assert records(controller) == [2, 2, 2]
    while records(controller) == [2, 2, 2]:
        controller.step()
    assert late.last_result["cost"] == 12.0  # and the others waited for it there
    assert records(controller) == [3, 3, 3]


def test_a_member_that_diverges_ends_and_nobody_waits_for_it_or_takes_over_from_it() -> None:
    controller = population(4, slots=2)
    train = controller.trials[0].train

    def diverging() -> dict[str, Any]:
        result = train()
        return {**result, "val_loss": math.inf} if result["epoch"] == 3 else result

    controller.trials[0].train = diverging  # type: ignore[method-assign]
    controller.run()
    assert controller.trials[0].state["epoch"] == 3
    assert all(trial.state["epoch"] == 10 for trial in controller.trials[1:])
    late = [trial.state["parent"] for trial in controller.trials[1:] if trial.state["parent"]]
    assert late
    assert "a_00000" not in late


def test_losers_get_streams_of_their_own() -> None:
    controller = population(6, slots=6, quantile_fraction=0.5)
    while not controller.trials[0].config[POPULATION]["exploits"]:
        controller.step()
    branches = [exploit["branch"] for exploit in controller.trials[0].config[POPULATION]["exploits"].values()]
    assert branches == ["1.0", "1.1", "1.2"]


def test_a_loser_takes_the_settings_of_the_winner() -> None:
    """Or its weights would not fit where the width is searched, too."""
    controller = population(4, slots=2)
    while records(controller)[0] < 1:
        controller.step()
    ((loser, exploit),) = controller.trials[0].config[POPULATION]["exploits"].items()
    by_name = {trial.trial_id: trial for trial in controller.trials}
    assert by_name[loser].config == by_name[exploit["trial_id"]].config
    assert by_name[loser].config["start"] == by_name[exploit["trial_id"]].number
    assert exploit["checkpoint"] == f"{exploit['trial_id']}/checkpoint_000000"
    assert exploit["widen"] == 2.0


# Refused -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"interval": 0}, "interval=0: accepted is a finite number above 0"),
        ({"interval": math.inf}, "interval=inf"),
        ({"grace_period": -1}, "grace_period=-1"),
        ({"quantile_fraction": 0.6}, "quantile_fraction=0.6: accepted is a number above 0, at most 0.5"),
        ({"quantile_fraction": 0}, "quantile_fraction=0"),
        ({"on_loss": "kill"}, "on_loss='kill': accepted are 'restart' and 'stop'"),
        ({"widen": 0.5}, "widen=0.5"),
        ({"mode": "least"}, "mode='least'"),
        ({"budget": 10.0}, "budget=10.0 with epochs=None: give both, or neither"),
    ],
)
def test_wrong_settings_are_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        STNScheduler(**setting)


def test_trials_that_tune_nothing_can_be_stopped_but_not_restarted() -> None:
    member = Member(0, "a")
    member.config["algorithm"] = "fixed"
    controller = SimpleNamespace(get_trials=lambda: [member])
    with pytest.raises(ValueError, match="algorithm 'fixed' tunes none: use on_loss='stop'"):
        STNScheduler().on_trial_add(controller, member)
    STNScheduler(on_loss="stop").on_trial_add(controller, member)


def test_a_report_without_a_cost_is_named() -> None:
    controller = population(1)
    with pytest.raises(ValueError, match=r"a report has no 'cost' \(time_attr\): it has epoch, loss"):
        controller.scheduler.on_trial_result(controller, controller.trials[0], {"epoch": 1, "loss": 2})


def test_metric_and_mode_are_given_once() -> None:
    assert not STNScheduler(metric="loss").set_search_properties("val_loss", None)
    assert not STNScheduler(mode="min").set_search_properties(None, "max")
    scheduler = STNScheduler()
    assert scheduler.set_search_properties(None, None)
    assert (scheduler.metric, scheduler._mode) == ("val_loss", "min")
    assert STNScheduler(metric="loss").set_search_properties(None, "max")
