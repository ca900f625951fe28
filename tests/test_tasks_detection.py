"""Detection: COCO AP and VOC mAP by hand, against pycocotools and torchmetrics, invalid files, and the scripts."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from task_helpers import BRIGHT_DETECTOR, COCO, NEEDS_COCO, ROOT, make_voc, script
from torch import nn

from ugicm.data import instances
from ugicm.errors import CheckpointError, ConfigError, ImageError
from ugicm.evaluation import digests
from ugicm.evaluation.tasks import agreement, base, detectors, semantic_segmentation
from ugicm.evaluation.tasks import coco as coco_task
from ugicm.evaluation.tasks import voc as voc_task
from ugicm.evaluation.tasks.sources import Originals, split_missing


@pytest.fixture
def voc(tmp_path, make_image) -> Path:
    return make_voc(tmp_path, make_image)


def coco_document(seed: int = 0, images: int = 6) -> dict:
    """Rectangles of three categories, with polygon masks."""
    generator = np.random.default_rng(seed)
    document = {
        "images": [{"id": i + 1, "file_name": f"{i}.jpg", "width": 160, "height": 120} for i in range(images)],
        "categories": [{"id": 1, "name": "person"}, {"id": 3, "name": "car"}, {"id": 18, "name": "dog"}],
        "annotations": [],
    }
    for image in range(images):
        for _ in range(int(generator.integers(1, 5))):
            x, y = generator.integers(0, 80, 2).tolist()
            w, h = generator.integers(8, 40, 2).tolist()
            document["annotations"].append(
                {
                    "id": len(document["annotations"]) + 1,
                    "image_id": image + 1,
                    "category_id": int(generator.choice([1, 3, 18])),
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                    "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                }
            )
    return document


@pytest.fixture
def coco(tmp_path) -> coco_task.CocoTruth:
    (tmp_path / "truth.json").write_text(json.dumps(coco_document()))
    return coco_task.CocoTruth(tmp_path / "truth.json")


def as_detections(truth: coco_task.CocoTruth, jitter: float = 0, seed: int = 0) -> list[dict]:
    """Return the ground truth as detections. With ``jitter``, boxes are moved, dropped and given wrong categories."""
    from pycocotools import mask

    generator, detections = np.random.default_rng(seed), []
    for annotation in truth.document["annotations"]:
        if jitter and generator.random() < 0.15:
            continue
        x, y, w, h = np.array(annotation["bbox"]) + generator.normal(scale=jitter or 1e-9, size=4) * bool(jitter)
        w, h = max(w, 2), max(h, 2)
        polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
        code = mask.frPyObjects([polygon], 120, 160)[0]
        detections.append(
            {
                "image_id": annotation["image_id"],
                "category_id": annotation["category_id"] if generator.random() > 0.1 * bool(jitter) else 1,
                "bbox": [float(v) for v in (x, y, w, h)],
                "score": float(generator.uniform(0.3, 1)),
                "segmentation": {"size": code["size"], "counts": code["counts"].decode()},
            }
        )
    return detections


def coco_evaluator(truth: coco_task.CocoTruth, detections=()) -> coco_task.CocoEvaluator:
    """Return an evaluator of boxes and masks whose detector has found ``detections``."""
    detector = detectors.Detector("d", nn.Identity(), ["__background__", *truth.categories.values()], "cpu", "d")
    evaluator = coco_task.CocoEvaluator(detector, truth, ["bbox", "segm"])
    evaluator.records = {
        name: {"image": id, "detections": [
            {key: value for key, value in d.items() if key != "image_id"} for d in detections if d["image_id"] == id
        ]}
        for id, (name, _, _) in truth.images.items()
    }  # fmt: skip
    return evaluator


def evaluate_detections(truth, detections):
    return coco_evaluator(truth, detections).evaluate()


def test_coco_ground_truth_scores_100(coco):
    scores = evaluate_detections(coco, as_detections(coco))
    assert all(value == pytest.approx(100) for value in scores.values() if value is not None)
    assert scores["mask AP"] == scores["box AP"] == pytest.approx(100)
    assert scores["mask APl"] is None  # no object is that large
    nothing = evaluate_detections(coco, [])
    assert nothing["box AP"] == nothing["mask AP"] == 0


@pytest.mark.parametrize(
    "ids", [range(99), [5] * 99, [[1]] * 99, list("xy" * 50)], ids=["from 0", "one", "list", "text"]
)
def test_coco_scores_independent_of_annotation_ids(ids, tmp_path):
    """COCOeval interprets id 0 as "no match" and keeps only one annotation per id."""
    document = coco_document()
    for annotation, id in zip(document["annotations"], ids):
        annotation["id"] = id
    (tmp_path / "truth.json").write_text(json.dumps(document))
    truth = coco_task.CocoTruth(tmp_path / "truth.json")
    scores = evaluate_detections(truth, as_detections(truth))
    assert scores["box AP"] == scores["mask AP"] == pytest.approx(100)


@NEEDS_COCO
def test_coco_ground_truth_of_coco_val_scores_100(tmp_path):
    truth = coco_task.CocoTruth(next((COCO / "annotations").glob("*.json")))
    api = truth.api()
    detections = []
    for a in truth.document["annotations"]:
        code = api.annToRLE(a)
        segmentation = {"size": code["size"], "counts": code["counts"].decode()}
        detections.append(
            {k: a[k] for k in ("image_id", "category_id", "bbox")} | {"score": 1.0, "segmentation": segmentation}
        )
    scores = evaluate_detections(truth, detections)
    assert scores["mask AP"] == pytest.approx(100) and scores["box AP"] == pytest.approx(100)
    items = truth.items(COCO / "images")
    assert not split_missing(items, Originals(), False)[1]
    for item in items[:5]:
        truth.check_size(item, Image.open(item.path))
    with pytest.raises(ImageError, match="says"):
        truth.check_size(items[0], Image.new("RGB", (5, 5)))


def test_coco_scores_match_torchmetrics(coco):
    detection_metrics = pytest.importorskip("torchmetrics.detection")
    detections = as_detections(coco, jitter=3)
    ours = evaluate_detections(coco, detections)
    from pycocotools import mask

    def boxes(rows):
        return torch.tensor([[r["bbox"][0], r["bbox"][1], r["bbox"][0] + r["bbox"][2], r["bbox"][1] + r["bbox"][3]]
                             for r in rows]).reshape(-1, 4)  # fmt: skip

    def masks(rows):
        codes = [r["segmentation"] if isinstance(r["segmentation"], dict) else
                 mask.frPyObjects(r["segmentation"], 120, 160)[0] for r in rows]  # fmt: skip
        return torch.tensor(np.array([mask.decode(c) for c in codes], dtype=bool).reshape(-1, 120, 160))

    metric = detection_metrics.MeanAveragePrecision(iou_type=("bbox", "segm"))
    for image in coco.images:
        predicted = [d for d in detections if d["image_id"] == image]
        true = [a for a in coco.document["annotations"] if a["image_id"] == image]
        metric.update(
            [{"boxes": boxes(predicted), "masks": masks(predicted),
              "scores": torch.tensor([d["score"] for d in predicted]),
              "labels": torch.tensor([d["category_id"] for d in predicted], dtype=torch.int64)}],
            [{"boxes": boxes(true), "masks": masks(true),
              "labels": torch.tensor([a["category_id"] for a in true], dtype=torch.int64)}],
        )  # fmt: skip
    theirs = metric.compute()
    assert 5 < ours["box AP"] < 95
    for stat, name in (("AP", "map"), ("AP50", "map_50"), ("AP75", "map_75")):
        assert ours[f"box {stat}"] == pytest.approx(100 * float(theirs[f"bbox_{name}"]), abs=0.01)
        assert ours[f"mask {stat}"] == pytest.approx(100 * float(theirs[f"segm_{name}"]), abs=0.01)


def test_coco_scores_cover_processed_images_only(coco):
    evaluator = coco_evaluator(coco, as_detections(coco))
    evaluator.records = dict(list(evaluator.records.items())[:2])
    assert evaluator.evaluate()["mask AP"] == pytest.approx(100)


def write_detections(path: Path, rows) -> Path:
    path.write_text(json.dumps(rows))
    return path


def test_detections_file_scores_available_fields(coco, tmp_path, capsys):
    """COCO's results of segmentation have no boxes, those of detection no masks."""
    main = script("instance_segmentation/test")
    rows = as_detections(coco, jitter=3)
    expected = evaluate_detections(coco, rows)
    for kinds, absent in ((("box", "mask"), ""), (("mask",), "bbox"), (("box",), "segmentation")):
        path = write_detections(tmp_path / "found.json", [{k: v for k, v in d.items() if k != absent} for d in rows])
        arguments = ["--annotations", str(coco.path), "--detections", str(path)]
        assert main([*arguments, "-o", str(tmp_path / "s.json")]) == 0
        assert capsys.readouterr().out.startswith(f"instance segmentation: 6 images (detections {path})\n")
        document = json.loads((tmp_path / "s.json").read_text())
        assert {name: value for name, (value,) in document["results"].items()} == {
            f"{kind} {stat}": expected[f"{kind} {stat}"] for kind in kinds for stat in coco_task._STATS
        }
        for name, file in (("annotations", coco.path), ("detections", path)):
            assert document["meta"][name] == {"path": str(file), "digest": digests.file_digest(file)}
    assert main([*arguments[:3], str(write_detections(tmp_path / "none.json", []))]) == 0


