"""The network and its three coders, which agree on symbols and on y_hat."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_models import CONFIGS, encode, small_model

from ugicm.checkpoints import native
from ugicm.entropy import coders
from ugicm.entropy.coders import Decoder, Encoder
from ugicm.entropy.gaussian import TabulatedGaussian
from ugicm.entropy.likelihood import LikelihoodCoder
from ugicm.errors import StreamError
from ugicm.models.ugicm import UGICM

BACKBONES = sorted(CONFIGS)


@pytest.fixture(scope="module", params=BACKBONES)
def model(request):
    return small_model(request.param).prepare_for_coding()


def images(batch=1, height=128, width=192, seed=1):
    low = torch.rand(batch, 3, height // 16, width // 16, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(low, size=(height, width), mode="bicubic").clamp(0, 1)


def qualities(batch=1, value=0.7):
    return torch.full((batch,), value)


@torch.no_grad()
def three_y_hats(model, x, extent=None):
    y = model.analyze(x, qualities(len(x)))
    z = model.hyper_analyze(y)
    estimate, encoder = LikelihoodCoder(model.entropy_model, extent), Encoder(model.entropy_model, len(x), extent)
    estimated, encoded = model.entropy_model(estimate, z, y), model.entropy_model(encoder, z, y)
    strings, digests = encoder.flush()
    decoder = Decoder(model.entropy_model, strings, (x.shape[2] // 64, x.shape[3] // 64), extent)
    decoded = model.entropy_model(decoder)
    bits = sum(-v.double().log2().sum().item() for v in (estimate.y_likelihood, estimate.z_likelihood))
    return estimated, encoded, decoded, digests == decoder.finish(), bits, strings


@pytest.mark.parametrize("extent", [None, (7, 5)], ids=["all", "extent"])
def test_coders_agree_on_latents_and_bits(model, extent):
    estimated, encoded, decoded, digests_agree, bits, strings = three_y_hats(model, images(), extent)
    assert torch.equal(estimated, encoded)
    assert torch.equal(encoded, decoded)
    assert digests_agree
    assert encoded.unique().numel() > 50
    encoded_bits = 8 * sum(map(len, strings))
    assert abs(encoded_bits - bits) <= 0.01 * bits + 64


@torch.inference_mode()
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("weights", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("latents", [torch.contiguous_format, torch.channels_last])
def test_coders_agree_whatever_the_memory_format(backbone, weights, latents):
    """Float32 sums in another order would differ."""
    config = CONFIGS[backbone]
    torch.manual_seed(0)
    model = UGICM(config).prepare_for_coding().to(memory_format=weights)
    y = 4 * torch.randn(1, config.M, 12, 16).contiguous(memory_format=latents)
    z = 4 * torch.randn(1, config.N, 3, 4).contiguous(memory_format=latents)
    encoder, estimate = Encoder(model.entropy_model, 1), LikelihoodCoder(model.entropy_model)
    encoded = model.entropy_model(encoder, z, y)
    strings, _ = encoder.flush()
    decoder = Decoder(model.entropy_model, strings, (3, 4))
    assert torch.equal(model.entropy_model(decoder), encoded)
    assert torch.equal(model.entropy_model(estimate, z, y), encoded)


def test_positions_outside_of_the_extent_are_not_coded(model):
    x, y = images(), torch.zeros(1, model.config.M, 8, 12)
    y[..., 7:, :] = y[..., 5:] = 1e3  # would take many bits, or be too large for a bitstream
    with torch.no_grad():
        z = model.hyper_analyze(model.analyze(x, qualities()))
        (short,), _ = model.entropy_encode(y, z, (7, 5))
        (long,), _ = model.entropy_encode(y, z)
        y_hat, _ = model.entropy_decode([short], x.shape[2:], (7, 5))
    assert len(short) < len(long) / 2
    assert (y_hat[..., :7, :5] - y[..., :7, :5]).abs().max() <= 1
    assert y_hat.abs().max() < 100  # elsewhere the mean


def test_forward_in_eval_mode_gives_the_decoded_latents(model):
    x, beta, quality = images(), torch.tensor([0.3]), qualities()
    with torch.no_grad():
        out = model(x, beta, quality)
        strings, digests = encode(model, x, quality)
        y_hat, found = model.entropy_decode(strings, x.shape[2:])
        x_hat = model.synthesize(y_hat, beta, quality)
    assert torch.equal(out["y_hat"], y_hat)
    assert digests == found
    assert torch.equal(out["x_hat"], x_hat)
    assert out["likelihoods"]["y"].shape == y_hat.shape


def test_each_image_of_a_batch_has_its_own_string(model):
    x, quality = images(batch=3), qualities(3)
    with torch.no_grad():
        strings, _ = encode(model, x, quality)
        together, _ = model.entropy_decode(strings, x.shape[2:])
        for i in range(3):
            alone, _ = model.entropy_decode(strings[i : i + 1], x.shape[2:])
            torch.testing.assert_close(alone, together[i : i + 1], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_bitstreams_decode_equally_in_another_process(backbone, tmp_path):
    model = small_model(backbone)
    model.entropy_model.build_tables()
    native.save_model(tmp_path / "model.safetensors", model)
    model.prepare_for_coding()
    x = images()
    with torch.no_grad():
        strings, _ = encode(model, x, qualities())
        y_hat, digests = model.entropy_decode(strings, x.shape[2:])
    (tmp_path / "string").write_bytes(strings[0])
    program = (
        "import sys, torch; from pathlib import Path; from ugicm.checkpoints.native import load_model\n"
        "folder = Path(sys.argv[1]); model = load_model(folder / 'model.safetensors').prepare_for_coding()\n"
        "y_hat, digests = model.entropy_decode([(folder / 'string').read_bytes()], (128, 192))\n"
        "torch.save({'y_hat': y_hat, 'digests': digests}, folder / 'decoded.pt')\n"
    )
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, cwd=root)
    decoded = torch.load(tmp_path / "decoded.pt", weights_only=True)
    assert decoded["digests"] == digests
    torch.testing.assert_close(decoded["y_hat"], y_hat, rtol=1e-5, atol=1e-4)  # means may differ in the last digits


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_parameter_gets_a_gradient(backbone):
    model = small_model(backbone).train()
    x = images(batch=2)
    out = model(x, torch.tensor([0.0, 1.0]), qualities(2))
    bits = sum(-v.log2().sum() for v in out["likelihoods"].values())
    (bits + 1000 * (out["x_hat"] - x).square().mean() + model.aux_loss()).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []


def test_rates_are_computed_without_autocast():
    model, seen = small_model().train(), []
    entropy_model = model.entropy_model
    parts = model.h_a, entropy_model.h_s, entropy_model.indexes.networks[0][0], entropy_model.slices.anchor_params[0]
    for part in parts:
        part.register_forward_pre_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(torch.rand(1, 3, 64, 64), torch.zeros(1), torch.tensor([0.5]))
    assert seen == [False] * 4


@pytest.mark.parametrize("backbone", BACKBONES)
def test_preference_changes_images_and_quality_changes_size(backbone):
    model = small_model(backbone).prepare_for_coding()
    x = images()
    with torch.no_grad():
        low, high = ([encode(model, x, qualities(1, q))[0][0] for q in (0.0, 1.0)])
        assert (len(low) < len(high)) == model.has_quality
        y_hat, _ = model.entropy_decode([low], x.shape[2:])
        quality = qualities(1, 0.0)
        human, machine = (model.synthesize(y_hat, torch.tensor([b]), quality) for b in (0.0, 1.0))
        constant = model.synthesize(y_hat, torch.full((1, 1, 128, 192), 1.0), quality)
        half = torch.zeros(1, 1, 128, 192)
        half[..., 96:] = 1
        mixed = model.synthesize(y_hat, half, quality)
    assert (human - machine).abs().max() > 1e-3
    torch.testing.assert_close(constant, machine, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mixed[..., :8], human[..., :8], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(mixed[..., -8:], machine[..., -8:], rtol=1e-3, atol=1e-3)


def test_synthesis_does_not_change_bitstreams():
    model = small_model()
    before = small_model()
    with torch.no_grad():
        for parameter in before.g_s.parameters():
            parameter.add_(0.1)
    x = images()
    model.prepare_for_coding(), before.prepare_for_coding()
    assert model.fingerprint == before.fingerprint
    with torch.no_grad():
        assert encode(model, x, qualities()) == encode(before, x, qualities())


def test_borderline_finds_scales_near_a_bound():
    """Including those at the distance of the guard. Scales on a bound belong to the row below."""
    gaussian = TabulatedGaussian([1.0, 2.0, 4.0])  # bounds at 1 and at 2
    guard = 2.0**-4
    scales = torch.tensor([0.5, 0.9, 1 - guard, 1.0, 1 + guard, 1.1, 2 - 2 * guard, 2 + 2 * guard, 2.2, 9.0])
    rows = gaussian.build_indexes(scales)
    assert rows.tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert gaussian.borderline(scales, rows, guard).tolist() == [0, 0, 1, 1, 0, 1, 2, 1, 2, 2]


class DecoderOnAnotherMachine(Decoder):
    """A decoder whose scales differ by up to 8e-4, relatively."""

    def _rows_and_neighbors(self, scale):
        noise = torch.rand(scale.shape, generator=torch.Generator().manual_seed(self._position))
        return super()._rows_and_neighbors(scale * (1 + 16e-4 * (noise - 0.5)))


@pytest.mark.parametrize("guarded", [True, False])
@pytest.mark.parametrize("backbone", ["mlicpp", "bmshj2018"])
def test_guard_corrects_scales_of_another_machine(backbone, guarded, monkeypatch):
    model = small_model(backbone).prepare_for_coding()
    # Large, so that a small image has many borderline scales.
    monkeypatch.setattr(coders, "GUARD", 2.0**-10 if guarded else 0.0)
    x = images(height=256, width=384)
    with torch.no_grad():
        (string,), (digest,) = encode(model, x, qualities())
        decoder = DecoderOnAnotherMachine(model.entropy_model, [string], (4, 6))
        if not guarded:  # the decoder derails
            with pytest.raises(StreamError):
                model.entropy_model(decoder)
                decoder.finish()
            return
        y_hat = model.entropy_model(decoder)
        expected, _ = model.entropy_decode([string], (256, 384))
    assert decoder.finish() == [digest]
    torch.testing.assert_close(y_hat, expected)


@torch.no_grad()
def test_symbols_are_decoded_by_the_copy_on_the_cpu(monkeypatch):
    """As for a model on another device, which computes means only."""
    model = small_model().prepare_for_coding()
    x = images()
    strings, digests = encode(model, x, qualities())
    y_hat, _ = model.entropy_decode(strings, x.shape[2:])
    copied, called = copy.deepcopy(model.entropy_model), []
    monkeypatch.setattr(model.entropy_model, "on_cpu", lambda: copied)
    model.entropy_model.indexes.register_forward_hook(lambda *_: called.append("original"))
    copied.indexes.register_forward_hook(lambda *_: called.append("copy"))
    y_hat_split, found = model.entropy_decode(strings, x.shape[2:])
    assert found == digests and torch.equal(y_hat_split, y_hat)
    assert called == ["copy"] * len(model.config.slice_widths)


@torch.no_grad()
def test_symbols_do_not_depend_on_means_of_the_decoder():
    """With integer indexes, a decoder whose means are off by up to 1e-3 reads the same symbols."""
    model = small_model().prepare_for_coding()
    x, slices = images(height=256), model.entropy_model.slices
    strings, digests = encode(model, x, qualities())
    exact, other = (Decoder(model.entropy_model, strings, (4, 3)) for _ in range(2))
    y_hat = model.entropy_model(exact)
    for network in (*slices.anchor_params, *slices.non_anchor_params):
        network.register_forward_hook(lambda _, __, mean: mean + 1e-3 * (2 * torch.rand_like(mean) - 1))
    y_hat_other = model.entropy_model(other)
    assert exact.finish() == other.finish() == digests
    assert all(map(torch.equal, exact.residuals, other.residuals))
    assert 5e-4 < (y_hat - y_hat_other).abs().max() < 5e-3  # means of later slices follow those of earlier ones
