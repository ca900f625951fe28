"""Write the files of an exported model: one ONNX graph for each part, ``tables.json`` and ``model.json``.

Packages of the extra ``export`` are imported when they are needed.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ugicm import atomic, bitstream
from ugicm.config import to_dict
from ugicm.entropy.tables import TabulatedPrior
from ugicm.errors import CheckpointError
from ugicm.export import graphs
from ugicm.models.ugicm import UGICM
from ugicm.runtime import FORMAT
from ugicm.tiling import Y_STRIDE, Z_STRIDE

if TYPE_CHECKING:
    import onnx

OPSET = 18
_SMALL = 256  # tensors of fewer values stay in float32


class Graph(NamedTuple):
    """A module and how to export it.

    Attributes:
        inputs: example of each input, by name. Heights and widths in them are dynamic.
        exact: whether results must be equal on every machine, so that no weight may be rounded.
    """

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: list[str]
    exact: bool = False


def model_graphs(model: UGICM) -> Iterator[Graph]:
    """Yield the graphs of a compact model that is prepared for coding."""
    config, widths = model.config, model.config.slice_widths
    rows, columns = 8, 12
    one = torch.ones(1)
    image = torch.zeros(1, 3, rows * Y_STRIDE, columns * Y_STRIDE)
    y, hyper = torch.zeros(1, config.M, rows, columns), torch.zeros(1, config.hyper_width, rows, columns)
    yield Graph("analysis", graphs.Analysis(model), {"image": image, "quality": one}, ["y"])
    yield Graph("hyper_analysis", graphs.HyperAnalysis(model), {"y": y}, ["z"])
    z = torch.zeros(1, config.N, 2, 3)
    yield Graph("hyper_synthesis", model.entropy_model.h_s, {"z": z}, ["hyper"], exact=True)
    for k in range(len(widths)):
        earlier = {"residuals": y[:, : sum(widths[:k])]} if k else {}
        yield Graph(f"indices_{k}", graphs.Indices(model, k), {"hyper": hyper, **earlier}, ["rows"], exact=True)
    yield Graph("means", graphs.Means(model), {"hyper": hyper, "residuals": y}, ["y_hat"])
    coded = {"hyper": hyper, "y": y, "coded": torch.ones(rows, columns)}
    yield Graph("residuals", graphs.Residuals(model), coded, ["residuals", "rows"])
    latents = {"y_hat": y, "quality": one}
    yield Graph("synthesis", graphs.Synthesis(model), latents, ["human", "difference"])


def export(model: UGICM, folder: Path, half: bool = False) -> Iterator[Path]:
    """Write all files of a model that is prepared for coding, and yield the path of each.

    Args:
        folder: created if it is missing. ``model.json`` is written last.
        half: store weights as float16. Arithmetic is float32 all the same. Weights that decide probabilities, and those
            of a checkpoint in float16, do not change.

    Raises:
        CheckpointError: not a compact model.
        WriteError: a file cannot be written.
    """
    if model.config.backbone != "compact":
        raise CheckpointError(f"a {model.config.backbone} model cannot be exported: only compact models can")
    for graph in model_graphs(model):
        proto = to_onnx(graph)
        if half:
            store_as_float16(proto, graph.exact)
        path = folder / f"{graph.name}.onnx"
        atomic.write(path, proto.SerializeToString())
        yield path
    entropy_model = model.entropy_model
    tables = {"z": _table(entropy_model.bottleneck), "y": _table(entropy_model.gaussian)}
    for name, document in (("tables", tables), ("model", _description(model, half))):
        path = folder / f"{name}.json"
        atomic.write(path, json.dumps(document).encode())
        yield path


def to_onnx(graph: Graph) -> onnx.ModelProto:
    """Return a graph as a checked ONNX model whose heights and widths are dynamic."""
    import onnx

    arguments = tuple(graph.inputs.values())
    shapes = tuple(_dynamic(name, value) for name, value in graph.inputs.items())
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter, on names of dimensions
        program = torch.onnx.export(
            graph.module.eval(), arguments, dynamo=True, dynamic_shapes=shapes, opset_version=OPSET, verbose=False,
            input_names=list(graph.inputs), output_names=graph.outputs,
        )  # fmt: skip
    proto = program.model_proto
    for item in (proto.graph, *proto.graph.node, *proto.graph.value_info):
        del item.metadata_props[:]  # stack traces, with paths of this machine
    onnx.checker.check_model(proto, full_check=True)
    return proto


def _dynamic(name: str, value: Tensor) -> dict[int, Any] | None:
    """Return which dimensions of an input are dynamic: the last two, if it has two or more."""
    if value.dim() < 2:
        return None
    step = Z_STRIDE if name == "image" else 1
    # The exporter treats sizes of 1 apart, and so the least size is larger. The graphs hold for 1, too.
    sides = (torch.export.Dim(side, min=2 if name in ("image", "z") else 8) for side in ("height", "width"))
    return {value.dim() - 2 + n: step * side for n, side in enumerate(sides)}


def store_as_float16(proto: onnx.ModelProto, exact: bool) -> None:
    """Store weights as float16, followed by a conversion to float32, in place.

    ``exact``: only those that do not change.
    """
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for initializer in proto.graph.initializer:
        values = numpy_helper.to_array(initializer)
        if values.dtype != np.float32 or values.size < _SMALL:
            continue
        with np.errstate(over="ignore"):
            narrow = values.astype(np.float16)
        if (narrow == values).all() if exact else np.isfinite(narrow).all():
            name = initializer.name
            initializer.CopyFrom(numpy_helper.from_array(narrow, f"{name}_float16"))
            casts.append(helper.make_node("Cast", [f"{name}_float16"], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


def _table(prior: TabulatedPrior) -> dict[str, list]:
    """Return the CDF tables of a prior: the used entries of each row, and its first symbol."""
    rows = zip(prior.quantized_cdf.tolist(), prior.cdf_length.tolist())
    return {"cdfs": [cdf[:length] for cdf, length in rows], "offsets": prior.offset.tolist()}


def _description(model: UGICM, half: bool) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "bitstream_version": bitstream.VERSION,
        "fingerprint": model.fingerprint.hex(),
        "opset": OPSET,
        "weights": "float16" if half else "float32",
        "has_quality": model.has_quality,
        "halo": model.config.halo,
        "config": to_dict(model.config),
    }
