"""Rates that the user's code reads as one number: they follow the sample, or the reader is told what to do."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tune_stn.data.splits import Split, Splits
from tune_stn.nn import SelfTuningModel, self_tuning
from tune_stn.space import SearchSpace, Uniform
from tune_stn.space.sample import Sample
from tune_stn.tasks import Task, Training
from tune_stn.training import Trainer

SPACE = SearchSpace({"rate": Uniform(0, 0.9)})
SHARED = SearchSpace({"rate": Uniform(0, 0.9)}, per_batch=["rate"])


class Attention(nn.Module):
    """As in vision transformers: the fused kernel is given the rate of a dropout that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)
        self.attn_drop, self.proj_drop = nn.Dropout(0.1), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        p = self.attn_drop.p if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=p)
        outputs: Tensor = self.proj_drop(self.proj(y.transpose(1, 2).flatten(2)))
        return outputs


class Functional(nn.Module):
    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.fc1, self.fc2, self.p, self.eps = nn.Linear(4, 100), nn.Linear(100, 3), p, 1e-6

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.fc2(F.dropout(torch.relu(self.fc1(x)), self.p, self.training))
        return outputs


class OwnClass(nn.Module):
    """As in many repositories of vision models."""

    def __init__(self, drop_rate: float = 0.1) -> None:
        super().__init__()
        self.drop_rate = drop_rate

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.drop_rate, self.training)


def blocks() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), OwnClass(), nn.Linear(8, 8), OwnClass(), nn.Linear(8, 3))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attn, self.head = nn.Linear(2, 8), Attention(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.view(-1, 2, 2))
        outputs: Tensor = self.head((x + self.attn(x)).mean(1))
        return outputs


def converted(model: nn.Module, dropout: dict[str, str], **more: Any) -> SelfTuningModel:
    return self_tuning(model, more.pop("space", SPACE), start={"rate": 0.2}, dropout=dropout, **more)


def at(*rates: float) -> Sample:
    return Sample({"rate": torch.tensor(rates)})


def test_a_number_of_a_dropout_is_the_rate_in_force() -> None:
    net = converted(Attention(), {"attn_drop": "rate"})
    for rate in (0.0, 0.25, 0.75):
        with net.using(at(rate)):
            assert net.attn_drop.p == pytest.approx(rate)


def assert_alike(plain: nn.Module, net: SelfTuningModel, x: torch.Tensor, rate: float) -> None:
    """Both drop the same units, at a rate and from the same random state."""
    outputs = []
    for model in (plain, net):
        torch.manual_seed(0)
        with net.using(at(rate)):
            outputs.append(model(x))
    torch.testing.assert_close(*outputs)


def test_a_fused_attention_drops_at_the_rate_in_force() -> None:
    """Exactly what the plain module does at that rate."""
    plain = Attention()
    net = converted(plain, {"attn_drop": "rate"}, response=None)
    x = torch.randn(5, 6, 8)
    for rate in (0.0, 0.6):
        plain.attn_drop.p = rate
        plain.proj_drop.p = 0.1
        assert_alike(plain, net, x, rate)


@pytest.mark.parametrize(
    ("model", "dropout", "path"),
    [(Net(), "attn.attn_drop", "attn.attn_drop.p"), (Functional(), "p", "p"), (blocks(), "1.drop_rate", "1.drop_rate")],
)
def test_one_number_cannot_be_the_rates_of_several_examples(model: nn.Module, dropout: str, path: str) -> None:
    net = converted(model, {dropout: "rate"})
    message = rf"reads '{path}' as one number, but 'rate' has a value for each of 6 examples: .*per_batch=\['rate'\]"
    with pytest.raises(ValueError, match=message):
        net.train()(torch.randn(6, 4))
    net.eval()(torch.randn(6, 4))


