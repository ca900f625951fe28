"""Packing of the two halves of a checkerboard."""

import pytest
import torch
import torch.nn.functional as F

from ugicm.entropy.checkerboard import ANCHOR, NON_ANCHOR, keep, pack, pack_neighbors, unpack


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("part", [ANCHOR, NON_ANCHOR])
def test_unpack_inverts_pack(part, memory_format):
    x = torch.randn(2, 3, 6, 8).contiguous(memory_format=memory_format)
    packed, kept = pack(x, part), keep(x, part)
    raster = [x[..., row, column] for row in range(6) for column in range(8) if (row + column) % 2 == part.value]
    assert torch.equal(packed.flatten(2), torch.stack(raster, dim=2))
    unpacked = unpack(packed, part)
    assert torch.equal(unpacked, kept)
    assert all(result.is_contiguous(memory_format=memory_format) for result in (packed, kept, unpacked))


def test_anchors_have_odd_row_plus_column():
    row, column = torch.meshgrid(torch.arange(4), torch.arange(6), indexing="ij")
    odd = ((row + column) % 2 == 1).float()
    assert torch.equal(keep(torch.ones(1, 1, 4, 6), ANCHOR)[0, 0], odd)
    assert torch.equal(keep(torch.ones(1, 1, 4, 6), NON_ANCHOR)[0, 0], 1 - odd)


@pytest.mark.parametrize(
    ("part", "other", "reach"), [(NON_ANCHOR, ANCHOR, 1), (NON_ANCHOR, ANCHOR, 2), (ANCHOR, NON_ANCHOR, 2)]
)
def test_pack_neighbors_makes_a_masked_convolution(part, other, reach):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, 8, dtype=torch.float64)
    taps = pack_neighbors(x, part, reach)
    side = 2 * reach + 1
    weight = torch.randn(5, taps.shape[1], dtype=torch.float64)
    offsets = [(r, c) for r in range(side) for c in range(side) if (r + c) % 2]
    dense = torch.zeros(5, 3, side, side, dtype=torch.float64)
    for t, (r, c) in enumerate(offsets):
        dense[:, :, r, c] = weight[:, 3 * t : 3 * t + 3]
    expected = pack(F.conv2d(keep(x, other), dense, padding=reach), part)
    torch.testing.assert_close(torch.einsum("oc,bchw->bohw", weight, taps), expected)
