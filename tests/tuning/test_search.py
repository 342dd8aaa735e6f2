"""The searcher: which trials it starts from, what the inner searcher sees, what survives a restore."""

from __future__ import annotations

import base64
import json
import math
import pickle
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from ray import tune
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter, Repeater, Searcher
from ray.tune.search.optuna import OptunaSearch

from tune_stn.study.trust import trust
from tune_stn.tasks import get_task
from tune_stn.tuning.cluster import Cluster
from tune_stn.tuning.search import STNSearch
from tune_stn.tuning.signature import NoKey, NotSealed
from tune_stn.tuning.trainable import STNTrainable

# One hyperparameter whose raw coordinate is its value: a draw near 50 comes from the trial that ended at 50.
LINE = {"hp": {"a": tune.randn()}}


class Inner(Searcher):
    """Notes what it hears and says what it is told to say."""

    def __init__(self, *answers: Any, bound: bool = False) -> None:
        super().__init__()
        self.answers = list(answers)
        self.bound = bound
        self.heard: list[Any] = []

    def set_search_properties(self, metric: Any, mode: Any, config: dict[str, Any], **spec: Any) -> bool:
        self.heard.append(("space", metric, mode, config))
        return not self.bound

    def suggest(self, trial_id: str) -> Any:
        self.heard.append(("suggest", trial_id))
        return self.answers.pop(0)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self.heard.append(("result", trial_id, result))

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        self.heard.append(("complete", trial_id, result, error))

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).write_text(json.dumps(self.answers))

    def restore(self, checkpoint_path: str) -> None:
        self.answers = json.loads(Path(checkpoint_path).read_text())


def searcher(config: dict[str, Any] = LINE, inner: Searcher | None = None, **more: Any) -> STNSearch:
    """On a line, from 0, without exploring."""
    search = STNSearch(inner, **({"seed": 0, "explore": 0.0, "start": {"a": 0.0}} | more))
    assert search.set_search_properties("val_loss", "min", config)
    return search


def report(loss: float, a: float = 0.0, **more: Any) -> dict[str, Any]:
    return {"val_loss": loss, "hp/a": a, "scale/a": 0.01, **more}


def next_near(search: STNSearch, a: float, trial_id: str = "next") -> bool:
    return abs(search.suggest(trial_id)["hp"]["a"] - a) < 1.0


def test_the_first_trial_has_the_tasks_start_values_and_later_ones_differ() -> None:
    task = get_task("digits-mlp")
    search = STNSearch(metric="val_loss", mode="min", seed=0)
    hp = task.space.to_tune() | {"dropout_1": tune.uniform(0.2, 0.5), "input_scale": 0.3}
    config = {"task": "digits-mlp", "algorithm": "stn", "seed": 2, "hidden": 32, "hp": hp}
    assert search.set_search_properties(None, None, config)
    first = search.suggest("one")
    # The nearest member of a narrower domain; nothing for a constant.
    wanted = {name: value for name, value in task.start.items() if name != "input_scale"} | {"dropout_1": 0.2}
    assert first == {"hp": wanted}
    assert search.suggest("two")["hp"].keys() == wanted.keys()


def test_a_restart_begins_where_the_best_report_was_not_the_last() -> None:
    search = searcher()
    assert search.suggest("one") == {"hp": {"a": 0.0}}
    for loss, a in ((0.5, 10.0), (0.1, 50.0), (0.3, 80.0)):
        search.on_trial_result("one", report(loss, a))
    search.on_trial_complete("one", report(0.4, 90.0))
    assert next_near(search, 50.0)


def test_a_report_that_came_with_the_end_counts() -> None:
    """As after a scheduler's STOP, which `on_trial_result` is not told of."""
    search = searcher()
    search.suggest("one")
    search.on_trial_result("one", report(0.5, 10.0))
    search.on_trial_complete("one", report(0.2, 50.0))
    assert next_near(search, 50.0)


def test_running_trials_count_while_none_has_ended() -> None:
    search = searcher()
    search.suggest("one")
    search.suggest("two")
    search.on_trial_result("one", report(0.1, 50.0))
    assert next_near(search, 50.0)
    search.on_trial_complete("two", report(0.9, 20.0))  # worse, but over
    assert next_near(search, 20.0, "fourth")


