"""The command ``ugicm compress``."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from ugicm import atomic, bitstream
from ugicm.commands.batch import CodecTask, FileResult, run_codec_task
from ugicm.errors import StreamError, UsageError
from ugicm.files import IMAGE_SUFFIXES, STREAM_SUFFIX, Job, plan_jobs


@dataclass(kw_only=True)
class CompressTask(CodecTask):
    """Compress an image file to a bitstream file."""

    quality: float
    effort: int
    verify: bool  # entropy-decode each bitstream before it is written
    progress: bool  # show a progress bar for each image

    def run(self, job: Job) -> FileResult:
        from ugicm.images import open_rgb

        image = open_rgb(job.source, bitstream.too_large)
        data = self.codec.compress(image, self.quality, effort=self.effort, progress=self.progress)
        if self.verify:
            self.codec.entropy_decode(bitstream.parse(data))
        atomic.write(job.target, data)
        return FileResult(image.width * image.height, len(data))

    def mismatch(self, job: Job) -> str | None:
        """Compare an existing bitstream by model, quality, image size and time. Its effort is not known."""
        from ugicm.codec import ONE_RATE
        from ugicm.images import upright_size

        try:
            existing = bitstream.parse(job.target.read_bytes())
        except StreamError as error:
            return f"is not a complete bitstream ({error})"
        if existing.fingerprint.hex() != self.codec.fingerprint:
            return f"was written by another model ({existing.fingerprint.hex()})"
        if existing.quality != bitstream.quantize_quality(self.quality if self.codec.has_quality else ONE_RATE):
            return f"has quality {existing.quality:.3g}"
        if (existing.width, existing.height) != upright_size(job.source):
            return f"is of another image ({existing.width}x{existing.height})"
        if job.source.stat().st_mtime_ns > job.target.stat().st_mtime_ns:
            return "is older than the image, which may have changed"
        return None


def run(args: argparse.Namespace) -> int:
    """Run the command. Returns the exit status."""
    folder = Path(args.input).is_dir()
    if not folder and Path(args.input).suffix.lower() == STREAM_SUFFIX:
        raise UsageError(f"{args.input} is a bitstream already; did you mean ugicm decompress?")
    jobs = plan_jobs(args.input, args.output, IMAGE_SUFFIXES, STREAM_SUFFIX)
    if not folder:
        target = jobs[0].target
        if jobs[0].target_exists and not args.overwrite:
            raise UsageError(f"{target} exists; use --overwrite to replace it")
        if target.suffix.lower() in IMAGE_SUFFIXES:
            raise UsageError(f"{target}: the output is not an image file; use the extension .ugic")
    task = CompressTask(
        checkpoint=args.checkpoint,
        max_pixels=args.max_pixels,
        quality=args.quality,
        effort=args.effort,
        verify=args.verify,
        progress=not folder,
    )
    return run_codec_task(task, jobs, args)
