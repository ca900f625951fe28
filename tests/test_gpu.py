"""What a GPU must do as a processor does: the same streams, the same images. Skipped where there is none."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import CONFIGS, small_model

import ugicm
from ugicm import bitstream, files
from ugicm.codec import Codec
from ugicm.entropy.rans import RansEncoderCoder
from ugicm.evaluation.metrics import psnr
from ugicm.images import middle, open_rgb
from ugicm.models.ugicm import UGICM

# Counting devices, unlike asking whether one can be used, leaves a process able to fork others that use them.
if not torch.cuda.device_count():
    pytest.skip("no CUDA device here", allow_module_level=True)

pytestmark = pytest.mark.gpu
GPU = "cuda"


@pytest.fixture(scope="module", params=["compact", "mlicpp", "bmshj2018", "mlicpp in float32", "shipped"])
def pair(request) -> tuple[Codec, Codec]:
    """The same model on the CPU and on the GPU."""
    if request.param == "shipped":
        return ugicm.load(), ugicm.load(device=GPU)
    name, _, rest = request.param.partition(" ")
    state = small_model(name).state_dict()

    def model() -> UGICM:
        one = UGICM(replace(CONFIGS[name], parsing="float32") if rest else CONFIGS[name])
        one.load_state_dict(state)
        return one

    return Codec(model()), Codec(model(), GPU)


@pytest.fixture(scope="module")
def samples() -> list[Path]:
    return files.find(Path(ugicm.__file__).parent / "samples", [".png"])


@pytest.fixture(scope="module")
def photo(samples):
    return middle(open_rgb(samples[0]), 300)


@contextlib.contextmanager
def no_waiting():
    """Whatever makes the processor wait for the GPU is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("tile", [0, 128])
def test_streams_written_on_one_are_read_on_the_other(pair, photo, tile):
    digests = []
    for writer in pair:
        parsed = bitstream.parse(writer.compress(photo, 0.5, tile=tile))
        y_hats = [reader.parse(parsed).cpu() for reader in pair]
        if writer.config.parsing == "fixed":
            assert torch.equal(*y_hats)
        else:
            torch.testing.assert_close(*y_hats, rtol=1e-4, atol=1e-3)
        digests.append(parsed.digests)
    assert pair[0].fingerprint == pair[1].fingerprint


def test_the_shipped_model_writes_the_same_bytes(samples):
    """Nothing forces it to: analysis is in floating point. But it happens to, unless a sum lies within a millionth of
    the middle between two integers."""
    cpu, gpu = ugicm.load(), ugicm.load(device=GPU)
    same = [cpu.compress(path, q) == gpu.compress(path, q) for path in samples for q in (0.1, 0.5, 0.9)]
    assert sum(same) >= len(same) - 1


@pytest.mark.parametrize("quality", [0.0, 0.5, 1.0])
def test_images_are_as_good(pair, photo, quality):
    cpu, gpu = pair
    data = cpu.compress(photo, quality if cpu.has_quality else 0.5)
    viewers = ["human", "machine", np.linspace(0, 1, photo.width * photo.height).reshape(photo.height, photo.width)]
    for one, other in zip(cpu.decompress(data, viewers), gpu.decompress(data, viewers), strict=True):
        assert abs(psnr(photo, one) - psnr(photo, other)) <= 0.01
        assert psnr(one, other) > 50


def test_a_region_and_effort(pair, photo):
    cpu, gpu = pair
    small = photo.crop((0, 0, 200, 130))
    plain, refined = gpu.compress(small, 0.5), gpu.compress(small, 0.5, effort=3)
    assert len(refined) <= len(plain) + 8
    assert gpu.decompress(refined).size == small.size
    part = np.asarray(gpu.decompress(plain, region=(40, 30, 100, 80)), dtype=int)
    whole = np.asarray(gpu.decompress(plain).crop((40, 30, 140, 110)), dtype=int)
    assert np.abs(part - whole).max() <= 2


@torch.inference_mode()
def test_nobody_waits_for_the_networks(pair, photo):
    """Neither for the transforms nor, when writing, for the entropy model."""
    codec = pair[1]
    model = codec.model
    x = torch.rand(1, 3, 256, 256, device=GPU)
    quality = torch.full((1,), 0.5, device=GPU) if codec.has_quality else None
    people, machines = torch.zeros(1, device=GPU), torch.ones(1, device=GPU)
    codec.compress(middle(photo, 256))  # libraries have been started now, and masks that are kept made
    coder = RansEncoderCoder(model.parser, 1)
    with no_waiting():
        y = model.analyze(x, quality)
        z = model.hyper_analyze(y)
        model.parser(coder, z, y)
        for beta in (people, machines):
            model.synthesize(y, beta, quality)


def test_a_gpu_gets_no_tf32_where_symbols_are_decided(pair):
    """TF32 keeps 10 bits: y would be off by 1e-3, not 1e-6."""
    cpu, gpu = pair
    x = torch.rand(1, 3, 128, 192, generator=torch.Generator().manual_seed(0))
    quality = torch.full((1,), 0.5) if cpu.has_quality else None
    with torch.inference_mode():
        y = cpu.model.analyze(x, quality)
        on_gpu = gpu.model.analyze(x.to(GPU), None if quality is None else quality.to(GPU)).cpu()
        z = cpu.model.hyper_analyze(y), gpu.model.hyper_analyze(y.to(GPU)).cpu()
    torch.testing.assert_close(on_gpu, y, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(*z, rtol=1e-4, atol=1e-4)


def test_commands_on_a_folder(tmp_path, samples, run_python):
    """Several processes share the GPU, and make the files that one makes."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for i, path in enumerate(samples):
        shutil.copy(path, photos / path.name)
        open_rgb(path).rotate(180).save(photos / f"{i}.png")
    found = []
    for workers in (1, 3):
        streams, images = tmp_path / f"streams{workers}", tmp_path / f"images{workers}"
        for arguments in (("compress", photos, streams), ("decompress", streams, images, "-p", "machine")):
            done = run_python("-m", "ugicm", *arguments, "--device", GPU, "--workers", workers)
            assert done.returncode == 0, done.stderr
        found.append([path.read_bytes() for folder in (streams, images) for path in sorted(folder.iterdir())])
    assert len(found[0]) == 2 * 2 * len(samples)
    assert found[0] == found[1]


def test_a_gpu_that_is_not_there(tmp_path, samples, run_python):
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