@pytest.mark.parametrize(
    "options, named",
    [
        (["--limit", "5"], "--limit"),
        (["--decoded", "x"], "--decoded"),
        (["--bitstreams", "x", "--preference", "human"], "--bitstreams --preference"),
        (["-d", "x", "--codec", "jpeg", "--quality", "0"], "--dataset --codec --quality"),
        (["--allow-missing", "--detectors", "maskrcnn_resnet50_fpn"], "--detectors --allow-missing"),
    ],
)
def test_detections_file_excludes_options(options, named):
    arguments = ["--annotations", "a.json", "--detections", "d.json"]
    with pytest.raises(ConfigError, match=f"cannot be combined with {named}: leave"):
        script("instance_segmentation/test")([*arguments, *options])
    with pytest.raises(ConfigError, match="need the folder of the images: pass -d DIR"):
        script("instance_segmentation/test")(arguments[:2])


def test_detections_file_errors_exit_with_status_2(coco, tmp_path, run_python):
    path = write_detections(tmp_path / "found.json", [{"image_id": 99}])
    command = ["instance_segmentation/test.py", "--annotations", coco.path, "--detections", path]
    for options, message in (([], "index 0: image_id 99 is not in truth.json"), (["--limit", 5], "--limit")):
        done = run_python(*command, *options)
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr.count("\n") == 1 and message in done.stderr


