"""Which segment a trial is in: starts, copies, copies repeated after a failure, changes of config."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tune_stn.tuning.recording.lineage import Lineage, Segment

Make = Callable[..., Any]


@pytest.fixture
def lineage() -> Lineage:
    return Lineage(lambda config: dict(config))


def test_a_trial_with_no_checkpoint_or_its_own_is_in_its_first_segment(lineage: Lineage, fake_trial: Make) -> None:
    assert lineage.current("a") == (Segment("", {}), {})
    trial = fake_trial("a", config={"lr": 0.1})
    lineage.start(trial, [trial])
    again = fake_trial("a", config={"lr": 0.2}, checkpoint_of="a")  # a scheduler changed its config
    for one, lr in ((trial, 0.1), (again, 0.2), (trial, 0.1)):
        assert lineage.note(one, [one]) is None
        lineage.start(one, [one])
        assert lineage.current("a") == (Segment("", {"lr": 0.1}), {"lr": lr})


def test_a_checkpoint_from_outside_the_run_is_no_copy(lineage: Lineage, fake_trial: Make) -> None:
    trial = fake_trial("a", checkpoint_of="elsewhere")
    lineage.start(trial, [trial, fake_trial("b")])
    assert lineage.current("a")[0].name == ""


def test_a_copy_has_the_parents_values_of_the_time_it_was_made(lineage: Lineage, fake_trial: Make) -> None:
    parent = fake_trial("b", config={"lr": 0.5, "decay": 1.0})
    lineage.start(fake_trial("a", config={"lr": 0.1, "decay": 3.0}), [])
    copy = fake_trial("a", config={"lr": 0.5, "decay": 1.2}, checkpoint_of="b", number=4)
    lineage.note(copy, [copy, parent])
    assert lineage.current("a")[0].name == ""  # its next report may still be of before
    parent.config = {"lr": 9.0, "decay": 1.2}  # the parent was copied over, before this one has begun
    lineage.start(copy, [copy, parent])
    segment, values = lineage.current("a")
    assert values == segment.values == {"lr": 0.5, "decay": 1.2}
    assert segment == Segment(
        "1",
        values,
        parent_trial_id="b",
        checkpoint="/storage/run/dir-b/checkpoint_000004",
        sources={"lr": "exploit", "decay": "explore"},
    )
    lineage.start(copy, [copy, parent])  # failed before it saved
    assert lineage.current("a")[0] is segment
    lineage.start(fake_trial("a", config=copy.config, checkpoint_of="a"), [copy, parent])  # failed after it saved
    assert lineage.current("a")[0] is segment


def test_every_copy_is_one_even_of_the_same_checkpoint_with_the_same_values(lineage: Lineage, fake_trial: Make) -> None:
    others = [fake_trial("b", config={"lr": 0.5}), fake_trial("c", config={"lr": 0.5})]
    changes: list[dict[str, Any]] = [{}, {"number": 5}, {"config": {"lr": 0.7}}, {"checkpoint_of": "c"}, {}]
    for name, change in enumerate(changes, start=1):
        copy = fake_trial("a", **{"config": {"lr": 0.5}, "checkpoint_of": "b", "number": 4} | change)
        for _ in range(2):  # the second time, it has failed
            lineage.note(copy, others)
            lineage.start(copy, others)
            assert lineage.current("a")[0].name == str(name)


def test_after_a_crash_of_the_driver_a_trial_is_where_tune_has_it(lineage: Lineage, fake_trial: Make) -> None:
    """Tune's state may be of before the last copy that was recorded."""
    path = "/storage/run/dir-b/checkpoint_000004"
    lineage.remember("a", Segment("", {"lr": 0.1}))
    lineage.remember("a", Segment("1", {"lr": 0.5}, "b", path, {"lr": "explore"}))
    lineage.remember("a", Segment("1", {"lr": 0.5}, "b", path, {"lr": "explore"}))
    others = [fake_trial("b", config={"lr": 0.1})]
    cases = (({"lr": 0.1}, "a", ""), ({"lr": 0.5}, "a", "1"), ({"lr": 0.5}, "b", "1"), ({"lr": 0.3}, "a", "1"))
    for config, checkpoint_of, name in cases:
        fresh = Lineage(lambda config: dict(config))
        fresh._segments = {"a": list(lineage._segments["a"])}
        fresh.start(fake_trial("a", config=config, checkpoint_of=checkpoint_of, number=4), others)
        assert fresh.current("a")[0].name == name
