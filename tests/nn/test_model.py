"""A converted network under its samples."""

from __future__ import annotations

import copy
import inspect
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from tune_stn.nn import ResponseSize, SelfTuningModel
from tune_stn.nn import self_tuning as convert
from tune_stn.nn.model import UNTUNED_CALLS
from tune_stn.space import Constants, SearchSpace, Tunable, Uniform
from tune_stn.space.sample import Sample
from tune_stn.training.self_tuner import SelfTuner

SPACE = SearchSpace({"rate": Uniform(0, 0.9), "other": Uniform(0, 0.9)})
START = {"rate": 0.3, "other": 0.1}
DROPOUT = {"2": "rate", "4": "other"}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(), nn.Linear(8, 8), nn.Dropout(), nn.Linear(8, 3))


def converted(size: ResponseSize = "gate", *, centred: bool = False) -> SelfTuningModel:
    """With a response that is not zero."""
    model = convert(network(), SPACE, start=START, dropout=DROPOUT, response=size, centred=centred)
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if name.endswith("gate"):
            nn.init.normal_(parameter, std=0.5)
    return model


def drawn() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(5, 6)


@pytest.mark.parametrize(("size", "shrink"), [("gate", 2**0.5), (2, 1.0)])
def test_the_response_sees_raw_coordinates_from_the_start_or_offsets(size: ResponseSize, shrink: float) -> None:
    plain, centred = converted(size), converted(size, centred=True)
    assert isinstance(plain.hyper, Tunable)
    start = plain.hyper.raw.detach().clone()
    for model in (plain, centred):
        assert isinstance(model.hyper, Tunable)
        model.hyper.raw.data += torch.tensor([0.5, -1.0])
    mean = plain.mean_sample()
    assert mean.response_input is not None
    torch.testing.assert_close(mean.response_input, (torch.tensor([[0.5, -1.0]]) + -3.0) / shrink)
    assert not mean.response_input.requires_grad
    assert centred.mean_sample().response_input is None
    torch.manual_seed(0)
    drawn = plain.perturbed_sample(6, linearise=True)
    torch.manual_seed(0)
    offset = centred.perturbed_sample(6)
    assert drawn.linearise
    assert not offset.linearise
    assert drawn.response_input is not None
    assert offset.response_input is not None
    shift = plain.hyper.raw.detach() - start + -3.0
    torch.testing.assert_close(offset.response_input, drawn.response_input * shrink - shift, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(drawn[name], offset[name]) for name in SPACE)
    assert {tuple(value.shape) for value in drawn.values.values()} == {(6,)}


@pytest.mark.parametrize("size", ["gate", 2])
def test_the_papers_response_input_is_the_raw_coordinate_itself(size: ResponseSize) -> None:
    """To the last bit, of draws and means; the two settings are independent."""
    forms = {"response_origin": None, "shrink_gates": False}
    model = convert(network(), SPACE, start=START, dropout=DROPOUT, response=size, **forms)
    assert isinstance(model.hyper, Tunable)
    model.hyper.raw.data += torch.tensor([0.5, -1.0])
    torch.manual_seed(0)
    drawn = model.perturbed_sample(6)
    torch.manual_seed(0)
    raw = model.hyper.perturbed(6)
    assert drawn.response_input is not None
    assert torch.equal(drawn.response_input, raw)
    mean = model.mean_sample().response_input
    assert mean is not None
    assert torch.equal(mean, model.hyper.raw[None])
    shrink = 2**0.5 if size == "gate" else 1.0
    shrunk = convert(network(), SPACE, start=START, response=size, response_origin=None).mean_sample()
    moved = convert(network(), SPACE, start=START, response=size, response_origin=-1.0, shrink_gates=False)
    start = [domain.inverse(START[name]) for name, domain in SPACE.items()]
    assert shrunk.response_input is not None
    torch.testing.assert_close(shrunk.response_input, torch.tensor([start]) / shrink)
    at_start = moved.mean_sample().response_input
    assert at_start is not None
    assert at_start.tolist() == [[-1.0, -1.0]]


