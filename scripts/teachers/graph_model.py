"""TensorFlow.js graph models as frozen PyTorch networks that pass gradients to the image.

A graph model is a JSON file of nodes and a binary file of weights. The operations are those of fully convolutional
networks. Tensors keep TensorFlow's order of dimensions between operations.
"""

from __future__ import annotations

import base64
import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class Node:
    """An operation of a graph: its name, type, attributes and the names of the tensors that it takes."""

    name: str
    operation: str
    attributes: dict
    inputs: list[str]
    finished: list[str] = field(default_factory=list)  # tensors that no later operation takes


class GraphModel(nn.Module):
    """The part of a graph model that computes some of its tensors: images [B, 3, H, W] in [0, 1] -> [B, C].

    The result is the mean of the last layer over its positions. Sides of images are multiples of the largest stride.

    Args:
        path: JSON file of the model. The binary file is in the same folder.
        layers: name -> node of the graph that computes a feature map. A submodule of each name receives the map,
            [B, C, h, w].
        normalization: mean and standard deviation of the three colors.
        channels_first: the graph takes images and returns feature maps as [B, C, H, W], not as [B, H, W, C].
        halved: nodes that resize maps to half the sides. All others double the sides.

    Raises ValueError for an operation that is not supported, and what reading the files raises.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        layers: dict[str, str],
        normalization: tuple[tuple[float, ...], tuple[float, ...]],
        channels_first: bool = False,
        halved: tuple[str, ...] = (),
    ):
        super().__init__()
        model = json.loads(Path(path).read_text(encoding="utf-8"))
        self.channels_first, self.names = channels_first, {node: name for name, node in layers.items()}
        for name in layers:
            self.add_module(name, nn.Identity())
        for name, values in zip(("mean", "std"), normalization, strict=True):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1))
        self.nodes = _needed_nodes(model["modelTopology"]["node"], list(layers.values()))
        for node in self.nodes:
            if node.operation not in OPERATIONS:
                raise ValueError(f"{path}: operation {node.operation} of node {node.name} is not supported")
            if node.name in halved:
                node.attributes["factor"] = 0.5
        self._add_constants(read_weights(path, model))
        self.requires_grad_(False).eval()

    def _add_constants(self, constants: dict[str, np.ndarray]) -> None:
        """Keep the constants that the nodes take: weights as parameters, axes and widths of padding as they are."""
        last_use = {name: node for node in self.nodes for name in (*node.inputs, node.name)}
        for name, node in last_use.items():
            node.finished.append(name)
        used = {name: constants[name] for name in last_use if name in constants}
        self.integers = {name: array for name, array in used.items() if array.dtype.kind == "i"}
        self.weight_names = [name for name in used if name not in self.integers]
        weights = {name: torch.from_numpy(constants[name]) for name in self.weight_names}
        for node in self.nodes:
            if OPERATIONS[node.operation] is _convolve:  # [h, w, in, out], or [h, w, in, multiplier] if depthwise
                filters = weights[node.inputs[1]].permute(3, 2, 0, 1)
                if node.attributes["depthwise"]:
                    filters = filters.transpose(0, 1).flatten(0, 1)[:, None]
                weights[node.inputs[1]] = filters.contiguous(memory_format=torch.channels_last)
        self.weights = nn.ParameterList(weights.values())

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean of the last layer over its positions."""
        x = (x - self.mean) / self.std
        values = dict(zip(self.weight_names, self.weights, strict=True)) | self.integers
        for node in self.nodes:
            if node.operation == "Placeholder":
                y = x if self.channels_first else x.permute(0, 2, 3, 1)
            else:
                y = OPERATIONS[node.operation](node.attributes, *(values[name] for name in node.inputs))
            values[node.name] = y
            if node.name in self.names:
                features = y if self.channels_first else y.permute(0, 3, 1, 2)
                features = self.get_submodule(self.names[node.name])(features)
            for name in node.finished:
                del values[name]
        return features.mean((2, 3))


def _needed_nodes(nodes: list[dict], outputs: list[str]) -> list[Node]:
    """Return the nodes that the outputs depend on, without constants, in an order in which they can be computed."""
    by_name = {node["name"]: node for node in nodes}
    ordered: dict[str, Node] = {}
    waiting = [(name, False) for name in reversed(outputs)]
    while waiting:
        name, inputs_done = waiting.pop()
        entry = by_name[name]
        if name in ordered or entry["op"] == "Const":
            continue
        inputs = entry.get("input", [])
        if entry["op"] == "ResizeBilinear":
            inputs = inputs[:1]  # the second is the size at the graph's own resolution
        if inputs_done:
            ordered[name] = Node(name, entry["op"], _attributes(entry), inputs)
        else:
            waiting += [(name, True), *((source, False) for source in inputs)]
    return list(ordered.values())


