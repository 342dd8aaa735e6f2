"""Checks for what is yours: tests that a response layer inherits, and a placebo of any task.

The tests are what `self_tuning`, the update rules and the penalties ask of a layer. One of yours is tested by saying
how to make its plain form and an input. pytest then finds some twenty tests for each size of the response, in float and
double where rounding matters:

    from tune_stn.nn.registry import RESPONSES
    from tune_stn.testing import ResponseLayerContract

    RESPONSES[Scale] = ResponseScale


    class TestResponseScale(ResponseLayerContract):
        converted = ResponseScale
        sizes = ("gate",)

        def base(self) -> nn.Module:
            return Scale(features=5)

        def inputs(self, batch: int) -> Tensor:
            return torch.randn(batch, 5)

`placebo(task)` is the task with hyperparameters that do nothing: what a method gains there over `fixed` is not tuning.

Needs pytest, which `import tune_stn` does not.
"""

try:
    import pytest
except ImportError as error:
    raise ImportError("tune_stn.testing needs pytest: pip install pytest") from error

# Before its import, so that a failing assertion shows its values as in a test file.
pytest.register_assert_rewrite("tune_stn.testing.response_layer")

from tune_stn.testing.case import Case  # noqa: E402
from tune_stn.testing.placebo import placebo  # noqa: E402
from tune_stn.testing.response_layer import ResponseLayerContract  # noqa: E402

__all__ = ["Case", "ResponseLayerContract", "placebo"]