def test_offsets_are_what_they_are_whatever_the_settings_of_stn() -> None:
    usual, other = (
        convert(network(), SPACE, start=START, centred=True, response_origin=origin, shrink_gates=shrink)
        for origin, shrink in ((-3.0, True), (None, False))
    )
    drawn = []
    for model in (usual, other):
        torch.manual_seed(0)
        drawn.append(model.perturbed_sample(6).response_input)
    assert torch.equal(*drawn)  # type: ignore[arg-type]


@pytest.mark.parametrize("centred", [False, True])
def test_only_a_kept_graph_carries_gradients_to_the_hyperparameters(centred: bool) -> None:
    model = converted(centred=centred).eval()
    inputs = drawn()
    assert isinstance(model.hyper, Tunable)
    hyper = [model.hyper.raw, model.hyper.rho]
    for sample, expected in (
        (model.perturbed_sample(5, keep_graph=True), [True, True]),
        (model.mean_sample(keep_graph=True), [True, False]),
        (model.perturbed_sample(5), [False, False]),
        (model.mean_sample(), [False, False]),
    ):
        with model.using(sample):
            loss = model(inputs).square().sum()
        gradients = torch.autograd.grad(loss, hyper, allow_unused=True)
        assert [g is not None and bool(g.abs().sum() > 0) for g in gradients] == expected


def test_no_gradient_of_the_training_loss_reaches_a_hyperparameter() -> None:
    """Not even through the values that dropout reads."""
    model = converted().train()
    with model.using(model.perturbed_sample(5)):
        loss = model(drawn()).square().sum()
    gradients = torch.autograd.grad(loss, list(model.hyper.parameters()), allow_unused=True)
    assert [gradient is None for gradient in gradients] == [True, True]


def test_hyper_gradient_is_that_of_finite_differences() -> None:
    model = converted("full").double().eval()
    inputs = drawn().double()
    assert isinstance(model.hyper, Tunable)

    def loss() -> Tensor:
        with model.using(model.mean_sample(keep_graph=True)):
            result: Tensor = model(inputs).square().sum()
        return result

    (gradient,) = torch.autograd.grad(loss(), [model.hyper.raw])
    for index in range(2):
        ends = []
        for step in (1e-5, -2e-5):
            with torch.no_grad():
                model.hyper.raw[index] += step
                ends.append(float(loss()))
        with torch.no_grad():
            model.hyper.raw[index] += 1e-5
        assert float(gradient[index]) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5)


def test_outside_a_sample_the_model_is_at_the_mean() -> None:
    model = converted().eval()
    inputs = drawn()
    with torch.no_grad():
        with model.using(model.mean_sample()):
            expected = model(inputs)
        assert torch.equal(model(inputs), expected)
        with model.using(model.hyper.constant_sample()):
            assert not torch.equal(model(inputs), expected)
    assert not model.slot.is_set


def test_constants_make_a_plain_network_that_reads_its_rates() -> None:
    start = {"rate": 0.0, "other": 0.0}
    model = convert(network(), SPACE, start=start, dropout=DROPOUT, response=None, tuned=False)
    assert isinstance(model.hyper, Constants)
    assert model.response_parameters() == []
    assert set(model.conversion.plain.values()) == {"no response asked for"}
    assert model.mean_sample().response_input is None
    inputs = drawn()
    plain = network().eval()
    assert torch.equal(model.train()(inputs), plain(inputs))  # rates of zero: dropout keeps all
    with model.using(Sample({"rate": torch.tensor([0.5]), "other": torch.tensor([0.5])})):
        assert not torch.equal(model(inputs), plain(inputs))


def test_a_call_in_training_draws_and_one_in_evaluation_is_at_the_mean() -> None:
    """A loop that forgets `using` can no longer train a response at the mean alone."""
    model, inputs = converted(), drawn()
    torch.manual_seed(3)
    found = model.train()(inputs)
    torch.manual_seed(3)
    with model.using(model.perturbed_sample(5)):
        assert torch.equal(model(inputs), found)
    with model.using(model.mean_sample()):
        assert not torch.equal(model.eval()(inputs), found)
        mean = model(inputs)
    assert torch.equal(model(inputs), mean)
    with pytest.raises(ValueError, match="called with no tensor that has an axis"):
        model.train()(torch.ones(()))


