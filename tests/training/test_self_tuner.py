"""A training loop of one's own: the same steps as in the built-in one, and mistakes that are told."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tune_stn import SearchSpace, SelfTuner, Uniform, self_tuning
from tune_stn.nn import SelfTuningModel
from tune_stn.space import Tunable
from tune_stn.tasks import Task, get_task
from tune_stn.training import Trainer, load_state, save_state
from tune_stn.training.network import make_network
from tune_stn.training.rules import RULES
from tune_stn.training.seeds import derive_seed, stream
from tune_stn.training.self_tuner import SEEN

SPACE = SearchSpace({"dropout": Uniform(0, 0.9)})
TUNING = ("auto", "stn", "delta-stn")


def net_of(**more: Any) -> SelfTuningModel:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3))
    return self_tuning(model, SPACE, start={"dropout": 0.3}, dropout={"2": "dropout"}, **more)


def tuner_of(algorithm: str = "stn", **more: Any) -> SelfTuner:
    net = net_of(centred=algorithm == "delta-stn")
    return SelfTuner(net, torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9), algorithm=algorithm, **more)


def batches(count: int, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Inputs, and which of their first three numbers is the largest."""
    generator = torch.Generator().manual_seed(seed)
    inputs = [torch.randn(6, 4, generator=generator) for _ in range(count)]
    return [(x, x[:, :3].argmax(1)) for x in inputs]


def loss_of(net: SelfTuningModel) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, y: F.cross_entropy(net(x), y)


def train(tuner: SelfTuner, count: int, *, first: int = 0) -> list[float]:
    """Steps on batches of their own, with a hyper-step after every fifth."""
    loss, (xv, yv) = loss_of(tuner.net), batches(1, seed=1)[0]
    losses = []
    for step, (x, y) in itertools.islice(enumerate(batches(first + count)), first, None):
        torch.manual_seed(step)
        losses.append(float(tuner.train_step(loss, x, y)))
        if step % 5 == 4:
            tuner.hyper_step(loss, xv, yv)
    return losses


# The built-in loop ----------------------------------------------------------------------------------------------------


def by_hand(task: Task, algorithm: str, *, told: bool) -> SelfTuner:
    """The loop of `Trainer` with the two calls, augmentation and penalties in the closures.

    Args:
        task: What to train.
        algorithm: The update rule.
        told: Whether the calls are told the tensors of the batch.
    """
    training, splits = task.training, task.data(0)
    net = make_network(task, RULES[algorithm], start=task.start, seed=0)
    steps_per_epoch = splits.train.steps(training.batch_size)
    tuner = SelfTuner(
        net,
        torch.optim.SGD(net.parameters(), lr=training.lr, **training.optimizer_args),
        algorithm=algorithm,
        steps=training.epochs * steps_per_epoch,
        clip_norm=training.clip_norm,
        train_steps=training.train_steps,
        hyper_lr=training.hyper_lr,
    )

    def closure(x: Tensor, y: Tensor) -> Tensor:
        if not net.training:
            return task.loss(net(x), y)
        sample = net.sample(len(x))
        for augmentation in task.augmentations:
            x = augmentation(x, sample)
        loss = task.loss(net(x), y)
        for penalty in task.penalties:
            loss = loss + penalty(net.network, sample, {}).mean()
        return loss

    since = 0
    for epoch in range(training.epochs):
        net.train()
        torch.manual_seed(derive_seed(0, "noise", epoch))
        validation = splits.valid.cycle(training.batch_size, stream(0, "validation order", epoch))
        for batch in splits.train.batches(training.batch_size, stream(0, "order", epoch)):
            x, y = batch.inputs, batch.targets
            if told:
                tuner.train_step(closure, x, y)
            else:
                tuner.train_step(lambda x=x, y=y: closure(x, y))
            since += epoch >= training.warmup_epochs
            if since >= training.train_steps and algorithm != "fixed":
                since = 0
                valid = next(validation)
                tuner.hyper_step(closure, valid.inputs, valid.targets)
    return tuner


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "told"),
    [
        *(("stn", False), ("stn", True), ("delta-stn", False), ("delta-stn", True)),
        *(("progress-ratio", False), ("auto", True), ("fixed", False)),
    ],
)
def test_the_same_steps_as_in_the_built_in_loop_bit_for_bit(algorithm: str, told: bool) -> None:
    """With augmentation, penalty and dropout, all of which read the sample. `auto` looks at a part of a batch."""
    task = get_task("digits-mlp", epochs=4, warmup_epochs=1, hidden=16, train_steps=5, hyper_lr=0.05)
    trainer = Trainer(task, algorithm=algorithm)
    for _ in range(4):
        trainer.run_epoch()
    tuner = by_hand(task, algorithm, told=told)
    found, expected = tuner.net.state_dict(), trainer.model.state_dict()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
    assert tuner.net.hyperparameters() == trainer.model.hyper.mean_values()
    start = Trainer(task, algorithm=algorithm).model.hyper.mean_values()
    assert (tuner.net.hyperparameters() == start) == (algorithm == "fixed")