@pytest.mark.parametrize(
    "change, message",
    [
        *((lambda d, key=key: d[1].pop(key), f"'{key}' is missing") for key in ("score", "image_id", "category_id")),
        (lambda d: d[1].update(score=math.nan), "the score is nan"),
        (lambda d: d[1].update(score=None), "not 'NoneType'"),
        (lambda d: [d[1].pop(key) for key in ("bbox", "segmentation")], "it has neither bbox nor segmentation"),
        (lambda d: d[1].update(bbox=[1, 2, 3]), "is not x, y, width, height"),
        (lambda d: d[1].update(segmentation=[[1, 2, 3, 4, 5, 6]]), "not a compressed run-length code of 160x120"),
        (lambda d: d[1]["segmentation"].pop("counts"), "'counts' is missing"),
        (lambda d: d[1]["segmentation"].update(size=[60, 80]), "do not add up to 80x60"),
        (lambda d: d[1]["segmentation"].update(size=[160, 120]), "its segmentation is not of 160x120"),
        (lambda d: d[1]["segmentation"].update(counts="garbage"), "bad segmentation"),
        (lambda d: d[1]["segmentation"].update(counts="4"), "do not add up to 160x120"),
        (lambda d: d[1].update(image_id=99), "image_id 99 is not in truth.json"),
        (lambda d: d[1].update(category_id=[1]), "unhashable"),
        (lambda d: d[1].update(category_id=2), "category_id 2 is not in truth.json"),
        (lambda d: d.insert(1, 7), "not subscriptable"),
    ],
)
def test_detections_file_invalid_entry(coco, tmp_path, change, message):
    rows = as_detections(coco)
    change(rows)
    path = write_detections(tmp_path / "found.json", rows)
    with pytest.raises(ConfigError, match=f"found.json: detection at index 1: .*{message}.*; required are "):
        coco_task.read_detections(path, coco)


def test_detections_file_invalid(coco, tmp_path):
    rows = as_detections(coco)
    rows[0].pop("bbox"), rows[1].pop("segmentation")
    for text, message in (
        (json.dumps(rows), "without bbox and others without segmentation; give all the same fields"),
        ("{}", "not a JSON list of detections: not a list"),
        ("[", "not a JSON list"),
        ("[" * 100_000, "not a JSON list"),
    ):
        (tmp_path / "found.json").write_text(text)
        with pytest.raises(ConfigError, match=f"found.json: .*{message}"):
            coco_task.read_detections(tmp_path / "found.json", coco)
    with pytest.raises(ConfigError, match="none.json: cannot be read: No such file"):
        coco_task.read_detections(tmp_path / "none.json", coco)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda d: d["annotations"][0].update(category_id=99), "annotations of categories .* not define: 99"),
        (lambda d: d["annotations"][0].update(image_id=99), "annotations of images .* not define: 99"),
        (lambda d: d.pop("categories"), "'categories' is missing"),
        (lambda d: d.update(images=[]) or d.update(annotations=[]), "no images"),
        *((lambda d, key=key: d["annotations"][0].pop(key), f"'{key}' is missing") for key in ("id", "bbox", "area")),
        (lambda d: d["annotations"][0].pop("iscrowd"), "'iscrowd' is missing"),
        (lambda d: d["annotations"].append(5), "not a COCO annotation file"),
        (lambda d: d["annotations"][0].update(bbox=[1, 2, math.inf, 3]), "is not x, y, width, height"),
        (lambda d: d["annotations"][0].update(area="x"), "must be real number"),
        (lambda d: [d["annotations"][k].update(image_id=id) for k, id in enumerate(("x", 99))], "not define: 99, x"),
        (lambda d: d["annotations"][0].pop("segmentation"), "annotation 1: it has no segmentation"),
        (lambda d: d["annotations"][0].update(segmentation={"size": [60, 80], "counts": [4800]}), "not of 160x120"),
        # pycocotools does not terminate on run lengths that do not fill the image.
        (lambda d: d["annotations"][0].update(segmentation={"size": [120, 160], "counts": [9]}), "do not add up"),
    ],
)
def test_coco_truth_invalid(tmp_path, change, message):
    document = coco_document()
    change(document)
    (tmp_path / "bad.json").write_text(json.dumps(document))
    with pytest.raises(ConfigError, match=f"bad.json: .*{message}"):
        coco_evaluator(coco_task.CocoTruth(tmp_path / "bad.json"))


def test_detector_map_labels(coco, tmp_path):
    detector = detectors.Detector("d", nn.Identity(), ["__background__", "person", "car", "dog"], "cpu", "d")
    assert detector.map_labels(coco.categories, "x") == {1: 1, 2: 3, 3: 18}
    voc = detectors.Detector("d", nn.Identity(), ["__background__", "airplane", "dining table", "tv"], "cpu", "d")
    assert voc.map_labels({5: "aeroplane", 6: "diningtable", 7: "tvmonitor"}, "VOC") == {1: 5, 2: 6, 3: 7}
    with pytest.raises(ConfigError, match="x: d does not have the categories unicorn"):
        detector.map_labels({1: "person", 2: "unicorn"}, "x")


@pytest.fixture(scope="module")
def small_detector_file(tmp_path_factory):
    """Return Mask R-CNN weights that are random but for a bias towards detections of class 1."""
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.get_model("maskrcnn_resnet50_fpn", weights=None, weights_backbone=None, num_classes=4)
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.bias.copy_(torch.tensor([0.0, 3.0, 0.0, 0.0]))
    path = tmp_path_factory.mktemp("detector") / "mask.pth"
    torch.save(model.state_dict(), path)
    return path


