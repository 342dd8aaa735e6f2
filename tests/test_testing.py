"""The inherited tests: a layer of a third party passes all of them, and each kind of mistake fails one."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Iterator
from pickle import UnpicklingError
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from tune_stn.nn import ResponseConv, ResponseLinear, ResponseSize, Slot
from tune_stn.nn.response import Responding
from tune_stn.nn.slot import check_rows
from tune_stn.testing import Case, ResponseLayerContract

# A layer written from nothing --------------------------------------------------------------------------------------


class Scale(nn.Module):
    """Inputs `(batch, features)` times a weight each."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(features) + 0.5)

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.weight


class ResponseScale(Responding):
    """One gate for all features: `w x (1 + u(h))`."""

    def __init__(self, base: Scale, inputs: int, size: object, slot: Slot, generator: torch.Generator) -> None:
        super().__init__()
        self.slot = slot
        self.weight = base.weight
        if size is not None:
            self.gate = nn.Parameter(torch.zeros(inputs, dtype=base.weight.dtype))
        self.train(base.training)

    def response_parameters(self) -> Iterator[nn.Parameter]:
        if hasattr(self, "gate"):
            yield self.gate

    def squared_norm(self, response_input: Tensor | None) -> Tensor:
        return self.weight.new_zeros(1)  # weight decay spares vectors

    def merged(self, response_input: Tensor) -> dict[str, Tensor | None]:
        return {"weight": self.weight * (1 + response_input @ self.gate)}

    def forward(self, inputs: Tensor) -> Tensor:
        outputs, sample = inputs * self.weight, self.slot.sample
        if sample.response_input is None or not hasattr(self, "gate"):
            return outputs
        check_rows(len(sample.response_input), inputs, where=type(self).__name__)
        gate = (sample.response_input @ self.gate).view(-1, *[1] * (inputs.dim() - 1))
        if not sample.linearise:
            return outputs * (1 + gate)
        value, tangent = forward_ad.unpack_dual(outputs)  # type: ignore[no-untyped-call]
        response = value * gate if tangent is None else value * gate + tangent
        return cast(Tensor, forward_ad.make_dual(value.clone(), response))  # type: ignore[no-untyped-call]


class TestResponseScale(ResponseLayerContract):
    converted = ResponseScale
    sizes = ("gate",)

    def base(self) -> nn.Module:
        return Scale(features=5)

    def inputs(self, batch: int) -> Tensor:
        return torch.randn(batch, 5)


# Hooks of the contract ---------------------------------------------------------------------------------------------


class TestBatchOnTheSecondAxis(ResponseLayerContract):
    """`call` moves the batch of a layer that has it elsewhere, and gathers several outputs."""

    class Twice(ResponseLinear):
        def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            outputs = super().forward(inputs.transpose(0, 1)).transpose(0, 1)
            return outputs, outputs.sum(0)

    class Plain(nn.Linear):
        def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            outputs = super().forward(inputs)
            return outputs, outputs.sum(0)

    converted = Twice

    def base(self) -> nn.Module:
        return self.Plain(3, 2)

    def inputs(self, batch: int) -> Tensor:
        return torch.randn(batch, 5, 3)

    def call(self, layer: nn.Module, inputs: Tensor) -> Tensor:
        outputs, total = layer(inputs.transpose(0, 1))
        return torch.cat([outputs.transpose(0, 1), total[:, None]], dim=1)


class TestFamilyByFixture(ResponseLayerContract):
    converted = ResponseConv

    @pytest.fixture(params=[True, False], ids=["bias", "no bias"], autouse=True)
    def family(self, request: pytest.FixtureRequest) -> None:
        self.bias = request.param

    def base(self) -> nn.Module:
        return nn.Conv1d(2, 3, 2, bias=self.bias)

    def inputs(self, batch: int) -> Tensor:
        return torch.randn(batch, 2, 4)


# Mistakes ----------------------------------------------------------------------------------------------------------


class Linear(ResponseLinear):
    """What the broken ones below break; square, so that a wrong axis raises nothing by itself."""

    def __init__(
        self, base: nn.Module, inputs: int, size: ResponseSize | None, slot: Slot, generator: torch.Generator
    ) -> None:
        super().__init__(base, inputs, size, slot, generator)
        if size is not None:
            self.after(generator)

    def after(self, generator: torch.Generator) -> None:
        """Something more at construction."""