class Handed(nn.Module):
    """Hands the rate of an attention module that is never called to torch's function, and drops elsewhere as well."""

    def __init__(self) -> None:
        super().__init__()
        self.attn, self.drop, self.out = nn.MultiheadAttention(4, 2, dropout=0.1), nn.Dropout(0.1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, x = self.attn, x.view(1, -1, 4)
        weights = (a.in_proj_weight, a.in_proj_bias, None, None, False, a.dropout, a.out_proj.weight, a.out_proj.bias)
        y = F.multi_head_attention_forward(x, x, x, 4, 2, *weights, training=self.training)[0]
        outputs: Tensor = self.out(self.drop(y[0]))
        return outputs


def test_an_attention_gives_its_rate_in_force_as_a_number() -> None:
    plain = Handed()
    net = converted(plain, {"attn": "rate"}, response=None)
    plain.attn.dropout = 0.6  # type: ignore[assignment]
    assert_alike(plain, net, torch.randn(6, 4), 0.6)
    assert net.to_plain().attn.dropout == pytest.approx(0.2)


@pytest.mark.parametrize("algorithm", ["stn", "delta-stn"])
@pytest.mark.parametrize(
    ("model", "dropout", "path"),
    [
        (Net, {"*drop": "rate"}, r"attn\.attn_drop\.p"),
        (Functional, {"p": "rate"}, "p"),
        (Handed, {"attn": "rate", "drop": "rate"}, r"attn\.dropout"),
    ],
)
def test_rates_of_several_examples_are_refused_before_training(
    model: Any, dropout: dict[str, str], path: str, algorithm: str
) -> None:
    with pytest.raises(ValueError, match=rf"reads '{path}' as one number, but 'rate' .* per_batch=\['rate'\]"):
        Trainer(task(model, dropout, SPACE), algorithm=algorithm)


def test_a_cuda_graph_does_not_keep_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    net = converted(Functional(), {"p": "rate"})
    for name in ("is_available", "is_current_stream_capturing"):
        monkeypatch.setattr(torch.cuda, name, lambda: True)
    with net.using(at(0.3)), pytest.raises(RuntimeError, match="'p' as one number, which a CUDA graph would keep"):
        _ = net.p


def test_a_functional_dropout_follows_the_number_that_it_reads() -> None:
    plain = Functional()
    net = converted(plain, {"p": "rate"}, response=None)
    assert net.conversion.bound == {"p": "rate"}
    assert isinstance(net.network, Functional)
    x = torch.randn(5, 4)
    for rate in (0.0, 0.3, 0.9):
        plain.p = rate
        assert_alike(plain, net, x, rate)
    assert type(plain) is Functional
    assert plain.p == 0.9  # the original is untouched


def test_patterns_mean_numbers_that_are_rates_by_their_name() -> None:
    net = converted(blocks(), {"*": "rate"})
    assert net.conversion.bound == {"1.drop_rate": "rate", "3.drop_rate": "rate"}
    with pytest.raises(ValueError, match=r"matches no dropout module; there is none in this model\. A functional"):
        converted(Functional(), {"f*": "rate"})
    assert converted(Functional(), {"*": "rate"}).conversion.bound == {}
    of_layers = Functional()
    of_layers.layerdrop = 0.0  # type: ignore[assignment]
    assert converted(of_layers, {"*": "rate"}).conversion.bound == {}
    assert converted(of_layers, {"layerdrop": "rate"}).conversion.bound == {"layerdrop": "rate"}


@pytest.mark.parametrize(
    ("model", "path", "message"),
    [
        (Functional(), "fc1", r"'fc1' matches no dropout module; .* the path of the number that it reads: p$"),
        (blocks(), "1", r"'1' matches no dropout module; .* of the number that it reads: 1\.drop_rate, 3\.drop_rate$"),
        (nn.Linear(2, 2), "p", r"there is none in this model\. A functional .* self\.p say; or use an nn\.Dropout"),
    ],
)
def test_who_names_no_dropout_is_told_what_can_be_named(model: nn.Module, path: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        converted(model, {path: "rate"})


def test_a_number_is_not_set_past_its_hyperparameter() -> None:
    for model, path in ((Functional(), "p"), (nn.Sequential(OwnClass()), "0.drop_rate")):
        net = converted(model, {path: "rate"})
        place, _, name = path.rpartition(".")
        with pytest.raises(AttributeError, match=rf"'{path}' was set to 0\.3, but reads the hyperparameter 'rate'"):
            setattr(net.network.get_submodule(place), name, 0.3)


def test_a_copy_reads_the_sample_of_the_copy() -> None:
    net = converted(Functional(), {"p": "rate"})
    twin = copy.deepcopy(net)
    with net.using(at(0.1)), twin.using(at(0.8)):
        assert (net.p, twin.p) == (pytest.approx(0.1), pytest.approx(0.8))


def test_the_plain_network_has_tuned_numbers_and_the_users_classes() -> None:
    class Two(Functional):
        def __init__(self) -> None:
            super().__init__()
            self.input_dropout = 0.4

    net = converted(Two(), {"p": "rate", "*": "rate"})
    assert net.conversion.bound == {"p": "rate", "input_dropout": "rate"}
    plain = net.to_plain()
    assert type(plain) is Two
    assert (plain.p, plain.input_dropout) == (pytest.approx(0.2), pytest.approx(0.2))
    assert set(vars(plain)) == set(vars(Two()))
    plain.p = 0.7
    assert plain.p == 0.7


def task(model: Any, dropout: dict[str, str], space: SearchSpace, **training: Any) -> Task:
    def data(seed: int) -> Splits:
        x, y = torch.randn(30, 4), torch.randint(3, (30,))
        return Splits(*(Split(a, b) for a, b in zip(x.split(10), y.split(10), strict=True)))

    training_ = Training(
        epochs=8, batch_size=2, optimizer="Adam", lr=0.02, train_steps=1, warmup_epochs=0, hyper_lr=0.1, **training
    )
    return Task(
        name="mine", model=model, data=data, space=space, start={"rate": 0.2}, dropout=dropout, training=training_
    )


@pytest.mark.slow
@pytest.mark.parametrize(("algorithm", "space"), [("auto", SPACE), ("fixed", SPACE), ("stn", SHARED)])
@pytest.mark.parametrize(("model", "path"), [(Net, "attn.attn_drop"), (Functional, "p")])
def test_it_trains_where_the_batch_has_one_rate(algorithm: str, space: SearchSpace, model: Any, path: str) -> None:
    trainer = Trainer(task(model, {path: "rate"}, space), algorithm=algorithm)
    for _ in range(8):
        report = trainer.run_epoch()
    assert (report["hp/rate"] == pytest.approx(0.2, abs=1e-6)) == (algorithm == "fixed")


@pytest.mark.parametrize(("model", "path"), [(Net, "attn.attn_drop"), (Functional, "p")])
def test_tangents_pass_through_code_that_reads_a_number(model: Any, path: str) -> None:
    report = Trainer(task(model, {path: "rate"}, SHARED), algorithm="delta-stn").run_epoch()
    assert report["val_loss"] > 0


def test_a_number_that_nothing_reads_is_refused_before_training() -> None:
    class Leftover(Functional):
        def __init__(self) -> None:
            super().__init__()
            self.hidden_dropout = 0.1

    with pytest.raises(ValueError, match="bound to 'hidden_dropout', which did not use it"):
        Trainer(task(Leftover, {"hidden_dropout": "rate"}, SPACE), algorithm="auto")
