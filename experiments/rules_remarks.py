"""What the update rule `auto` cannot do, and what was tried and did not help: a line each, with its figures."""

from __future__ import annotations

LIMITS = (
    "From start values so strong that the network learns nothing, a run must first come down from them; a short run "
    "loses much of its time so (the worst starts under Start values).",
    "It takes every hyperparameter for a regulariser that regularises more as it rises, and does not choose among "
    "them.",
    "The equal doses pay where hyperparameters differ in kind (mlp-affine); elsewhere progress-ratio alone does as "
    "well.",
    "It measures every fifth step or less often, so a run of fewer than about 50 measurements hardly moves anything.",
    "It keeps validation near training. Where a network does not overfit within the run, there is nothing to gain by "
    "it.",
)

TRIED = (
    "The gates of STN and of Delta-STN in the weights' own forward pass or beside it: on short runs most of their "
    "effect is one number, how much regularisation there is (the arms stn and delta-stn; progress-ratio has it "
    "without gates).",
    "The gains of validation and training as they are, not in proportion to the loss: nothing is seen any more where "
    "the training loss is next to nothing (mlp, 4 seeds: .592 for .586; digits, lr .2, 8 seeds: .159 for .149).",
    "The pressure `target * t - v` where training is undone as well (t < 0): once regularisation hurts both losses "
    "alike it rises further, to the end of the domains (digits, lr .1, 6 seeds: last validation loss 1.42 for .18).",
    "Perturbed hyperparameters for each example in the base step: no better at the target of .8 (mlp, 4 seeds: .586 "
    "at its best target, .588 without), worse on text-lstm (3.84 for 3.80), and the replay is no longer the run "
    "itself.",
    "A target of .8 or .7 in place of .6: .620 and .608 for .600 on mlp-affine, where plain is .614; .586 and .590 for "
    ".588 on mlp (5 seeds each); .142 and .145 for .152 on the digits (10 seeds). Twice the speed: .169 for .138 there "
    "(target .8).",
    "Averages of the weights over twice the time, gains smoothed over three times the time: .16 to .19 for .17 and "
    "less (digits, lr .2, 10 seeds).",
    "Pressure from the ratio of the losses themselves, training under a fifth of validation: .143 to .157 for .143 "
    "(digits, lr .1, 10 seeds); in language models the ratio is near 1 when they overfit.",
    "Sharing out by how much a hyperparameter narrows the gap between training and validation loss (dose on training "
    "less dose on validation examples): .613 on mlp, 4 seeds, no better than plain; its noise is larger than what it "
    "tells.",
    "Doses to the power of a half or two, or counted from three times the median: within .003 on mlp, 4 seeds.",
    "Coming down from start values that are too strong wherever both losses are near each other and neither moves, "
    "whatever has been learned: language models have near losses for long, so it took their regularisation away "
    "(transformer, 6 seeds: 4.057 for 4.047).",
    "A step size of .01 for the hyperparameters of the language tasks, as the papers have it for runs of 16,000 "
    "hyper-steps: they moved by a third of a domain in 65 measurements (transformer, 6 seeds: 4.047 for 4.002; ptb: "
    "3.778).",
    "A network taken for trapped only below a gain of .05, not .2: it comes down later from start values that are too "
    "strong (mlp, 24 starts: the worst at 1.17 times the median for 1.15); on the ResNet within its noise (4 seeds: "
    "1.716 for 1.751, plain 1.724).",
    "Steps by what all doses together are of the training loss: downward ones shorter where that is below .02 (mlp "
    ".573 for .575, digits .155 for .158, mlp-2560 .441 for .444, transformer 3.981 for 3.979; two to eight seeds): "
    "too little to tell; upward ones up to three times as long below .05: .582 for .573 on mlp.",
    "Gates by tanh and by exp for STN: a loss higher by .028 and .024 (digits, lr .03, 10 seeds, paired); antithetic "
    "noise +.005, half of the rows at the mean +.001, one hyperparameter at a time +.005.",
)
