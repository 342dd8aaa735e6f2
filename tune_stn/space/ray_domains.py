"""Our domains as Ray Tune domains and back. The only file of the core that knows Ray; it is imported on demand."""

from __future__ import annotations

from typing import Any

from tune_stn.space.domains import Domain, Integer, LogInteger, LogUniform, Normal, Uniform

try:
    from ray import tune
    from ray.tune.search import sample as ray_sample
except ImportError as error:
    raise ImportError("converting Ray Tune domains needs Ray: pip install 'ray[tune]'") from error


def domain_to_ray(domain: Domain) -> Any:
    """The Ray Tune domain with the same members and, up to Ray's rounding at the ends, the same distribution.

    Raises:
        ValueError: The domain is of a class that is none of ours.
    """
    match domain:
        case Uniform(low, high, None):
            return tune.uniform(low, high)
        case Uniform(low, high, float() | int() as step):
            return tune.quniform(low, high, step)
        case LogUniform(low, high, None):
            return tune.loguniform(low, high)
        case LogUniform(low, high, float() | int() as step):
            return tune.qloguniform(low, high, step)
        # Ray's upper end is exclusive, except where it is quantized by more than 1.
        case LogInteger(low, high, 1):
            return tune.lograndint(low, high + 1)
        case LogInteger(low, high, step):
            return tune.qlograndint(low, high, step)
        case Integer(low, high, 1):
            return tune.randint(low, high + 1)
        case Integer(low, high, step):
            return tune.qrandint(low, high, step)
        case Normal(mean, sd, None):
            return tune.randn(mean, sd)
        case Normal(mean, sd, float() | int() as step):
            return tune.qrandn(mean, sd, step)
    raise ValueError(
        f"no Ray Tune domain is known for {domain!r}, so no Ray Tune run can draw from it; accepted are Uniform, "
        "LogUniform, Integer, LogInteger and Normal"
    )


def domain_from_ray(name: str, domain: Any) -> Domain:
    """Our form of a Ray Tune domain.

    Raises:
        ValueError: the domain has no raw coordinate (choice, grid, function), or is empty; the message names it.
    """
    if isinstance(domain, (Uniform, LogUniform, Integer, Normal)):
        return domain
    if not isinstance(domain, (ray_sample.Float, ray_sample.Integer)):
        kind = type(domain).__name__ if isinstance(domain, ray_sample.Domain) else repr(domain)
        raise ValueError(
            f"hyperparameter {name!r} has the domain {kind}, which has no raw coordinate for a gradient; accepted are "
            "uniform, loguniform, randint, lograndint, randn and their quantized forms. Put a categorical choice in "
            "param_space beside 'hp'"
        )
    try:
        return _from_numeric(domain)
    except ValueError as error:
        raise ValueError(f"the domain of hyperparameter {name!r}: {error}") from None


def _from_numeric(domain: ray_sample.Float | ray_sample.Integer) -> Domain:
    sampler: Any = domain.get_sampler()  # type: ignore[no-untyped-call]
    step = None
    if isinstance(sampler, ray_sample.Quantized):
        sampler, step = sampler.sampler, sampler.q
    log = isinstance(sampler, ray_sample.LogUniform)
    if isinstance(domain, ray_sample.Integer):
        high = domain.upper if step not in (None, 1) else domain.upper - 1
        return (LogInteger if log else Integer)(domain.lower, high, step or 1)
    if isinstance(sampler, ray_sample.Normal):
        return Normal(sampler.mean, sampler.sd, step)
    return (LogUniform if log else Uniform)(domain.lower, domain.upper, step)
