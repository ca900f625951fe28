"""The command ``ugicm compress``."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

from ugicm import atomic, bitstream, files
from ugicm.commands.batch import CodecTask, FileResult, run_codec_task
from ugicm.errors import StreamError, UsageError
from ugicm.files import IMAGE_SUFFIXES, STREAM_SUFFIX, Job, read_bytes


@dataclass(kw_only=True)
class CompressTask(CodecTask):
    """Compress an image file to a bitstream file."""

    quality: float
    effort: int
    flatten: str | None  # color on which transparent images are composited
    strip: bool  # drop EXIF and XMP
    verify: bool  # entropy-decode each bitstream before it is written
    progress: bool  # show a progress bar for each image

    def run(self, job: Job) -> FileResult:
        from ugicm.images import read

        source = BytesIO(read_bytes(job.source))
        source.name = job.source  # for messages
        image = read(source, bitstream.too_large)
        if self.flatten:
            image = replace(image, rgb=image.flattened(self.flatten), alpha=None)
        if self.strip:
            image = replace(image, exif=b"", xmp=b"")
        data = self.codec.compress(image, self.quality, effort=self.effort, progress=self.progress)
        if self.verify:
            self.codec.entropy_decode(bitstream.parse(data))
        atomic.write(job.target, data)
        return FileResult(image.rgb.width * image.rgb.height, len(data), len(source.getvalue()), image.frames)

    def mismatch(self, job: Job, target: Path) -> str | None:
        """Compare an existing bitstream by model, quality, image size and time. Its effort is not known."""
        from ugicm.codec import ONE_RATE
        from ugicm.images import upright_size

        try:
            existing = bitstream.parse(target)
        except StreamError:
            return "incomplete"
        if existing.fingerprint.hex() != self.codec.fingerprint:
            return f"from another model ({existing.fingerprint.hex()})"
        if existing.quality != bitstream.quantize_quality(self.quality if self.codec.has_quality else ONE_RATE):
            return f"of quality {existing.quality:.3g}"
        if (existing.width, existing.height) != upright_size(job.source):
            return "of images of another size"
        if job.source.stat().st_mtime_ns > target.stat().st_mtime_ns:
            return "older than their images, which may have changed"
        return None


def run(args: argparse.Namespace) -> int:
    """Run the command. Returns the exit status."""
    inputs, output = files.split_arguments(args.paths, args.output, _is_output)
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
    task = CompressTask(
        checkpoint=args.checkpoint,
        max_pixels=args.max_pixels,
        quality=args.quality,
        effort=args.effort,
        flatten=args.flatten,
        strip=args.strip,
        verify=args.verify,
        progress=len(plan.jobs) == 1,
    )
    return run_codec_task(task, plan, args)


def _is_output(name: str) -> bool:
    return Path(name).suffix.lower() == STREAM_SUFFIX
