"""What a self-tuning step costs, in plain training steps, and how much memory it needs.

Plain, STN and Delta-STN training steps (a Delta-STN cycle: base and response step; an STN hyper-step apart) on the
Fashion-MNIST CNN and MLP, LSTMs and a transformer block, with full, rank-8, gate-only and automatic responses, and with
response steps on a quarter of the batch. All of them take turns in one process, on the same batch, and every ratio is
of two neighbours in time: on a shared machine nothing else means anything. Prints median and quartiles of the ratios
beside those of floating-point operations and of peak memory, and writes them to experiments/results/step_cost/.

    python experiments/step_cost.py              # the figures of the results page; about 25 minutes
    python experiments/step_cost.py --models cnn lstm-small
    python experiments/step_cost.py --smoke-test
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd
import torch
from pages import RESULTS, markdown
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from tune_stn.data.batches import Batch
from tune_stn.data.splits import Split, Splits
from tune_stn.nn import LockedDropout
from tune_stn.space import SearchSpace, Uniform
from tune_stn.tasks import Task, Training, get_task
from tune_stn.training import Trainer

# algorithm, response size, share of the batch in a response step
FORMS = [
    ("stn", "full", 1.0),
    ("stn", "8", 1.0),
    ("stn", "gate", 1.0),
    ("stn", "auto", 1.0),
    ("delta-stn", "full", 1.0),
    ("delta-stn", "8", 1.0),
    ("delta-stn", "gate", 1.0),
    ("delta-stn", "full", 0.25),
    ("delta-stn", "auto", 0.25),
]

# Name -> how tables call it.
NETWORKS = {
    "mlp": "MLP, 1200 wide",
    "cnn": "CNN",
    "lstm-small": "LSTM 35x20x200",
    "lstm-large": "LSTM 70x40x650",
    "transformer": "transformer block",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke-test", action="store_true")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--models", nargs="+", choices=[*MODELS], default=[*MODELS])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "step_cost")
    arguments = parser.parse_args()
    rounds = 3 if arguments.smoke_test else arguments.rounds
    arguments.results.mkdir(parents=True, exist_ok=True)

    tables = []
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for model in arguments.models:
            task = MODELS[model](arguments.smoke_test)
            # The large LSTM takes seconds a step.
            table = measure(task, max(3, rounds // 6) if model == "lstm-large" else rounds, arguments.device)
            tables.append(table.assign(model=model, threads=threads))
            print(f"\n{model}, {threads} thread(s), {arguments.device}")
            print(table.to_string(index=False, float_format="%.2f"), flush=True)
            device = torch.cuda.get_device_name() if arguments.device == "cuda" else platform.machine()
            together = pd.concat(tables).assign(device=device, torch=torch.__version__)
            together.to_csv(arguments.results / f"{arguments.device}.csv", index=False)


# The networks -----------------------------------------------------------------------------------------------------


def fashion(network: str) -> Callable[[bool], Task]:
    """The built-in task at its usual width, on no more images than are needed."""

    def make(small: bool) -> Task:
        size = {"batch_size": 16, "hidden": 32} if small else {"batch_size": 128}
        return get_task(f"fashion-mnist-{network}", train_images=256, valid_images=256, test_images=1, **size)

    return make


def lstm(steps: int, batch: int, hidden: int) -> Callable[[bool], Task]:
    """One LSTM layer with locked dropout on its output; its own width is its input's, as inside a stack."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            # Inside a network its inputs want a gradient too; the fused plain layer makes it in any case.
            self.scale = nn.Parameter(torch.ones(hidden))
            self.lstm = nn.LSTM(hidden, hidden, batch_first=True)
            self.dropout = LockedDropout(batch_first=True)

        def forward(self, inputs: Tensor) -> Tensor:
            output: Tensor = self.dropout(self.lstm(inputs * self.scale)[0])
            return output

    return lambda small: sequences(Layer, steps=5 if small else steps, batch=8 if small else batch, width=hidden)


def transformer(small: bool) -> Task:
    """One encoder block of torch: 4 heads, 256 wide, feed-forward 1024; every dropout is tuned."""

    def block() -> nn.Module:
        return nn.TransformerEncoderLayer(256, 4, dim_feedforward=1024, batch_first=True, norm_first=True)

    return sequences(block, steps=8 if small else 64, batch=8 if small else 32, width=256, dropout="*")


def sequences(model: Callable[[], nn.Module], *, steps: int, batch: int, width: int, dropout: str = "dropout") -> Task:
    """Random sequences to random sequences: only the time of a step is of interest."""

    def data(seed: int) -> Splits:
        inputs, targets = torch.randn(2, batch, steps, width, generator=torch.Generator().manual_seed(seed))
        return Splits(*[Split(inputs, targets)] * 3)

    return Task(
        name="sequences",
        model=model,
        data=data,
        space=SearchSpace({"dropout": Uniform(0.0, 0.9)}),
        start={"dropout": 0.1},
        dropout={dropout: "dropout"},
        loss=F.mse_loss,
        training=Training(batch_size=batch, optimizer_args={"momentum": 0.9}),
    )


MODELS: dict[str, Callable[[bool], Task]] = {
    "mlp": fashion("mlp"),
    "cnn": fashion("cnn"),
    "lstm-small": lstm(35, 20, 200),
    "lstm-large": lstm(70, 40, 650),
    "transformer": transformer,
}

