"""Synthesis transform conditioned on the preference: 0 for human, 1 for machine, anything between.

UG-ICM ("Unified Coding for Both Human Perception and Generalized Machine Analytics with CLIP Supervision", AAAI 2025)
embeds the preference once and shifts the features of every residual block of the synthesis by it. In this
implementation the preference may also vary over the image (a preference map).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ugicm.models.layers import Pointwise, ResidualUp, conv3x3, full_precision, subpel_conv3x3

MAP_STEPS = 255  # a preference map is rounded to multiples of 1 / MAP_STEPS


class Condition:
    """The embedded preference of a batch, to be projected by any layer.

    For a preference map, the embedding is tabulated at the levels of the map. A projection is then a product with at
    most 256 rows per image, followed by a gather.

    Args:
        vectors: embeddings, [B, D]. For a map, those of its levels ``lowest``, ``lowest + 1``, ..., [B, L, D].
        level_map: preference map [B, 1, H, W] in units of levels (0 to 255, not rounded), or None.
        lowest: the first tabulated level.
    """

    def __init__(self, vectors: Tensor, level_map: Tensor | None = None, lowest: int = 0):
        self.vectors = vectors
        self.level_map = level_map
        self.lowest = lowest
        self._index: dict[tuple[int, int], Tensor] = {}

    def project(self, linear: nn.Linear, size: tuple[int, int]) -> Tensor:
        """Apply ``linear`` (D -> O) to the embedding, for features of ``size`` (h, w).

        Returns [B, O, 1, 1], or [B, O, h, w] for a map.
        """
        projected = linear(self.vectors)
        if self.level_map is None:
            return projected[:, :, None, None]
        index = self._indices(tuple(size))
        image = torch.arange(len(index), device=index.device)[:, None, None]
        return projected[image, index].permute(0, 3, 1, 2)

    def _indices(self, size: tuple[int, int]) -> Tensor:
        """Return the row of the table for every position of a layer's features, [B, h, w]."""
        if size not in self._index:
            levels = torch.round(F.adaptive_avg_pool2d(self.level_map, size)).long() - self.lowest
            self._index[size] = levels.clamp_(0, self.vectors.shape[1] - 1).squeeze(1)
        return self._index[size]


class PreferenceEmbedding(nn.Module):
    """Embed the preference: beta, sin(2^k beta) and cos(2^k beta) for k < ``frequencies``, then two layers.

    With ``with_quality``, the quality is one more feature. Otherwise it is ignored.
    """

    def __init__(self, frequencies: int, width: int, with_quality: bool = False):
        super().__init__()
        self.frequencies = frequencies
        self.with_quality = with_quality
        self.fc1 = nn.Linear(1 + 2 * frequencies + with_quality, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, beta: Tensor, quality: Tensor) -> Tensor:
        """Return the embedding [B, width] of beta [B] and quality [B], each in [0, 1]."""
        beta = beta.to(self.fc1.weight.dtype)
        octaves = 2.0 ** torch.arange(self.frequencies, device=beta.device, dtype=beta.dtype)
        angles = beta[:, None] * octaves
        features = [beta[:, None], torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)]
        if self.with_quality:
            features.append(quality[:, None].to(beta))
        return F.relu(self.fc2(F.relu(self.fc1(torch.cat(features, dim=1)))))

    def condition(self, beta: Tensor, quality: Tensor) -> Condition:
        """Embed one preference per image, beta [B], or a preference map, beta [B, 1, H, W]; values in [0, 1].

        ``quality`` is [B] in [0, 1]. A map is area-averaged to the resolution of each layer and rounded to steps of
        1/255. A constant map at such a step gives the same image as the number. Keep beta on the CPU if possible:
        reading the values of a map on a GPU requires a synchronization. Raises ValueError for other shapes.
        """
        like = self.fc1.weight
        if beta.dim() == 1:
            return Condition(self(beta.to(like), quality))
        if beta.dim() != 4 or beta.shape[1] != 1:
            raise ValueError(f"preference of shape {list(beta.shape)}: must be [B], or [B, 1, H, W] for a map")
        level_map = beta.to(like.dtype) * MAP_STEPS
        # Averages lie between the extremes, so these are all the levels that any layer can need.
        lowest, highest = (int(v) for v in torch.stack(level_map.aminmax()).round().tolist())
        levels = torch.arange(lowest, highest + 1, device=like.device, dtype=like.dtype) / MAP_STEPS
        vectors = self(levels.repeat(len(beta)), quality.repeat_interleave(len(levels)))
        return Condition(vectors.unflatten(0, (len(beta), -1)), level_map.to(like.device), lowest)


class PCDM(nn.Module):
    """Preference-conditional residual block: features are shifted after each GELU.

    [B, in, H, W] -> [B, out, H, W]. The shifts are projections of the embedded preference, without bias.
    """

    def __init__(self, in_channels: int, out_channels: int, condition_width: int):
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.shift1 = nn.Linear(condition_width, out_channels, bias=False)
        self.shift2 = nn.Linear(condition_width, out_channels, bias=False)
        self.skip = nn.Identity() if in_channels == out_channels else Pointwise(in_channels, out_channels)

    def forward(self, x: Tensor, condition: Condition) -> Tensor:
        h = F.gelu(self.conv1(x))
        h = h + condition.project(self.shift1, h.shape[-2:])
        h = F.gelu(self.conv2(h))
        return h + condition.project(self.shift2, h.shape[-2:]) + self.skip(x)


class ResidualSynthesis(nn.Module):
    """g_s: y_hat [B, M, H/16, W/16] and the embedded preference -> image [B, 3, H, W], not clamped.

    ``stem_width`` is the width of the first block. 0 stands for N, as in the released network.
    """

    def __init__(self, N: int, M: int, condition_width: int, stem_width: int = 0):
        super().__init__()
        stem = stem_width or N
        self.blocks = nn.ModuleList([PCDM(M, stem, condition_width)])
        self.blocks.extend(PCDM(N, N, condition_width) for _ in range(3))
        self.ups = nn.ModuleList([ResidualUp(stem, N), ResidualUp(N, N), ResidualUp(N, N)])
        self.head = subpel_conv3x3(N, 3, 2)

    def forward(self, y_hat: Tensor, condition: Condition) -> Tensor:
        h = self.blocks[0](y_hat, condition)
        for up, block in zip(self.ups, self.blocks[1:], strict=True):
            h = block(up(h), condition)
        return full_precision(self.head, h)  # bfloat16 cannot represent 256 levels of a color