@pytest.mark.parametrize("how", [{"response": None}, {"centred": True}, {"tuned": False}])
def test_where_no_response_is_learned_from_draws_training_is_at_the_mean(how: dict[str, Any]) -> None:
    model, inputs = convert(network(), SPACE, start=START, dropout=DROPOUT, **how).train(), drawn()
    torch.manual_seed(3)
    found = model(inputs)
    torch.manual_seed(3)
    with model.using(model.hyper.constant_sample()):
        assert torch.equal(model(inputs), found)
    assert model.sample(5)["rate"].shape == (1,)


def test_a_draw_is_one_sample_for_all_that_read_it() -> None:
    model, inputs = converted().train(), drawn()
    draw = model.perturbed_draw()
    with model.using(draw):
        sample = model.sample(5)
        torch.manual_seed(3)
        found = model(inputs)
        with pytest.raises(RuntimeError, match="has no hyperparameter sample: call the network itself"):
            model.network(inputs)
    assert draw.drawn == {5: sample}
    torch.manual_seed(3)
    with model.using(sample):
        assert torch.equal(model(inputs), found)
    assert draw.rows(slice(0, 2)).drawn == {}


class Own(nn.Module):
    config: ClassVar[dict[str, int]] = {"width": 3}

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, inputs: Tensor, *, mask: Tensor | None = None) -> Tensor:
        outputs: Tensor = self.layer(inputs if mask is None else inputs * mask)
        return outputs


def test_it_has_the_attributes_and_the_signature_of_the_network() -> None:
    model = convert(Own(), SPACE, start=START).eval()
    assert list(inspect.signature(model.forward).parameters) == ["inputs", "mask"]
    assert model.config == {"width": 3}
    assert model.hyperparameters() == pytest.approx(START)
    with pytest.raises(AttributeError, match="'Own' object has no attribute 'nothing'"):
        _ = model.nothing
    twin, inputs = copy.deepcopy(model), drawn()
    assert isinstance(twin, SelfTuningModel)
    twin.network.layer.weight.data.zero_()
    found = model(inputs, mask=torch.ones(6))
    assert torch.equal(model(inputs=inputs), found)
    assert not torch.equal(twin(inputs), found)


def test_a_tool_may_set_a_forward_and_look_at_that_of_the_class() -> None:
    model, x = converted(), drawn()
    assert list(inspect.signature(type(model).forward).parameters) == ["self", "args", "kwargs"]
    assert inspect.signature(model.forward) == inspect.signature(model.network.forward)
    expected = model.eval()(x)
    original = model.forward
    model.forward = lambda *args: 2 * original(*args)  # type: ignore[method-assign,assignment]
    torch.testing.assert_close(model(x), 2 * expected)


def test_training_that_nothing_tunes_warns_once() -> None:
    def train(model: SelfTuningModel) -> None:
        for _ in range(2 * UNTUNED_CALLS):
            model.train()(drawn())

    with pytest.warns(UserWarning, match="called 50 times in training, and nothing tunes its hyperparameters") as told:
        train(converted())
    assert len(told) == 1
    train(convert(network(), SPACE, start=START, dropout=DROPOUT, tuned=False))
    with torch.no_grad():
        train(converted())
    taken_up = converted()
    SelfTuner(taken_up, torch.optim.SGD(taken_up.parameters(), lr=0.1), algorithm="fixed")
    train(taken_up)


def test_calls_of_the_users_own_class_are_those_of_the_network() -> None:
    model, x = converted(), drawn()
    expected = model.eval()(x)
    with pytest.raises(RuntimeError, match="has no hyperparameter sample"):
        model.network(x)
    own = model.in_own_class()
    assert type(own) is nn.Sequential
    torch.testing.assert_close(own.eval()(x), expected)
    for module in (model, own.train()):
        torch.manual_seed(3)
        outputs = module.train()(x)
        assert not torch.equal(outputs, expected)
    torch.manual_seed(3)
    torch.testing.assert_close(model(x), outputs)
    assert SelfTuningModel.of_own_class(own) is model
    assert SelfTuningModel.of_own_class(network()) is None
    torch.testing.assert_close(model.eval().to_plain()(x), expected)
    assert "forward" not in vars(model.to_plain())
