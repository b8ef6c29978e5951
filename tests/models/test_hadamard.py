"""Hadamard rotations: orthogonal, of two magnitudes, whole where an order is known."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qslm.models.hadamard import Rotation


@pytest.mark.parametrize(
    ("width", "base", "blocks"),
    [(1, 1, 1), (2, 1, 1), (12, 12, 1), (20, 20, 1), (28, 28, 1), (64, 1, 1), (172, 1, 43), (576, 36, 1),
     (960, 60, 1), (1536, 12, 1), (2560, 20, 1), (3, 1, 3), (48, 12, 1), (36, 36, 1), (11008, 1, 43)],
)  # fmt: skip
def test_the_order_is_whole_where_it_is_known_and_else_block_diagonal(width, base, blocks):
    found = Rotation.of(width)
    assert (found.base, found.blocks) == (base, blocks)
    assert found.order * found.blocks == width
    assert ("blocks" in str(found)) == (blocks > 1) and str(found).startswith(f"hadamard {found.order}")


@given(st.integers(1, 400))
@settings(max_examples=60, deadline=None)
def test_a_rotation_is_orthogonal_and_of_one_magnitude(width):
    rotation = Rotation.of(width)
    matrix = rotation.matrix()
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(width), atol=1e-5, rtol=0)
    used = matrix[matrix.abs() > 0.01 * rotation.order**-0.5]
    assert len(used) == width * rotation.order
    torch.testing.assert_close(used.abs(), torch.full_like(used, rotation.order**-0.5))


def test_applying_is_the_product_with_the_matrix_and_can_be_undone():
    for width in (24, 36, 42, 64):
        x = torch.randn(5, 3, width, generator=torch.Generator().manual_seed(width))
        rotation = Rotation.of(width)
        torch.testing.assert_close(rotation.apply(x), x @ rotation.matrix(), atol=1e-5, rtol=0)
        torch.testing.assert_close(rotation.undo(rotation.apply(x)), x, atol=1e-5, rtol=0)


def test_no_columns_are_refused():
    with pytest.raises(ValueError, match="0 columns"):
        Rotation.of(0)
