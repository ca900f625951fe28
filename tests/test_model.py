"""The network and its three coders: one slice loop, one y_hat."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_models import CONFIGS, small_model

from ugicm.checkpoints import native
from ugicm.entropy.gaussian import TabulatedGaussian
from ugicm.entropy.rans import LikelihoodCoder, RansDecoderCoder, RansEncoderCoder
from ugicm.models.ugicm import UGICM

BACKBONES = sorted(CONFIGS)


@pytest.fixture(scope="module", params=BACKBONES)
def model(request):
    return small_model(request.param).prepare_for_coding()


def images(batch=1, height=128, width=192, seed=1):
    low = torch.rand(batch, 3, height // 16, width // 16, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(low, size=(height, width), mode="bicubic").clamp(0, 1)


def quality_of(model, batch=1, value=0.7):
    return torch.full((batch,), value) if model.has_quality else None


@torch.no_grad()
def three_y_hats(model, x, inside=None):
    y = model.analyze(x, quality_of(model, len(x)))
    z = model.h_a(y)
    estimate, writer = LikelihoodCoder(model.parser, inside), RansEncoderCoder(model.parser, len(x), inside)
    estimated, written = model.parser(estimate, z, y), model.parser(writer, z, y)
    strings = writer.flush()
    hyper_size = x.shape[2] // 64, x.shape[3] // 64
    reader = RansDecoderCoder(model.parser, strings, hyper_size, y.numel() + z.numel(), inside)
    read = model.parser(reader)
    bits = sum(-v.log2().sum().item() for v in (estimate.y_likelihood, estimate.z_likelihood))
    return estimated, written, read, writer.digests == reader.digests, bits, strings


@pytest.mark.parametrize("inside", [None, (7, 5)], ids=["all", "inside"])
def test_estimating_writing_and_reading_give_the_same_latent(model, inside):
    estimated, written, read, digests_agree, bits, strings = three_y_hats(model, images(), inside)
    assert torch.equal(estimated, written)
    assert torch.equal(written, read)
    assert digests_agree
    assert written.unique().numel() > 50  # lively enough to mean something
    written_bits = 8 * sum(map(len, strings))
    assert abs(written_bits - bits) <= 0.01 * bits + 64


@torch.inference_mode()
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("weights", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("latents", [torch.contiguous_format, torch.channels_last])
def test_memory_orders_do_not_part_writer_and_reader(backbone, weights, latents):
    """In float32, where sums in another order would differ."""
    config = CONFIGS[backbone]
    if backbone != "compact":
        config = replace(config, parsing="float32")
    torch.manual_seed(0)
    model = UGICM(config).prepare_for_coding().to(memory_format=weights)
    y = 4 * torch.randn(1, config.M, 12, 16).contiguous(memory_format=latents)
    z = 4 * torch.randn(1, config.N, 3, 4).contiguous(memory_format=latents)
    writer, estimate = RansEncoderCoder(model.parser, 1), LikelihoodCoder(model.parser)
    written = model.parser(writer, z, y)
    reader = RansDecoderCoder(model.parser, writer.flush(), (3, 4), y.numel() + z.numel())
    assert torch.equal(model.parser(reader), written)
    assert torch.equal(model.parser(estimate, z, y), written)


def test_what_sees_nothing_of_the_image_is_not_coded(model):
    x, y = images(), torch.zeros(1, model.config.M, 8, 12, dtype=model.parser.dtype)
    y[..., 7:, :] = y[..., 5:] = 1e3  # would take many bits, or be too large for a stream
    with torch.no_grad():
        z = model.h_a(model.analyze(x, quality_of(model)))
        (short,), _ = model.write(y, z, (7, 5))
        (long,), _ = model.write(y, z)
        y_hat, _ = model.decompress([short], x.shape[2:], (7, 5))
    assert len(short) < len(long) / 2
    assert (y_hat[..., :7, :5] - y[..., :7, :5]).abs().max() <= 1
    assert y_hat.abs().max() < 100  # elsewhere the mean


def test_forward_in_eval_mode_gives_the_latent_of_the_stream(model):
    x, beta, quality = images(), torch.tensor([0.3]), quality_of(model)
    with torch.no_grad():
        out = model(x, beta, quality)
        strings, digests = model.compress(x, quality)
        y_hat, found = model.decompress(strings, x.shape[2:])
        x_hat = model.synthesize(y_hat, beta, quality)
    assert torch.equal(out["y_hat"], y_hat)
    assert digests == found
    assert torch.equal(out["x_hat"], x_hat)
    assert out["likelihoods"]["y"].shape == y_hat.shape


def test_a_batch_gives_every_image_its_own_string(model):
    x, quality = images(batch=3), quality_of(model, 3)
    with torch.no_grad():
        strings, _ = model.compress(x, quality)
        together, _ = model.decompress(strings, x.shape[2:])
        for i in range(3):
            alone, _ = model.decompress(strings[i : i + 1], x.shape[2:])
            torch.testing.assert_close(alone, together[i : i + 1], rtol=0, atol=1e-9)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_stream_is_read_the_same_in_a_fresh_process(backbone, tmp_path):
    model = small_model(backbone)
    model.parser.build_tables()
    native.save_model(tmp_path / "model.safetensors", model)
    model.prepare_for_coding()
    x = images()
    with torch.no_grad():
        strings, _ = model.compress(x, quality_of(model))
        y_hat, digests = model.decompress(strings, x.shape[2:])
    (tmp_path / "string").write_bytes(strings[0])
    program = (
        "import sys, torch; from pathlib import Path; from ugicm.checkpoints.native import load_model\n"
        "folder = Path(sys.argv[1]); model = load_model(folder / 'model.safetensors').prepare_for_coding()\n"
        "y_hat, digests = model.decompress([(folder / 'string').read_bytes()], (128, 192))\n"
        "torch.save({'y_hat': y_hat, 'digests': digests}, folder / 'read.pt')\n"
    )
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, cwd=root)
    read = torch.load(tmp_path / "read.pt", weights_only=True)
    assert read["digests"] == digests  # the same symbols, always
    if model.parser.guard:  # floats add up in an order that is the process's own: means may differ in their last bit
        torch.testing.assert_close(read["y_hat"], y_hat, rtol=0, atol=1e-9)
    else:
        assert torch.equal(read["y_hat"], y_hat)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_training_mode_is_differentiable_everywhere(backbone):
    model = small_model(backbone).train()
    x = images(batch=2)
    out = model(x, torch.tensor([0.0, 1.0]), quality_of(model, 2))
    bits = sum(-v.log2().sum() for v in out["likelihoods"].values())
    (bits + 1000 * (out["x_hat"] - x).square().mean() + model.aux_loss()).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []


def test_rates_are_computed_without_reduced_precision():
    model, seen = small_model().train(), []
    for part in (model.h_a, model.parser.h_s, model.parser.slices.anchor_params[0]):
        part.register_forward_pre_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(torch.rand(1, 3, 64, 64), torch.zeros(1), torch.tensor([0.5]))
    assert seen == [False] * 3


@pytest.mark.parametrize("backbone", BACKBONES)
def test_preference_and_quality_act_where_they_should(backbone):
    model = small_model(backbone).prepare_for_coding()
    x = images()
    with torch.no_grad():
        low, high = ([model.compress(x, quality_of(model, 1, q))[0][0] for q in (0.0, 1.0)])
        assert (len(low) < len(high)) == model.has_quality
        y_hat, _ = model.decompress([low], x.shape[2:])
        quality = quality_of(model, 1, 0.0)
        human, machine = (model.synthesize(y_hat, torch.tensor([b]), quality) for b in (0.0, 1.0))
        constant = model.synthesize(y_hat, torch.full((1, 1, 128, 192), 1.0), quality)
        half = torch.zeros(1, 1, 128, 192)
        half[..., 96:] = 1
        mixed = model.synthesize(y_hat, half, quality)
    assert (human - machine).abs().max() > 1e-3
    torch.testing.assert_close(constant, machine, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mixed[..., :8], human[..., :8], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(mixed[..., -8:], machine[..., -8:], rtol=1e-3, atol=1e-3)


def test_freezing_all_but_the_viewer_leaves_streams_alone():
    model = small_model()
    before = small_model()
    with torch.no_grad():
        for part in (before.g_s, before.preference):
            for parameter in part.parameters():
                parameter.add_(0.1)
    x = images()
    model.prepare_for_coding(), before.prepare_for_coding()
    assert model.fingerprint == before.fingerprint
    with torch.no_grad():
        assert model.compress(x, quality_of(model)) == before.compress(x, quality_of(before))


def test_scales_near_a_bound_may_fall_on_its_other_side():
    """At the guard's distance, too; scales on a bound itself belong to the row below."""
    gaussian = TabulatedGaussian([1.0, 2.0, 4.0], sparse=False)  # bounds at 1 and at 2
    guard = 2.0**-4
    scales = torch.tensor([0.5, 0.9, 1 - guard, 1.0, 1 + guard, 1.1, 2 - 2 * guard, 2 + 2 * guard, 2.2, 9.0])
    rows = gaussian.build_indexes(scales)
    assert rows.tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert gaussian.borderline(scales, rows, guard).tolist() == [0, 0, 1, 1, 0, 1, 2, 1, 2, 2]


class OnAnotherMachine(RansDecoderCoder):
    """A reader whose scales come out a little different, by up to 8e-4 relative."""

    def _choices(self, scale):
        noise = torch.rand(scale.shape, generator=torch.Generator().manual_seed(self._position), dtype=scale.dtype)
        return super()._choices(scale * (1 + 16e-4 * (noise - 0.5)))


@pytest.mark.parametrize("guarded", [True, False])
def test_the_guard_settles_scales_that_differ_between_machines(guarded):
    model = small_model("mlicpp").prepare_for_coding()
    model.parser.guard = 2.0**-10 if guarded else 0.0  # wide, so that a small image meets many such scales
    x = images(height=256, width=384)
    with torch.no_grad():
        (string,), (digest,) = model.compress(x)
        reader = OnAnotherMachine(model.parser, [string], (4, 6), 10**6)
        y_hat = model.parser(reader)
        expected, _ = model.decompress([string], (256, 384))
    assert (reader.digests == [digest]) is guarded  # without the guard, this much noise does derail the reader
    if guarded:
        torch.testing.assert_close(y_hat, expected)
