"""Synthesis conditioned on the viewer's preference: 0 for people, 1 for machines, anything between.

UG-ICM ("Unified Coding for Both Human Perception and Generalized Machine Analytics with CLIP Supervision", AAAI 2025):
the preference is embedded once and shifts the features of every residual block of the synthesis. Here it may also
vary over the image (a preference map).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ugicm.models.layers import (
    Pointwise,
    ResidualUp,
    conv3x3,
    full_precision,
    residual_by_bands,
    subpel_conv3x3,
)

MAP_STEPS = 255  # a preference map is rounded to multiples of 1 / MAP_STEPS


class Condition:
    """The embedded preference of a batch, ready to be projected by any layer.

    Either one vector an image, or (``level_map`` given) a table of vectors for the levels of a preference
    map, and which level each pixel has: a projection is then a product with at most 256 rows and a gather.
    """

    def __init__(
        self, beta: Tensor, vectors: Tensor, level_map: Tensor | None = None, lowest: int = 0, human: bool = False
    ):
        """``beta`` and ``vectors``: preferences [B] and their embeddings [B, D]; or for a map those of the levels
        ``lowest ...``, [L] and [L, D] or [B, L, D].

        ``level_map``: the preference map [B, 1, H, W] in units of levels (0 ... 255, fractions allowed). ``human``:
        whether the preference is known to be 0 everywhere.
        """
        self.human = human
        self.beta = beta
        self.vectors = vectors
        self.level_map = level_map
        self.lowest = lowest
        self._index: dict[tuple[int, int], Tensor] = {}

    def preference(self, size: tuple[int, int]) -> Tensor:
        """The preference itself, for features of ``size`` (h, w): [B, 1, 1, 1], or [B, 1, h, w] for a map."""
        if self.level_map is None:
            return self.beta[:, None, None, None]
        return self.beta[self._indices(tuple(size))][:, None]

    def project(self, linear: nn.Linear, size: tuple[int, int]) -> Tensor:
        """Apply ``linear`` (D -> O) to the embedding, for features of ``size`` (h, w).

        Returns [B, O, 1, 1] for one preference an image, [B, O, h, w] for a map.
        """
        projected = linear(self.vectors)
        if self.level_map is None:
            return projected[:, :, None, None]
        index = self._indices(tuple(size))
        if projected.dim() == 2:
            gathered = projected[index]
        else:
            image = torch.arange(len(index), device=index.device)[:, None, None]
            gathered = projected[image, index]
        return gathered.permute(0, 3, 1, 2)

    def _indices(self, size: tuple[int, int]) -> Tensor:
        """Row of the table for every pixel at a layer's resolution, [B, h, w]."""
        if size not in self._index:
            levels = torch.round(F.adaptive_avg_pool2d(self.level_map, size)).long() - self.lowest
            rows = self.vectors.shape[-2]
            self._index[size] = levels.clamp_(0, rows - 1).squeeze(1)
        return self._index[size]