@pytest.mark.parametrize(
    ("result", "error"),
    [
        (report(0.05, 90.0, status="diverged"), False),
        (report(math.inf, 90.0), False),
        (report(math.nan, 90.0), False),
        (None, True),
        (report(0.05, 90.0), True),
    ],
)
def test_a_trial_that_diverged_or_failed_is_no_centre(result: Any, error: bool) -> None:
    search = searcher()
    for trial_id in ("one", "two"):
        search.suggest(trial_id)
    search.on_trial_result("two", report(0.01, 90.0))
    search.on_trial_complete("two", result, error=error)
    search.on_trial_complete("one", report(0.5, 30.0))
    assert all(next_near(search, 30.0, str(number)) for number in range(10))


def test_a_running_trial_is_preferred_to_a_failed_one() -> None:
    search = searcher()
    for trial_id in ("one", "two"):
        search.suggest(trial_id)
    search.on_trial_complete("two", report(math.inf))
    search.on_trial_result("one", report(0.5, 30.0))
    assert next_near(search, 30.0)


def test_the_largest_wins_where_the_mode_says_so() -> None:
    search = STNSearch(metric="accuracy", mode="max", seed=0, explore=0.0, start={"a": 0.0})
    search.set_search_properties(None, None, LINE)
    search.suggest("one")
    for accuracy, a in ((0.5, 10.0), (0.9, 50.0), (0.7, 80.0)):
        search.on_trial_result("one", {"accuracy": accuracy, "hp/a": a})
    assert next_near(search, 50.0)


def test_a_trial_that_reports_no_hyperparameters_counts_with_its_start() -> None:
    search = searcher(start={"a": 70.0})
    search.suggest("one")
    search.on_trial_complete("one", {"val_loss": 0.1})
    assert next_near(search, 70.0)


def test_before_the_first_report_suggestions_are_drawn_from_the_domains() -> None:
    search = searcher({"hp": {"a": tune.uniform(0, 1)}})
    assert search.suggest("0")["hp"]["a"] == 0.0
    draws = [search.suggest(str(number))["hp"]["a"] for number in range(1, 200)]
    assert 0 <= min(draws) < 0.05 < 0.95 < max(draws) <= 1


@pytest.mark.parametrize("explore", [0.0, 0.25, 1.0])
def test_the_share_of_suggestions_that_explore(explore: float) -> None:
    search = searcher(explore=explore)
    search.suggest("one")
    search.on_trial_complete("one", report(0.1, 50.0))
    near = [next_near(search, 50.0, str(number)) for number in range(400)]
    assert 1 - sum(near) / len(near) == pytest.approx(explore, abs=0.06)


def test_the_seed_decides_and_the_order_of_endings_does_not() -> None:
    def points(seed: int, order: tuple[str, ...]) -> list[Any]:
        search = searcher({**LINE, "lr": tune.loguniform(1e-3, 1.0)}, seed=seed, explore=0.5)
        found = [search.suggest(trial_id) for trial_id in ("0", "1", "2")]
        for trial_id in order:
            search.on_trial_complete(trial_id, report(0.1 * int(trial_id), 10.0 * int(trial_id)))
        return [*found, *(search.suggest(f"later {number}") for number in range(6))]

    assert points(1, ("0", "1", "2")) == points(1, ("2", "0", "1"))
    assert points(1, ("0", "1", "2")) != points(2, ("0", "1", "2"))
    assert len({point["lr"] for point in points(1, ("0", "1", "2"))}) == 9


def test_random_draws_outside_of_hp_reach_into_dictionaries_and_lists() -> None:
    config = {
        "name": "constant",
        "lr": tune.choice([0.1, 0.2]),
        "model": {"layers": [tune.randint(1, 4), 8], "act": "relu"},
        "seed": 3,
    }
    search = searcher(config)
    for number in range(20):
        drawn = search.suggest(str(number))
        assert drawn.keys() == {"lr", "model"}  # no `hp` where there is none
        assert drawn["lr"] in (0.1, 0.2)
        assert drawn["model"]["layers"][0] in (1, 2, 3)
        assert drawn["model"]["layers"][1] == 8
        assert drawn["model"]["act"] == "relu"