def test_instance_segmentation_script(small_detector_file, coco, tmp_path, make_image, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(6):
        make_image(160, 120, index).save(folder / f"{index}.png")  # the annotations say .jpg
    (tmp_path / "names.txt").write_text("person\ncar\ndog\n")
    options = (
        f":classes={tmp_path / 'names.txt'}:transform.min_size=96:transform.max_size=128:roi_heads.detections_per_img=5"
    )
    main = script("instance_segmentation/test")
    arguments = ["-d", str(folder), "--annotations", str(coco.path), "--device", "cpu", "--detectors",
                 f"maskrcnn_resnet50_fpn={small_detector_file}{options}:label=small"]  # fmt: skip
    assert main([*arguments, "-o", str(tmp_path / "scores.json")]) == 0
    document = json.loads((tmp_path / "scores.json").read_text())
    assert set(document["results"]) == {
        f"{kind} {stat} (small)" for kind in ("box", "mask") for stat in (*coco_task._STATS, "agreement")
    }
    detections = [d for row in document["per_image"] for d in row["small"]["detections"]]
    assert detections and all(d["category_id"] in (1, 3, 18) for d in detections)
    assert all(d["segmentation"]["size"] == [120, 160] for d in detections)
    assert document["meta"]["torch" if "torch" in document["meta"] else "libraries"]
    assert document["meta"]["dataset"]["truth"] == digests.file_digest(coco.path)
    (folder / "3.png").unlink()
    with pytest.raises(ConfigError, match="1 of 6 images are missing.*3.jpg"):
        main(arguments)
    make_image(50, 50).save(folder / "3.png")
    assert main([*arguments, "--limit", "4"]) in (0, 1)
    assert "says 160x120" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match=r"does not fit maskrcnn_resnet50_fpn of 90 classes \(:classes=FILE\)"):
        detectors.load_detector(f"maskrcnn_resnet50_fpn={small_detector_file}")
    with pytest.raises(ConfigError, match="does not have the categories dog"):
        (tmp_path / "names.txt").write_text("person\ncar\ncat\n")
        main(arguments)


def test_detector_processes_images_separately(make_image):
    """torchvision pads a batch to its largest image, which changes the detections."""

    class Padded(nn.Module):
        def forward(self, images):
            height = max(image.shape[1] for image in images)
            return [
                {"boxes": torch.full((1, 4), height), "labels": torch.ones(1).long(), "scores": image.mean()[None]}
                for image in images
            ]

    detector = detectors.Detector("d", Padded(), ["__background__", "dog"], "cpu", "d")
    images = [detectors.prepare_detection(None, None, make_image(60, side, side)) for side in (40, 90)]
    together, alone = detector(images), [detector([image])[0] for image in images]
    assert [float(one["boxes"][0, 0]) for one in together] == [float(one["boxes"][0, 0]) for one in alone] == [40, 90]
    assert detector.identity.endswith("one image at a time")


def test_encode_masks_round_trip():
    from pycocotools import mask

    planes = torch.rand(3, 1, 20, 31, generator=torch.Generator().manual_seed(0))
    decoded = mask.decode(coco_task.encode_masks(planes))
    assert np.array_equal(decoded.transpose(2, 0, 1).astype(bool), (planes[:, 0] > 0.5).numpy())
    assert coco_task.encode_masks(planes[:0]) == []


def test_voc_average_precision_by_hand():
    truth = {
        "a": [([1, 1, 10, 10], False), ([21, 1, 30, 10], False)],
        "b": [([1, 1, 10, 10], False), ([1, 21, 9, 30], True)],
    }
    detections = [
        (0.9, "a", [1, 1, 10, 10]),  # right
        (0.8, "a", [1, 1, 10, 10]),  # the same object again: wrong
        (0.7, "b", [1, 21, 9, 30]),  # difficult: does not count
        (0.6, "b", [2, 1, 11, 10]),  # right, overlap 9/11
        (0.5, "b", [6, 1, 15, 10]),  # overlap 1/3: wrong
    ]
    # Right, wrong, right, wrong: precision 1, 1/2, 2/3, 1/2 at recall 1/3, 1/3, 2/3, 2/3 of 3 objects.
    expected = (1 + 2 / 3) / 3
    assert voc_task.average_precision(truth, detections, False) == pytest.approx(expected)
    # Recalls 0 ... .3 see 1, .4 ... .6 see 2/3, the others nothing.
    assert voc_task.average_precision(truth, detections, True) == pytest.approx((4 * 1 + 3 * 2 / 3) / 11)
    assert voc_task.average_precision(truth, [], False) == 0
    assert voc_task.average_precision({"b": truth["b"][1:]}, detections, False) is None


