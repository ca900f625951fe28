"""Packing the two halves of a checkerboard."""

import pytest
import torch
import torch.nn.functional as F

from ugicm.models.checkerboard import ANCHOR, REST, keep, pack, pack_neighbours, unpack


@pytest.mark.parametrize("part", [ANCHOR, REST])
def test_unpack_undoes_pack(part):
    x = torch.randn(2, 3, 6, 8)
    assert pack(x, part).shape == (2, 3, 6, 4)
    assert torch.equal(unpack(pack(x, part), part), keep(x, part))


def test_anchors_are_where_row_plus_column_is_odd():
    row, column = torch.meshgrid(torch.arange(4), torch.arange(6), indexing="ij")
    odd = ((row + column) % 2 == 1).float()
    assert torch.equal(keep(torch.ones(1, 1, 4, 6), ANCHOR)[0, 0], odd)
    assert torch.equal(keep(torch.ones(1, 1, 4, 6), REST)[0, 0], 1 - odd)


@pytest.mark.parametrize(("part", "other", "reach"), [(REST, ANCHOR, 1), (REST, ANCHOR, 2), (ANCHOR, REST, 2)])
def test_neighbours_and_a_pointwise_layer_are_a_masked_convolution(part, other, reach):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, 8, dtype=torch.float64)
    taps = pack_neighbours(x, part, reach)
    side = 2 * reach + 1
    weight = torch.randn(5, taps.shape[1], dtype=torch.float64)
    offsets = [(r, c) for r in range(side) for c in range(side) if (r + c) % 2]
    dense = torch.zeros(5, 3, side, side, dtype=torch.float64)
    for t, (r, c) in enumerate(offsets):
        dense[:, :, r, c] = weight[:, 3 * t : 3 * t + 3]
    expected = pack(F.conv2d(keep(x, other), dense, padding=reach), part)
    torch.testing.assert_close(torch.einsum("oc,bchw->bohw", weight, taps), expected)