class PreferenceEmbedding(nn.Module):
    """Preference beta -> vector: beta, sin(2^k beta), cos(2^k beta) for k < ``frequencies``, then two layers.

    ``extra`` more numbers an image (for example its quality) can be appended to the features.
    """

    def __init__(self, frequencies: int = 10, width: int = 512, extra: int = 0):
        super().__init__()
        self.frequencies = frequencies
        self.extra = extra
        self.fc1 = nn.Linear(1 + 2 * frequencies + extra, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, beta: Tensor, extra: Tensor | None = None) -> Tensor:
        """beta [B] in [0, 1] and, where the embedding takes them, extra [B, E] -> [B, width]."""
        if (extra is None) != (self.extra == 0):
            raise ValueError(
                f"the preference embedding takes {self.extra} extra numbers an image, got "
                f"{'none' if extra is None else list(extra.shape)}"
            )
        beta = beta.to(self.fc1.weight.dtype)
        octaves = 2.0 ** torch.arange(self.frequencies, device=beta.device, dtype=beta.dtype)
        angles = beta[:, None] * octaves
        waves = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)
        features = [beta[:, None], waves] if extra is None else [beta[:, None], waves, extra.to(beta.dtype)]
        return F.relu(self.fc2(F.relu(self.fc1(torch.cat(features, dim=1)))))

    def condition(self, beta: Tensor, extra: Tensor | None = None) -> Condition:
        """Embed one preference an image, beta [B], or a preference map, beta [B, 1, H, W]; values in [0, 1].

        A map is area-averaged to the resolution of each layer and rounded to steps of 1/255. A constant map
        at such a step gives the same image as the number. Best left on the CPU: a GPU has to be waited for to know
        what it holds. Raises ValueError for any other shape.
        """
        like = self.fc1.weight
        # What a GPU holds is not asked for: the branches for machines then run for people, too, and add nothing.
        human = beta.device.type == "cpu" and not bool(beta.any())
        if beta.dim() == 1:
            beta = beta.to(like)
            return Condition(beta, self(beta, extra), human=human)
        if beta.dim() != 4 or beta.shape[1] != 1:
            raise ValueError(f"a preference is [B], a map [B, 1, H, W]; got shape {list(beta.shape)}")
        level_map = beta.to(like.dtype) * MAP_STEPS
        # Averages lie between the extremes, so these are all the levels that any layer can meet.
        lowest, highest = (int(v) for v in torch.stack(level_map.aminmax()).round().tolist())
        levels = torch.arange(lowest, highest + 1, device=like.device, dtype=like.dtype) / MAP_STEPS
        level_map = level_map.to(like.device)
        if extra is None:
            return Condition(levels, self(levels), level_map, lowest, human)
        images, rows = len(extra), len(levels)
        vectors = self(levels.repeat(images), extra.repeat_interleave(rows, dim=0))
        return Condition(levels, vectors.unflatten(0, (images, rows)), level_map, lowest, human)


class PCDM(nn.Module):
    """Preference-conditional block: a residual block whose features are shifted after each GELU.

    [B, in, H, W] -> [B, out, H, W]; the shifts are projections of the embedded preference, without bias.
    """

    def __init__(self, in_channels: int, out_channels: int, condition_width: int):
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.shift1 = nn.Linear(condition_width, out_channels, bias=False)
        self.shift2 = nn.Linear(condition_width, out_channels, bias=False)
        self.skip = nn.Identity() if in_channels == out_channels else Pointwise(in_channels, out_channels)

    def forward(
        self, x: Tensor, condition: Condition, reuse: bool = False, room: Tensor | None = None
    ) -> Tensor:
        """``reuse``: the result may take the memory of ``x``; ``room`` [B, out, H, W]: memory free for use."""
        if condition.level_map is None and self.conv1.by_winograd(x):
            shifts = self.shift1(condition.vectors), self.shift2(condition.vectors)
            return residual_by_bands(self, x, reuse, room, shifts)
        h = F.gelu(self.conv1(x))
        h = h + condition.project(self.shift1, h.shape[-2:])
        h = F.gelu(self.conv2(h))
        return h + condition.project(self.shift2, h.shape[-2:]) + self.skip(x)


class ResidualSynthesis(nn.Module):
    """g_s: y_hat [B, M, H/16, W/16] and the embedded preference -> image [B, 3, H, W], not clamped.

    ``stem_width`` is the width of the first block: N in the released network, M in later MLIC++ ones.
    """

    def __init__(self, N: int, M: int, condition_width: int, stem_width: int | None = None):
        super().__init__()
        stem = stem_width or N
        self.blocks = nn.ModuleList([PCDM(M, stem, condition_width)])
        self.blocks.extend(PCDM(N, N, condition_width) for _ in range(3))
        self.ups = nn.ModuleList([ResidualUp(stem, N), ResidualUp(N, N), ResidualUp(N, N)])
        self.head = subpel_conv3x3(N, 3, 2)

    def forward(self, y_hat: Tensor, condition: Condition) -> Tensor:
        h = self.blocks[0](y_hat, condition)
        for up, block in zip(self.ups, self.blocks[1:], strict=True):
            h, room = up(h)
            h = block(h, condition, reuse=True, room=room)
        return full_precision(self.head, h)  # bfloat16 cannot hold 256 levels of a color