def test_voc_eleven_points_match_torchmetrics(coco):
    """At equal matches, eleven recall thresholds are what 2007 averages over."""
    detection_metrics = pytest.importorskip("torchmetrics.detection")
    detections = [d for d in as_detections(coco, jitter=4, seed=3) if d["category_id"] == 1]
    metric = detection_metrics.MeanAveragePrecision(iou_thresholds=[0.5], rec_thresholds=np.linspace(0, 1, 11).tolist())
    truth, ours = {}, []

    def corners(box):
        return [box[0], box[1], box[0] + box[2], box[1] + box[3]]

    for image in coco.images:
        predicted = [d for d in detections if d["image_id"] == image]
        true = [a for a in coco.document["annotations"] if a["image_id"] == image and a["category_id"] == 1]
        metric.update(
            [{"boxes": torch.tensor([corners(d["bbox"]) for d in predicted]).reshape(-1, 4),
              "scores": torch.tensor([d["score"] for d in predicted]),
              "labels": torch.zeros(len(predicted), dtype=torch.int64)}],
            [{"boxes": torch.tensor([corners(a["bbox"]) for a in true], dtype=torch.float32).reshape(-1, 4),
              "labels": torch.zeros(len(true), dtype=torch.int64)}],
        )  # fmt: skip
        inclusive = np.array([0, 0, -1, -1])
        truth[str(image)] = [(list(corners(a["bbox"]) + inclusive), False) for a in true]
        ours += [(f["score"], str(image), list(corners(f["bbox"]) + inclusive)) for f in predicted]
    theirs = float(metric.compute()["map"])
    assert 0 < theirs < 1
    assert voc_task.average_precision(truth, ours, True) == pytest.approx(theirs, abs=1e-6)


class TruthDetector:
    """A detector that returns the annotations, in torchvision's coordinates."""

    name, identity, has_masks = "truth", "truth", False

    def __init__(self, truth, score=0.9):
        self.answers = [truth.objects[name] for name in truth.names]
        self.classes = truth.classes

    def map_labels(self, categories, where):
        return {id + 1: id for id in categories}

    def __call__(self, images):
        detections = []
        for _ in images:
            objects = self.answers.pop(0)
            boxes = torch.tensor([b for _, b, _ in objects]) - torch.tensor([1.0, 1.0, 0.0, 0.0])
            kinds = torch.tensor([self.classes.index(kind) + 1 for kind, _, _ in objects])
            detections.append({"boxes": boxes, "labels": kinds, "scores": torch.full((len(objects),), 0.9)})
        return detections


def test_detection_script_voc(voc, small_detector_file, tmp_path):
    truth = voc_task.VocTruth(voc)
    assert truth.classes == ["dog", "tvmonitor"]
    evaluator = voc_task.VocEvaluator(TruthDetector(truth), truth)
    base.run([evaluator], truth.items(), Originals())
    assert evaluator.evaluate() == {"mAP": 100, "AP dog": 100, "AP tvmonitor": 100}
    assert evaluator.records["000001.jpg"]["detections"][0] == ["dog", pytest.approx(0.9), 5, 6, 25, 30]
    (tmp_path / "names.txt").write_text("tv\ndog\ncat\n")
    spec = (
        f"maskrcnn_resnet50_fpn={small_detector_file}:classes={tmp_path / 'names.txt'}"
        ":transform.min_size=64:transform.max_size=64"
    )
    arguments = ["--voc", str(voc), "--detectors", spec, "--device", "cpu", "-o", str(tmp_path / "s.json")]
    assert script("scripts/eval_detection")(arguments) == 0
    document = json.loads((tmp_path / "s.json").read_text())
    assert "mAP (maskrcnn_resnet50_fpn)" in document["results"]
    assert document["meta"]["dataset"]["truth"] == truth.digest
    (voc / "Annotations" / "000001.xml").write_text("<annotation/>")
    assert voc_task.VocTruth(voc).digest != truth.digest
    for read, split in ((voc_task.VocTruth, "test"), (semantic_segmentation.voc_items, "val")):
        with pytest.raises(ConfigError, match=f"no such split; available: {split}"):
            read(voc, "train")
        next((voc / "ImageSets").glob(f"*/{split}.txt")).with_stem("utf16").write_bytes("a".encode("utf-16"))
        with pytest.raises(ConfigError, match="utf16.txt: cannot be read as a list of images"):
            read(voc, "utf16")
        for absent, folder in ((tmp_path / "VOC2012", tmp_path / "VOC2012"), (voc / "Annotations", "ImageSets/")):
            with pytest.raises(ConfigError, match=f"{folder}.*: no such folder; .*VOCDetection"):
                read(absent, split)
    (voc / "Annotations" / "000002.xml").write_text("<annotation><object>")
    with pytest.raises(ConfigError, match="not a PASCAL VOC annotation"):
        voc_task.VocTruth(voc)


@pytest.fixture
def network(tmp_path) -> Path:
    path = tmp_path / "network.py"
    path.write_text(BRIGHT_DETECTOR)
    return path


def test_detector_of_a_function(network, tmp_path):
    """A function returns the network, or is the network. Labels are COCO's category ids, or those of a file."""
    built, direct = (detectors.load_detector(f"{network}:{name}") for name in ("build", "detect"))
    assert built.name == "network" and built.has_masks and built.identity != direct.identity
    image = torch.zeros(3, 20, 30, dtype=torch.uint8)
    image[:, 5:10, 3:9] = 255
    for detector in (built, direct):
        (found,) = detector([image])
        assert found["boxes"].tolist() == [[3, 5, 9, 10]] and found["masks"].sum() == 30
        assert detector.map_labels({7: "dog"}, "x") == {18: 7}
    (tmp_path / "names.txt").write_text("dog\ncat\n")
    one = detectors.load_detector(f"{network}:build:classes={tmp_path / 'names.txt'}:label=mine")
    assert one.name == "mine" and one.map_labels({7: "cat"}, "x") == {2: 7}
    with pytest.raises(ConfigError, match="mine: label 18 is no category"):
        one([image])
    network.write_text(network.read_text().replace("0.9", "0.8"))
    assert detectors.load_detector(f"{network}:build").identity != built.identity


