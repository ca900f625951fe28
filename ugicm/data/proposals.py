"""Class-agnostic object proposals for images without labels, with scikit-image.

Superpixels (SLIC; Achanta et al., TPAMI 2012) are merged bottom-up, the most similar neighbors first, and every
region on the way is a candidate, as in selective search (Uijlings et al., IJCV 2013). Candidates are ranked by
how much their outline follows edges, how compact they are, and how little of the image's border they touch;
near duplicates are dropped.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import binary_erosion

from ugicm.atomic import replacing
from ugicm.data.images import find_images
from ugicm.errors import ConfigError, ImageError, first_line
from ugicm.images import open_rgb

WORKING_SIDE = 256  # pixels of the longer side at which regions are sought
SUPERPIXELS = 200
AREA = (0.01, 0.6)  # share of the image that an object covers
OVERLAP = 0.6  # intersection over union from which two candidates are the same


def propose(image: Image.Image, count: int = 5) -> list[np.ndarray]:
    """Masks bool [H, W] of at most ``count`` regions of an RGB image that may be objects, best first."""
    scale = min(1.0, WORKING_SIDE / max(image.size))
    size = [max(1, round(side * scale)) for side in image.size]
    small = np.asarray(image.convert("RGB").resize(size, Image.Resampling.BOX))
    if min(small.shape[:2]) < 8:
        return []
    labels, lab, edges = _superpixels(small)
    chosen: list[np.ndarray] = []
    for region in sorted(_regions(labels, lab), key=lambda r: -_objectness(r, edges)):
        if all(_overlap(region, other) < OVERLAP for other in chosen):
            chosen.append(region)
        if len(chosen) == count:
            break
    full = [Image.fromarray(region).resize(image.size, Image.Resampling.NEAREST) for region in chosen]
    return [np.asarray(mask, dtype=bool) for mask in full]


def _superpixels(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """uint8 [H, W, 3] -> labels int [H, W], Lab colors [H, W, 3], edge strength [H, W] with mean 1."""
    from skimage import color, filters, segmentation

    lab = color.rgb2lab(rgb)
    labels = segmentation.slic(lab, SUPERPIXELS, compactness=10, convert2lab=False, start_label=0)
    edges = sum(filters.sobel(filters.gaussian(lab[..., c], 1)) for c in range(3))
    return labels, lab, edges / max(float(edges.mean()), 1e-6)


def _regions(labels: np.ndarray, lab: np.ndarray) -> list[np.ndarray]:
    """Every region [H, W] of admissible size that merging the most similar neighbors goes through."""
    from skimage import graph

    rag = graph.RAG(labels)
    area = np.bincount(labels.ravel()).astype(float)
    means = np.stack([np.bincount(labels.ravel(), lab[..., c].ravel()) for c in range(3)], 1) / area[:, None]
    for node in rag.nodes:
        rag.nodes[node].update(area=area[node], mean=means[node], labels=[node])

    def distance(a: dict, b: dict) -> float:
        # Ward's criterion: what merging adds to the squared error of the colors. Small regions merge first.
        gap = a["mean"] - b["mean"]
        return float(a["area"] * b["area"] / (a["area"] + b["area"]) * (gap @ gap + 1.0))

    for a, b, edge in rag.edges(data=True):
        edge["weight"] = distance(rag.nodes[a], rag.nodes[b])
    found = []

    def merge(g: graph.RAG, source: int, target: int) -> None:
        a, b = g.nodes[source], g.nodes[target]
        total = a["area"] + b["area"]
        b["mean"] = (a["area"] * a["mean"] + b["area"] * b["mean"]) / total
        b["area"] = total
        if AREA[0] <= total / labels.size <= AREA[1]:
            found.append(a["labels"] + b["labels"])

    def weight(g: graph.RAG, source: int, target: int, neighbor: int) -> dict:
        return {"weight": distance(g.nodes[target], g.nodes[neighbor])}

    graph.merge_hierarchical(labels, rag, np.inf, rag_copy=False, in_place_merge=True, merge_func=merge,
                             weight_func=weight)  # fmt: skip
    for node in np.flatnonzero((area / labels.size >= AREA[0]) & (area / labels.size <= AREA[1])):
        found.append([int(node)])
    table = np.zeros((len(found), int(labels.max()) + 1), dtype=bool)
    for row, members in zip(table, found, strict=True):
        row[members] = True
    return [row[labels] for row in table]


def _objectness(region: np.ndarray, edges: np.ndarray) -> float:
    """Edge strength along the outline over that inside, times compactness, times the outline's share off the border,
    times the root of the share of the image that the region covers."""
    inside = binary_erosion(region)
    outline = region & ~inside
    border = np.zeros_like(region)
    border[[0, -1], :] = border[:, [0, -1]] = True
    contrast = edges[outline].mean() / (0.5 + (edges[inside].mean() if inside.any() else 0.0))
    perimeter, area = outline.sum(), region.sum()
    compactness = min(1.0, np.sqrt(4 * np.pi * area) / max(perimeter, 1))
    off_border = 1 - min(1.0, 2 * (outline & border).sum() / max(perimeter, 1))
    return float(contrast * compactness * off_border * np.sqrt(area / region.size))


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max((a | b).sum(), 1))


class MaskRCNN:
    """torchvision's Mask R-CNN R50-FPN as a proposer: image, count -> masks, best first.

    Args:
        weights: "default" (torchvision's, downloaded) or a file of its state_dict.
        score: least confidence of an object.

    Raises ConfigError where the weights cannot be downloaded, CheckpointError for a file that cannot be read or does
    not fit.
    """

    def __init__(self, weights: str = "default", score: float = 0.5):
        from torchvision.models.detection import maskrcnn_resnet50_fpn

        from ugicm.checkpoints.state_dict import load_state, read_state

        if weights == "default":
            try:
                self.network = maskrcnn_resnet50_fpn(weights="DEFAULT")
            except Exception as error:  # downloads fail in many ways
                raise ConfigError(f"--weights {weights}: {first_line(error)}") from None
        else:
            state = read_state(weights)
            self.network = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)
            load_state(self.network, state, weights, "torchvision's Mask R-CNN R50-FPN")
        self.network.eval()
        self.score = score

    def __call__(self, image: Image.Image, count: int = 5) -> list[np.ndarray]:
        import torch
        from torchvision.transforms.functional import to_tensor

        with torch.inference_mode():
            found = self.network([to_tensor(image.convert("RGB"))])[0]
        keep = (found["scores"] >= self.score).nonzero()[:count, 0]
        return [mask[0].numpy() > 0.5 for mask in found["masks"][keep]]


def annotate(
    source: Path, output: Path, proposer: Callable[..., list[np.ndarray]], count: int, made_by: str, every: int = 100
) -> tuple[int, int, int]:
    """Propose objects for every image of ``source`` into a COCO json that training reads as ``instances``.

    ``source`` is what training takes as one, too: a folder, a ``.txt`` list or one image. Images are named
    relative to the folder, or to that of the list or image; those of a list that lie elsewhere, by their path.
    Images already in ``output`` are kept, so an interrupted call continues; it is written every ``every``
    images and however the call ends, atomically. Returns (images done now, images that were there, unreadable
    ones).

    Raises ConfigError for a source without images, or an output made in another way.
    """
    import pycocotools  # noqa: F401  (found missing before anything is done)
    from tqdm import tqdm

    content = {"info": {"made_by": made_by}, "images": [], "annotations": [], "categories": []}
    known: set[str] = set()
    if output.exists():
        try:
            content = json.loads(output.read_text(encoding="utf-8"))
            before = content["info"]["made_by"]
            known = {image["file_name"] for image in content["images"]}
            if not (isinstance(content["images"], list) and isinstance(content["annotations"], list)):
                raise TypeError("images and annotations are not lists")
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            wrong = f"{error} is missing" if isinstance(error, KeyError) else first_line(error)
            raise ConfigError(f"{output}: exists and is no file of this command: {wrong}") from None
        if before != made_by:
            raise ConfigError(f"{output}: was made with {before!r}, not {made_by!r}; choose another --output")
    present, broken = len(known), 0
    made: list[tuple[dict, list[dict]]] = []  # an image and its annotations, or neither: Ctrl-C comes between any lines
    root = source if source.is_dir() else source.parent

    def write() -> None:
        images = content["images"] + [entry for entry, _ in made]
        first = len(content["annotations"]) + 1
        found = [annotation for _, annotations in made for annotation in annotations]
        annotations = content["annotations"] + [{"id": first + k, **a} for k, a in enumerate(found)]
        with replacing(output) as temporary:
            document = {**content, "images": images, "annotations": annotations}
            temporary.write_text(json.dumps(document), encoding="utf-8")

    files = find_images(source)
    try:
        for path in tqdm(files, desc="proposing", unit="image", disable=not sys.stderr.isatty()):
            name = (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()
            if name in known:
                continue
            known.add(name)  # a list may name it twice
            try:
                image = open_rgb(path)
            except ImageError as error:
                print(f"skipped: {error}", file=sys.stderr)
                broken += 1
                continue
            number = len(content["images"]) + len(made) + 1
            entry = {"id": number, "file_name": name, "width": image.width, "height": image.height}
            made.append((entry, [_annotation(number, mask) for mask in proposer(image, count)]))
            if len(made) % every == 0:
                write()
    finally:
        if made:
            write()
    return len(made), present, broken


def _annotation(image: int, mask: np.ndarray) -> dict:
    """COCO's annotation, but for its id, of a mask [H, W] in the image of that id."""
    from pycocotools import mask as coding

    code = coding.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {
        "image_id": image, "category_id": 1, "iscrowd": 0, "area": int(mask.sum()),
        "bbox": [float(v) for v in coding.toBbox(code)],
        "segmentation": {"size": code["size"], "counts": code["counts"].decode()},
    }  # fmt: skip
