"""What a response LSTM costs beside `nn.LSTM`, forward and backward, and how near that is to what the machine can do.

One layer at 70x40x650 (time, batch, hidden; Penn Treebank in the STN paper) and at 35x20x200, at hyperparameters drawn
for each example: a full response, one of rank 8, gates only; and a full one without gradients of the weights, as in a
hyper-step.
Layers take turns in one process with `nn.LSTM` on the same inputs, and every ratio is of two neighbours in time. Prints
median and quartiles of the ratios, the ratios of floating-point operations and of peak memory, and the share of the
floor: of the time that the operations would take at the rate of a large product of matrices, or the bytes (each weight
once for each time step and direction, each activation twice) at the bandwidth of a large copy, whichever is longer.

    python experiments/lstm_cost.py                 # experiments/results/lstm_cost/cpu.csv; some minutes
    python experiments/lstm_cost.py --device cuda          # and, of each form, the loops replayed as CUDA graphs
    python experiments/lstm_cost.py --device cuda --tf32   # products rounded to TF32 on both sides, else on neither
    python experiments/lstm_cost.py --smoke-test
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path

import pandas as pd
import torch
from pages import RESULTS, markdown
from step_cost import peak_memory, seconds
from torch import Tensor, nn

from tune_stn.nn import SelfTuningModel, self_tuning
from tune_stn.nn.lstm import ResponseLSTM
from tune_stn.nn.lstm.graph import Graphed
from tune_stn.space import SearchSpace, Uniform
from tune_stn.training.flops import FlopCounter

# time, batch, hidden
SIZES = {"large": (70, 40, 650), "small": (35, 20, 200)}
HYPERPARAMETERS = 7
FORMS: dict[str, tuple[int | str, bool]] = {
    "full": ("full", True),
    "rank 8": (8, True),
    "gates only": ("gate", True),
    "full, no gradients of weights": ("full", False),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke-test", action="store_true")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tf32", action="store_true")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "lstm_cost")
    arguments = parser.parse_args()
    device = arguments.device
    rounds = 2 if arguments.smoke_test else arguments.rounds
    # Torch's defaults differ: cuDNN, and so nn.LSTM, rounds to TF32, other products do not.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = arguments.tf32
    tables = []
    for threads in arguments.threads if device == "cpu" else [1]:
        torch.set_num_threads(threads)
        rates = machine(device, small=arguments.smoke_test)
        for label, (steps, batch, hidden) in SIZES.items():
            size = (4, 3, 5) if arguments.smoke_test else (steps, batch, hidden)
            table = measure(*size, device, rounds if label == "small" else max(2, rounds // 2), rates)
            tables.append(table.assign(size="x".join(map(str, size)), threads=threads))
            print(f"\n{tables[-1].to_string(index=False, float_format='%.2f')}", flush=True)
    arguments.results.mkdir(parents=True, exist_ok=True)
    name = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    together = pd.concat(tables).assign(device=name, torch=torch.__version__)
    together.to_csv(arguments.results / f"{device}{'-tf32' if arguments.tf32 else ''}.csv", index=False)


def measure(steps: int, batch: int, hidden: int, device: str, rounds: int, rates: tuple[float, float]) -> pd.DataFrame:
    """A row for each form of the response, over a plain `nn.LSTM`."""
    torch.manual_seed(0)
    base = nn.LSTM(hidden, hidden).to(device)
    inputs = torch.randn(steps, batch, hidden, device=device)
    names = [f"h{number}" for number in range(HYPERPARAMETERS)]
    # Nothing reads them but the response: what is measured is the layer alone.
    space = SearchSpace({name: Uniform(0.0, 1.0) for name in names})
    runs: dict[str, Callable[[], object]] = {"nn.LSTM": step(base, inputs, weights=True)}
    floors = {"nn.LSTM": floor(steps, batch, hidden, matrices=1.0, rates=rates, flops=flops_of(runs["nn.LSTM"]))}
    for (name, (response, weights)), graphed in product(FORMS.items(), (False, True) if device == "cuda" else (False,)):
        form = f"{name}, graphed" if graphed else name
        model = self_tuning(base, space, start=dict.fromkeys(names, 0.5), response=response).to(device)
        if graphed:
            assert isinstance(model.network, ResponseLSTM)
            model.network.recurrence = Graphed()
        runs[form] = perturbed(model, step(model, inputs, weights=weights), batch)
        matrices = 2.0 if response == "full" else 1.0
        floors[form] = floor(steps, batch, hidden, matrices=matrices, rates=rates, flops=flops_of(runs[form]))
    plain_flops, plain_memory = flops_of(runs["nn.LSTM"]), peak_memory(runs["nn.LSTM"], device)
    times: dict[str, list[float]] = {form: [] for form in runs}
    ratios: dict[str, list[float]] = {form: [] for form in runs}
    for run in runs.values():
        run()
    for _ in range(rounds):
        for form, run in runs.items():
            times[form].append(seconds(run, device))
            ratios[form].append(times[form][-1] / seconds(runs["nn.LSTM"], device))
    rows = []
    for form, run in runs.items():
        low, median, high = pd.Series(ratios[form]).quantile([0.25, 0.5, 0.75])
        rows.append(
            {
                "layer": form,
                "over_plain": median,
                "quartile_1": low,
                "quartile_3": high,
                "operations_over_plain": flops_of(run) / plain_flops,
                "memory_over_plain": peak_memory(run, device) / plain_memory,
                "milliseconds": 1e3 * pd.Series(times[form]).median(),
                "share_of_floor": floors[form] / pd.Series(times[form]).median(),
                "rounds": rounds,
            }
        )
    return pd.DataFrame(rows)


def step(layer: nn.Module, inputs: Tensor, *, weights: bool) -> Callable[[], object]:
    """Forward and backward to the inputs, and to the parameters if `weights`."""
    inputs = inputs.detach().requires_grad_()
    of_output = torch.randn_like(inputs)
    wanted = [inputs, *(layer.parameters() if weights else ())]

    def run() -> None:
        output, _ = layer(inputs)
        torch.autograd.grad(output, [x for x in wanted if x.requires_grad], of_output, allow_unused=True)

    return run


def perturbed(model: SelfTuningModel, run: Callable[[], object], batch: int) -> Callable[[], object]:
    """With hyperparameters of its own for each example."""

    def at_a_draw() -> None:
        with model.using(model.perturbed_sample(batch)):
            run()

    return at_a_draw


def flops_of(run: Callable[[], object]) -> int:
    with FlopCounter() as counter:
        run()
    return int(counter.get_total_flops())


def floor(steps: int, batch: int, hidden: int, *, matrices: float, rates: tuple[float, float], flops: int) -> float:
    """Seconds that no implementation can do without."""
    weights = 2 * steps * matrices * 4 * hidden * hidden  # of the hidden state; those of the inputs are read once
    activations = 2 * steps * batch * (2 * 4 + 4) * hidden
    return max(flops / rates[0], 4 * (weights + activations) / rates[1])


def machine(device: str, *, small: bool) -> tuple[float, float]:
    """Floating-point operations a second of a large product, and bytes a second of a large copy."""
    n = 256 if small else 4096 if device == "cuda" else 2048
    left, right = torch.randn(2, n, n, device=device).unbind()
    source = torch.randn(n * n * (4 if device == "cuda" else 8), device=device)
    target = torch.empty_like(source)
    multiply = min(seconds(lambda: left @ right, device) for _ in range(10))
    copy = min(seconds(lambda: target.copy_(source), device) for _ in range(10))
    return 2 * n**3 / multiply, 2 * 4 * source.numel() / copy


def page_table() -> str:
    rows = []
    for row in pd.read_csv(RESULTS / "lstm_cost" / "cpu.csv").to_dict("records"):
        spread = f"{row['over_plain']:.2f} ({row['quartile_1']:.2f} to {row['quartile_3']:.2f})"
        ratios = [f"{row[name]:.2f}" for name in ("operations_over_plain", "memory_over_plain", "share_of_floor")]
        rows.append([row["size"], f"{row['threads']}", row["layer"], spread, *ratios])
    header = ["time x batch x hidden", "threads", "layer", "time over nn.LSTM (quartiles)", "operations", "peak memory"]
    return markdown([*header, "share of the floor"], rows)


TABLES: Mapping[str, Callable[[], str]] = {"lstm-cost": page_table}


if __name__ == "__main__":
    main()
