"""The examples in what a network is called with: rows of tensors, alone or in containers of any kind."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map


def count_rows(tree: Any) -> int | None:
    """The number of examples: the length of the first tensor that has an axis; None where there is none."""
    return next((len(leaf) for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.dim() > 0), None)


def take_rows(tree: Any, rows: slice | Tensor) -> Any:
    """Some of the examples, by a slice or indices; what is not as long as they are many stays as it is."""
    count = count_rows(tree)

    def taken(leaf: Any) -> Any:
        if not (isinstance(leaf, Tensor) and leaf.dim() > 0 and len(leaf) == count):
            return leaf
        return leaf[rows.to(leaf.device) if isinstance(rows, Tensor) else rows]

    return tree_map(taken, tree)
