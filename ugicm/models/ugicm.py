"""The whole network: image -> latent -> bitstream -> latent -> image for a given preference."""

from __future__ import annotations

import contextlib
import hashlib
import struct
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from ugicm.config import ModelConfig
from ugicm.entropy.coders import Decoder, Encoder
from ugicm.entropy.factorized import FactorizedPrior
from ugicm.entropy.full_float32 import full_float32
from ugicm.entropy.gaussian import TabulatedGaussian, log_spaced
from ugicm.entropy.likelihood import LikelihoodCoder
from ugicm.entropy.model import EntropyModel
from ugicm.models import compact, hyperprior, transforms
from ugicm.models.conditional_decoder import PreferenceEmbedding, ResidualSynthesis
from ugicm.models.mlicpp import MlicppSlices
from ugicm.models.quality import QualityGain, UnitGain
from ugicm.tiling import Z_STRIDE


class UGICM(nn.Module):
    """Learned image codec with a decoder conditioned on a preference (UG-ICM, AAAI 2025).

    Images are [B, 3, H, W] in [0, 1] with H and W multiples of 64. Latents y are [B, M, H/16, W/16], hyper latents z
    [B, N, H/64, W/64]. The preference ``beta`` is [B] in [0, 1] (0 human, 1 machine) or a map [B, 1, H, W]. ``quality``
    is [B] in [0, 1]; a one-rate model (``has_quality`` is False) has a gain of one at every quality.

    The transforms ``g_a`` and ``h_a`` are used in compression only, ``g_s`` in synthesis only. So is ``preference``, an
    embedding that the compact model does not have. A bitstream depends on ``entropy_model`` and ``gain``, which must be
    the same where it is written and read.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        N, M = config.N, config.M
        indexes = None
        if config.backbone == "compact":
            self.g_a, self.g_s = compact.CompactAnalysis(config), compact.CompactSynthesis(config)
            self.h_a, h_s = compact.CompactHyperAnalysis(config), compact.CompactHyperSynthesis(config)
            slices, indexes = compact.CompactSlices(config), compact.CompactIndexes(config)
        elif config.backbone == "mlicpp":
            self.g_a = transforms.ResidualAnalysis(N, M)
            self.g_s = ResidualSynthesis(N, M, config.beta_width, config.stem_width)
            self.h_a, h_s = transforms.HyperAnalysis(N, M), transforms.HyperSynthesis(N, M)
            slices = MlicppSlices(config)
        else:
            self.g_a, self.g_s = hyperprior.GdnAnalysis(N, M), ResidualSynthesis(N, M, config.beta_width)
            self.h_a, h_s = hyperprior.GdnHyperAnalysis(N, M), hyperprior.GdnHyperSynthesis(N, M)
            slices = hyperprior.HyperpriorSlices(config.slice_widths)
        scales = log_spaced(config.scale_min, config.scale_max, config.scale_levels)
        self.entropy_model = EntropyModel(FactorizedPrior(N), h_s, slices, TabulatedGaussian(scales), indexes)
        self.has_quality = config.quality_points > 0
        self.gain = QualityGain(M, config.quality_points) if self.has_quality else UnitGain()
        if config.backbone != "compact":
            self.preference = PreferenceEmbedding(config.beta_frequencies, config.beta_width, self.has_quality)
        # The precision of most of g_a and g_s outside of training: None keeps float32.
        self.transform_dtype: torch.dtype | None = None
        self.fingerprint = b""  # set by prepare_for_coding

    def forward(self, x: Tensor, beta: Tensor, quality: Tensor) -> dict:
        """Estimate the rate and reconstruct. Returns {"x_hat", "y_hat", "likelihoods": {"y", "z"}}.

        In training mode, likelihoods are those of noisy latents and y_hat is rounded with a straight-through gradient.
        In eval mode, after :meth:`prepare_for_coding`, y_hat is what a bitstream decodes to. x_hat is not clamped.
        """
        y = self.analyze(x, quality)
        coder = LikelihoodCoder(self.entropy_model)
        with torch.autocast(x.device.type, enabled=False):  # likelihoods need float32
            y_hat = self.entropy_model(coder, self.hyper_analyze(y), y)
        likelihoods = {"y": coder.y_likelihood, "z": coder.z_likelihood}
        return {"x_hat": self.synthesize(y_hat, beta, quality), "y_hat": y_hat, "likelihoods": likelihoods}

    def analyze(self, x: Tensor, quality: Tensor) -> Tensor:
        """Return y of images, float32, multiplied by the gain of the quality and not rounded."""
        with self._reduced_precision(x) or self._full_precision(x):
            y = self.g_a(x)
        return y.float() * self.gain(quality)

    def hyper_analyze(self, y: Tensor) -> Tensor:
        """Return z of latents, not rounded."""
        with self._full_precision(y):
            return self.h_a(y)

    def entropy_encode(
        self, y: Tensor, z: Tensor, extent: tuple[int, int] | None = None
    ) -> tuple[list[bytes], list[int]]:
        """Return strings and digests of latents.

        Only the first ``extent`` (rows, columns) of y are coded; None codes all.

        Raises CheckpointError for latents that no bitstream can hold: not finite, or too large.
        """
        coder = Encoder(self.entropy_model, len(y), extent)
        self.entropy_model(coder, z, y)
        return coder.flush()

    def entropy_decode(
        self, strings: list[bytes], size: tuple[int, int], extent: tuple[int, int] | None = None
    ) -> tuple[Tensor, list[int]]:
        """Return y_hat and the digests of the decoded symbols, given strings of images of one padded ``size`` (H, W).

        ``extent`` as in :meth:`entropy_encode`. Raises StreamError for strings that cannot be decoded.
        """
        height, width = size
        coder = Decoder(self.entropy_model, strings, (height // Z_STRIDE, width // Z_STRIDE), extent)
        y_hat = self.entropy_model(coder)
        return y_hat, coder.finish()

    def synthesize(self, y_hat: Tensor, beta: Tensor, quality: Tensor) -> Tensor:
        """Return the image [B, 3, H, W] for a preference, not clamped."""
        return self.synthesize_each(y_hat, [beta], quality)[0]

    def synthesize_each(self, y_hat: Tensor, betas: Sequence[Tensor], quality: Tensor) -> list[Tensor]:
        """Return one image [B, 3, H, W] for each preference, not clamped. What images share is computed once."""
        y_hat = y_hat.float() / self.gain(quality)
        with self._reduced_precision(y_hat) or contextlib.nullcontext():
            if self.config.backbone == "compact":
                return self.g_s(y_hat, betas, quality)
            return [self.g_s(y_hat, self.preference.condition(beta, quality)) for beta in betas]

    def _reduced_precision(self, x: Tensor) -> torch.autocast | None:
        """Return the context of transforms in :attr:`transform_dtype`, or None if they run in float32."""
        if self.training or self.transform_dtype is None:
            return None
        return torch.autocast(x.device.type, dtype=self.transform_dtype)

    @contextlib.contextmanager
    def _full_precision(self, x: Tensor) -> Iterator[None]:
        """Compute in float32 outside of training: symbols should not depend on the device."""
        if self.training:
            yield
        else:
            with full_float32(), torch.autocast(x.device.type, enabled=False):
                yield

    def aux_loss(self) -> Tensor:
        """Return the loss on the quantiles of the factorized prior, a scalar for the auxiliary optimizer."""
        return self.entropy_model.bottleneck.quantile_loss()

    def prepare_for_coding(self) -> UGICM:
        """Switch to eval mode and to the arithmetic of bitstreams. Training is not possible afterwards. Returns self.

        CDF tables are built if the checkpoint has none. The fingerprint is computed before weights are rounded or
        converted, so that it depends on the checkpoint alone: a second call changes nothing.
        """
        if self.fingerprint:
            return self
        self.eval().requires_grad_(False)
        self.entropy_model.build_tables()
        self.fingerprint = self._compute_fingerprint()
        self.entropy_model.prepare_for_coding()
        return self

    def _compute_fingerprint(self) -> bytes:
        """Return 24 bits of a hash of everything that bitstreams depend on: weights, tables, and how they are used."""
        digest = hashlib.blake2b(f"{self.config.backbone} {self.config.slice_widths}".encode())
        tensors = {f"entropy_model.{name}": tensor for name, tensor in self.entropy_model.state_dict().items()}
        if self.has_quality:
            tensors["gain"] = self.gain.log_gain
        for name, tensor in sorted(tensors.items()):
            digest.update(name.encode() + struct.pack(f"<{tensor.dim()}q", *tensor.shape))
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.digest()[:3]