@pytest.mark.parametrize(
    "name, message",
    [
        ("network.py", "expected NAME, NAME=PATH or FILE.py:function"),
        ("none.py:build", "none.py: No such file"),
        ("network.py:absent", "AttributeError: module .* has no attribute 'absent'"),
        ("network.py:number", "TypeError"),
        ("network.py:image", "not a detector in torchvision's conventions"),
        ("network.py:build:classes=none.txt", "none.txt: cannot be read as class names"),
        ("network.py:build:resize=3", "unknown option 'resize'; available: classes"),
        ("network.py:detect:a.b=3", "the network has no 'a.b' to set"),
    ],
)
def test_detector_of_a_function_invalid(network, name, message):
    with pytest.raises(ConfigError, match=message):
        detectors.load_detector(str(network.parent / name))


@pytest.mark.parametrize(
    "change, error, message",
    [
        (dict(boxes=torch.zeros(2, 5)), ConfigError, r"boxes of shape \[2, 5\]; expected \[2, 4\]"),
        (dict(masks=torch.zeros(2, 8, 8)), ConfigError, r"masks of shape \[2, 8, 8\]; expected \[2, 1, 8, 8\]"),
        (dict(labels=torch.tensor([0, 1])), ConfigError, "label 0 is no category"),
        (dict(labels=torch.tensor([1, 12])), ConfigError, "label 12 is no category"),  # between COCO's ids
        (dict(labels=torch.tensor([1, 91])), ConfigError, "label 91 is no category"),
        (dict(scores=torch.tensor([0.5, math.nan])), ImageError, "not finite"),
        (dict(boxes=torch.full((2, 4), math.inf)), ImageError, "not finite"),
        (dict(boxes=torch.tensor([[0.0, 0.0, 0.5, 0.5]] * 2)), ImageError, "in pixels, not in"),
        (dict(boxes=torch.tensor([[4.0, 5.0, 3.0, 3.0]] * 2)), ConfigError, "x0, y0, x1, y1"),  # a size
        (dict(scores=torch.tensor([0.5, 90.0])), ConfigError, "scores are not in"),
        (dict(masks=torch.full((2, 1, 8, 8), -3.0)), ConfigError, "masks are not in"),  # logits
    ],
)
def test_detector_output_invalid(change, error, message):
    output = dict(
        boxes=torch.tensor([[1.0, 2.0, 5.0, 6.0]] * 2),
        labels=torch.ones(2).long(),
        scores=torch.ones(2),
        masks=torch.ones(2, 1, 8, 8),
    )
    detector = detectors.Detector(
        "d", lambda images: [{**output, **change}], detectors._COCO_CATEGORIES, "cpu", "d", True
    )
    with pytest.raises(error, match=f"d: .*{message}"):
        detector([torch.zeros(3, 8, 8, dtype=torch.uint8)])


