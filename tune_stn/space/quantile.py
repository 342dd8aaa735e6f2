"""Quantiles of a domain: the scale on which its random draws are even, and methods that draw nothing see it."""

from __future__ import annotations

import math
from statistics import NormalDist

import torch

from tune_stn.space.domains import Domain, Normal, logit


def quantile(domain: Domain, share: float) -> float:
    """The member of the domain that `share` of random draws lie below; the middle of [1, 100] on a log scale is 10.

    Args:
        domain: Domain of one hyperparameter.
        share: Share of the draws, strictly between 0 and 1.
    """
    raw = NormalDist(domain.mean, domain.sd).inv_cdf(share) if isinstance(domain, Normal) else logit(share)
    return float(domain.transform(torch.tensor(raw, dtype=torch.float64)))


def share_below(domain: Domain, value: float) -> float:
    """The share of random draws that lie below a member, strictly between 0 and 1; `quantile` gives the member back.

    A discrete member has a range of shares, and gets their middle; the ends of an interval are moved inside a little.

    Raises:
        ValueError: `value` is outside the domain.
    """
    raw = domain.inverse(value)
    return NormalDist(domain.mean, domain.sd).cdf(raw) if isinstance(domain, Normal) else 1 / (1 + math.exp(-raw))
