"""Semantic terms: distances between a frozen teacher's features of the reconstruction and of the original.

UG-ICM's terms (AAAI 2025) are ``1 - cos`` of the embeddings of the whole image (*global*), of one random crop
(*local*) and of single objects (*instance*). *features* compares intermediate layers on the whole image, as perceptual
losses do (Johnson, Alahi, Fei-Fei, "Perceptual Losses for Real-Time Style Transfer and Super-Resolution", ECCV 2016).

Terms share one signature: ``term(x_hat, x, batch, index, memo) -> [n]``. ``x_hat`` and ``x`` are [n, 3, H, W] in
[0, 1], the samples ``index`` (int64 [n], CPU) of ``batch``. ``memo`` is a cache shared by the terms of one batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ugicm.losses.teachers import Teacher


def cosine_distance(a: Tensor, b: Tensor, dim: int = 1) -> Tensor:
    """Return 1 - cos along ``dim``, in [0, 2]."""
    return 1 - F.cosine_similarity(a.float(), b.float(), dim=dim)


def map_distance(a: Tensor, b: Tensor) -> Tensor:
    """Return 1 - cos over channels, averaged over positions: maps [B, C, H, W] or tokens [B, L, C] -> [B]."""
    return cosine_distance(a, b, dim=1 if a.dim() == 4 else -1).flatten(1).mean(1)


def teacher_outputs(
    teacher: Teacher, x_hat: Tensor, x: Tensor
) -> tuple[list[tuple[Tensor, Tensor]], tuple[Tensor, Tensor]]:
    """Return the (x_hat, x) pairs of feature maps, one per layer, and of embeddings; gradients flow to x_hat only."""
    with torch.no_grad():
        target_maps, target = teacher(x)
    maps, embedding = teacher(x_hat)
    return list(zip(maps, target_maps, strict=True)), (embedding, target)


class SemanticTerm:
    """Base class of terms that are defined for every sample."""

    def __init__(self, teacher: Teacher):
        self.teacher = teacher

    def select(self, batch: dict[str, Tensor], index: Tensor) -> Tensor:
        """Return the part of ``index`` for which the term is defined."""
        return index

    def compare_whole(self, x_hat: Tensor, x: Tensor, index: Tensor, memo: dict):
        """Return :func:`teacher_outputs` of whole images, computed once per batch and set of samples."""
        key = tuple(index.tolist())
        if key not in memo:
            memo[key] = teacher_outputs(self.teacher, x_hat, x)
        return memo[key]


class GlobalTerm(SemanticTerm):
    """1 - cos of the embeddings of whole images."""

    def __call__(self, x_hat: Tensor, x: Tensor, batch: dict, index: Tensor, memo: dict) -> Tensor:
        return cosine_distance(*self.compare_whole(x_hat, x, index, memo)[1])


class FeaturesTerm(SemanticTerm):
    """Weighted mean of the distances of the teacher's layers on whole images.

    Args:
        weights: positive weight of each of the teacher's layers, by name.
    """

    def __init__(self, teacher: Teacher, weights: dict[str, float]):
        super().__init__(teacher)
        self.weights = [weights[name] for name in teacher.layers]

    def __call__(self, x_hat: Tensor, x: Tensor, batch: dict, index: Tensor, memo: dict) -> Tensor:
        maps, _ = self.compare_whole(x_hat, x, index, memo)
        distances = [w * map_distance(a, b) for w, (a, b) in zip(self.weights, maps, strict=True)]
        return torch.stack(distances).sum(0) / sum(self.weights)


class LocalTerm(SemanticTerm):
    """1 - cos of the embeddings of one random crop of ``side`` x ``side`` pixels, the same in both images.

    The crop's position is the sample's "place" in [0, 1)², scaled to the possible positions.
    """

    def __init__(self, teacher: Teacher, side: int):
        super().__init__(teacher)
        self.side = side

    def __call__(self, x_hat: Tensor, x: Tensor, batch: dict, index: Tensor, memo: dict) -> Tensor:
        positions = torch.tensor([x.shape[2] - self.side + 1, x.shape[3] - self.side + 1])
        corners = (batch["place"][index] * positions).long().tolist()
        crops = [
            torch.stack([v[i, :, t : t + self.side, l : l + self.side] for i, (t, l) in enumerate(corners)])  # noqa: E741
            for v in (x_hat, x)
        ]
        return cosine_distance(*teacher_outputs(self.teacher, *crops)[1])


class InstanceTerm(SemanticTerm):
    """1 - cos of the embeddings of objects: the masked image, cropped to the mask's box and resized.

    The batch holds "masks" uint8 [K, H, W], "owners" int64 [K] (the sample of each mask) and "boxes" int64 [K, 4]
    (top, left, bottom, right; not empty). A sample's value is the mean over its objects. The term is undefined for
    samples without objects.

    Args:
        size: side in pixels that objects are resized to.
    """

    def __init__(self, teacher: Teacher, size: int):
        super().__init__(teacher)
        self.size = size

    def select(self, batch: dict[str, Tensor], index: Tensor) -> Tensor:
        return index[torch.isin(index, batch["owners"])] if "owners" in batch else index[:0]

    def __call__(self, x_hat: Tensor, x: Tensor, batch: dict, index: Tensor, memo: dict) -> Tensor:
        row_of = {int(sample): row for row, sample in enumerate(index)}
        objects = [(k, row_of[owner]) for k, owner in enumerate(batch["owners"].tolist()) if owner in row_of]
        masks = batch["masks"].to(x.device, non_blocking=True)
        boxes = batch["boxes"].tolist()
        crops = []
        for v in (x_hat, x):
            resized = []
            for k, row in objects:
                top, left, bottom, right = boxes[k]
                masked = v[row, :, top:bottom, left:right] * masks[k, top:bottom, left:right]
                resized.append(self.teacher.resize(masked[None], self.size))
            crops.append(torch.cat(resized))
        distances = cosine_distance(*teacher_outputs(self.teacher, *crops)[1])
        rows = torch.tensor([row for _, row in objects])
        count = torch.bincount(rows, minlength=len(index)).to(x.device, non_blocking=True)
        return torch.zeros(len(index), device=x.device).index_add(0, rows.to(x.device), distances) / count
