"""The schedule buffer: order, contents and its way through a file."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from tune_stn.space import Constants, Integer, LogUniform, SearchSpace, Tunable, Uniform
from tune_stn.training.schedule_buffer import SOURCES, TRIAL, UNTIL, ScheduleBuffer, write_schedule

SPACE = SearchSpace({"rate": Uniform(0.0, 0.9), "holes": Integer(0, 4), "decay": LogUniform(1e-4, 1.0)})
START = {"rate": 0.3, "holes": 2, "decay": 0.01}


@pytest.fixture
def buffer() -> ScheduleBuffer:
    """The start and two steps far to either side."""
    hyper, buffer = Tunable(SPACE, START, scale=0.5), ScheduleBuffer()
    buffer.record(hyper, step=0, epoch=0, source="start")
    for step, shift in ((5, 40.0), (10, -80.0)):
        hyper.raw.data.add_(shift)
        hyper.rho.data.add_(1.0)
        buffer.record(hyper, step=step, epoch=step // 10, source="stn")
    return buffer


def test_rows_go_by_step_and_then_in_the_order_of_the_space(buffer: ScheduleBuffer) -> None:
    columns = buffer.columns(SPACE, tuned=True)
    assert list(columns) == ["step", "epoch", "hp", "value", "raw", "scale", "source"]
    assert columns["step"] == [0, 0, 0, 5, 5, 5, 10, 10, 10]
    assert columns["epoch"] == [0, 0, 0, 0, 0, 0, 1, 1, 1]
    assert columns["hp"] == ["rate", "holes", "decay"] * 3
    assert columns["source"] == ["start"] * 3 + ["stn"] * 6
    assert set(columns["source"]) <= set(SOURCES)


def test_values_are_the_start_and_stay_inside_their_domains(buffer: ScheduleBuffer) -> None:
    columns = buffer.columns(SPACE, tuned=True)
    assert columns["value"][:3] == pytest.approx([0.3, 2, 0.01], rel=1e-5)
    for name, value in zip(columns["hp"], columns["value"], strict=True):
        low, high = SPACE[name].low, SPACE[name].high  # type: ignore[attr-defined]
        assert low * (1 - 1e-6) <= value <= high * (1 + 1e-6)
    assert columns["value"][3:] == pytest.approx([0.9, 4, 1.0, 0.0, 0, 1e-4])


def test_a_record_is_a_snapshot(buffer: ScheduleBuffer) -> None:
    columns = buffer.columns(SPACE, tuned=True)
    inverse = [SPACE[name].inverse(START[name]) for name in SPACE]
    raw = torch.tensor(columns["raw"]).view(3, 3)
    assert torch.allclose(raw, torch.tensor(inverse) + torch.tensor([[0.0], [40.0], [-40.0]]), atol=1e-5)
    scales = torch.tensor(columns["scale"]).view(3, 3)
    assert scales[0].tolist() == pytest.approx([0.5] * 3)
    assert (scales.diff(dim=0) > 0.1).all()


def test_constants_have_neither_raw_nor_scale() -> None:
    buffer = ScheduleBuffer()
    buffer.record(Constants(SPACE, {"rate": 0.0, "holes": 4, "decay": 1.0}), step=0, epoch=0, source="fixed")
    columns = buffer.columns(SPACE, tuned=False)
    assert columns["value"] == [0.0, 4.0, 1.0]
    assert columns["raw"] == columns["scale"] == [None] * 3
    assert columns["source"] == ["fixed"] * 3


@pytest.mark.parametrize("records", [0, 1, 2, 3])
def test_truncated_to_its_first_records(buffer: ScheduleBuffer, records: int) -> None:
    """A run that goes back forgets what came after; it goes on from there."""
    whole = buffer.columns(SPACE, tuned=True)
    buffer.truncate(records)
    if records:
        columns = buffer.columns(SPACE, tuned=True)
        assert columns == {name: column[: 3 * records] for name, column in whole.items()}
    buffer.record(Tunable(SPACE, START), step=7, epoch=0, source="stn")
    assert buffer.columns(SPACE, tuned=True)["step"] == [*whole["step"][: 3 * records], 7, 7, 7]


def test_recording_does_not_hold_the_graph(buffer: ScheduleBuffer) -> None:
    assert not any(tensor.requires_grad for tensor in [*buffer.raw, *buffer.scale])


def test_state_brings_everything_back(buffer: ScheduleBuffer) -> None:
    again = ScheduleBuffer()
    again.load_state_dict(buffer.state_dict())
    assert again.columns(SPACE, tuned=True) == buffer.columns(SPACE, tuned=True)
    again.record(Tunable(SPACE, START), step=11, epoch=1, source="stn")
    assert len(again.columns(SPACE, tuned=True)["step"]) == 12
    assert len(buffer.columns(SPACE, tuned=True)["step"]) == 9


def test_loaded_records_go_to_the_device_of_those_to_come(buffer: ScheduleBuffer) -> None:
    """A run resumed on a GPU stacks old and new records."""
    again = ScheduleBuffer()
    again.load_state_dict(buffer.state_dict(), device="meta")
    assert {tensor.device.type for tensor in [*again.raw, *again.scale]} == {"meta"}


@pytest.mark.parametrize("tuned", [True, False])
def test_parquet_file_holds_the_columns(buffer: ScheduleBuffer, tmp_path: Path, tuned: bool) -> None:
    path = tmp_path / "schedule.parquet"
    write_schedule(buffer, SPACE, tuned=tuned, until=9, trial_id="t", path=path)
    table = pq.read_table(path)
    assert table.to_pydict() == buffer.columns(SPACE, tuned=tuned)
    assert {UNTIL: b"9", TRIAL: b"t"}.items() <= table.schema.metadata.items()
    assert [str(kind) for kind in table.schema.types] == [
        "int64",
        "int64",
        "string",
        "double",
        "double",
        "double",
        "string",
    ]
