"""Bad commands, tasks and files: each is refused in one line, with exit code 2, before Ray starts and within seconds.

Where code of the user's raises an exception, its own traceback comes before that line.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import ray
from click.testing import CliRunner

from tune_stn.cli import main
from tune_stn.training.schedule import Schedule

CPU_S = 5.0
COMPARE = ("compare", "--task", "digits-mlp", "--methods", "fixed", "--budget", "3", "--seeds", "1", "--out", "out")
RUN = ("run", "--task", "digits-mlp", "--algorithm", "fixed", "--out", "out")
REPLAY = ("replay", "--task", "digits-mlp", "--out", "out")

MISTAKES = """
import sys
from dataclasses import replace

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, WeightedRandomSampler

from tune_stn import LogUniform, SearchSpace, Task, Training, Uniform
from tune_stn.data import DatasetSplit, Split, Splits
from tune_stn.data.augment import Cutout
from tune_stn.nn.penalties import WeightDecay
from tune_stn.tasks import get_task


def data(seed, features=20):
    inputs = torch.randn(300, features, generator=torch.Generator().manual_seed(seed))
    return Splits(*(Split(a, b) for a, b in zip(inputs.split(100), (inputs[:, 0] > 0).long().split(100))))


def net(features=20, classes=2):
    return nn.Sequential(nn.Linear(features, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, classes))


PLAIN = dict(
    name="mine", model=net, data=data, space=SearchSpace({"rate": Uniform(0, 0.9)}), start={"rate": 0.1},
    dropout={"2": "rate"}, training=Training(epochs=3, batch_size=20, lr=0.05, warmup_epochs=0),
)


def make(*, width: int = 32, **change):
    return Task(**{**PLAIN, **change})


def splits(change):
    "Data of which some splits are others."
    return lambda: make(data=lambda seed: Splits(**{**vars(data(seed)), **change}))


# A task that is none
number = 3
def a_list(): return [1]
def raising(): return int("no number")
def unknown_hp(): return make(start={"rate": 0.1, "dropout_9": 0.5})
def outside(): return make(start={"rate": 0.95})
def without_start(): return make(start={})
def empty(): return SearchSpace({"rate": Uniform(0.5, 0.5)})
def learning_rate(): return SearchSpace({"lr": Uniform(0.001, 0.1)})
def a_model(): return make(model=net())
def a_dict(): return make(space={"rate": Uniform(0, 0.9)})
def training_dict(): return make(training={"epochs": 3})
def loss_class(): return make(loss=nn.CrossEntropyLoss)
def number_path(): return make(dropout={2: "rate"})
def no_model(): return make(model=lambda: None)
def unread(): return make(space=SearchSpace({"rate": Uniform(0, 0.9), "other": Uniform(0, 1)}),
                          start={"rate": 0.1, "other": 0.1})
def metric_loss(): return make(metrics={"loss": nn.functional.cross_entropy})
def no_comma(): return make(penalties=WeightDecay("rate"))

# Paths
def wrong_path(): return make(dropout={"7": "rate"})
def not_a_dropout(): return make(dropout={"0": "rate"})
def wrong_weights(): return make(
    dropout={}, weight_dropout={"9": "rate"}, space=SearchSpace({"rate": Uniform(0, 0.9)}, per_batch=["rate"]))
