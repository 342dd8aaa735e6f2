"""Outputs of inner modules, for penalties on activations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

Activations = Mapping[str, list[Tensor]]
"""Path of a module -> its outputs in one forward pass, one for each time it was called."""


@contextmanager
def observing(
    network: nn.Module, paths: Iterable[str], seen_as: Callable[[Tensor], Tensor] | None = None
) -> Iterator[Activations]:
    """Collect the outputs of the modules at `paths` inside the block; of a tuple, as an LSTM gives, the first entry.

    Args:
        network: The network that holds the modules.
        paths: Paths of the modules to observe.
        seen_as: Function of an output that gives what is collected; it is called when the module has given the output.
            Default None: the output itself is collected.

    Raises:
        ValueError: the network has no module at a path, did not call it inside the block, or it gave no tensor.
    """
    seen: dict[str, list[Tensor]] = {}
    with ExitStack() as hooks:
        for path in set(paths):
            try:
                module = network.get_submodule(path)
            except AttributeError:
                found = ", ".join(name for name, _ in network.named_modules() if name)
                raise ValueError(f"no module {path!r} to observe; the network has {found}") from None
            outputs = seen[path] = []

            def note(_module: nn.Module, _inputs: Any, output: Any, to: list[Tensor] = outputs) -> None:
                to.append(_first(output) if seen_as is None else seen_as(_first(output)))

            note.observes = True  # type: ignore[attr-defined]
            hooks.callback(module.register_forward_hook(note).remove)
        yield seen
        if silent := sorted(path for path, outputs in seen.items() if not outputs):
            raise ValueError(
                f"module {silent[0]!r} has no output to observe: the forward pass of the network does not call it"
            )


def is_observed(network: nn.Module) -> bool:
    """Whether outputs of modules are collected now, so that a further call would be collected as well."""
    return any(getattr(hook, "observes", False) for m in network.modules() for hook in m._forward_hooks.values())


def _first(output: Any) -> Tensor:
    tensor = output[0] if isinstance(output, tuple) else output
    if not isinstance(tensor, Tensor):
        raise ValueError(
            f"an observed module gave {type(tensor).__name__}: a tensor is needed, or a tuple that begins with one"
        )
    return tensor