def _attributes(entry: dict) -> dict:
    """Return the attributes of a node as plain values."""
    found = {"depthwise": "Depthwise" in entry["op"], "factor": 2.0}
    for key, value in entry.get("attr", {}).items():
        if "s" in value:
            found[key] = base64.b64decode(value["s"]).decode()
        elif "s" in value.get("list", {}):
            found[key] = [base64.b64decode(text).decode() for text in value["list"]["s"]]
        elif "i" in value.get("list", {}):
            found[key] = [int(number) for number in value["list"]["i"]]
        elif "f" in value or "b" in value:
            found[key] = value.get("f", value.get("b"))
    return found


def read_weights(path: str | os.PathLike, model: dict) -> dict[str, np.ndarray]:
    """Return the constants of a graph model by name, float32 or integers. ``model`` is the content of the JSON file."""
    constants = {}
    for group in model["weightsManifest"]:
        data = b"".join((Path(path).parent / part).read_bytes() for part in group["paths"])
        offset = 0
        for entry in group["weights"]:
            stored = np.dtype(entry.get("quantization", entry)["dtype"])
            count = math.prod(entry["shape"])
            array = np.frombuffer(data, stored, count, offset).reshape(entry["shape"])
            constants[entry["name"]] = array.astype(entry["dtype"])
            offset += count * stored.itemsize
    return constants


def _convolve(attributes: dict, x: Tensor, weight: Tensor, *bias: Tensor) -> Tensor:
    """Convolve [B, H, W, C], then apply what is fused: a bias and an activation."""
    x, strides = x.permute(0, 3, 1, 2), attributes["strides"][1:3]
    if attributes["padding"] == "SAME":
        x = F.pad(x, _same_padding(x.shape[2:], weight.shape[2:], strides))
    groups = x.shape[1] if attributes["depthwise"] else 1
    y = F.conv2d(x, weight, *bias, stride=strides, groups=groups).permute(0, 2, 3, 1)
    for name in attributes.get("fused_ops", ()):
        y = y if name == "BiasAdd" else OPERATIONS[name](attributes, y)
    return y


def _same_padding(sides, kernel, strides) -> list[int]:
    """Return TensorFlow's padding "SAME": left, right, top, bottom."""
    padding = []
    for side, size, stride in reversed(list(zip(sides, kernel, strides, strict=True))):
        total = max((math.ceil(side / stride) - 1) * stride + size - side, 0)
        padding += [total // 2, total - total // 2]
    return padding


def _max_pool(attributes: dict, x: Tensor) -> Tensor:
    return F.max_pool2d(x.permute(0, 3, 1, 2), attributes["ksize"][1:3], attributes["strides"][1:3]).permute(0, 2, 3, 1)


def _resize(attributes: dict, x: Tensor) -> Tensor:
    x = F.interpolate(x.permute(0, 3, 1, 2), scale_factor=attributes["factor"], mode="bilinear")
    return x.permute(0, 2, 3, 1)


def _pad(attributes: dict, x: Tensor, widths: np.ndarray, value: Tensor | float = 0.0) -> Tensor:
    return F.pad(x, widths[::-1].flatten().tolist(), value=float(value))


def _same_type(function):
    """Return an operation of two tensors in which those with fewer dimensions take the type of the other."""

    def run(attributes: dict, a: Tensor, b: Tensor) -> Tensor:
        dtype = a.dtype if a.dim() > b.dim() else b.dtype
        return function(a.to(dtype), b.to(dtype))

    return run


OPERATIONS = {
    "Placeholder": None,
    "Conv2D": _convolve,
    "_FusedConv2D": _convolve,
    "DepthwiseConv2dNative": _convolve,
    "FusedDepthwiseConv2dNative": _convolve,
    "Add": _same_type(torch.add),
    "AddV2": _same_type(torch.add),
    "Sub": _same_type(torch.sub),
    "Mul": _same_type(torch.mul),
    "Relu": lambda attributes, x: F.relu(x),
    "Relu6": lambda attributes, x: F.relu6(x),
    "LeakyRelu": lambda attributes, x: F.leaky_relu(x, attributes["alpha"]),
    "Cast": lambda attributes, x: x,
    "Pad": _pad,
    "PadV2": _pad,
    "MaxPool": _max_pool,
    "ResizeBilinear": _resize,
    "Transpose": lambda attributes, x, order: x.permute(*order.tolist()),
    "ConcatV2": lambda attributes, *inputs: torch.cat(inputs[:-1], int(inputs[-1])),
}