# A loop of somebody else's --------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", list(RULES))
def test_backward_and_step_may_be_another_loops(algorithm: str) -> None:
    mine, other = (tuner_of(algorithm, hyper_lr=0.05, steps=40) for _ in range(2))
    optimizer = other.rule.stepper.optimizers["base"]
    loss, (xv, yv) = loss_of(other.net), batches(1, seed=1)[0]
    expected = loss_of(mine.net)
    for step, (x, y) in enumerate(batches(20)):
        torch.manual_seed(step)
        mine.train_step(expected, x, y)
        torch.manual_seed(step)
        optimizer.zero_grad()
        with other.net.using(other.training_sample()):
            loss(x, y).backward()
        other.before_step(loss, x, y)
        optimizer.step()
        other.after_step(loss, x, y)
        assert other.hyper_step_due == (algorithm != "fixed" and step % 5 == 4)
        if other.hyper_step_due:
            for tuner, closure in ((mine, expected), (other, loss)):
                torch.manual_seed(step)
                tuner.hyper_step(closure, xv, yv)
            assert all(parameter.grad is None for parameter in other.net.hyper.parameters())
    found, wanted = other.net.state_dict(), mine.net.state_dict()
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []
    assert other.steps_done == mine.steps_done == 20


def test_a_rule_that_steps_by_itself_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RULES["stn"], "trains", None)
    tuner, (x, y) = tuner_of("stn"), batches(1)[0]
    with pytest.raises(ValueError, match="algorithm='stn' does its training step itself, and another loop cannot"):
        tuner.before_step(loss_of(tuner.net), x, y)


# What a loop has beside the two calls ---------------------------------------------------------------------------------


def test_gradients_that_are_accumulated_are_those_of_the_batch() -> None:
    """Where no unit is dropped: each part has draws of its own."""
    whole, parts = (tuner_of("auto", accumulate=count) for count in (1, 4))
    (x, y), *_ = batches(1)
    for tuner in (whole, parts):
        assert isinstance(tuner.net.hyper, Tunable)
        tuner.net.hyper.raw.data.fill_(-30.0)
        tuner.train_step(loss_of(tuner.net), x, y)
    start = list(net_of().base_parameters())
    for one, other, before in zip(whole.net.base_parameters(), parts.net.base_parameters(), start, strict=True):
        torch.testing.assert_close(one, other)
        assert not torch.equal(one, before)


@pytest.mark.parametrize("algorithm", TUNING)
def test_a_run_goes_on_from_its_states(algorithm: str, tmp_path: Any) -> None:
    whole, first, second = (tuner_of(algorithm, hyper_lr=0.05, steps=40) for _ in range(3))
    expected = train(whole, 30)
    train(first, 17)
    optimizer = first.rule.stepper.optimizers["base"]
    state = {"net": first.net.state_dict(), "optimizer": optimizer.state_dict(), "tuner": first.state_dict()}
    save_state(state, tmp_path / "state.pt")
    state = load_state(tmp_path / "state.pt")
    second.net.load_state_dict(state["net"])
    second.rule.stepper.optimizers["base"].load_state_dict(state["optimizer"])
    second.load_state_dict(state["tuner"])
    assert train(second, 13, first=17) == expected[17:]
    assert second.net.hyperparameters() == whole.net.hyperparameters() != net_of().hyperparameters()
    with pytest.raises(ValueError, match=f"the state is of algorithm '{algorithm}', this tuner of 'fixed'"):
        tuner_of("fixed").load_state_dict(state["tuner"])