# Measuring --------------------------------------------------------------------------------------------------------


def measure(task: Task, rounds: int, device: str) -> pd.DataFrame:
    """Ratios to the plain step of the same round: median, quartiles, and the ratios of operations and peak memory."""
    plain_trainer = Trainer(task, algorithm="fixed", device=device)
    batch_size = task.training.batch_size
    plain = train_step(plain_trainer, first_batch(plain_trainer.splits.train, batch_size))
    plain()
    plain_flops, plain_memory = step_flops(plain_trainer, plain), peak_memory(plain, device)

    steps: dict[tuple[str, str, float], Callable[[], object]] = {}
    rows: dict[tuple[str, str, float], dict[str, object]] = {}
    for algorithm, response, share in FORMS:
        form = get_task(task, response=int(response) if response.isdigit() else response, response_share=share)
        trainer = Trainer(form, algorithm=algorithm, device=device)
        batch = first_batch(trainer.splits.train, batch_size)
        own = {("STN step" if algorithm == "stn" else "Delta-STN cycle", response, share): train_step(trainer, batch)}
        if algorithm == "stn":
            own["hyper-step", response, share] = hyper_step(trainer, first_batch(trainer.splits.valid, batch_size))
        for key, step in own.items():
            step()  # warms up
            steps[key] = step
            rows[key] = {
                "step": key[0],
                "response": response,
                "share": share,
                "chosen": next(iter(trainer.model.response_layers())).size,
                "operations_over_plain": step_flops(trainer, step) / plain_flops,
                "memory_over_plain": peak_memory(step, device) / plain_memory,
            }
    ratios: dict[tuple[str, str, float], list[float]] = {key: [] for key in steps}
    for _ in range(rounds):
        for key, step in steps.items():
            ratios[key].append(seconds(step, device) / seconds(plain, device))
    for key, values in ratios.items():
        low, median, high = pd.Series(values).quantile([0.25, 0.5, 0.75])
        rows[key] |= {"over_plain": median, "quartile_1": low, "quartile_3": high, "rounds": rounds}
    table = pd.DataFrame(rows.values()).sort_values("step", kind="stable")
    return table.assign(plain_memory_mib=plain_memory / 2**20, batch_size=batch_size)


def first_batch(split: Split, batch_size: int) -> Batch:
    return split.take(torch.arange(batch_size))


def train_step(trainer: Trainer, batch: Batch) -> Callable[[], object]:
    trainer.model.train()
    return lambda: trainer.rule.train_step(batch)


def hyper_step(trainer: Trainer, batch: Batch) -> Callable[[], object]:
    return lambda: trainer.rule.hyper_step(batch)


def step_flops(trainer: Trainer, step: Callable[[], object]) -> float:
    """Operations that one call of `step` adds to the trainer's meter."""
    before = trainer.meter.spent_flops
    step()
    return trainer.meter.spent_flops - before


def peak_memory(step: Callable[[], object], device: str) -> int:
    """Bytes a step has allocated at most at a time, beyond what there was before it."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    assert profiler.profiler is not None
    assert profiler.profiler.kineto_results is not None
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def seconds(step: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def page_table() -> str:
    table = pd.read_csv(RESULTS / "step_cost" / "cpu.csv")
    rows = []
    for (model, threads, step), group in table.groupby(["model", "threads", "step"], sort=False):
        by_form = group.set_index(["response", "share"])
        cells = [str(model), str(threads), str(step)]
        for form in (("full", 1.0), ("8", 1.0), ("gate", 1.0), ("full", 0.25), ("auto", 1.0), ("auto", 0.25)):
            if form not in by_form.index:
                cells.append("")
                continue
            row = by_form.loc[form]
            spread = f"{row['quartile_1']:.2f} to {row['quartile_3']:.2f}"
            cells.append(f"{row['over_plain']:.2f} ({spread}); {row['memory_over_plain']:.2f}")
        rows.append([*cells[:-2], cells[-2] or cells[-1]])
    header = ["network", "threads", "step", "full", "rank 8", "gate-only", "full, quarter batch", "automatic"]
    note = "Median of time over a plain step (quartiles); then peak memory over that of a plain step."
    rounds, torch_version = table.loc[0, ["rounds", "torch"]]
    return f"{markdown(header, rows)}\n\n{note} CPU, {rounds} rounds (large LSTM: a sixth), torch {torch_version}."


def short_table() -> str:
    table = pd.read_csv(RESULTS / "step_cost" / "cpu.csv")
    table = table[(table["response"] == "auto") & (table["step"] != "hyper-step")]
    rows = []
    for (step, share), group in table.groupby(["step", "share"], sort=False):
        part = "" if share == 1 else f", response step on {share:g} of the batch"
        for threads, one in group.groupby("threads"):
            ratios = one.set_index("model")["over_plain"]
            rows.append([f"{step}{part}", str(threads), *(f"{ratios[name]:.2f}" for name in NETWORKS)])
    return markdown(["", "threads", *NETWORKS.values()], rows)


TABLES: Mapping[str, Callable[[], str]] = {"step-cost": page_table, "step-cost-short": short_table}


if __name__ == "__main__":
    main()
