"""The linear layers that see it."""

from collections.abc import Iterator

from torch import nn

from qslm.anatomy import Anatomy


def linear_layers(model: nn.Module, anatomy: Anatomy) -> Iterator[tuple[str, nn.Linear]]:
    """Every linear layer whose matrix is a site, with the site's name; layers that share a matrix share the name."""
    for path, module in model.named_modules(remove_duplicate=False):
        name = f"{path}.weight" if path else "weight"
        if isinstance(module, nn.Linear) and name in anatomy:
            yield anatomy[name].name, module
