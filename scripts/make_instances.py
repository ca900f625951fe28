#!/usr/bin/env python3
"""Propose instance masks for images without annotations, for the instance term of training.

    python scripts/make_instances.py images/ -o images_instances.json

The output is a JSON file in COCO's format (run-length masks, one category), for `instances` of a source in a training
configuration. Repeat an interrupted call to continue it. Exit status: 0 done, 1 images were unreadable or writing
failed, 2 invalid input, 130 interrupted.

Superpixels (SLIC; Achanta et al., TPAMI 2012) are merged bottom-up, the most similar neighbors first, and every merged
region is a candidate, as in selective search (Uijlings et al., IJCV 2013). Candidates are ranked by the edge strength
along their outline, their compactness, size and distance from the image border. Near duplicates are removed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from ugicm.arguments import ArgumentParser, positive, run_command
from ugicm.atomic import replacing
from ugicm.data.images import find_images
from ugicm.errors import ConfigError, ImageError, first_line
from ugicm.extras import require_packages
from ugicm.images import open_rgb

WORKING_SIDE = 256  # pixels of the longer side at which images are segmented
SUPERPIXELS = 200
AREA = (0.01, 0.6)  # smallest and largest share of the image that an object covers
OVERLAP = 0.6  # intersection over union from which a candidate is a duplicate


def propose(image: Image.Image, count: int = 5) -> list[np.ndarray]:
    """Return at most ``count`` masks, bool [H, W], of regions of an RGB image that may be objects, best first."""
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
    """Return labels int [H, W], Lab colors [H, W, 3] and edge strength [H, W] of mean 1 for uint8 [H, W, 3]."""
    from skimage import color, filters, segmentation

    lab = color.rgb2lab(rgb)
    labels = segmentation.slic(lab, SUPERPIXELS, compactness=10, convert2lab=False, start_label=0)
    edges = sum(filters.sobel(filters.gaussian(lab[..., c], 1)) for c in range(3))
    return labels, lab, edges / max(float(edges.mean()), 1e-6)


def _regions(labels: np.ndarray, lab: np.ndarray) -> list[np.ndarray]:
    """Return the superpixels and merged regions, bool [H, W], whose size is within AREA."""
    from skimage import graph

    rag = graph.RAG(labels)
    area = np.bincount(labels.ravel()).astype(float)
    means = np.stack([np.bincount(labels.ravel(), lab[..., c].ravel()) for c in range(3)], 1) / area[:, None]
    for node in rag.nodes:
        rag.nodes[node].update(area=area[node], mean=means[node], labels=[node])

    def distance(a: dict, b: dict) -> float:
        # Ward's criterion: increase of the colors' squared error by merging. The 1 lets small regions merge first.
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
    """Return the score of a region: contrast * compactness * share of the outline off the border * sqrt(area)."""
    from scipy.ndimage import binary_erosion

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


def annotate(
    source: Path, output: Path, proposer: Callable[..., list[np.ndarray]], count: int, made_by: str, every: int = 100
) -> tuple[int, int, int]:
    """Write object proposals for all images of ``source`` to a COCO JSON file, for ``instances`` of a training source.

    Args:
        source: folder, ``.txt`` list or image, as in the configuration of a training. Images are named relative to the
            folder (of the list or image), or by their whole path if they are outside it.
        output: file to write. An existing file is continued, so that an interrupted call can be repeated.
        proposer: (image, count) -> masks bool [H, W].
        count: largest number of objects per image.
        made_by: description of the method; must equal that of an existing ``output``.
        every: number of images between two writes; the file is also written when the call ends or is interrupted.

    Returns the numbers of images added, already present, and unreadable. Raises ConfigError if ``source`` has no
    images, or ``output`` is not a file of this function or was made by another method.
    """
    require_packages("train", "make_instances.py", "pycocotools", "scipy", "skimage")
    from tqdm import tqdm

    content = _read_output(output, made_by)
    known = {image["file_name"] for image in content["images"]}
    present, unreadable = len(known), 0
    added: list[tuple[dict, list[dict]]] = []  # image and its annotations, appended together: Ctrl-C may come anytime
    root = source if source.is_dir() else source.parent

    def write() -> None:
        images = content["images"] + [entry for entry, _ in added]
        first = len(content["annotations"]) + 1
        new = [annotation for _, annotations in added for annotation in annotations]
        annotations = content["annotations"] + [{"id": first + k, **a} for k, a in enumerate(new)]
        with replacing(output) as temporary:
            document = {**content, "images": images, "annotations": annotations}
            temporary.write_text(json.dumps(document), encoding="utf-8")

    files = find_images(source)
    try:
        for path in tqdm(files, desc="proposing", unit="image", disable=not sys.stderr.isatty()):
            name = (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()
            if name in known:
                continue
            known.add(name)  # a list may repeat it
            try:
                image = open_rgb(path)
            except ImageError as error:
                print(f"skipped: {error}", file=sys.stderr)
                unreadable += 1
                continue
            number = len(content["images"]) + len(added) + 1
            entry = {"id": number, "file_name": name, "width": image.width, "height": image.height}
            added.append((entry, [_annotation(number, mask) for mask in proposer(image, count)]))
            if len(added) % every == 0:
                write()
    finally:
        if added:
            write()
    return len(added), present, unreadable


def _read_output(output: Path, made_by: str) -> dict:
    """Return the content of an existing output file of the same method, or that of an empty one."""
    if not output.exists():
        return {"info": {"made_by": made_by}, "images": [], "annotations": [], "categories": []}
    try:
        content = json.loads(output.read_text(encoding="utf-8"))
        existing = content["info"]["made_by"]
        if not (isinstance(content["images"], list) and isinstance(content["annotations"], list)):
            raise TypeError("images and annotations are not lists")
        for image in content["images"]:
            image["file_name"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else first_line(error)
        raise ConfigError(f"{output}: not an output of this command: {reason}; choose another --output") from None
    if existing != made_by:
        raise ConfigError(f"{output}: was made with {existing!r}, not {made_by!r}; choose another --output")
    return content


def _annotation(image: int, mask: np.ndarray) -> dict:
    """Return the COCO annotation, without its id, of a mask bool [H, W] in image number ``image``."""
    from pycocotools import mask as coding

    code = coding.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {
        "image_id": image, "category_id": 1, "iscrowd": 0, "area": int(mask.sum()),
        "bbox": [float(v) for v in coding.toBbox(code)],
        "segmentation": {"size": code["size"], "counts": code["counts"].decode()},
    }  # fmt: skip


def main() -> int:
    """Run the command and return its exit status."""
    return run_command(_main, interrupted="interrupted; repeat the command to continue")


def _main() -> int:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="folder of images (searched recursively), .txt list or image")
    parser.add_argument("-o", "--output", type=Path, required=True, help="JSON file to write or continue")
    parser.add_argument("-n", "--count", type=positive, default=5, help="most objects per image (default: 5)")
    arguments = parser.parse_args()

    made_by = f"regions, at most {arguments.count}"
    added, present, unreadable = annotate(arguments.source, arguments.output, propose, arguments.count, made_by)
    print(f"{arguments.output}: {added} images added, {present} already present, {unreadable} unreadable")
    return 1 if unreadable else 0


if __name__ == "__main__":
    sys.exit(main())
