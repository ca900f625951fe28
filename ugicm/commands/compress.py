"""The command ``ugicm compress``."""

from __future__ import annotations

import argparse
import os
import zlib
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ugicm import atomic, bitstream, files
from ugicm.commands import shards
from ugicm.commands.batch import CodecTask, FileResult, run_codec_task
from ugicm.errors import StreamError, UsageError
from ugicm.files import IMAGE_SUFFIXES, STREAM_SUFFIX, Job, read_bytes
from ugicm.shards.convert import Converted

if TYPE_CHECKING:
    from PIL import Image


@dataclass(kw_only=True)
class CompressTask(CodecTask):
    """Compress an image file to a bitstream file."""

    quality: float
    target: tuple[str, float] | None  # kind and value, instead of the quality
    effort: int
    effort_for: str  # human or machine
    flatten: str | None  # color on which transparent images are composited
    strip: bool  # drop EXIF and XMP
    quality_map: Image.Image | None  # white where the image keeps its detail
    verify: bool  # entropy-decode each bitstream before it is written
    progress: bool  # show a progress bar for each image

    def run(self, job: Job) -> FileResult:
        data, result = self.encode(job.source, read_bytes(job.source))
        atomic.write(job.target, data)
        return result

    def convert(self, name: str, data: bytes) -> Converted:
        """Convert an image of a shard."""
        data, result = self.encode(name, data)
        return Converted({STREAM_SUFFIX: data}, result.pixels, result.frames)

    def settings(self) -> dict[str, Any]:
        """Return what bitstreams depend on, besides their images."""
        names = ("target", "effort", "effort_for", "flatten", "strip") if self.target else (
            "quality", "effort", "effort_for", "flatten", "strip")  # fmt: skip
        values = {name: getattr(self, name) for name in names} | {"model": self.codec.fingerprint}
        return values | ({"quality_map": zlib.crc32(self.quality_map.tobytes())} if self.quality_map else {})

    def encode(self, name: str | os.PathLike, data: bytes) -> tuple[bytes, FileResult]:
        """Return the bitstream of the image file ``data``; ``name`` is for messages."""
        from ugicm import stored
        from ugicm.images import read
        from ugicm.targets import Target, compress_to

        source = BytesIO(data)
        source.name = name
        image = read(source, bitstream.too_large)
        if self.flatten:
            image = replace(image, rgb=image.flattened(self.flatten), alpha=None)
        if self.strip:
            image = replace(image, exif=b"", xmp=b"")
        if self.quality_map:
            from ugicm.quality_map import emphasize

            image = emphasize(self.codec, image, self.quality_map)
        quality, note = self.quality, ""
        if self.target:
            reached = compress_to(self.codec, image, Target(*self.target))
            data, quality = reached.data, reached.quality
            note = f"quality {quality:.3f}" + (f", {reached.psnr:.2f} dB" if reached.psnr else "")
        if not self.target or self.effort:
            effort = {"effort": self.effort, "effort_for": self.effort_for}
            data = self.codec.compress(image, quality, progress=self.progress, **effort)
        lossless = stored.pack(image)
        if lossless and len(lossless) <= len(data):
            data, note = lossless, "stored without loss"
        elif self.verify:
            self.codec.entropy_decode(bitstream.parse(data))
        width, height = image.size
        return data, FileResult(width * height, len(data), len(source.getvalue()), image.frames, note)

    def mismatch(self, job: Job, target: Path) -> str | None:
        """Compare an existing bitstream by model, quality, image size and time. Its target and effort are not known."""
        from ugicm.codec import ONE_RATE
        from ugicm.images import upright_size

        try:
            existing = bitstream.parse(target)
        except StreamError:
            return "incomplete"
        quality = bitstream.quantize_quality(self.quality if self.codec.has_quality else ONE_RATE)
        if not existing.stored and existing.fingerprint.hex() != self.codec.fingerprint:
            return f"from another model ({existing.fingerprint.hex()})"
        if not existing.stored and self.target is None and existing.quality != quality:
            return f"of quality {existing.quality:.3g}"
        if (existing.width, existing.height) != upright_size(job.source):
            return "of images of another size"
        if job.source.stat().st_mtime_ns > target.stat().st_mtime_ns:
            return "older than their images, which may have changed"
        return None


def run(args: argparse.Namespace) -> int:
    """Run the command. Returns the exit status."""
    inputs, output = files.split_arguments(args.paths, args.output, _is_output)
    if shards.are_shards(inputs, args):
        return shards.run(_task(args), inputs, output, IMAGE_SUFFIXES, args)
    for name in inputs:
        if Path(name).suffix.lower() == STREAM_SUFFIX and not Path(name).is_dir():
            raise UsageError(f"{name} is a bitstream already; did you mean ugicm decompress?")
    plan = files.plan_jobs(inputs, output, IMAGE_SUFFIXES, STREAM_SUFFIX)
    if len(plan.jobs) == 1 and not plan.folder:
        (job,) = plan.jobs
        if files.would_replace(job.target) and not args.overwrite:
            raise UsageError(f"{job.target} exists; use --overwrite to replace it")
        if job.target.suffix.lower() not in ("", STREAM_SUFFIX) and not atomic.is_special(job.target):
            raise UsageError(f"{job.target}: the output is a bitstream; use the extension {STREAM_SUFFIX}")
    return run_codec_task(_task(args, progress=len(plan.jobs) == 1), plan, args)


def _task(args: argparse.Namespace, progress: bool = False) -> CompressTask:
    return CompressTask(
        checkpoint=args.checkpoint,
        max_pixels=args.max_pixels,
        quality=args.quality,
        target=args.target,
        effort=args.effort,
        effort_for=args.effort_for,
        flatten=args.flatten,
        strip=args.strip,
        quality_map=args.quality_map and _read_map(args.quality_map),
        verify=args.verify,
        progress=progress,
    )


def _read_map(path: str) -> Image.Image:
    from ugicm.images import open_rgb

    return open_rgb(path).convert("L")


def _is_output(name: str) -> bool:
    return Path(name).suffix.lower() == STREAM_SUFFIX
