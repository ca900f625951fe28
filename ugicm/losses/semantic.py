"""Semantic terms: how far apart a frozen teacher sees the reconstruction and the original.

The paper's terms are 1 - cos of embeddings of the whole image (*global*), of the same random crop of both
(*local*) and of single objects (*instance*). *features* compares intermediate layers on the whole image, as
perceptual losses do (Johnson, Alahi, Fei-Fei, ECCV 2016).

A term is called with the samples ``index`` of a batch that have a weight, and returns one value for each:
``term(x_hat, x, batch, index, memo)``. x_hat and x are [n, 3, H, W], already restricted to ``index`` (CPU, int64);
``memo`` is shared by the terms of one batch. :meth:`applies` says for which samples a term exists at all.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ugicm.losses.teachers import Teacher


def cosine_distance(a: Tensor, b: Tensor, dim: int = 1) -> Tensor:
    """1 - cos along ``dim``, in [0, 2]."""
    return 1 - F.cosine_similarity(a.float(), b.float(), dim=dim)


def map_distance(a: Tensor, b: Tensor, kind: str) -> Tensor:
    """Distance of feature maps, [B, C, H, W] or tokens [B, L, C] -> [B].

    "cos": 1 - cos over channels, mean over positions. "l2": squared difference relative to the original's energy.
    """
    if kind == "cos":
        return cosine_distance(a, b, dim=1 if a.dim() == 4 else -1).flatten(1).mean(1)
    a, b = a.float().flatten(1), b.float().flatten(1)
    return (a - b).square().sum(1) / b.square().sum(1).clamp_min(1e-12)


def compare(teacher: Teacher, x_hat: Tensor, x: Tensor) -> tuple[list[tuple[Tensor, Tensor]], tuple[Tensor, Tensor]]:
    """(map of x_hat, map of x) for every layer, and the two embeddings. The target is computed without gradients."""
    with torch.no_grad():
        target_maps, target = teacher(x)
    maps, embedding = teacher(x_hat)
    return list(zip(maps, target_maps, strict=True)), (embedding, target)


class SemanticTerm:
    """Base: exists for every sample."""

    def __init__(self, teacher: Teacher):
        self.teacher = teacher

    def applies(self, batch: dict[str, Tensor], index: Tensor) -> Tensor:
        """The part of ``index`` that this term exists for."""
        return index

    def whole(self, x_hat: Tensor, x: Tensor, index: Tensor, memo: dict):
        """:func:`compare` on whole images, once for all terms that need it."""
        key = ("whole", *index.tolist())
        if key not in memo:
            memo[key] = compare(self.teacher, x_hat, x)
        return memo[key]


class GlobalTerm(SemanticTerm):
    """1 - cos of the embeddings of whole images."""

    def __call__(self, x_hat: Tensor, x: Tensor, batch: dict, index: Tensor, memo: dict) -> Tensor:
        return cosine_distance(*self.whole(x_hat, x, index, memo)[1])


class FeaturesTerm(SemanticTerm):
    """Weighted mean of the distances of intermediate layers on whole images."""

    def __init__(self, teacher: Teacher, weights: dict[str, float], kind: str):
        super().__init__(teacher)
        self.weights = [weights[name] for name in teacher.layers]
        self.kind = kind

    def __call__(self, x_hat: Tensor, x: Tensor, batch: dict, index: Tensor, memo: dict) -> Tensor:
        maps, _ = self.whole(x_hat, x, index, memo)
        distances = [w * map_distance(a, b, self.kind) for w, (a, b) in zip(self.weights, maps, strict=True)]
        return torch.stack(distances).sum(0) / sum(self.weights)


class LocalTerm(SemanticTerm):
    """1 - cos of the embeddings of one random square crop, the same for both images.

    Where it lies follows from the sample's "place" in [0, 1)².
    """

    def __init__(self, teacher: Teacher, side: int):
        super().__init__(teacher)
        self.side = side

    def __call__(self, x_hat: Tensor, x: Tensor, batch: dict, index: Tensor, memo: dict) -> Tensor:
        free = torch.tensor([x.shape[2] - self.side + 1, x.shape[3] - self.side + 1])
        corners = (batch["place"][index] * free).long().tolist()
        crops = [
            torch.stack([v[i, :, t : t + self.side, l : l + self.side] for i, (t, l) in enumerate(corners)])  # noqa: E741
            for v in (x_hat, x)
        ]
        return cosine_distance(*compare(self.teacher, *crops)[1])


class InstanceTerm(SemanticTerm):
    """1 - cos of the embeddings of objects: mask times image, cropped to the mask's box, resized.

    The batch holds "masks" uint8 [K, H, W], "owners" int64 [K] (the sample each belongs to) and "boxes" int64
    [K, 4] (top, left, bottom, right; not empty). A sample's value is the mean over its objects; one without
    objects has no value.
    """

    def __init__(self, teacher: Teacher, size: int):
        super().__init__(teacher)
        self.size = size

    def applies(self, batch: dict[str, Tensor], index: Tensor) -> Tensor:
        return index[torch.isin(index, batch["owners"])] if "owners" in batch else index[:0]

    def __call__(self, x_hat: Tensor, x: Tensor, batch: dict, index: Tensor, memo: dict) -> Tensor:
        place = {int(sample): i for i, sample in enumerate(index)}
        objects = [(k, place[o]) for k, o in enumerate(batch["owners"].tolist()) if o in place]
        masks = batch["masks"].to(x.device, non_blocking=True)
        boxes = batch["boxes"].tolist()
        images = []
        for v in (x_hat, x):
            cut = []
            for k, i in objects:
                top, left, bottom, right = boxes[k]
                masked = v[i, :, top:bottom, left:right] * masks[k, top:bottom, left:right]
                cut.append(self.teacher.resize(masked[None], self.size))
            images.append(torch.cat(cut))
        distances = cosine_distance(*compare(self.teacher, *images)[1])
        owner = torch.tensor([i for _, i in objects])
        count = torch.bincount(owner, minlength=len(index)).to(x.device, non_blocking=True)
        return torch.zeros(len(index), device=x.device).index_add(0, owner.to(x.device), distances) / count