def per_example_weights(): return make(dropout={}, weight_dropout={"0": "rate"})
class Uncalled(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop, self.out = nn.Dropout(), nn.Linear(20, 2)
    def forward(self, inputs): return self.out(inputs)
def uncalled(): return make(model=Uncalled, dropout={"drop": "rate"})

# Data
def data_raises(seed): raise KeyError("column")
def broken_data(): return make(data=data_raises)
def later_raises(): return make(data=lambda seed: data(seed) if seed < 2 else data_raises(seed))
def later_not_splits(): return make(data=lambda seed: data(seed) if seed < 2 else (1, 2, 3))
def not_splits(): return make(data=lambda seed: (1, 2, 3))
def no_seed(): return make(data=lambda: data(0))
def two_lengths(): return make(data=lambda seed: Splits(Split(torch.zeros(3, 20), torch.zeros(4)), 1, 2))
class Stream(IterableDataset):
    def __iter__(self): yield torch.zeros(20), 0
class Broken(Dataset):
    def __len__(self): return 50
    def __getitem__(self, index): raise OSError("disk on fire")
class Rows(Dataset):
    def __len__(self): return 50
    def __getitem__(self, index): return {"x": torch.zeros(20), "label": 0}
stream = splits({"valid": DataLoader(Stream())})
loader_as_split = splits({"valid": [torch.zeros(3), torch.zeros(3)]})
def loader_in_split(): return make(data=lambda seed: Splits(Split(DataLoader(Rows()), torch.zeros(3)), 1, 2))
sampler = splits({"train": DataLoader(Rows(), sampler=WeightedRandomSampler([1.0] * 50, 50))})
broken_rows = splits({"train": Broken()})
rows_without_target = splits({"train": Rows()})
rows_of_other_target = splits({"test": DatasetSplit(Rows(), target="y")})
no_prepare = splits({"train": Split(torch.zeros(40, 20), torch.zeros(40).long(), prepare=lambda inputs: inputs.oops)})
narrow_valid = splits({"valid": Split(torch.zeros(40, 19), torch.zeros(40).long())})
narrow_test = splits({"test": Split(torch.zeros(40, 19), torch.zeros(40).long())})

# Shapes and kinds
def wrong_width(): return make(model=lambda: net(features=21))
def float_targets(): return make(data=lambda seed: Splits(*[Split(s.inputs, s.targets.float()) for s in (
    data(seed).train, data(seed).valid, data(seed).test)]))
def one_class(): return make(model=lambda: net(classes=1))
def label_of_one(name): return splits({name: Split(torch.zeros(999, 20), torch.arange(999) // 998 * 2)})
last_label, last_test_label = label_of_one("train"), label_of_one("test")
class ByName(Uncalled):
    def forward(self, image): return self.out(self.drop(image))
def unknown_input(): return make(model=ByName, dropout={"drop": "rate"}, data=lambda seed: Splits(*[
    Split({"image": torch.zeros(40, 20), "mask": torch.zeros(40)}, torch.zeros(40).long())] * 3))
def cutout(): return make(augmentations=(Cutout("rate", "rate", max_holes=1),))
def recurrent(): return make(recurrent=True)

# Code of their own
class Raising(Uncalled):
    def forward(self, inputs): return self.out(self.drop(inputs)).view(7, -1)
def broken_model(): return make(model=Raising, dropout={"drop": "rate"})
def init_raises(): raise RuntimeError("no such layer")
def broken_init(): return make(model=init_raises)
def loss_raises(outputs, targets): return outputs.oops
def broken_loss(): return make(loss=loss_raises)
def loss_of_batch(): return make(loss=nn.CrossEntropyLoss(reduction="none"))
def float_loss(): return make(loss=lambda outputs, targets: 1.0)
def detached_loss(): return make(loss=lambda outputs, targets: (outputs.argmax(-1) != targets).float().mean())
def metric_raises(outputs, targets): return {}["f1"]
def loss_exits(outputs, targets): sys.exit(3)
def ended_loss(): return make(loss=loss_exits)
def ending(): return sys.exit("usage: mine")
def broken_metric(): return make(metrics={"f1": metric_raises})
def metric_of_batch(): return make(metrics={"m": lambda outputs, targets: outputs})
class Noise:
    names = ("rate",)
    def __call__(self, inputs, sample): return inputs.oops
def broken_augmentation(): return make(augmentations=(Noise(),))
class Labels(Noise):
    def __call__(self, inputs, targets, sample): return inputs.oops
def broken_labels(): return make(label_augmentations=(Labels(),))
class Penalty(Noise):
    paths = ()
    def __call__(self, network, sample, activations): return sample["nothing"]
def broken_penalty(): return make(penalties=(Penalty(),))
def optimizer(parameters, lr): raise ZeroDivisionError("my optimizer")
def broken_optimizer(): return make(training=replace(PLAIN["training"], optimizer=optimizer))
def schedule(optimizer): raise ZeroDivisionError("my schedule")
def broken_schedule(): return make(training=replace(PLAIN["training"], lr_schedule=schedule))
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a module of mistakes, and good and bad schedules."""
    (tmp_path / "mistakes.py").write_text(MISTAKES)
    (tmp_path / "no_syntax.py").write_text("def make(:\n")
    (tmp_path / "script.py").write_text("import argparse\nargparse.ArgumentParser().parse_args(['--epochs', '3'])\n")
    (tmp_path / "no_import.py").write_text("import no_such_module_at_all\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("mistakes", "no_syntax", "no_import", "script"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def schedules(folder: Path) -> None:
    Schedule.constant({"dropout_1": 0.3}).to_parquet("good.parquet")
    Schedule.constant({"dropout_1": 0.95}).to_parquet("outside.parquet")
    Schedule.constant({"dropout_9": 0.3}).to_parquet("unknown.parquet")
    Schedule(("dropout_1",), np.array([0, 9]), np.array([[0.1], [0.2]])).to_parquet("steps.parquet")
    two = pd.DataFrame({"trial_id": ["x", "y"], "step": 0, "hp": "dropout_1", "value": 0.3})
    two.to_parquet("two.parquet")
    pd.DataFrame({"loss": [1.0]}).to_parquet("losses.parquet")
    Path("text.parquet").write_text("no Parquet")


def but(command: Sequence[str], option: str, *values: str) -> list[str]:
    """The command with another value of an option, or without it, or with one more."""
    if option not in command:
        return [*command, option, *values]
    at = list(command).index(option)
    return [*command[:at], *([option, *values] if values else []), *command[at + 2 :]]


def empty_data(folder: Path) -> list[str]:
    (folder / "empty").mkdir()
    return but(but(COMPARE, "--task", "fashion-mnist-mlp"), "--set", "data_dir=empty")


def corrupt_data(folder: Path) -> list[str]:
    (folder / "bad").mkdir()
    for name in ("train-images", "train-labels", "t10k-images", "t10k-labels"):
        (folder / "bad" / f"{name}-idx{3 if 'images' in name else 1}-ubyte").write_bytes(b"\0\0\x08\x03 no more")
    return but(but(COMPARE, "--task", "fashion-mnist-mlp"), "--set", "data_dir=bad")


def out_under_a_file(folder: Path) -> list[str]:
    (folder / "file").write_text("")
    return but(COMPARE, "--out", "file/out")


def out_is_a_file(folder: Path) -> list[str]:
    (folder / "file").write_text("")
    return but(RUN, "--out", "file")


Case = tuple[Sequence[str] | Callable[[Path], list[str]], Sequence[str]]

COMMANDS: dict[str, Case] = {
    "no command": (["trian"], ["'trian'", "Accepted are", "compare"]),
    "no option": ([*COMPARE, "--budgets", "3"], ["--budgets"]),
    "missing option": (but(COMPARE, "--budget"), ["--budget"]),
    "no number": (but(COMPARE, "--budget", "much"), ["--budget", "'much'", "float"]),
    "task": (but(COMPARE, "--task", "digits"), ["unknown task 'digits'", "digits-mlp", "module:attribute"]),
    "own task's module": (but(COMPARE, "--task", "nothing:task"), ["'nothing:task'", "no module 'nothing'"]),
    "own task's attribute": (but(COMPARE, "--task", "mistakes:none"), ["has no task or function 'none'"]),
    "method": (but(COMPARE, "--methods", "fixed,sgd"), ["unknown method 'sgd'", "random", "gp-bo"]),
    "method twice": (but(COMPARE, "--methods", "fixed,fixed"), ["--methods fixed,fixed", "twice"]),
    "control alone": (but(COMPARE, "--methods", "replayed"), ["--methods replayed", "the run of auto", "add auto"]),
    "no method": (but(COMPARE, "--methods", ","), ["--methods", "at least one"]),
    "algorithm": (but(RUN, "--algorithm", "sgd"), ["unknown algorithm 'sgd'", "stn", "delta-stn", "fixed"]),
    "budget": (but(COMPARE, "--budget", "-5"), ["--budget -5", "1 or more"]),
    "budget of no epoch": (but(COMPARE, "--budget", "0.5"), ["--budget 0.5", "not even one epoch", "1 or more"]),
    "endless budget": (but(COMPARE, "--budget", "inf"), ["--budget inf", "1 or more"]),
    "seeds": (but(COMPARE, "--seeds", "0"), ["--seeds 0", "1 or more"]),
    "trials": (but(RUN, "--trials", "0"), ["--trials 0", "1 or more"]),
    "seed": (but(RUN, "--seed", "-1"), ["--seed -1", "0 or more"]),
    "epochs": (but(RUN, "--epochs", "0"), ["--epochs 0", "1 or more"]),
    "no hyper-step": (
        [*but(RUN, "--algorithm", "stn"), "--epochs", "2"],
        ["stn would tune nothing", "2 epochs of ", "more --epochs", "--set warmup_epochs="],
    ),
    "setting": (but(COMPARE, "--set", "epoch=3"), ["unknown setting 'epoch'", "epochs"]),
    "setting's value": (but(COMPARE, "--set", "lr=fast"), ["--set lr='fast'", "finite number above 0"]),
    "nothing to retry in": ([*COMPARE, "--retry-failed"], ["--retry-failed: only with --resume"]),
    "form of a setting": (but(COMPARE, "--set", "epochs"), ["--set epochs", "key=value"]),
    "cpus": (but(COMPARE, "--cpus-per-trial", "0"), ["--cpus-per-trial 0", "above 0"]),
    "gpus": (but(COMPARE, "--gpus-per-trial", "-1"), ["--gpus-per-trial -1", "0 or more"]),
    "part of several gpus": (but(COMPARE, "--gpus-per-trial", "1.5"), ["--gpus-per-trial 1.5", "a share of one"]),
    "form of a resource": (but(COMPARE, "--resources", "fast"), ["--resources fast", "key=value"]),
    "resource": (but(COMPARE, "--resources", "fast=much"), ["--resources fast=much", "'much' is no number"]),
    "no resource": (but(COMPARE, "--resources", "fast=0"), ["--resources fast=0", "above 0"]),
    "cpus as a resource": (but(COMPARE, "--resources", "CPU=2"), ["--resources CPU=2", "--cpus-per-trial"]),
    "form of a label": (but(COMPARE, "--label", "b"), ["--label b", "key=value"]),
    "storage": (but(COMPARE, "--storage-path", "foo://x"), ["--storage-path foo://x", "s3://bucket/folder"]),
    "working directory": (but(COMPARE, "--working-dir", "."), ["--working-dir .", "only with --address"]),
    "no working directory": (
        [*COMPARE, "--address", "auto", "--working-dir", "none"],
        ["--working-dir none", "no such folder"],
    ),
    "concurrency": (but(COMPARE, "--max-concurrent", "0"), ["--max-concurrent 0", "1 or more"]),
    "no data": (empty_data, ["Fashion-MNIST not found in empty", "--set data_dir=FOLDER", "tune-stn data"]),
    "corrupt data": (corrupt_data, ["bad/train-images-idx3-ubyte", "fetch the file again"]),
    "out under a file": (out_under_a_file, ["--out file/out", "cannot be made a directory"]),
    "out is a file": (out_is_a_file, ["--out file", "cannot be made a directory"]),
    "data set": (["data", "mnist"], ["'mnist'", "fashion-mnist"]),
    "licensed data set": (["data", "ptb"], ["Penn Treebank is not fetched", "LDC99T42", "data_dir=FOLDER"]),
    "absent text": (
        but(but(COMPARE, "--task", "ptb-lstm"), "--set", "data_dir=none"),
        ["Penn Treebank not found in none", "--set data_dir=FOLDER"],
    ),
    "size of a network": (but(but(COMPARE, "--task", "text-lstm"), "--set", "layers=0"), ["layers=0", "1 or more"]),
    "heads": (but(but(COMPARE, "--task", "text-transformer"), "--set", "heads=5"), ["heads=5", "width=96"]),
    "tokens": (but(but(COMPARE, "--task", "text-lstm"), "--set", "train_tokens=1"), ["train_tokens=1", "2 to 77633"]),
    "study": (["report", "nowhere"], ["nowhere"]),
    "no study": (["report", "."], ["study.json"]),
    "export of no study": (["export", ".", "--to", "x"], ["study.json"]),
    "algorithm's case": (but(RUN, "--algorithm", "STN"), ["unknown algorithm 'STN'", "stn"]),
    "trials of fixed": (but(RUN, "--trials", "2"), ["--trials 2", "fixed has 1"]),
    "name of a study": (["compare", *COMPARE[1:], "extra"], ["extra"]),
    "text for a size": (but(COMPARE, "--set", "hidden=abc"), ["--set hidden='abc'", "an integer"]),
    "size of nothing": (but(COMPARE, "--set", "hidden=0"), ["--set hidden=0", "an integer of 1 or more"]),
    "size below nothing": (but(RUN, "--set", "hidden=-3"), ["--set hidden=-3", "1 or more"]),
    "size with a point": (but(COMPARE, "--set", "train_images=300.0"), ["--set train_images=300.0", "an integer"]),
    "size of null": (but(COMPARE, "--set", "hidden=null"), ["--set hidden=None", "an integer"]),
    "truth for a size": (but(COMPARE, "--set", "hidden=true"), ["--set hidden=True", "an integer"]),
    "no example": (but(COMPARE, "--set", "valid_images=0"), ["--set valid_images=0", "1 or more"]),
    "too many examples": (but(COMPARE, "--set", "train_images=1790"), ["--set train_images=1790", "fewer than 1797"]),
    "text for a truth": (but(but(COMPARE, "--task", "fashion-mnist-mlp"), "--set", "affine=yes"), ["affine='yes'"]),
    "features": (but(but(COMPARE, "--task", "ridge"), "--set", "features=0"), ["--set features=0", "1 or more"]),
    "width": (but(but(RUN, "--task", "cifar10-resnet18"), "--set", "width=0"), ["--set width=0", "1 or more"]),
    "absent images": (
        but(but(RUN, "--task", "cifar10-vgg16"), "--set", "data_dir=none"),
        ["CIFAR-10 not found in none"],
    ),
    "batch size": (but(COMPARE, "--set", "batch_size=0"), ["--set batch_size=0", "1 or more"]),
    "optimizer": (but(COMPARE, "--set", "optimizer=sgd"), ["--set optimizer='sgd'", "did you mean 'SGD'"]),
    "optimizer's arguments": (
        but(COMPARE, "--set", 'optimizer_args={"moment": 0.9}'),
        ["optimizer_args={'moment': 0.9}", "do not fit SGD"],
    ),
    "momentum": (but(COMPARE, "--set", 'optimizer_args={"momentum": -1}'), ["the optimizer of task", "momentum value"]),
    "schedule's arguments": (
        [*but(COMPARE, "--set", "lr_schedule=StepLR"), "--set", 'lr_schedule_args={"step_size": "x"}'],
        ["the lr_schedule of task 'digits-mlp'"],
    ),
    "response": (but(but(RUN, "--algorithm", "stn"), "--set", "response=none"), ["--set response='none'", "'full'"]),
    "response of no layer": (
        but(but(RUN, "--algorithm", "stn"), "--set", 'response={"99": "gate"}'),
        ["'99'", "module with parameters"],
    ),
    "more CPUs than there are": (but(COMPARE, "--cpus-per-trial", "9999"), ["--cpus-per-trial 9999: this machine has"]),
    "a resource of no local Ray": (but(COMPARE, "--resources", "fast=1"), ["--resources fast=1", "--address"]),
    "more GPUs than there are": (but(RUN, "--gpus-per-trial", "99"), ["--gpus-per-trial 99: this machine has"]),
    "address": (but(RUN, "--address", "1.2.3.4:99999"), ["--address 1.2.3.4:99999: accepted are host:port and auto"]),
    "precision": (but(COMPARE, "--set", "precision=half"), ["--set precision='half'", "bfloat16"]),
    "working directory that is a file": (
        [*COMPARE, "--address", "auto", "--working-dir", "mistakes.py"],
        ["--working-dir mistakes.py", "no such folder"],
    ),
    "export of a file": (["export", "mistakes.py", "--to", "x"], ["not a directory: mistakes.py"]),
}

TASKS: dict[str, Sequence[str]] = {
    "number": ["mistakes has no task or function 'number'"],
    "a_list": ["'mistakes:a_list' gave list", "not a tune_stn.Task"],
    "unknown_hp": ["'dropout_9'", "rate"],
    "outside": ["0.95", "'rate'", "[0, 0.9]"],
    "without_start": ["no start value for rate"],
    "empty": ["empty domain", "low=0.5", "high=0.5"],
    "learning_rate": ["'lr'", "gradient", "param_space"],
    "a_model": ["model of task 'mine' is a Sequential", "give a function"],
    "a_dict": ["space of task 'mine' is a dict", "SearchSpace("],
    "training_dict": ["training of task 'mine' is a dict", "Training("],
    "loss_class": ["loss of task 'mine' is the class CrossEntropyLoss", "CrossEntropyLoss()"],
    "number_path": ["dropout of task 'mine' has 2 in it", "texts, '2'"],
    "no_model": ["model of task 'mine' gave a NoneType", "torch.nn.Module"],
    "unread": ["'other'", "read by nothing"],
    "metric_loss": ["metrics of task 'mine'", "'loss'"],
    "no_comma": ["penalties of task 'mine' is a WeightDecay", "(thing,)"],
    "wrong_path": ["the model of task 'mine'", "dropout path '7' matches no dropout module", "there are: 2"],
    "not_a_dropout": ["dropout path '0'", "there are: 2"],
    "wrong_weights": ["weight_dropout path '9'", "there are: 0, 3"],
    "per_example_weights": ["weight_dropout binds 'rate'", "per_batch=['rate']"],
    "uncalled": ["'rate' of task 'mine' was read by nothing", "'drop'"],
    "not_splits": ["data of task 'mine' gave a tuple", "give Splits(train, valid, test)"],
    "no_seed": ["data of task 'mine' is called as data(seed)"],
    "two_lengths": ["the data of task 'mine'", "(3, 20)", "(4,)", "same number of examples"],
    "stream": ["the data of task 'mine'", "valid: dataset=Stream is a stream"],
    "loader_as_split": ["the data of task 'mine'", "valid=list: give a Split(inputs, targets)"],
    "loader_in_split": ["inputs of a split hold a DataLoader", "given to Splits itself"],
    "sampler": ["train: the DataLoader has a WeightedRandomSampler"],
    "rows_without_target": ["the train split of task 'mine'", "'x', 'label'", "target='label'"],
    "rows_of_other_target": ["the test split of task 'mine'", "mappings with 'y'"],
    "narrow_valid": ["in its module '0', Linear(in_features=20", "(40, 19) of the valid split"],
    "narrow_test": ["in its module '0', Linear(in_features=20", "(40, 19) of the test split"],
    "wrong_width": [
        "the model of task 'mine', in its module '0', Linear(in_features=21",
        "(20, 20) of the train split",
    ],
    "float_targets": ["the loss of task 'mine', given outputs float32 (20, 2) and targets float32 (20,)", "raised"],
    "last_label": ["the loss of task 'mine'", "of the train split", "Target 2 is out of bounds"],
    "last_test_label": ["the loss of task 'mine'", "of the test split", "Target 2 is out of bounds"],
    "one_class": ["the loss of task 'mine'", "(20, 1)", "out of bounds"],
    "unknown_input": ["no argument 'mask'", "it takes image"],
    "cutout": ["the augmentation Cutout of task 'mine': cutout needs (batch, ..., height, width)", "(20, 20)"],
    "recurrent": ["task 'mine'"],
    "loss_of_batch": ["loss of task 'mine' gave a tensor of shape (20,)", "reduction='mean'"],
    "float_loss": ["loss of task 'mine' gave a float"],
    "detached_loss": ["loss of task 'mine' gave a tensor without a gradient"],
    "metric_of_batch": ["metric 'm' of task 'mine' gave a tensor of shape"],
}

# Which part raised it, and the line of their own code.
OWN: dict[str, tuple[str, str]] = {
    "mistakes:raising": ("the function of task 'mistakes:raising' raised ValueError", 'int("no number")'),
    "no_syntax:make": ("the module of task 'no_syntax:make' raised SyntaxError", "def make(:"),
    "no_import:make": (
        "the module of task 'no_import:make' raised ModuleNotFoundError",
        "import no_such_module_at_all",
    ),
    "mistakes:broken_data": ("the data of task 'mine' raised KeyError: 'column'", "in data_raises"),
    "mistakes:broken_rows": ("the train split of task 'mine' raised OSError: disk on fire", "in __getitem__"),
    "mistakes:no_prepare": ("the train split of task 'mine' raised AttributeError", "inputs.oops"),
    "mistakes:broken_model": ("the model of task 'mine', on the train split, raised RuntimeError", ".view(7, -1)"),
    "mistakes:broken_init": ("the model of task 'mine' raised RuntimeError: no such layer", "in init_raises"),
    "mistakes:broken_loss": ("the loss of task 'mine', given outputs float32 (20, 2)", "in loss_raises"),
    "mistakes:ended_loss": ("the loss of task 'mine', given outputs float32 (20, 2)", "in loss_exits"),
    "mistakes:ending": ("the function of task 'mistakes:ending' raised SystemExit: usage: mine", "in ending"),
    "script:make": ("the module of task 'script:make' raised SystemExit: 2", "parse_args("),
    "mistakes:broken_metric": ("the metric 'f1' of task 'mine', given outputs", "in metric_raises"),
    "mistakes:broken_augmentation": ("the augmentation Noise of task 'mine' raised AttributeError", "inputs.oops"),
    "mistakes:broken_labels": ("the label augmentation Labels of task 'mine' raised AttributeError", "inputs.oops"),
    "mistakes:broken_penalty": ("the penalty Penalty of task 'mine' raised KeyError", 'sample["nothing"]'),
    "mistakes:broken_optimizer": ("the optimizer of task 'mine' raised ZeroDivisionError", "in optimizer"),
    "mistakes:broken_schedule": ("the lr_schedule of task 'mine' raised ZeroDivisionError", "in schedule"),
}

REPLAYS: dict[str, Case] = {
    "no schedule": ([*REPLAY, "nowhere.parquet"], ["no schedule at nowhere.parquet"]),
    "a folder": ([*REPLAY, "."], [". is a directory", "schedule.parquet"]),
    "no table": ([*REPLAY, "text.parquet"], ["text.parquet is damaged, or no Parquet file"]),
    "another table": ([*REPLAY, "losses.parquet"], ["losses.parquet: no schedule in a table of the columns loss"]),
    "two trials": ([*REPLAY, "two.parquet"], ["the schedules of 2 trials: x, y", "--trial"]),
    "no such trial": ([*REPLAY, "two.parquet", "--trial", "z"], ["no rows of trial_id 'z', but of: x, y"]),
    "no trials": ([*REPLAY, "good.parquet", "--trial", "z"], ["no column 'trial_id'"]),
    "unknown": ([*REPLAY, "unknown.parquet"], ["'dropout_9', which is not a hyperparameter of this task", "dropout_1"]),
    "outside": ([*REPLAY, "outside.parquet"], ["'dropout_1' of the schedule is 0.95", "[0, 0.9]"]),
    "no epochs": ([*REPLAY, "steps.parquet", "--per-epoch"], ["does not know where its epochs begin"]),
    "seed": ([*REPLAY, "good.parquet", "--seed", "-1"], ["--seed -1", "0 or more"]),
    "epochs": ([*REPLAY, "good.parquet", "--epochs", "0"], ["--epochs 0", "1 or more"]),
    "task": ([*but(REPLAY, "--task", "digits"), "good.parquet"], ["unknown task 'digits'"]),
    "size": ([*REPLAY, "good.parquet", "--set", "hidden=0"], ["--set hidden=0", "1 or more"]),
    "no argument": (REPLAY, ["SCHEDULE"]),
}


@pytest.fixture
def refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[str]], tuple[list[str], str]]:
    """Run a command that is to be refused; gives the lines before the last one of stderr, and that one."""
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("Ray was started"))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # whatever tests before this one have started
    monkeypatch.setattr("tune_stn.study.side_by_side.execute", lambda *_: pytest.fail("a trial was started"))

    def run(command: Sequence[str]) -> tuple[list[str], str]:
        began = time.process_time()
        done = CliRunner().invoke(main, command, catch_exceptions=False)
        assert time.process_time() - began < CPU_S
        assert done.exit_code == 2
        assert done.stdout == ""
        *before, line = done.stderr.splitlines()
        assert line.startswith("tune-stn: ")
        assert not (here / "out").exists() or not list((here / "out").iterdir())
        return before, line

    return run


@pytest.mark.parametrize("case", COMMANDS)
def test_a_bad_command_is_refused_in_one_line(
    here: Path, refused: Callable[[Sequence[str]], tuple[list[str], str]], case: str
) -> None:
    command, parts = COMMANDS[case]
    before, line = refused(command(here) if callable(command) else command)
    assert before == []
    assert all(part in line for part in parts), line


@pytest.mark.parametrize("case", REPLAYS)
def test_a_bad_replay_is_refused_in_one_line(
    here: Path, refused: Callable[[Sequence[str]], tuple[list[str], str]], case: str
) -> None:
    schedules(here)
    command, parts = REPLAYS[case]
    assert not callable(command)
    before, line = refused(command)
    assert before == []
    assert all(part in line for part in parts), line


@pytest.mark.parametrize("case", TASKS)
def test_a_bad_task_is_refused_in_one_line(
    refused: Callable[[Sequence[str]], tuple[list[str], str]], case: str
) -> None:
    before, line = refused(but(but(RUN, "--algorithm", "stn"), "--task", f"mistakes:{case}"))
    assert before == []
    assert all(part in line for part in TASKS[case]), line


@pytest.mark.parametrize("case", OWN)
def test_what_code_of_their_own_raises_comes_with_its_own_traceback(
    refused: Callable[[Sequence[str]], tuple[list[str], str]], case: str
) -> None:
    """And with nothing of this package or torch before their first line."""
    part, code = OWN[case]
    before, line = refused(but(but(COMPARE, "--methods", "auto,random"), "--task", case))
    assert part in line, line
    assert any(code in one for one in before), before
    files = [one for one in before if one.startswith("  File ")]
    assert all("tune_stn" not in one for one in files[:1])


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("later_raises", "the data of task 'mine' at seed 2 raised KeyError: 'column'"),
        ("later_not_splits", "data of task 'mine' gave a tuple at seed 2: give Splits(train, valid, test)"),
    ],
)
def test_data_that_fail_at_a_later_seed_are_refused(
    refused: Callable[[Sequence[str]], tuple[list[str], str]], task: str, words: str
) -> None:
    assert words in refused(but(but(COMPARE, "--task", f"mistakes:{task}"), "--seeds", "4"))[1]


def test_there_are_many() -> None:
    assert len(COMMANDS) + len(TASKS) + len(OWN) + len(REPLAYS) >= 80
