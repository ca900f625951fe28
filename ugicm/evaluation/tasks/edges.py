"""Edge detection: agreement of an edge detector with itself on the originals."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ugicm.errors import ConfigError, ImageError
from ugicm.evaluation.results import mean
from ugicm.evaluation.specs import parse_spec
from ugicm.evaluation.tasks.base import Evaluator, Item
from ugicm.evaluation.tasks.hub import load_function
from ugicm.images import to_tensor


def edge_agreement(original: Tensor, tested: Tensor) -> float | None:
    """Return the F-measure in percent of edges against those of the original, both boolean [1, 1, H, W].

    An edge pixel is found if the other map has one within a pixel of it. None if the original has no edges.
    """
    if not original.any():
        return None
    near_original, near_tested = (F.max_pool2d(edges.float(), 3, 1, 1).bool() for edges in (original, tested))
    found = (original & near_tested).sum() / original.sum()
    right = (tested & near_original).sum() / tested.sum().clamp_min(1)
    return 100 * float(2 * found * right / (found + right).clamp_min(1e-9))


class EdgeEvaluator(Evaluator):
    """Edges in images under test, compared with those in the originals. A record holds the agreement, or None.

    Args:
        detector: images [1, 3, H, W] in [0, 1] -> edge probabilities [1, 1, H, W].
        name, identity: as in :class:`~ugicm.evaluation.tasks.base.Evaluator`.
        device: where the detector runs.
    """

    metrics = headline = ("edge agreement",)
    noisy, needs_original = False, True

    def __init__(self, detector: Callable, name: str, identity: str, device: str):
        super().__init__()
        self.detector, self.name, self.identity, self.device = detector, name, identity, device

    @staticmethod
    def prepare(item: Item, image: Image.Image, original: Image.Image | None) -> list[Tensor]:
        return [to_tensor(original), to_tensor(image)]

    @torch.inference_mode()
    def process(self, items: Sequence[Item], inputs: Sequence[list[Tensor]]) -> None:
        for item, images in zip(items, inputs, strict=True):
            maps = [self.detector(image.to(self.device)) for image in images]
            if not all(one.isfinite().all() for one in maps):
                raise ImageError(f"{self.name}: the network's outputs are not finite")
            self.records[item.key] = {"agreement": edge_agreement(*(one > 0.5 for one in maps))}

    def summarize(self, records: dict[str, dict]) -> dict[str, float | None]:
        """Return the mean agreement over the images whose original has edges."""
        return {"edge agreement": mean(self.per_image_scores("edge agreement", records).values())}

    def per_image_scores(self, metric: str, records: dict[str, dict]) -> dict[str, float]:
        return {key: record["agreement"] for key, record in records.items() if record["agreement"] is not None}


def load_edge_evaluator(text: str, device: str = "cpu") -> EdgeEvaluator:
    """Return the evaluator of the edge detector ``FILE.py:function``. Raise ConfigError if it cannot be built."""
    spec = parse_spec(text)
    if not spec.function:
        raise ConfigError(f"{text}: expected FILE.py:function")
    spec.take(attributes=True)
    detector, origin = load_function(spec, device)
    return EdgeEvaluator(detector, spec.label, origin, device)