@pytest.mark.parametrize("algorithm", TUNING)
def test_autocast_is_the_closures_own(algorithm: str) -> None:
    tuner = tuner_of(algorithm, hyper_lr=0.05)
    net, (x, y) = tuner.net, batches(1)[0]

    def closure() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            outputs = net(x)
        return F.cross_entropy(outputs.float(), y)

    before = net.hyperparameters()
    for _ in range(6):
        assert tuner.train_step(closure).isfinite()
    tuner.hyper_step(closure)
    assert net.hyperparameters() != before
    assert all(parameter.dtype == torch.float32 for parameter in net.parameters())


@pytest.mark.parametrize("algorithm", TUNING)
def test_the_optimizer_leaves_hyperparameters_alone_and_trains_a_loss_of_ones_own(algorithm: str) -> None:
    """With weight decay, momentum and a schedule; and a hyper-step leaves the weights alone."""
    net = net_of(centred=algorithm == "delta-stn")
    own = nn.Parameter(torch.ones(()))
    optimizer = torch.optim.AdamW([*net.parameters(), own], lr=0.1, weight_decay=1.0)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 5, gamma=0.5)
    tuner = SelfTuner(net, optimizer, algorithm=algorithm, hyper_lr=0.05)
    assert isinstance(net.hyper, Tunable)
    raw = net.hyper.raw.detach().clone()
    (x, y), *_ = batches(1)
    for _ in range(8):
        tuner.train_step(lambda: own * F.cross_entropy(net(x), y))
        schedule.step()
    assert torch.equal(net.hyper.raw, raw)
    assert own != 1
    weights = [weight.detach().clone() for weight in (*net.base_parameters(), *net.response_parameters())]
    tuner.hyper_step(lambda: F.cross_entropy(net(x), y))
    moved = net.hyper.raw.detach().clone()
    assert not torch.equal(moved, raw)
    after = (*net.base_parameters(), *net.response_parameters())
    assert all(torch.equal(one, other) for one, other in zip(weights, after, strict=True))
    tuner.train_step(lambda: F.cross_entropy(net(x), y))
    assert torch.equal(net.hyper.raw, moved)


def test_closures_may_take_any_container() -> None:
    tuner = tuner_of("auto", accumulate=2)
    (x, y), *_ = batches(1)
    seen = []

    def closure(batch: dict[str, Tensor], scale: float) -> Tensor:
        seen.append(len(batch["x"]))
        return scale * F.cross_entropy(tuner.net(batch["x"]), batch["y"])

    for _ in range(2):
        tuner.train_step(closure, {"x": x, "y": y}, 2.0)
    assert seen == [6, 3, 3, 3, 3]  # the first is the loss before training


def test_it_learns_and_tunes() -> None:
    tuner = tuner_of("auto", steps=100)
    losses = train(tuner, 100)
    assert sum(losses[-20:]) < sum(losses[:20])
    assert tuner.steps_done == 100
    assert tuner.net.hyperparameters()["dropout"] != pytest.approx(0.3, abs=0.01)


# Mistakes -------------------------------------------------------------------------------------------------------------


def test_mistakes_in_the_making() -> None:
    net = net_of()
    others = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    some = torch.optim.SGD(net.base_parameters(), lr=0.1)
    compiled = nn.Linear(2, 2)
    compiled._orig_mod = net  # as torch.compile does
    constant, plain = net_of(tuned=False), net_of(response=None)
    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (TypeError, "net is a Linear: give what self_tuning", {"net": nn.Linear(2, 2)}),
        (TypeError, "batch_size=5 is the loop's own affair: accepted are accumulate", {"batch_size": 5}),
        (TypeError, "hyperlr=5 is no setting: accepted are accumulate", {"hyperlr": 5}),
        (TypeError, "net is a Linear: .* and call what torch.compile made", {"net": compiled}),
        (ValueError, "unknown algorithm 'sgd'; accepted are auto, stn", {"algorithm": "sgd"}),
        (ValueError, "steps=0: accepted is an integer of 1 or more", {"steps": 0}),
        (ValueError, "hyper_lr=-1: accepted is a finite number above 0", {"hyper_lr": -1}),
        (ValueError, "'delta-stn' needs a network of self_tuning.*centred=True", {"algorithm": "delta-stn"}),
        (ValueError, "'stn' tunes, and the network was made with .*tuned=False", {"net": constant, "algorithm": "stn"}),
        (ValueError, "no layer of the network has a response, which 'stn' learns", {"net": plain, "algorithm": "stn"}),
        (ValueError, "the optimizer holds no weight of the network: self_tuning returns a copy", {"optimizer": others}),
        (ValueError, "the optimizer lacks parameters of the response", {"optimizer": some, "algorithm": "stn"}),
    ]
    for error, message, arguments in cases:
        with pytest.raises(error, match=message):
            SelfTuner(**{"net": net, "optimizer": torch.optim.SGD(net.parameters(), lr=0.1), **arguments})