def test_the_inner_searcher_gets_its_part_and_all_results() -> None:
    inner = Inner({"lr": 0.1}, None, Searcher.FINISHED)
    lr = tune.loguniform(1e-3, 1.0)
    search = searcher({**LINE, "lr": lr, "task": "constant"}, inner)
    assert search.suggest("one") == {"lr": 0.1, "hp": {"a": 0.0}}
    assert search.suggest("two") is None
    assert search.suggest("three") == Searcher.FINISHED
    search.on_trial_result("one", report(0.5))
    search.on_trial_complete("one", error=True)
    assert inner.heard == [
        ("space", "val_loss", "min", {"lr": lr}),
        *[("suggest", trial_id) for trial_id in ("one", "two", "three")],
        ("result", "one", report(0.5)),
        ("complete", "one", None, True),
    ]


def test_a_suggestion_that_was_not_made_is_not_counted() -> None:
    config = {**LINE, "lr": tune.uniform(0, 1)}
    straight = searcher(config, Inner({"lr": 0.1}, {"lr": 0.2}))
    halting = searcher(config, Inner(None, {"lr": 0.1}, None, {"lr": 0.2}))
    wanted = [straight.suggest("one"), straight.suggest("two")]
    assert [halting.suggest(trial_id) for trial_id in ("one", "one", "two", "two")] == [
        None,
        wanted[0],
        None,
        wanted[1],
    ]


def test_optuna_tunes_what_lies_outside() -> None:
    config = {**LINE, "lr": tune.loguniform(1e-3, 1.0), "model": {"width": tune.randint(8, 65), "act": "relu"}}
    search = searcher(config, OptunaSearch(seed=0))
    for number in range(5):
        suggestion = search.suggest(str(number))
        assert suggestion.keys() == {"lr", "model", "hp"}
        assert 1e-3 <= suggestion["lr"] <= 1.0
        assert 8 <= suggestion["model"]["width"] <= 64
        result = report(suggestion["lr"], training_iteration=1)
        search.on_trial_result(str(number), result)
        search.on_trial_complete(str(number), result)
    assert isinstance(search.inner, OptunaSearch)
    told = search.inner._ot_study.get_trials()  # there is no public way to what it was told
    assert [trial.value for trial in told] == [trial.params["lr"] for trial in told]


@pytest.mark.parametrize(
    ("inner", "words"),
    [
        (BasicVariantGenerator(), "is a BasicVariantGenerator; accepted is a ray.tune.search.Searcher"),
        ("optuna", "is a str; accepted is a ray.tune.search.Searcher"),
        (ConcurrencyLimiter(OptunaSearch(), 2), "put it around, ConcurrencyLimiter(STNSearch(...), ...)"),
        (Repeater(OptunaSearch(), 2), "put it around, Repeater(STNSearch(...), ...)"),
    ],
)
def test_what_cannot_be_inside_is_refused(inner: Any, words: str) -> None:
    with pytest.raises(ValueError, match="inner searcher") as caught:
        STNSearch(inner)
    assert words in str(caught.value)


def test_an_inner_searcher_with_a_space_of_its_own_keeps_it_if_that_is_all() -> None:
    search = searcher(LINE, Inner({"lr": 0.1}, {"hp": {"a": 1.0}}, bound=True))
    assert search.suggest("one") == {"lr": 0.1, "hp": {"a": 0.0}}
    with pytest.raises(ValueError, match="Inner searches 'hp' too"):
        search.suggest("two")
    with pytest.raises(ValueError, match=r"Inner has a search space of its own, but .* outside 'hp' too \(lr\)"):
        searcher({**LINE, "lr": tune.uniform(0, 1)}, Inner(bound=True))
    with pytest.raises(ValueError, match="Inner has nothing to search"):
        searcher(LINE, Inner())


@pytest.mark.parametrize("explore", [-0.1, 1.1, math.nan])
def test_a_share_outside_of_0_to_1_is_refused(explore: float) -> None:
    with pytest.raises(ValueError, match="accepted is a share from 0 to 1"):
        STNSearch(explore=explore)


