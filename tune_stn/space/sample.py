"""One draw of the hyperparameters, as the readers see it: augmentation, regularisers and response layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """Values of all hyperparameters for one batch.

    Attributes:
        values: Name -> value inside the domain (floored where discrete), detached, of shape `(rows,)`. `rows` is the
            batch size where each example has a draw of its own and 1 where the batch shares it.
        response_input: Input `h` of the response layers, of shape `(rows, n)` with `n` hyperparameters. Default None,
            for a zero response: then a response layer is exactly its base layer.
        linearise: Whether response layers carry `J_h f(x; 0) h` as a tangent beside the base value instead of
            evaluating `f(x; h)` (Delta-STN, arXiv 2010.13514, section 3.2). Default False.
    """

    values: Mapping[str, Tensor]
    response_input: Tensor | None = None
    linearise: bool = False

    def __getitem__(self, name: str) -> Tensor:
        return self.values[name]

    def rows(self, part: slice) -> Sample:
        """The sample of a part of the batch; what the batch shares, its parts share."""

        def cut(tensor: Tensor) -> Tensor:
            return tensor if tensor.shape[0] == 1 else tensor[part]

        response_input = None if self.response_input is None else cut(self.response_input)
        return Sample({name: cut(value) for name, value in self.values.items()}, response_input, self.linearise)


@dataclass(frozen=True, eq=False)
class Draw:
    """A sample to be drawn once the number of examples is known: a loop of one's own does not say it beforehand.

    Attributes:
        make: Draws a sample for so many examples.
        drawn: The samples drawn so far, by number of examples. So augmentation, network and penalties read the same
            sample.
    """

    make: Callable[[int], Sample]
    drawn: dict[int, Sample] = field(default_factory=dict)

    def of(self, rows: int) -> Sample:
        """The sample for so many examples, the same whenever it is asked for."""
        if rows not in self.drawn:
            self.drawn[rows] = self.make(rows)
        return self.drawn[rows]

    def rows(self, part: slice) -> Draw:
        """Of a part of the batch: a draw of its own, for its number of examples is not known either."""
        return Draw(self.make)
