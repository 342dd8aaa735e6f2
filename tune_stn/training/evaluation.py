"""Losses and metrics over whole splits."""

from __future__ import annotations

import torch

from tune_stn.data.splits import Splits
from tune_stn.space.tunable import Constants, Tunable
from tune_stn.tasks.task import OfMean
from tune_stn.training.forward import Forward


@torch.no_grad()
def evaluate(forward: Forward, splits: Splits) -> dict[str, float]:
    """Validation and test loss and metrics at the mean hyperparameters, each the mean over its whole split.

    Keys: `val_loss`, `test_loss`, `val_<metric>`, `test_<metric>`. Leaves the network in eval mode.
    """
    task, model = forward.task, forward.model
    model.eval()
    sample = model.mean_sample()
    metrics = {"loss": task.loss, **task.metrics}
    averaged = {name: metric.mean if isinstance(metric, OfMean) else metric for name, metric in metrics.items()}
    report: dict[str, float] = {}
    for prefix, split in (("val", splits.valid), ("test", splits.test)):
        totals = dict.fromkeys(averaged.values(), 0.0)  # each once: a metric may be a function of the loss
        weight = 0
        for batch in split.whole(task.training.eval_batch_size):
            outputs = forward.outputs(batch, sample)
            weight += (counts := batch.weight())
            for mean in totals:
                totals[mean] += float(mean(outputs, batch.targets)) * counts
        for name, metric in metrics.items():
            value = totals[averaged[name]] / weight
            report[f"{prefix}_{name}"] = metric.function(value) if isinstance(metric, OfMean) else value
    return report


def hyper_report(hyper: Tunable | Constants) -> dict[str, float]:
    """The hyperparameters at the mean, `hp/<name>`, and their perturbation scales, `scale/<name>`, 0 for constants."""
    values = hyper.mean_values()
    scales = hyper.scale().tolist() if isinstance(hyper, Tunable) else [0.0] * len(values)
    return {f"hp/{name}": value for name, value in values.items()} | {
        f"scale/{name}": scale for name, scale in zip(values, scales, strict=True)
    }