def test_metric_and_mode_are_asked_for() -> None:
    with pytest.raises(ValueError, match="STNSearch has to know which trials are good"):
        STNSearch(start={"a": 0.0}).set_search_properties(None, "min", LINE)
    for arguments in ({"metric": ["a", "b"], "mode": ["min", "max"]}, {"metric": "a", "mode": "least"}):
        with pytest.raises(ValueError, match="accepted are the name of one metric, and 'min' or 'max'"):
            STNSearch(**arguments)  # type: ignore[arg-type]


def test_a_space_is_taken_once_and_needed() -> None:
    search = STNSearch(start={"a": 0.0})
    with pytest.raises(ValueError, match="STNSearch has no search space"):
        search.suggest("one")
    assert search.set_search_properties("val_loss", "min", LINE)
    assert not search.set_search_properties("val_loss", "min", LINE)


def test_a_limiter_around_it_holds_trials_back() -> None:
    limited = ConcurrencyLimiter(searcher(), max_concurrent=2)
    assert [limited.suggest(trial_id) is None for trial_id in ("one", "two", "three")] == [False, False, True]
    limited.on_trial_result("one", report(0.1, 50.0))
    limited.on_trial_complete("one", report(0.2, 60.0))
    suggestion = limited.suggest("three")
    assert suggestion is not None
    assert abs(suggestion["hp"]["a"] - 50.0) < 1.0


@pytest.mark.parametrize("within", [True, False])
@pytest.mark.parametrize("seed", [5, None])
def test_a_restored_searcher_goes_on_with_the_same_suggestions(tmp_path: Path, seed: int | None, within: bool) -> None:
    config = {**LINE, "lr": tune.loguniform(1e-3, 1.0)}

    def inner() -> Searcher | None:
        return OptunaSearch(seed=5) if within else None

    def go_on(search: STNSearch) -> list[Any]:
        found = []
        search.on_trial_complete("3", report(0.01, 70.0, training_iteration=2))
        for number in range(4, 10):
            found.append(search.suggest(str(number)))
            search.on_trial_complete(str(number), report(0.1 / number, 10.0 * number, training_iteration=1))
        return found

    search = searcher(config, inner(), seed=seed, explore=0.5)
    for number in range(4):
        search.suggest(str(number))
        search.on_trial_result(str(number), report(0.1 * number, 10.0 * number, training_iteration=1))
        if number == 1:
            search.on_trial_complete("1", report(math.inf, status="diverged"))
    search.save(str(tmp_path / "state"))
    wanted = go_on(search)
    restored = STNSearch(inner(), explore=0.5)  # as after `Tuner.restore`, which passes no param_space
    restored.restore(str(tmp_path / "state"))
    assert (restored.metric, restored.mode) == ("val_loss", "min")
    assert not restored.set_search_properties("val_loss", "min", config)
    assert go_on(restored) == wanted


def test_what_is_no_state_of_it_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "state"
    search = searcher()
    search.suggest("one")
    search.on_trial_complete("one", report(0.1, 3.0))
    search.save(str(path))
    state = json.loads(path.read_text())
    assert state["trials"] == {
        "one": {
            "start": {"a": 0.0},
            "best": {"loss": 0.1, "values": {"a": 3.0}, "scales": {"a": 0.01}},
            "ended": True,
            "failed": False,
        }
    }
    with pytest.raises(ValueError, match="was saved without an inner searcher"):
        searcher({**LINE, "lr": tune.uniform(0, 1)}, Inner()).restore(str(path))
    path.write_text(json.dumps(state | {"version": 9}))
    with pytest.raises(ValueError, match="is of version 9"):
        search.restore(str(path))
    for damaged in (path.read_bytes()[:-9], b"\x80\x05N.", b"[]", b'{"version": 1}'):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="state is no state of STNSearch"):
            search.restore(str(path))


def run_payload() -> None:
    Payload.loaded.append("ran")


class Payload:
    """What a pickle runs when it is loaded."""

    loaded: ClassVar[list[str]] = []

    def __reduce__(self) -> tuple[Any, ...]:
        return run_payload, ()