class ForgetsTheOffset(Linear):
    def _per_example(self, inputs: Tensor, response_input: Tensor, mask: Tensor | None) -> Tensor:
        _, offset = self.gates(response_input)
        outputs = super()._per_example(inputs, response_input, mask)
        return outputs - self.over_units(cast(Tensor, offset), outputs)


class WrongGateAxis(Linear):
    def over_units(self, values: Tensor, outputs: Tensor) -> Tensor:
        return values[:, :, None]


class NotZeroAtZero(Linear):
    def gates(self, response_input: Tensor) -> tuple[Tensor, Tensor | None]:
        unit, offset = super().gates(response_input)
        return unit + 0.01, offset


class StartsElsewhere(Linear):
    def after(self, generator: torch.Generator) -> None:
        nn.init.uniform_(self.gate, -0.1, 0.1, generator=generator)


class NeverResponds(Linear):
    def gates(self, response_input: Tensor) -> tuple[Tensor, Tensor | None]:
        unit, offset = super().gates(response_input)
        return unit * 0, cast(Tensor, offset) * 0


class OneResponseForAll(Linear):
    def gates(self, response_input: Tensor) -> tuple[Tensor, Tensor | None]:
        return super().gates(response_input[:1].expand_as(response_input))


class MergedLacksTheBias(Linear):
    def _merged(self, inputs: Tensor, response_input: Tensor, mask: Tensor | None) -> Tensor:
        return super()._merged(inputs, response_input, mask) - cast(Tensor, self.bias)