def detection(category: int, score: float, x: float, width: float = 10) -> dict:
    code = coco_task.encode_masks((torch.arange(40) // 1 >= x).logical_and(torch.arange(40) < x + width)
                                  .expand(1, 1, 20, 40).float())[0]  # fmt: skip
    return {"category_id": category, "score": score, "bbox": [x, 0.0, width, 20.0], "segmentation": code}


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_agreement_by_hand(kind):
    original = [detection(1, 0.9, 0), detection(2, 0.6, 20), detection(1, 0.4, 10)]  # the last is not confident
    assert agreement.agreement(original, original, kind) == 100
    assert agreement.agreement(original[2:], original, kind) is None
    assert agreement.agreement(original, [], kind) == 0
    one = agreement.agreement(original, [detection(1, 0.3, 0)], kind)
    assert one == pytest.approx(100 * 51 / 101)  # recall 1/2 is reached with precision 1
    # An object of a category that the original does not have, ranked first, halves the precision at both recalls.
    other = [detection(3, 0.95, 30), *original[:2]]
    assert agreement.agreement(original, other, kind) == pytest.approx(100 * 2 / 3)
    # Overlap 8/10: right at seven of the ten thresholds.
    assert agreement.agreement(original[:1], [detection(1, 0.9, 0, 8)], kind) == pytest.approx(70)


def test_agreement_of_one_category_is_coco_average_precision(coco):
    """Per image, where all objects are of one category."""
    for row in (rows := as_detections(coco, jitter=3)):
        row["category_id"] = 1
    for annotation in coco.document["annotations"]:
        annotation["category_id"] = 1
    for image in coco.images:
        mine = [d for d in as_detections(coco) if d["image_id"] == image]
        tested = [d for d in rows if d["image_id"] == image]
        evaluator = coco_evaluator(coco, tested)
        evaluator.records = {key: r for key, r in evaluator.records.items() if r["image"] == image}
        objects = [{**d, "score": 1.0} for d in mine]
        for kind, name in (("bbox", "box AP"), ("segm", "mask AP")):
            assert agreement.agreement(objects, tested, kind) == pytest.approx(evaluator.evaluate()[name])


def test_agreement_script_needs_no_annotations(network, tmp_path, capsys):
    """On any folder of images; differences of two runs have an interval over the images."""
    folder, halves = tmp_path / "images", tmp_path / "halves"
    for place in (folder, halves):
        place.mkdir()
    for index in range(12):
        pixels = np.zeros((40, 60, 3), np.uint8)
        pixels[8:24, 10 : 40 if index < 11 else 0] = 255  # the last image has no object
        Image.fromarray(pixels).save(folder / f"{index}.png")
        pixels[:, 25:] = 0
        Image.fromarray(pixels if index % 2 else np.asarray(Image.open(folder / f"{index}.png"))).save(
            halves / f"{index}.png"
        )
    main = script("instance_segmentation/test")
    arguments = ["-d", str(folder), "--detectors", f"{network}:build", "--device", "cpu"]
    files = [tmp_path / "same.json", tmp_path / "halves.json"]
    assert main([*arguments, "--decoded", str(folder), "-o", str(files[0])]) == 0
    assert main([*arguments, "--decoded", str(halves), "-o", str(files[1]), "--baseline", str(files[0])]) == 0
    same, other = (json.loads(path.read_text()) for path in files)
    assert same["results"] == {"box agreement (network)": [100], "mask agreement (network)": [100]}
    # Half of the object overlaps by 1/2: right at one of the ten thresholds, in 5 of 11 images.
    expected = (6 * 100 + 5 * 10) / 11
    assert other["results"]["mask agreement (network)"] == [pytest.approx(expected)]
    low, high = other["intervals"]["mask agreement (network)"]
    assert low < expected < high
    assert other["per_image"][1] == {
        "file": "1.png", "network": {"image": None, "agreement": {"bbox": 10, "segm": 10}},
        "scores": {"box agreement (network)": 10, "mask agreement (network)": 10},
    }  # fmt: skip
    assert sum("mask agreement (network)" in row["scores"] for row in other["per_image"]) == 11
    lines = capsys.readouterr().out.splitlines()
    (line,) = (line for line in lines if line.startswith("mask agreement") and line.endswith("11"))
    assert f"{expected - 100:.2f}" in line and "…" in line
    (tmp_path / "x.json").write_text('{"results": {}}')
    for path, message in (
        (tmp_path / "x.json", "not an output of a task script"),
        (tmp_path / "y.json", "No such file"),
    ):
        with pytest.raises(ConfigError, match=message):
            main([*arguments, "--decoded", str(halves), "--baseline", str(path)])
    with pytest.raises(ConfigError, match="none of the scores box agreement .*mine"):
        main(
            [
                *arguments[:3],
                f"{arguments[3]}:label=mine",
                "--codec",
                "jpeg",
                "--quality",
                "5",
                "--baseline",
                str(files[0]),
            ]
        )
    for options in ([], ["--codec", "jpeg", "--quality", "5", "--no-agreement"]):
        with pytest.raises(ConfigError, match="nothing to compare with: pass --annotations JSON"):
            main([*arguments, *options])
    with pytest.raises(ConfigError, match="--detections needs the ground truth"):
        main(["--detections", "x.json"])


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda d: d["images"][1].update(file_name="0.jpg"), "two images have the file_name 0.jpg; give each its own"),
        (lambda d: d["images"][1].update(id=1), "two images have the id 1; give each its own"),
        (lambda d: d["categories"][1].update(id=1), "two categories have the id 1; give each its own"),
    ],
)
def test_coco_identifiers_collide(tmp_path, change, message):
    document = coco_document()
    change(document)
    (tmp_path / "merged.json").write_text(json.dumps(document))
    with pytest.raises(ConfigError, match=f"merged.json: {message}$"):
        coco_task.CocoTruth(tmp_path / "merged.json")
    if "images" in message:  # those of training likewise
        with pytest.raises(ConfigError, match=f"merged.json: .*{message}"):
            instances.Instances(tmp_path / "merged.json", [])


def test_coco_images_of_one_file(tmp_path, make_image):
    document = coco_document()
    document["images"][1]["file_name"] = "0.png"
    (tmp_path / "truth.json").write_text(json.dumps(document))
    (tmp_path / "images").mkdir()
    make_image(160, 120).save(tmp_path / "images" / "0.png")
    with pytest.raises(ConfigError, match="truth.json: 0.jpg and 0.png both match .*0.png; rename one"):
        coco_task.CocoTruth(tmp_path / "truth.json").items(tmp_path / "images")


def test_categories_of_one_name(coco):
    voc_names = {1: "tv", 2: "tvmonitor"}
    detector = detectors.Detector("d", nn.Identity(), ["__background__", "tv", "dog", "dog"], "cpu", "d")
    with pytest.raises(ConfigError, match="x: two categories have the name tv; rename one"):
        detector.map_labels(voc_names, "x")
    with pytest.raises(ConfigError, match="d: two categories have the name dog; rename one"):
        detector.map_labels({18: "dog"}, "x")
    assert detector.map_labels({5: "tvmonitor"}, "x") == {1: 5}


def test_unused_categories_need_no_label(tmp_path):
    document = coco_document()
    document["categories"] += [{"id": 0, "name": "animals"}, {"id": 99, "name": "dog-like"}]
    (tmp_path / "truth.json").write_text(json.dumps(document))
    truth = coco_task.CocoTruth(tmp_path / "truth.json")
    detector = detectors.Detector("d", nn.Identity(), ["__background__", "person", "car", "dog"], "cpu", "d")
    evaluator = coco_task.CocoEvaluator(detector, truth, ["bbox"])
    assert evaluator.labels == {1: 1, 2: 3, 3: 18}
    evaluator.records = coco_evaluator(truth, as_detections(truth)).records
    assert evaluator.evaluate()["box AP"] == pytest.approx(100)


