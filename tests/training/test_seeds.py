"""Random streams: a function of seed, purpose and epoch alone."""

from __future__ import annotations

from itertools import product

import torch

from tune_stn.training.seeds import derive_seed, stream


def test_known_values() -> None:
    """Stored: a change of the derivation would silently change every run at every seed."""
    assert derive_seed(0, "weights") == 664_910_812_957_149_500
    assert derive_seed(3, "order", 7) == 8_403_337_869_328_738_062


def test_seed_purpose_and_epoch_actually_matter() -> None:
    cases = list(product(range(10), ("weights", "order", "noise", "validation order"), range(10)))
    assert len({derive_seed(*case) for case in cases}) == len(cases)


def test_neighbours_do_not_run_together() -> None:
    assert derive_seed(1, "a", 11) != derive_seed(11, "a", 1)
    assert derive_seed(1, "a1", 1) != derive_seed(1, "a", 11)


def test_seed_is_63_bits() -> None:
    seeds = [derive_seed(seed, "x") for seed in range(200)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62


def test_stream_repeats_and_leaves_the_global_generator() -> None:
    before = torch.get_rng_state()
    first, again, other = (torch.randperm(50, generator=stream(0, "order", epoch)) for epoch in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)
