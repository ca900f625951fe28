"""Teachers that a function in a Python file builds, and those of scripts/teachers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT

from ugicm.config import TeacherConfig, load_config
from ugicm.errors import ConfigError
from ugicm.functions import import_function
from ugicm.losses.teachers import load_teacher

SCRIPTS = ROOT / "scripts" / "teachers"
NETWORK = """
from torch import nn

class Network(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.first, self.scale = nn.AvgPool2d(2), scale

    def forward(self, x):
        return self.scale * self.first(x).mean((2, 3))

def build(scale=1):
    return Network(float(scale))

def fail():
    raise RuntimeError("no weights here")

def nothing():
    return None
"""


@pytest.fixture
def network_file(tmp_path):
    path = tmp_path / "network.py"
    path.write_text(NETWORK)
    return path


def test_teacher_of_a_file_takes_images_as_they_are(network_file):
    teacher = load_teacher(TeacherConfig("file", f"{network_file}:build", layers={"first": 1.0}))
    x = torch.rand(2, 3, 8, 12, requires_grad=True)
    (features,), embedding = teacher(x)
    assert torch.allclose(features, F.avg_pool2d(x, 2)) and torch.allclose(embedding, x.mean((2, 3)))
    embedding.sum().backward()
    assert x.grad.abs().sum() > 0
    assert teacher.native_size == 224


def test_teacher_of_a_file_gets_weights_size_and_normalization(network_file):
    config = TeacherConfig("file", f"{network_file}:build", "3", size=4, mean=(0.5,) * 3, std=(0.25,) * 3)
    teacher = load_teacher(config)
    assert torch.allclose(teacher(torch.ones(1, 3, 9, 9))[1], torch.full((1, 3), 3 * 0.5 / 0.25))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("absent", "AttributeError: .* has no attribute 'absent'"),
        ("fail", "RuntimeError: no weights here"),
        ("nothing", "expected a network, got NoneType; return an nn.Module"),
    ],
)
def test_functions_that_build_no_network_are_rejected(network_file, function, message):
    with pytest.raises(ConfigError, match=f"objective.teachers: {network_file}:{function}: {message}"):
        load_teacher(TeacherConfig("file", f"{network_file}:{function}"))
    with pytest.raises(ConfigError, match=r"absent\.py"):
        load_teacher(TeacherConfig("file", f"{network_file.with_name('absent.py')}:{function}"))
    with pytest.raises(ConfigError, match=r"name must be FILE\.py:function with kind: file, got 'resnet50'"):
        TeacherConfig("file", "resnet50")


def test_path_of_a_function_is_relative_to_the_configuration(network_file):
    teachers = "objective:\n  teachers: {a: {kind: file, name: network.py:build}}\n"
    network_file.with_name("run.yaml").write_text(f"base: {ROOT / 'configs' / 'smoke.yaml'}\n{teachers}")
    teacher = load_config(network_file.with_name("run.yaml")).objective.teachers["a"]
    assert teacher.name == f"{network_file}:build"


def write_graph(folder, nodes, weights):
    """Write a graph model with weights as float16; ``nodes`` are tuples of name, operation, inputs and attributes."""
    listed = [{"name": name, "op": "Const"} for name in weights]
    listed += [{"name": n, "op": op, "input": inputs, "attr": attributes} for n, op, inputs, attributes in nodes]
    manifest, data = [], b""
    for name, array in weights.items():
        entry = {"name": name, "shape": list(array.shape), "dtype": str(array.dtype)}
        if array.dtype == np.float32:
            entry["quantization"] = {"dtype": "float16", "original_dtype": "float32"}
            array = array.astype(np.float16)
        manifest.append(entry)
        data += array.tobytes()
    (folder / "model.bin").write_bytes(data)
    model = {
        "modelTopology": {"node": listed},
        "weightsManifest": [{"paths": ["model.bin"], "weights": manifest}],
    }
    (folder / "model.json").write_text(json.dumps(model))
    return folder / "model.json"


def strided(side, padding, fused=()):
    text = {"SAME": "U0FNRQ==", "VALID": "VkFMSUQ=", "BiasAdd": "Qmlhc0FkZA==", "Relu6": "UmVsdTY="}
    return {
        "strides": {"list": {"i": ["1", str(side), str(side), "1"]}},
        "padding": {"s": text[padding]},
        "fused_ops": {"list": {"s": [text[name] for name in fused]}},
    }


@pytest.fixture
def graph(tmp_path):
    """A graph of [B, H, W, C] with convolutions of all kinds, and its float weights by name."""
    random = np.random.default_rng(0)
    shapes = {"w1": (3, 3, 3, 4), "b1": (4,), "w2": (3, 3, 4, 2), "w3": (1, 1, 8, 4), "half": ()}
    weights = {name: random.normal(size=shape).astype(np.float16).astype(np.float32) for name, shape in shapes.items()}
    integers = {"axis": np.array(3, np.int32), "size": np.array([16, 16], np.int32)}
    integers["pads"] = np.array([[0, 0], [1, 1], [2, 0], [0, 0]], np.int32)
    nodes = [
        ("image", "Placeholder", [], {}),
        ("c1", "_FusedConv2D", ["image", "w1", "b1"], strided(2, "SAME", ("BiasAdd", "Relu6"))),
        ("padded", "Pad", ["c1", "pads"], {}),
        ("c2", "DepthwiseConv2dNative", ["padded", "w2"], strided(1, "VALID")),
        ("leaky", "LeakyRelu", ["c2"], {"alpha": {"f": 0.1}}),
        ("c3", "Conv2D", ["leaky", "w3"], strided(2, "SAME")),
        ("up", "ResizeBilinear", ["c3", "size"], {"half_pixel_centers": {"b": True}}),
        ("sum", "AddV2", ["up", "c1"], {}),
        ("scaled", "Mul", ["sum", "half"], {}),
        ("both", "ConcatV2", ["scaled", "c1", "axis"], {}),
        ("unused", "Softmax", ["both"], {}),
    ]
    return write_graph(tmp_path, nodes, weights | integers), {k: torch.from_numpy(v) for k, v in weights.items()}


def graph_model(*arguments, **options):
    return import_function(SCRIPTS / "graph_model.py", "GraphModel")(*arguments, **options)


def test_graph_model_computes_what_its_nodes_say(graph):
    path, w = graph
    network = graph_model(path, {"low": "c1", "high": "both"}, ((0.5,) * 3, (0.25,) * 3))
    x = torch.rand(2, 3, 16, 32, requires_grad=True)
    maps = {}
    for name in ("low", "high"):
        network.get_submodule(name).register_forward_hook(lambda m, i, output, name=name: maps.update({name: output}))
    embedding = network(x)

    y = F.pad((x - 0.5) / 0.25, (0, 1, 0, 1))  # TensorFlow pads at the end
    c1 = F.relu6(F.conv2d(y, w["w1"].permute(3, 2, 0, 1), w["b1"], stride=2))
    depthwise = w["w2"].permute(2, 3, 0, 1).reshape(8, 1, 3, 3)
    c2 = F.leaky_relu(F.conv2d(F.pad(c1, (2, 0, 1, 1)), depthwise, groups=4), 0.1)
    c3 = F.conv2d(c2, w["w3"].permute(3, 2, 0, 1), stride=2)
    both = torch.cat([(F.interpolate(c3, scale_factor=2, mode="bilinear") + c1) * w["half"], c1], 1)
    assert torch.allclose(maps["low"], c1, atol=1e-5) and torch.allclose(maps["high"], both, atol=1e-4)
    assert torch.allclose(embedding, both.mean((2, 3)), atol=1e-4)
    embedding.sum().backward()
    assert x.grad.abs().sum() > 0 and not any(p.requires_grad for p in network.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(network(x).float(), embedding, rtol=0.05, atol=0.1)


def test_graph_model_halves_sides(graph):
    path, _ = graph
    network = graph_model(path, {"up": "up"}, ((0.0,) * 3, (1.0,) * 3), halved=("up",))
    network.up.register_forward_hook(lambda m, i, output: sides.append(output.shape[2:]))
    sides = []
    network(torch.rand(1, 3, 32, 64))
    assert sides == [(4, 8)]


def test_graph_model_rejects_unknown_operations(graph):
    with pytest.raises(ValueError, match=r"model\.json: operation Softmax of node unused is not supported"):
        graph_model(graph[0], {"out": "unused"}, ((0.0,) * 3, (1.0,) * 3))


@pytest.mark.parametrize(
    ("function", "file", "strides"),
    [
        ("nanodet", "nanodet.json", {"stage8": 8, "p32": 32}),
        ("movenet", "movenet-multipose.json", {"p4": 4, "p16": 16}),
    ],
)
def test_networks_of_human_models(function, file, strides):
    if not (ROOT / "data" / "human_models" / file).is_file():
        pytest.skip(f"data/human_models/{file} is not there: see scripts/teachers/human_models.py")
    layers = dict.fromkeys(strides, 1.0)
    teacher = load_teacher(TeacherConfig("file", f"{SCRIPTS / 'human_models.py'}:{function}", layers=layers))
    maps, _ = teacher(torch.rand(1, 3, 64, 96))
    assert [m.shape[2:] for m in maps] == [(64 // s, 96 // s) for s in strides.values()]


def test_hed_reads_weights_of_keras(tmp_path):
    h5py = pytest.importorskip("h5py")
    network = import_function(SCRIPTS / "hed.py", "HED")((2, 1))
    shapes = {"block1/layers/conv2d": (3, 3, 3, 64), "block1/layers/conv2d_1": (3, 3, 64, 64), "dsn1": (1, 1, 64, 1)}
    shapes |= {"block2/layers/conv2d": (3, 3, 64, 128), "dsn2": (1, 1, 128, 1)}
    random = np.random.default_rng(0)
    with h5py.File(tmp_path / "w.h5", "w") as file:
        for name, shape in shapes.items():
            file[f"{name}/vars/0"], file[f"{name}/vars/1"] = random.normal(size=shape) / 24, np.zeros(shape[-1])
        first = torch.from_numpy(file["block1/layers/conv2d/vars/0"][:]).float()
    import_function(SCRIPTS / "hed.py", "read_weights")(network, tmp_path / "w.h5")
    x = torch.rand(1, 3, 8, 8)
    blue_first = (255 * (x - network.mean)).flip(1)
    assert torch.allclose(network.block1[1](network.block1[0](255 * (x - network.mean))),
                          F.relu(F.conv2d(blue_first, first.permute(3, 2, 0, 1), padding=1)), atol=1e-3)  # fmt: skip
    assert network(x).shape == (1, 128)
    edges = import_function(SCRIPTS / "hed.py", "Edges")(network)(x)
    assert edges.shape == (1, 1, 8, 8) and 0 <= edges.min() < edges.max() <= 1
