"""ONNX files compute what the model computes, at sizes other than those of the export."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from small_models import CONFIGS, small_model

import ugicm
from ugicm.commands.main import main
from ugicm.entropy.checkerboard import pack
from ugicm.entropy.coders import Encoder
from ugicm.entropy.model import Coder
from ugicm.models.ugicm import UGICM

onnx = pytest.importorskip("onnx", reason="needs the extra export")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra export")

SIZES = [(64, 64), (64, 192), (256, 128)]


def run(model: bytes | str, **inputs) -> list[torch.Tensor]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    arrays = {name: np.asarray(value, dtype=np.float32) for name, value in inputs.items()}
    return [torch.from_numpy(result) for result in session.run(None, arrays)]


class Known(Coder):
    """Takes residuals for y, and adds them to the means."""

    def start_slice(self, k, hyper):
        pass

    def code(self, scale, mean, part, y):
        return mean + pack(y, part)


@pytest.fixture(scope="module")
def model(checkpoint):
    return ugicm.load(checkpoint, fast=False).model


@pytest.mark.parametrize("size", SIZES)
@torch.inference_mode()
def test_graphs_of_the_encoder(model, exported, size):
    quality, extent = torch.tensor([0.7]), (size[0] // 16 - 1, size[1] // 16)
    x = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    y = model.analyze(x, quality)
    (found,) = run(exported / "analysis.onnx", image=x, quality=quality)
    torch.testing.assert_close(found, y, rtol=1e-4, atol=1e-4)

    z = model.hyper_analyze(y)
    coder = Encoder(model.entropy_model, 1, extent)
    model.entropy_model(coder, z, y)
    (symbols,) = run(exported / "hyper_analysis.onnx", y=y)
    assert torch.equal(symbols, coder.passes[0].symbols)

    (hyper,) = run(exported / "hyper_synthesis.onnx", z=symbols)
    assert torch.equal(hyper, model.entropy_model.h_s(symbols))
    coded = torch.zeros(size[0] // 16, size[1] // 16)
    coded[: extent[0], : extent[1]] = 1
    residuals, rows = run(exported / "residuals.onnx", hyper=hyper, y=y, coded=coded)
    assert torch.equal(residuals, torch.cat(coder.residuals, dim=1)) and residuals.abs().max() > 8
    assert torch.equal(rows, torch.cat([one.rows for one in coder.passes[1:]], dim=1))
    assert not residuals[:, :, -1].any() and (rows == 0).any()


@pytest.mark.parametrize("size", SIZES)
@torch.inference_mode()
def test_graphs_of_the_decoder(model, exported, size):
    generator = torch.Generator().manual_seed(1)
    widths, shape = model.config.slice_widths, (size[0] // 16, size[1] // 16)
    z = torch.randint(-30, 31, (1, model.config.N, size[0] // 64, size[1] // 64), generator=generator).float()
    residuals = torch.randint(-12, 13, (1, model.config.M, *shape), generator=generator).float()
    (hyper,) = run(exported / "hyper_synthesis.onnx", z=z)
    indexes, energies, start = model.entropy_model.indexes, [], 0
    for k, width in enumerate(widths):
        earlier = {"residuals": residuals[:, :start]} if k else {}
        (rows,) = run(exported / f"indices_{k}.onnx", hyper=hyper, **earlier)
        assert torch.equal(rows, indexes(k, hyper, energies)) and len(rows.unique()) > 3
        energies.append(indexes.energy(residuals[:, start : start + width]))
        start += width

    wanted = model.entropy_model.slices(hyper, Known(model.entropy_model), residuals)
    (y_hat,) = run(exported / "means.onnx", hyper=hyper, residuals=residuals)
    torch.testing.assert_close(y_hat, wanted, rtol=1e-4, atol=1e-3)


def assert_synthesis(model: UGICM, path, size: tuple[int, int], tolerance: float) -> None:
    """Compare the images of an exported synthesis with the model's, at three preferences."""
    y_hat = torch.randn(1, model.config.M, size[0] // 16, size[1] // 16, generator=torch.Generator().manual_seed(2))
    quality, images = torch.tensor([0.3]), []
    for beta in (0.0, 0.6, 1.0):
        wanted = model.synthesize(y_hat, torch.tensor([beta]), quality)
        human, difference = run(path, y_hat=y_hat, quality=quality)
        found = human + beta * difference
        assert (found - wanted).abs().max() < tolerance
        images.append(found)
    assert ((images[0] - images[2]).abs().max() > tolerance) == (model.config.machine_depth > 0)


@pytest.mark.parametrize("size", SIZES)
@torch.inference_mode()
def test_synthesis(model, exported, size):
    assert_synthesis(model, exported / "synthesis.onnx", size, 1e-4)


@pytest.mark.parametrize("changes", [{"machine_depth": 0}, {"machine_depth": 2, "quality_points": 0}])
def test_synthesis_of_other_configurations(changes, tmp_path, monkeypatch):
    from ugicm.export import files

    monkeypatch.setitem(CONFIGS, "compact", dataclasses.replace(CONFIGS["compact"], **changes))
    model = small_model().prepare_for_coding()
    (graph,) = (graph for graph in files.model_graphs(model) if graph.name == "synthesis")
    (tmp_path / "synthesis.onnx").write_bytes(files.to_onnx(graph).SerializeToString())
    with torch.inference_mode():
        assert_synthesis(model, tmp_path / "synthesis.onnx", (64, 128), 1e-4)


@torch.inference_mode()
def test_float16_weights(model, exported, tmp_path):
    """Those of the synthesis take half the space and change little; integer networks do not change at all."""
    from ugicm.export.files import store_as_float16

    for name in ("synthesis", "indices_1", "hyper_synthesis"):
        proto = onnx.load(exported / f"{name}.onnx")
        size = len(proto.SerializeToString())
        store_as_float16(proto, exact=name != "synthesis")
        onnx.checker.check_model(proto, full_check=True)
        (tmp_path / f"{name}.onnx").write_bytes(proto.SerializeToString())
        assert (tmp_path / f"{name}.onnx").stat().st_size < 0.85 * size
    assert_synthesis(model, tmp_path / "synthesis.onnx", (64, 128), 2e-2)
    z = torch.randint(-30, 31, (1, model.config.N, 2, 3)).float()
    hyper = model.entropy_model.h_s(z)
    residuals = torch.randint(-9, 10, (1, model.config.slice_widths[0], 8, 12)).float()
    for name, inputs in (("hyper_synthesis", {"z": z}), ("indices_1", {"hyper": hyper, "residuals": residuals})):
        (narrow,), (wide,) = (run(folder / f"{name}.onnx", **inputs) for folder in (tmp_path, exported))
        assert torch.equal(narrow, wide)


def test_files_are_complete_and_stay(model, exported, checkpoint, capsys):
    document = json.loads((exported / "model.json").read_text())
    assert document["fingerprint"] == model.fingerprint.hex() and document["halo"] == model.config.halo
    for path in exported.glob("*.onnx"):
        (opset,) = (entry.version for entry in onnx.load(path).opset_import if entry.domain == "")
        assert opset == document["opset"]
    tables = json.loads((exported / "tables.json").read_text())
    assert [len(table["cdfs"]) for table in tables.values()] == [model.config.N, model.config.scale_levels]
    with pytest.raises(SystemExit) as end:
        raise SystemExit(main(["export", str(checkpoint), "-o", str(exported)]))
    assert end.value.code == 2 and "has an exported model" in capsys.readouterr().err


def test_other_models_are_refused(tmp_path, capsys):
    from ugicm.checkpoints.native import save_model

    save_model(tmp_path / "other.safetensors", small_model("bmshj2018"))
    assert main(["export", str(tmp_path / "other.safetensors"), "-o", str(tmp_path / "out")]) == 2
    assert "a bmshj2018 model cannot be exported: only compact models can" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