def restored(path: Path) -> STNSearch:
    search = STNSearch(OptunaSearch(seed=5))
    search.restore(str(path))
    return search


def test_a_state_of_an_inner_searcher_that_somebody_else_wrote_is_not_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until its user says that it is to be trusted: then it runs what it says, as a program would."""
    path = tmp_path / "searcher-state-1.pkl"
    search = searcher({**LINE, "lr": tune.loguniform(1e-3, 1.0)}, OptunaSearch(seed=5))
    search.save(str(path))
    mine = path.read_bytes()
    restored(path)
    state = json.loads(mine)
    payload = base64.b64encode(pickle.dumps(Payload())).decode()
    unsigned = {name: value for name, value in state.items() if name != "inner_seal"}
    for forged in ({**state, "inner": payload}, {**unsigned, "inner": payload}, unsigned, {**state, "inner_seal": ""}):
        path.write_text(json.dumps(forged))
        with pytest.raises(NotSealed, match=r"searcher-state-1\.pkl: .* may be a pickle.*`tune-stn trust "):
            restored(path)
    for damaged in ("no base64!", "", 7):
        path.write_text(json.dumps({**state, "inner": damaged}))
        with pytest.raises(ValueError, match=r"no state of STNSearch|not signed"):
            restored(path)
    assert Payload.loaded == []
    path.write_bytes(mine)
    monkeypatch.setenv("TUNE_STN_KEY_FILE", str(tmp_path / "key of another machine"))
    with pytest.raises(NotSealed):
        restored(path)
    assert trust(tmp_path) == [path]
    restored(path)
    path.write_text(json.dumps({**state, "inner": payload}))
    assert trust(path) == [path]
    with pytest.raises(TypeError):  # of Optuna, which is given no state of its own
        restored(path)
    assert Payload.loaded == ["ran"]


def test_without_a_key_the_state_is_saved_and_says_that_it_is_not_sealed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    search = searcher({**LINE, "lr": tune.loguniform(1e-3, 1.0)}, OptunaSearch(seed=5))
    (tmp_path / "file").touch()
    monkeypatch.setenv("TUNE_STN_KEY_FILE", str(tmp_path / "file" / "key"))
    search.save(str(tmp_path / "state"))
    assert "the inner searcher is not sealed" in caplog.text
    with pytest.raises(NoKey, match="cannot be read or made"):
        restored(tmp_path / "state")
    plain = searcher()  # of which nothing is a pickle
    plain.save(str(tmp_path / "state"))
    STNSearch().restore(str(tmp_path / "state"))


@pytest.mark.ray
def test_in_tune(cluster: Cluster, tmp_path: Path) -> None:
    """Three trials on the ridge, with the learning rate outside; then the searcher as Tune has saved it."""
    space = {
        "task": "ridge",
        "algorithm": "stn",
        "epochs": 2,
        "warmup_epochs": 0,
        "optimizer": torch.optim.Adam,  # hidden from searchers
        "optimizer_args": {},
        "hp": get_task("ridge").space.to_tune(),
        "lr": tune.loguniform(1e-3, 1e-1),
    }
    search = STNSearch(OptunaSearch(seed=0), seed=0, explore=0.0)
    results = tune.Tuner(
        STNTrainable,
        param_space=space,
        tune_config=tune.TuneConfig(
            metric="val_loss", mode="min", search_alg=search, num_samples=3, max_concurrent_trials=1, reuse_actors=True
        ),
        run_config=tune.RunConfig(name="run", storage_path=str(tmp_path), verbose=0),
    ).fit()
    assert not results.errors
    configs = [result.config for result in results]
    assert [config["hp"]["penalty"] for config in configs].count(3.0) == 1
    assert len({config["lr"] for config in configs}) == 3
    for result in results:
        assert result.metrics["epoch"] == 2

    again = STNSearch(OptunaSearch(seed=0), seed=0, explore=0.0)
    again.restore_from_dir(str(tmp_path / "run"))
    ends = [trial.best.values["penalty"] for trial in again._trials.values() if trial.best is not None]
    assert sorted(ends) == sorted(result.metrics["hp/penalty"] for result in results)
    assert again.suggest("next") == search.suggest("next")
