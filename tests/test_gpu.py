"""Agreement of GPU and CPU: bitstreams, images, commands, training. Skipped without a GPU."""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import small_model

import ugicm
from ugicm import bitstream, files
from ugicm.codec import Codec
from ugicm.entropy.coders import Decoder, Encoder
from ugicm.evaluation.metrics import psnr
from ugicm.images import center_crop, open_rgb

# Unlike is_available(), device_count() does not initialize CUDA, so that the process can still fork workers.
if not torch.cuda.device_count():
    pytest.skip("no CUDA device", allow_module_level=True)

pytestmark = pytest.mark.gpu
GPU = "cuda"


@pytest.fixture(scope="module", params=["compact", "mlicpp", "bmshj2018", "shipped"])
def pair(request) -> tuple[Codec, Codec]:
    """Return codecs of the same model on the CPU and on the GPU."""
    if request.param == "shipped":
        return ugicm.load(), ugicm.load(device=GPU)
    return Codec(small_model(request.param)), Codec(small_model(request.param), GPU)


@pytest.fixture(scope="module")
def samples() -> list[Path]:
    return files.find(Path(ugicm.__file__).parent / "samples", [".png"])


@pytest.fixture(scope="module")
def photo(samples):
    return center_crop(open_rgb(samples[0]), 300)