class Linearised(Linear):
    """Its linearised value and tangent are changed by `spoil`."""

    def _linearised(self, inputs: Tensor, response_input: Tensor, mask: Tensor | None) -> Tensor:
        dual = super()._linearised(inputs, response_input, mask)
        value, tangent = forward_ad.unpack_dual(dual)  # type: ignore[no-untyped-call]
        return cast(Tensor, forward_ad.make_dual(*self.spoil(value, tangent, inputs)))  # type: ignore[no-untyped-call]

    def spoil(self, value: Tensor, tangent: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


class TangentLacksTheInputs(Linearised):
    def spoil(self, value: Tensor, tangent: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        _, incoming = forward_ad.unpack_dual(inputs)  # type: ignore[no-untyped-call]
        return value, tangent if incoming is None else tangent - F.linear(incoming, self.weight)


class TangentIsDoubled(Linearised):
    def spoil(self, value: Tensor, tangent: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        return value, 2 * tangent


class TangentIsDetached(Linearised):
    def spoil(self, value: Tensor, tangent: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        return value, tangent.detach()


class ValueHoldsTheResponse(Linearised):
    def spoil(self, value: Tensor, tangent: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        return value + tangent, tangent


class NeverLeavesItsStart(Linear):
    def after(self, generator: torch.Generator) -> None:
        for parameter in self.response_parameters():
            nn.init.zeros_(parameter)


class IdleParameter(Linear):
    def after(self, generator: torch.Generator) -> None:
        self.idle = nn.Parameter(self.weight.new_ones(2))


class WrongGradient(Linear):
    def gates(self, response_input: Tensor) -> tuple[Tensor, Tensor | None]:
        return super().gates(response_input.detach())


class WritesToItsInputs(Linear):
    def _per_example(self, inputs: Tensor, response_input: Tensor, mask: Tensor | None) -> Tensor:
        outputs = super()._per_example(inputs, response_input, mask)
        inputs.data.add_(1)
        return outputs


class KeepsItsOutputs(Linear):
    def _per_example(self, inputs: Tensor, response_input: Tensor, mask: Tensor | None) -> Tensor:
        return super()._per_example(inputs, response_input, mask).reciprocal().reciprocal()


class ValueSharesMemory(Linearised):
    def spoil(self, value: Tensor, tangent: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        return value, value * (tangent / value.detach())


class NormOfTheBase(Linear):
    def squared_norm(self, response_input: Tensor | None) -> Tensor:
        return super().squared_norm(None)


class MergesNothing(ResponseLinear):
    def merged(self, response_input: Tensor) -> dict[str, Tensor | None]:
        return {"weight": self.weight, "bias": self.bias}


class CopiesItsBase(Linear):
    def after(self, generator: torch.Generator) -> None:
        self.weight = nn.Parameter(self.weight.detach().clone())


class Renames(Linear):
    def after(self, generator: torch.Generator) -> None:
        self.base_weight = self.weight
        del self.weight


class GivesParametersTwice(Linear):
    def response_parameters(self) -> Iterator[nn.Parameter]:
        yield from super().response_parameters()
        yield self.gate


class GivesTheBaseToo(Linear):
    def response_parameters(self) -> Iterator[nn.Parameter]:
        return iter(self.parameters())


class DrawsFromTheGlobalGenerator(Linear):
    def after(self, generator: torch.Generator) -> None:
        torch.rand(1)


class StateOfObjects(Linear):
    def get_extra_state(self) -> object:
        return self.slot

    def set_extra_state(self, state: object) -> None:
        pass


class StateLacksTheResponse(Linear):
    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.pop(f"{prefix}gate", None)


class CopyIsItself(Linear):
    def __deepcopy__(self, memo: object) -> CopyIsItself:
        return self


class AlwaysTrains(Linear):
    def after(self, generator: torch.Generator) -> None:
        self.train()


class TakesAnyRows(Linear):
    def _per_example(self, inputs: Tensor, response_input: Tensor, mask: Tensor | None) -> Tensor:
        return super()._per_example(inputs, response_input[: len(inputs)], mask)


class LosesPrecision(Linear):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs).float().to(inputs.dtype)


class MixesPrecisions(Linear):
    def _per_example(self, inputs: Tensor, response_input: Tensor, mask: Tensor | None) -> Tensor:
        outputs = super()._per_example(inputs, response_input, mask)
        with torch.autocast("cpu", enabled=False):
            return F.linear(outputs, torch.eye(3, dtype=self.weight.dtype))


class WaitsForTheDevice(Linear):
    def gates(self, response_input: Tensor) -> tuple[Tensor, Tensor | None]:
        return super().gates(response_input if bool(response_input.any()) else response_input * 0)


class RespondsWithoutASize(ResponseLinear):
    def __init__(self, base: nn.Module, inputs: int, size: Any, slot: Slot, generator: torch.Generator) -> None:
        super().__init__(base, inputs, size or "gate", slot, generator)


class RunsOfLinear(ResponseLayerContract):
    converted = ResponseLinear

    def base(self) -> nn.Module:
        return nn.Linear(3, 3)

    def inputs(self, batch: int) -> Tensor:
        return torch.randn(batch, 3, 3)


MISTAKES: dict[type[Responding], str] = {
    NotZeroAtZero: "test_it_starts_as_the_plain_layer_and_is_it_at_zero",
    StartsElsewhere: "test_it_starts_as_the_plain_layer_and_is_it_at_zero",
    RespondsWithoutASize: "test_without_a_size_it_is_the_plain_layer",
    LosesPrecision: "test_without_response_input_it_is_the_plain_layer",
    ForgetsTheOffset: "test_each_example_goes_through_a_layer_of_its_own",
    WrongGateAxis: "test_each_example_goes_through_a_layer_of_its_own",
    NeverResponds: "test_each_example_goes_through_a_layer_of_its_own",
    OneResponseForAll: "test_every_response_parameter_learns_and_every_row_counts",
    MergedLacksTheBias: "test_one_shared_row_is_that_row_for_each_example",
    WrongGradient: "test_gradients_are_those_of_finite_differences",
    IdleParameter: "test_every_response_parameter_learns_and_every_row_counts",
    NeverLeavesItsStart: "test_it_can_leave_its_start",
    WritesToItsInputs: "test_inputs_are_left_alone_and_an_in_place_activation_may_follow",
    KeepsItsOutputs: "test_inputs_are_left_alone_and_an_in_place_activation_may_follow",
    ValueSharesMemory: "test_inputs_are_left_alone_and_an_in_place_activation_may_follow",
    TangentLacksTheInputs: "test_tangent_is_the_derivative_along_the_response_input",
    TangentIsDoubled: "test_tangent_is_the_derivative_along_the_response_input",
    ValueHoldsTheResponse: "test_tangent_is_the_derivative_along_the_response_input",
    TangentIsDetached: "test_gradient_of_a_linearised_step_is_the_derivative_of_the_gradient",
    NormOfTheBase: "test_squared_norm_is_that_of_the_effective_weights",
    MergesNothing: "test_merged_parameters_make_a_plain_layer_of_the_same_outputs",
    CopiesItsBase: "test_base_parameters_are_taken_over_and_all_others_are_the_response",
    GivesParametersTwice: "test_base_parameters_are_taken_over_and_all_others_are_the_response",
    GivesTheBaseToo: "test_base_parameters_are_taken_over_and_all_others_are_the_response",
    Renames: "test_base_parameters_are_taken_over_and_all_others_are_the_response",
    DrawsFromTheGlobalGenerator: "test_response_is_drawn_by_the_generator_alone",
    StateOfObjects: "test_state_dict_is_plain_tensors_and_restores_the_layer",
    StateLacksTheResponse: "test_state_dict_is_plain_tensors_and_restores_the_layer",
    CopyIsItself: "test_copy_is_a_layer_of_its_own",
    AlwaysTrains: "test_mode_is_kept",
    TakesAnyRows: "test_rows_of_another_batch_are_refused",
    WaitsForTheDevice: "test_it_never_waits_for_the_device",
    MixesPrecisions: "test_it_works_under_autocast",
}
TESTS = [name for name in dir(ResponseLayerContract) if name.startswith("test_")]


def runs(contract: ResponseLayerContract, name: str) -> Iterator[Callable[[], None]]:
    """A test with each of the values that pytest would give it."""
    test = getattr(contract, name)
    asked: dict[str, list[Any]] = {}

    class Asked:
        def __init__(self) -> None:
            self.fixturenames = list(inspect.signature(test).parameters)

        def parametrize(self, name: str, values: Any, ids: Any) -> None:
            asked[name] = list(values)

    contract.pytest_generate_tests(cast(Any, Asked()))
    assert asked.keys() == set(inspect.signature(test).parameters)
    for values in itertools.product(*asked.values()):
        yield functools.partial(test, **dict(zip(asked, values, strict=True)))


@pytest.mark.parametrize(("broken", "test"), MISTAKES.items(), ids=lambda value: getattr(value, "__name__", value))
def test_each_mistake_fails_a_test(broken: type[Responding], test: str) -> None:
    contract = type("Broken", (RunsOfLinear,), {"converted": broken})()
    for run in runs(contract, test):
        try:
            run()
        except (AssertionError, RuntimeError, AttributeError, UnpicklingError, pytest.fail.Exception):
            return
    pytest.fail(f"{test} passes")


@pytest.mark.slow
@pytest.mark.parametrize("test", TESTS)
def test_without_a_mistake_they_pass(test: str) -> None:
    for run in runs(RunsOfLinear(), test):
        run()


def test_every_inherited_test_has_caught_a_mistake() -> None:
    assert set(MISTAKES.values()) == set(TESTS)


def test_weights_are_solved_for_where_outputs_are_affine_in_them() -> None:
    class Elsewhere(RunsOfLinear):
        def call(self, layer: nn.Module, inputs: Tensor) -> Tensor:
            return super().call(layer, inputs).exp()

    class Blind(RunsOfLinear):
        def inputs(self, batch: int) -> Tensor:
            return torch.zeros(batch, 3)

    case = RunsOfLinear().case("full")
    layer = cast(ResponseLinear, case.layer)
    unit = layer.gate[:3] @ case.rows[0]
    (weight,) = RunsOfLinear().effective_weights(case, case.rows[:1]) or ()
    torch.testing.assert_close(weight, (layer.weight + unit[:, None] * layer.response_weight).detach())
    for contract in (Elsewhere(), Blind()):
        assert contract.effective_weights(contract.case("full"), case.rows[:1]) is None
        with pytest.raises(pytest.skip.Exception, match="override effective_weights"):
            contract.test_squared_norm_is_that_of_the_effective_weights("full")


def test_case_is_the_same_at_each_call() -> None:
    first, second = RunsOfLinear().case(2), RunsOfLinear().case(2)
    assert torch.equal(first(first.rows), second(second.rows))
    assert isinstance(first, Case)
