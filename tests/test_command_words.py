"""Errors of Python functions, said with the options of the command line."""

from __future__ import annotations

import pytest

from tune_stn.command_words import in_options

OPTIONS = {"budget": "--budget", "seeds": "--seeds", "seed": "--seed", "methods": "--methods", "out": "--out"}
OPTIONS |= {"cpus_per_trial": "--cpus-per-trial", "resources": "--resources", "settings": "--set", "resume": "--resume"}
OPTIONS |= {"address": "--address", "trial_id": "--trial"}


@pytest.mark.parametrize(
    ("python", "command"),
    [
        ("budget=-5: accepted is a number above 0", "--budget -5: accepted is a number above 0"),
        ("budget=0.5: so much", "--budget 0.5: so much"),
        ("methods=['fixed', 'fixed']: twice", "--methods fixed,fixed: twice"),
        ("methods=[]: name one", "--methods: name one"),
        ("resources={'fast': 0}: no", "--resources fast=0: no"),
        ("resources={'gpu': 1}: use cpus_per_trial=", "--resources gpu=1: use --cpus-per-trial"),
        ("lower cpus_per_trial=, or resources=", "lower --cpus-per-trial, or --resources"),
        ("resume=True: begun with budget 1", "--resume: begun with budget 1"),
        ("add resume=True to go on", "add --resume to go on"),
        ("address=127.0.0.1:1: none", "--address 127.0.0.1:1: none"),
        ("out=.: no", "--out .: no"),
        ("out=a/b.c: no", "--out a/b.c: no"),
        ("choose one by trial_id=", "choose one by --trial"),
        ("seed=7: none", "--seed 7: none"),
        ("settings={'epochs': 3}", "--set epochs=3"),
        ("name it by `data_dir=FOLDER`", "name it by `--set data_dir=FOLDER`"),
        ("lr='fast': accepted is a number", "--set lr='fast': accepted is a number"),
        # Neither an option nor a setting; inside a call; in a path.
        ("give low=0 below high=1", "give low=0 below high=1"),
        ("give Splits(out=1, budget=2)", "give Splits(out=1, budget=2)"),
        ("no trial (seed=3, budget=2)", "no trial (--seed 3, --budget 2)"),
        ("in /data/seed=3/x", "in /data/seed=3/x"),
        ("my_budget=3", "my_budget=3"),
    ],
)
def test_arguments_become_options(python: str, command: str) -> None:
    assert in_options(python, OPTIONS, {"resume"}, {"lr", "data_dir"}) == command
