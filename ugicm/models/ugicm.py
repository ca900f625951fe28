"""The whole network: image -> latent -> stream -> latent -> image for a given preference."""

from __future__ import annotations

import contextlib
import hashlib
import struct
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ugicm.config import ModelConfig
from ugicm.entropy.factorized import EntropyBottleneck
from ugicm.entropy.full_float32 import full_float32
from ugicm.entropy.gaussian import TabulatedGaussian, log_spaced
from ugicm.entropy.model import HyperpriorEntropyModel, Parser
from ugicm.entropy.rans import LikelihoodCoder, RansDecoderCoder, RansEncoderCoder
from ugicm.models import compact, transforms
from ugicm.models.conditional_decoder import PreferenceEmbedding, ResidualSynthesis
from ugicm.models.mlicpp import AttentionSlices
from ugicm.models.quality import QualityGain
from ugicm.models.sharpening import sharpen
from ugicm.tiling import Y_STRIDE, Z_STRIDE

# Arithmetic of parsing, and how far scales may differ between machines, relatively: several times what was measured
# between instruction sets and thread counts (docs).
PARSING = {"fixed": (torch.float64, 0.0), "float64": (torch.float64, 2.0**-36), "float32": (torch.float32, 2.0**-16)}


class UGICM(nn.Module):
    """Learned image codec with a decoder conditioned on a preference (UG-ICM, AAAI 2025).

    Images are [B, 3, H, W] in [0, 1] with H and W multiples of 64; latents y are
    [B, M, H/16, W/16]. Preference ``beta`` is [B] in [0, 1] (0 for people, 1 for machines) or a map
    [B, 1, H, W]. ``quality`` is [B] in [0, 1], or None for a model with one rate (``has_quality`` is False).

    Parts: ``g_a`` and ``h_a`` run where a stream is written, ``g_s`` and ``preference`` where an image is
    viewed; only ``parser`` (and ``gain``) must agree between writer and reader.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        N, M = config.N, config.M
        if config.backbone == "compact":
            self.g_a, self.g_s = compact.PatchAnalysis(config), compact.PatchSynthesis(config)
            self.h_a, h_s = compact.CompactHyperAnalysis(config), compact.CompactHyperSynthesis(config)
            slices = compact.CompactSlices(config)
        else:
            self.g_s = ResidualSynthesis(N, M, config.beta_width, config.stem_width or N)
            if config.backbone == "mlicpp":
                self.g_a = transforms.ResidualAnalysis(N, M)
                self.h_a, h_s = transforms.HyperAnalysis(N, M), transforms.HyperSynthesis(N, M)
                slices = AttentionSlices(config)
            else:
                self.g_a = transforms.GdnAnalysis(N, M)
                self.h_a, h_s = transforms.GdnHyperAnalysis(N, M), transforms.GdnHyperSynthesis(N, M)
                slices = HyperpriorEntropyModel()
        table = log_spaced(config.scale_min, config.scale_max, config.scale_levels)
        gaussian = TabulatedGaussian(table, sparse=config.sparse_coding)
        self.parser = Parser(EntropyBottleneck(N), h_s, slices, gaussian, guard=PARSING[config.parsing][1])
        self.has_quality = config.quality_points > 0
        self.gain = QualityGain(M, config.quality_points) if self.has_quality else None
        self.preference = PreferenceEmbedding(
            config.beta_frequencies, config.beta_width, extra=1 if self.has_quality else 0
        )
        # The precision of most of g_s outside training: None keeps float32.
        self.synthesis_dtype: torch.dtype | None = None
        self.fingerprint = b""  # of a model that is prepared for coding

    def forward(self, x: Tensor, beta: Tensor, quality: Tensor | None = None) -> dict:
        """Estimate the rate and reconstruct: {"x_hat", "y_hat", "likelihoods": {"y", "z"}}.

        In training mode the likelihoods see noise and y_hat is rounded with a straight-through gradient; in eval
        mode y_hat is what a stream would give, provided :meth:`prepare_for_coding` was called. x_hat is not
        clamped.
        """
        y = self.analyze(x, quality)
        coder = LikelihoodCoder(self.parser)
        with torch.autocast(x.device.type, enabled=False):  # rate arithmetic is never reduced
            y_hat = self.parser(coder, self.hyper_analyze(y), y)
        likelihoods = {"y": coder.y_likelihood, "z": coder.z_likelihood}
        return {"x_hat": self.synthesize(y_hat, beta, quality), "y_hat": y_hat, "likelihoods": likelihoods}

    def analyze(self, x: Tensor, quality: Tensor | None = None) -> Tensor:
        """Image -> y, float32, scaled by the quality's gain: ready to be rounded."""
        with self._exactly(x):
            y = self.g_a(x)
        y = y.float()
        return y if self.gain is None else y * self.gain(quality)

    def hyper_analyze(self, y: Tensor) -> Tensor:
        """y -> z, ready to be rounded."""
        with self._exactly(y):
            return self.h_a(y)

    def compress(self, x: Tensor, quality: Tensor | None = None) -> tuple[list[bytes], list[int]]:
        """Images -> one entropy-coded string per image, and each string's 16-bit symbol digest.

        Raises CheckpointError where the weights give latents that no stream can hold.
        """
        y = self.analyze(x, quality)
        return self.write(y, self.hyper_analyze(y))

    def write(
        self, y: Tensor, z: Tensor, inside: tuple[int, int] | None = None
    ) -> tuple[list[bytes], list[int]]:
        """Latents -> strings and digests: the second half of :meth:`compress`.

        ``inside``: how many rows and columns of y are coded, the others showing nothing of the image; None: all.

        Raises CheckpointError for latents that no stream can hold: not finite, or too large.
        """
        coder = RansEncoderCoder(self.parser, len(y), inside)
        self.parser(coder, z, y)
        return coder.flush(), coder.digests

    def decompress(
        self, strings: list[bytes], size: tuple[int, int], inside: tuple[int, int] | None = None
    ) -> tuple[Tensor, list[int]]:
        """Strings of images of one padded ``size`` (H, W) -> y_hat and the symbol digests found.

        ``inside`` as in :meth:`write`. Raises StreamError for strings that cannot be read.
        """
        height, width = size
        symbols = height * width * self.config.M // Y_STRIDE**2 + height * width * self.config.N // Z_STRIDE**2
        coder = RansDecoderCoder(self.parser, strings, (height // Z_STRIDE, width // Z_STRIDE), symbols, inside)
        return self.parser(coder), coder.digests

    def synthesize(self, y_hat: Tensor, beta: Tensor, quality: Tensor | None = None) -> Tensor:
        """y_hat -> image [B, 3, H, W] for the preference, not clamped."""
        y_hat = y_hat.float()
        if self.gain is not None:
            y_hat = y_hat / self.gain(quality)
        condition = self.preference.condition(beta, None if quality is None else quality[:, None].to(y_hat))
        reduced = None if self.training else self.synthesis_dtype
        with torch.autocast(y_hat.device.type, dtype=reduced) if reduced else contextlib.nullcontext():
            x_hat = self.g_s(y_hat, condition)
        if not self.config.sharpness or condition.human:
            return x_hat
        amount = self.config.sharpness * condition.preference(x_hat.shape[-2:])
        return sharpen(x_hat, amount if quality is None else amount * (1 - quality)[:, None, None, None])

    @contextlib.contextmanager
    def _exactly(self, x: Tensor) -> Iterator[None]:
        """What decides symbols is in float32 where nobody trains: streams should not depend on the device."""
        if self.training:
            yield
        else:
            with full_float32(), torch.autocast(x.device.type, enabled=False):
                yield

    def aux_loss(self) -> Tensor:
        """CompressAI's loss on the quantiles of the factorized prior; a scalar for the auxiliary optimizer."""
        return self.parser.bottleneck.loss()

    def prepare_for_coding(self) -> UGICM:
        """Switch to eval mode and to the arithmetic of streams. Not to be trained afterwards. Returns self.

        CDF tables are built if the checkpoint had none. The fingerprint is taken before weights are rounded or
        widened, so that it depends on the checkpoint alone: a second call changes nothing.
        """
        if self.fingerprint:
            return self
        self.eval().requires_grad_(False)
        self.parser.build_tables()
        self.fingerprint = self._fingerprint()
        self.parser.prepare_for_coding(PARSING[self.config.parsing][0])
        return self

    def _fingerprint(self) -> bytes:
        """24 bits over the parser's tensors, the gains and how they are used: equal models parse equally."""
        c = self.config
        digest = hashlib.blake2b(f"{c.backbone} {c.parsing} {c.sparse_coding} {c.window} {c.widths}".encode())
        tensors = {f"parser.{name}": tensor for name, tensor in self.parser.state_dict().items()}
        if self.gain is not None:
            tensors["gain"] = self.gain.log_gain
        for name, tensor in sorted(tensors.items()):
            digest.update(name.encode() + struct.pack(f"<{tensor.dim()}q", *tensor.shape))
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.digest()[:3]
