"""Our domains as Ray Tune domains and back. The only file of the core that knows Ray; it is imported on demand."""

from __future__ import annotations

from typing import Any

from tune_stn.space.domains import Domain, Integer, LogUniform, Normal, Uniform

try:
    from ray import tune
    from ray.tune.search import sample as ray_sample
except ImportError as error:
    raise ImportError("converting Ray Tune domains needs Ray: pip install 'ray[tune]'") from error


def domain_to_ray(domain: Domain) -> Any:
    """The Ray Tune domain with the same members and, up to Ray's rounding at the ends, the same distribution."""
    match domain:
        case Uniform(low, high, None):
            return tune.uniform(low, high)
        case Uniform(low, high, step):
            return tune.quniform(low, high, step)
        case LogUniform(low, high, None):
            return tune.loguniform(low, high)
        case LogUniform(low, high, step):
            return tune.qloguniform(low, high, step)
        # Ray's upper end is exclusive, except where it is quantized by more than 1.
        case Integer(low, high, 1, False):
            return tune.randint(low, high + 1)
        case Integer(low, high, 1, True):
            return tune.lograndint(low, high + 1)
        case Integer(low, high, step, False):
            return tune.qrandint(low, high, step)
        case Integer(low, high, step, True):
            return tune.qlograndint(low, high, step)
        case Normal(mean, sd, None):
            return tune.randn(mean, sd)
        case Normal(mean, sd, step):
            return tune.qrandn(mean, sd, step)
    raise TypeError(f"no Ray Tune domain is known for {domain!r}")


def domain_from_ray(name: str, domain: Any) -> Domain:
    """Our form of a Ray Tune domain. Raises ValueError where it has no raw coordinate (choice, grid, function)."""
    if isinstance(domain, (Uniform, LogUniform, Integer, Normal)):
        return domain
    if isinstance(domain, ray_sample.Domain):
        sampler = domain.get_sampler()
        step = None
        if isinstance(sampler, ray_sample.Quantized):
            sampler, step = sampler.sampler, sampler.q
        if isinstance(domain, ray_sample.Float):
            if isinstance(sampler, ray_sample.LogUniform):
                return LogUniform(domain.lower, domain.upper, step)
            if isinstance(sampler, ray_sample.Normal):
                return Normal(sampler.mean, sampler.sd, step)
            return Uniform(domain.lower, domain.upper, step)
        if isinstance(domain, ray_sample.Integer):
            high = domain.upper if step not in (None, 1) else domain.upper - 1
            return Integer(domain.lower, high, step or 1, log=isinstance(sampler, ray_sample.LogUniform))
    raise ValueError(
        f"hyperparameter {name!r} has the domain {domain!r}, which has no raw coordinate for a gradient; accepted are "
        "uniform, loguniform, randint, lograndint, randn and their quantized forms. Put a categorical choice in "
        "param_space beside 'hp'"
    )