class CornerDetector:
    """Finds the bright rectangle of an image."""

    name = identity = "corner"
    has_masks, categories = False, ["__background__", "square"]

    def map_labels(self, categories, where):
        return {1: next(iter(categories))}

    def __call__(self, images):
        found = []
        for image in images:
            y, x = torch.nonzero(image[0] > 128, as_tuple=True)
            box = torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1]).float()[None]
            found.append({"boxes": box, "labels": torch.tensor([1]), "scores": torch.tensor([0.9])})
        return found


@pytest.mark.parametrize("kind", ["coco", "voc"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("upright", [False, True])
@pytest.mark.parametrize("size", [(64, 48), (48, 48)])
def test_images_that_exif_turns(kind, orientation, upright, size, tmp_path):
    """A perfect detector scores 100, or the image is reported: never another score."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[:8, :16] = 255
    exif = Image.Exif()
    exif[0x112] = orientation
    place = tmp_path / "JPEGImages" / "x.jpg"
    for folder in (place.parent, tmp_path / "Annotations", tmp_path / "ImageSets" / "Main"):
        folder.mkdir(parents=True)
    Image.fromarray(pixels).save(place, exif=exif, quality=95)
    annotated = Image.open(place)
    annotated = ImageOps.exif_transpose(annotated) if upright else annotated
    y, x = np.nonzero(np.asarray(annotated)[..., 0] > 128)
    x0, y0, x1, y1 = (int(v) for v in (x.min(), y.min(), x.max() + 1, y.max() + 1))
    width, height = annotated.size
    if kind == "coco":
        document = {
            "images": [{"id": 1, "file_name": "x.jpg", "width": width, "height": height}],
            "categories": [{"id": 1, "name": "square"}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [x0, y0, x1 - x0, y1 - y0],
                             "area": 128, "iscrowd": 0}],
        }  # fmt: skip
        (tmp_path / "t.json").write_text(json.dumps(document))
        truth = coco_task.CocoTruth(tmp_path / "t.json")
        evaluator, items = coco_task.CocoEvaluator(CornerDetector(), truth, ["bbox"]), truth.items(place.parent)
    else:
        (tmp_path / "ImageSets" / "Main" / "test.txt").write_text("x\n")
        (tmp_path / "Annotations" / "x.xml").write_text(
            f"<annotation><size><width>{width}</width><height>{height}</height></size><object><name>square</name>"
            f"<bndbox><xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
            "</annotation>"
        )
        truth = voc_task.VocTruth(tmp_path)
        evaluator, items = voc_task.VocEvaluator(CornerDetector(), truth), truth.items()
    failed = base.run([evaluator], items, Originals()).failed
    known = orientation == 1 or upright and orientation >= 5 and width != height
    assert bool(failed) != known
    if known:
        assert evaluator.evaluate()["box AP" if kind == "coco" else "mAP"] == pytest.approx(100)
    else:
        assert "EXIF turns the image" in failed["x.jpg"] or "says" in failed["x.jpg"]


def test_voc_box_not_finite(voc):
    path = voc / "Annotations" / "000001.xml"
    path.write_text(path.read_text().replace("<xmin>5<", "<xmin>nan<"))
    with pytest.raises(ConfigError, match="000001.xml: not a PASCAL VOC annotation: the box of dog is"):
        voc_task.VocTruth(voc)


def test_example_of_the_documentation(tmp_path):
    text = (ROOT / "docs" / "evaluation.md").read_text()
    code = text[text.index("### Your own network") :].split("```python\n")[1].split("```")[0]
    (tmp_path / "example.py").write_text(code)
    (tmp_path / "mypackage.py").write_text(
        "import torch\n"
        "class Model(torch.nn.Module):\n"
        "    def __init__(self, path):\n"
        "        super().__init__()\n"
        "    def forward(self, image):\n"
        "        box = torch.tensor([[0.0, 1.0, *image.shape[:0:-1]]])\n"
        "        return box, torch.tensor([18]), torch.tensor([0.5]), image[None, :1]\n"
    )
    detector = detectors.load_detector(f"{tmp_path / 'example.py'}:build:label=mine")
    (found,) = detector([torch.zeros(3, 20, 30, dtype=torch.uint8)])
    assert detector.has_masks and detector.name == "mine" and found["boxes"].tolist() == [[0, 1, 30, 20]]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda x, y, w, h: [x / 160, y / 120, w / 160, h / 120], "all are in"),
        (lambda x, y, w, h: [x + 60, y + 40, x + 60 + w, y + 40 + h], "leave their images"),  # corners
    ],
)
def test_boxes_of_other_conventions(change, message, coco, tmp_path):
    message = rf"boxes must be x, y, width, height in pixels, but .*{message}"
    rows = as_detections(coco)
    for row in rows:
        row["bbox"] = change(*row["bbox"])
    with pytest.raises(ConfigError, match=f"found.json: {message}"):
        coco_task.read_detections(write_detections(tmp_path / "found.json", rows), coco)
    document = coco.document
    for annotation in document["annotations"]:
        annotation["bbox"] = change(*annotation["bbox"])
    (tmp_path / "other.json").write_text(json.dumps(document))
    with pytest.raises(ConfigError, match=f"other.json: {message}"):
        coco_task.CocoTruth(tmp_path / "other.json")