@pytest.mark.parametrize("algorithm", TUNING)
def test_mistakes_in_the_loop(algorithm: str) -> None:
    tuner = tuner_of(algorithm)
    net, (x, y) = tuner.net, batches(1)[0]

    def loss() -> Tensor:
        return F.cross_entropy(net(x), y)

    with pytest.raises(RuntimeError, match="hyper_step comes after a train_step"):
        tuner.hyper_step(loss)
    net.eval()
    with pytest.raises(RuntimeError, match=r"in evaluation mode: call net\.train\(\)"):
        tuner.train_step(loss)
    net.train()
    with pytest.raises(TypeError, match="the closure gave NoneType: it returns the loss"):
        tuner.train_step(lambda: None)  # type: ignore[arg-type,return-value]
    with pytest.raises(TypeError, match=r"the closure gave a tensor of shape \(6,\)"):
        tuner.train_step(lambda: F.cross_entropy(net(x), y, reduction="none"))
    with pytest.raises(ValueError, match="accumulate=2 takes a batch apart, which needs its tensors"):
        tuner_of(algorithm, accumulate=2).train_step(loss)
    with pytest.raises(ValueError, match="the loss of train_step has no gradient"):
        tuner.train_step(lambda: F.cross_entropy(net(x).detach(), y))
    with pytest.raises(ValueError, match="algorithm='fixed' tunes no hyperparameters"):
        tuner_of("fixed").hyper_step(loss)
    for _ in range(5):
        tuner.train_step(loss)
    model = nn.Linear(4, 3)
    for step in (tuner.train_step, tuner.hyper_step):
        with pytest.raises(ValueError, match="the closure did not call the self-tuning network"):
            step(lambda: F.cross_entropy(model(x), y))
        with pytest.raises(TypeError, match="closure is a Tensor: give a function that calls the network"):
            step(loss())  # type: ignore[arg-type]
    if algorithm != "auto":  # which looks at losses alone
        with torch.no_grad(), pytest.raises(ValueError, match=r"needs a gradient: call it outside of torch\.no_grad"):
            tuner.hyper_step(loss)
        with pytest.raises(ValueError, match="no gradient with respect to any hyperparameter"):
            tuner.hyper_step(lambda: F.cross_entropy(net(x).detach(), y))


class Leftover(nn.Module):
    """Its dropout is built, and never called."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.dropout = nn.Linear(4, 3), nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layer(F.dropout(x, 0.1, self.training))
        return logits

    def logits(self, x: Tensor) -> Tensor:
        return self(x)


@pytest.mark.parametrize("algorithm", TUNING)
def test_what_nothing_reads_is_refused(algorithm: str) -> None:
    """In the closure, by a call of the network or of a method of it, or outside of it, it is read."""

    def run(reads: Callable[[int, SelfTuningModel], Any]) -> None:
        net = self_tuning(
            Leftover(), SPACE, start={"dropout": 0.3}, dropout={"dropout": "dropout"}, centred=algorithm == "delta-stn"
        )
        tuner = SelfTuner(net, torch.optim.SGD(net.parameters(), lr=0.1), algorithm=algorithm, steps=100)
        for step, (x, y) in enumerate(batches(SEEN)):
            tuner.train_step(lambda x=x, y=y, step=step: [F.cross_entropy(net(x), y), reads(step, net)][0])
            if step % 5 == 4:
                tuner.hyper_step(lambda x=x, y=y: F.cross_entropy(net(x), y))

    with pytest.raises(ValueError, match="hyperparameter 'dropout' was read by nothing in 50 training steps: bind it"):
        run(lambda step, net: None)
    run(lambda step, net: net.sample(6)["dropout"] if step == 30 else None)
    run(lambda step, net: net.hyperparameters() if step == 30 else None)


def test_a_method_of_the_users_is_a_call() -> None:
    net = self_tuning(Leftover(), SPACE, start={"dropout": 0.3}, response=None)
    tuner = SelfTuner(net, torch.optim.SGD(net.parameters(), lr=0.1))
    (x, y), _ = batches(2)
    tuner.train_step(lambda: F.cross_entropy(net.logits(x), y))
    assert tuner.steps_done == 1
