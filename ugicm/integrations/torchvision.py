"""Train on compressed images: a data set of bitstreams, and compression as an augmentation, for torchvision.

>>> data = BitstreamFolder("bitstreams/", preference="machine", transform=v2.RandomResizedCrop(224))
>>> augment = v2.Compose([v2.RandomHorizontalFlip(), Recompress(quality=(0.1, 0.9), preference="machine")])

Both work in workers of a ``DataLoader``, forked or spawned. A worker loads the codec once.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ugicm.errors import UsageError
from ugicm.extras import require_packages
from ugicm.files import STREAM_SUFFIX, list_files
from ugicm.integrations.shared import shared_codec

require_packages("integrations", "ugicm.integrations.torchvision", "torchvision")

from torchvision import tv_tensors  # noqa: E402
from torchvision.transforms import v2  # noqa: E402


class BitstreamFolder(torch.utils.data.Dataset):
    """The images of all bitstreams below a folder, with the folder of each as its class.

    Items are (image, class): a uint8 tensor [3, H, W], transformed, and an index into ``classes``.

    Args:
        root: the folder.
        preference: from 0 (human) to 1 (machine), "human" or "machine".
        transform: function of the image.
        checkpoint: of the model, as :func:`ugicm.load` takes it; None for the shipped model.
        device: where the codec runs.

    Attributes:
        paths: of the bitstreams, sorted.
        classes: names of the folders that hold bitstreams, relative to ``root``, sorted; ["."] without subfolders.

    Raises UsageError if there is no bitstream.
    """

    def __init__(
        self, root: str | os.PathLike, preference: float | str = "machine",
        transform: Callable[[torch.Tensor], Any] | None = None,
        checkpoint: str | os.PathLike | None = None, device: str = "cpu",
    ):  # fmt: skip
        self.preference, self.transform, self.checkpoint, self.device = preference, transform, checkpoint, device
        self.paths = list_files(root, [STREAM_SUFFIX]).found
        if not self.paths:
            raise UsageError(f"{root}: no {STREAM_SUFFIX} files; write them with ugicm compress FOLDER OUT")
        names = [path.parent.relative_to(Path(root)).as_posix() for path in self.paths]
        self.classes = sorted(set(names))
        self._labels = [self.classes.index(name) for name in names]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        codec = shared_codec(self.checkpoint, self.device)
        image = codec.decompress(self.paths[index], self.preference, output="tensor")
        return self.transform(image) if self.transform else image, self._labels[index]


class Recompress(v2.Transform):
    """Compress and decompress images, at a quality that is drawn for every call.

    Takes and gives Pillow images in mode RGB and uint8 tensors [..., 3, H, W]; boxes, masks and labels beside them pass
    through.

    Args:
        quality: from 0 (small) to 1 (good), or a range (low, high) that it is drawn from uniformly.
        preference: from 0 (human) to 1 (machine), "human" or "machine".
        checkpoint: of the model, as :func:`ugicm.load` takes it; None for the shipped model.
        device: where the codec runs.

    Raises ValueError for a quality outside of [0, 1].
    """

    def __init__(
        self, quality: float | tuple[float, float] = (0.0, 1.0), preference: float | str = "human",
        checkpoint: str | os.PathLike | None = None, device: str = "cpu",
    ):  # fmt: skip
        super().__init__()
        self.low, self.high = quality if isinstance(quality, (tuple, list)) else (quality, quality)
        if not 0 <= self.low <= self.high <= 1:
            raise ValueError(f"quality is {quality}, must be from 0 (small) to 1 (good), or a range of these")
        self.preference, self.checkpoint, self.device = preference, checkpoint, device

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the quality."""
        return {"quality": self.low + (self.high - self.low) * torch.rand(()).item()}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Return an image as it is decoded, in the form of ``inpt``; anything else as it is."""
        if isinstance(inpt, tv_tensors.TVTensor) and not isinstance(inpt, tv_tensors.Image):
            return inpt
        codec = shared_codec(self.checkpoint, self.device)
        if isinstance(inpt, Image.Image):
            return codec.decompress(codec.compress(inpt, params["quality"]), self.preference)
        images = inpt.reshape(-1, *inpt.shape[-3:])
        decoded = codec.decompress(codec.compress(images, params["quality"]), self.preference, output="tensor")
        return tv_tensors.wrap(torch.stack(decoded).reshape(inpt.shape).to(inpt.device), like=inpt)