@contextlib.contextmanager
def forbid_synchronization():
    """Raise RuntimeError for operations that make the CPU wait for the GPU."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("tile", [0, 128])
def test_bitstreams_decode_across_devices(pair, photo, tile):
    """A codec compares the digest of the symbols that it decodes. Means may differ in the last digits."""
    assert pair[0].fingerprint == pair[1].fingerprint
    for encoder in pair:
        parsed = bitstream.parse(encoder.compress(photo, 0.5, tile=tile))
        y_hats = [decoder.entropy_decode(parsed).cpu() for decoder in pair]
        torch.testing.assert_close(*y_hats, rtol=1e-4, atol=1e-3)


@torch.inference_mode()
@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_integer_networks_are_exact(precision):
    """Table rows of the encoder follow from networks on the GPU, those of the decoder from networks on the CPU."""
    cpu, gpu = (codec.model.entropy_model for codec in (ugicm.load(), ugicm.load(device=GPU)))
    generator, widths = torch.Generator().manual_seed(0), cpu.slices.widths
    z_hat = cpu.round_hyper(4 * torch.randn(2, cpu.bottleneck.medians.shape[1], 4, 6, generator=generator))
    residuals = [torch.randn(2, width, 16, 24, generator=generator).mul(3).round() for width in widths]
    try:
        torch.set_float32_matmul_precision(precision)
        hyper, hyper_gpu = cpu.hyper_context(z_hat), gpu.hyper_context(z_hat.to(GPU))
        assert torch.equal(hyper_gpu.cpu(), hyper)
        for k in range(len(widths)):
            energies, energies_gpu = ([m.indexes.energy(r.to(m.bottleneck.medians.device)) for r in residuals[:k]]
                                      for m in (cpu, gpu))  # fmt: skip
            assert torch.equal(gpu.indexes(k, hyper_gpu, energies_gpu).cpu(), cpu.indexes(k, hyper, energies))
    finally:
        torch.set_float32_matmul_precision("highest")


@torch.inference_mode()
def test_symbols_are_decoded_on_the_cpu():
    """While the GPU computes means. The copy of the entropy model is made once."""
    model = Codec(small_model(), GPU).model
    x, quality = torch.rand(1, 3, 128, 192, device=GPU), torch.full((1,), 0.5, device=GPU)
    y = model.analyze(x, quality)
    strings, digests = model.entropy_encode(y, model.hyper_analyze(y))
    decoder = Decoder(model.entropy_model, strings, (2, 3))
    y_hat = model.entropy_model(decoder)
    assert decoder.finish() == digests and y_hat.is_cuda
    assert not any(tensor.is_cuda for tensor in (decoder.rows, *decoder.residuals, *decoder.energies))
    assert model.entropy_model.on_cpu() is model.entropy_model.on_cpu()
    assert not any(tensor.is_cuda for tensor in model.entropy_model.on_cpu().state_dict().values())


def test_shipped_model_writes_same_bytes(samples):
    """Analysis is in floating point, so a value within a millionth of a rounding boundary may differ: one may."""
    cpu, gpu = ugicm.load(), ugicm.load(device=GPU)
    same = [cpu.compress(path, q) == gpu.compress(path, q) for path in samples for q in (0.1, 0.5, 0.9)]
    assert sum(same) >= len(same) - 1


@pytest.mark.parametrize("quality", [0.0, 0.5, 1.0])
def test_image_quality_agrees(pair, photo, quality):
    cpu, gpu = pair
    data = cpu.compress(photo, quality if cpu.has_quality else 0.5)
    preferences = ["human", "machine", np.linspace(0, 1, photo.width * photo.height).reshape(photo.height, photo.width)]
    for one, other in zip(cpu.decompress(data, preferences), gpu.decompress(data, preferences), strict=True):
        assert abs(psnr(photo, one) - psnr(photo, other)) <= 0.01
        assert psnr(one, other) > 50


def test_region_and_effort(pair, photo):
    cpu, gpu = pair
    small = photo.crop((0, 0, 200, 130))
    plain, refined = gpu.compress(small, 0.5), gpu.compress(small, 0.5, effort=3)
    assert len(refined) <= len(plain) + 8
    assert gpu.decompress(refined).size == small.size
    part = np.asarray(gpu.decompress(plain, region=(40, 30, 100, 80)), dtype=int)
    whole = np.asarray(gpu.decompress(plain).crop((40, 30, 140, 110)), dtype=int)
    assert np.abs(part - whole).max() <= 2


def test_batches_have_the_bytes_of_single_calls(pair, samples, capsys):
    codec = pair[1]
    crops = [center_crop(open_rgb(path), 256).rotate(angle) for path in samples for angle in (0, 90, 180, 270)]
    seconds = {}
    for name in ("first calls", "one by one", "batch"):
        start = time.perf_counter()
        data = codec.compress(crops) if name == "batch" else [codec.compress(crop) for crop in crops]
        decoded = codec.decompress(data) if name == "batch" else [codec.decompress(one) for one in data]
        seconds[name] = time.perf_counter() - start
        results = [image.tobytes() for image in decoded]
        if name == "one by one":
            single = data, results
    assert (data, results) == single
    with capsys.disabled():
        print("", *(f"{name}: {len(crops) / s:.1f} images/s" for name, s in seconds.items()), sep="  ")


@torch.inference_mode()
def test_networks_run_without_synchronization(pair, photo):
    """The transforms and, in compression, the entropy model."""
    codec = pair[1]
    model = codec.model
    x = torch.rand(1, 3, 256, 256, device=GPU)
    quality = torch.full((1,), 0.5, device=GPU)
    human, machine = torch.zeros(1, device=GPU), torch.ones(1, device=GPU)
    codec.compress(center_crop(photo, 256))  # initializes libraries and cached masks
    coder = Encoder(model.entropy_model, 1)
    with forbid_synchronization():
        y = model.analyze(x, quality)
        z = model.hyper_analyze(y)
        model.entropy_model(coder, z, y)
        for beta in (human, machine):
            model.synthesize(y, beta, quality)


def test_latents_are_computed_without_tf32(pair):
    """TF32 has 10 bits: y would be off by 1e-3 instead of 1e-6."""
    cpu, gpu = pair
    x = torch.rand(1, 3, 128, 192, generator=torch.Generator().manual_seed(0))
    quality = torch.full((1,), 0.5)
    with torch.inference_mode():
        y = cpu.model.analyze(x, quality)
        on_gpu = gpu.model.analyze(x.to(GPU), quality.to(GPU)).cpu()
        z = cpu.model.hyper_analyze(y), gpu.model.hyper_analyze(y.to(GPU)).cpu()
    torch.testing.assert_close(on_gpu, y, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(*z, rtol=1e-4, atol=1e-4)


def test_folder_commands_with_workers(tmp_path, samples, run_python):
    """Several processes that share the GPU write the same files as one process."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for i, path in enumerate(samples):
        shutil.copy(path, photos / path.name)
        open_rgb(path).rotate(180).save(photos / f"{i}.png")
    found = []
    for workers in (1, 3):
        bitstreams, images = tmp_path / f"bitstreams{workers}", tmp_path / f"images{workers}"
        for arguments in (("compress", photos, bitstreams), ("decompress", bitstreams, images, "-p", "machine")):
            done = run_python("-m", "ugicm", *arguments, "--device", GPU, "--workers", workers)
            assert done.returncode == 0, done.stderr
        found.append([path.read_bytes() for folder in (bitstreams, images) for path in sorted(folder.iterdir())])
    assert len(found[0]) == 2 * 2 * len(samples)
    assert found[0] == found[1]


def test_unavailable_device(tmp_path, samples, run_python):
    for workers in (1, 2):
        done = run_python("-m", "ugicm", "compress", samples[0].parent, tmp_path / "out", "--device", "cuda:99",
                          "--workers", workers)  # fmt: skip
        assert done.returncode == 2 and "cuda:99" in done.stderr and "Traceback" not in done.stderr


def test_training(tmp_path, run_python, make_image):
    done = run_python("scripts/train.py", "-c", "configs/smoke.yaml", "--set", f"run.dir={tmp_path / 'run'}",
                      "run.device=cuda", "optim.steps=10", "validation.every=10")  # fmt: skip
    assert done.returncode == 0, done.stderr
    codec = ugicm.load(tmp_path / "run" / "model.safetensors", GPU)
    assert codec.decompress(codec.compress(make_image(64, 64))).size == (64, 64)
