from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from tune_stn.space.domains import Domain, LogInteger, LogUniform, Normal, Uniform
from tune_stn.study.domains import domains_entry, is_log, place, place_of_raw, read_domains, values_of_raw

SPACE: dict[str, Domain] = {
    "a": Uniform(0.0, 0.9),
    "b": LogUniform(1e-6, 1.0),
    "c": LogInteger(1, 8),
    "d": Normal(1.0, 2.0),
    "e": Uniform(0.0, 1.0, step=0.25),
}


def test_domains_come_back_from_the_file_as_they_were() -> None:
    assert read_domains(json.loads(json.dumps({"domains": domains_entry(SPACE)}))) == SPACE
    assert read_domains({}) == {}


@pytest.mark.parametrize(
    "entry",
    [
        {"kind": "Circle"},
        {"kind": "Uniform", "low": 2, "high": 1},
        {"low": 1},
        3,
        {"kind": []},
        {"kind": "Uniform", "low": 0, "high": 10**400},
    ],
)
def test_a_damaged_entry_is_named(entry: object) -> None:
    with pytest.raises(ValueError, match=r"study\.json is damaged: the domain of 'a' is "):
        read_domains({"domains": {"a": entry}})
    with pytest.raises(ValueError, match=r"study\.json is damaged: its domains are "):
        read_domains({"domains": [entry]})


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_place_is_the_same_by_value_and_by_raw_coordinate(name: str) -> None:
    raw = np.linspace(-4, 4, 9)
    values = SPACE[name].transform(torch.tensor(raw)).tolist()
    assert values_of_raw(SPACE[name], raw).tolist() == values
    assert [place(SPACE[name], value) for value in values] == pytest.approx(place_of_raw(SPACE[name], raw))


def test_a_normal_domain_is_four_deviations_wide_and_has_no_ends() -> None:
    assert place_of_raw(SPACE["d"], [-3.0, 1.0, 5.0]).tolist() == [0.0, 0.5, 1.0]
    with pytest.raises(ValueError, match="any real number has no ends"):
        place(SPACE["d"], 0.0)


def test_log_domains_are_told() -> None:
    assert [is_log(domain) for domain in SPACE.values()] == [False, True, True, False, False]
