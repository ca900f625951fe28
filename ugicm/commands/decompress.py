"""The command ``ugicm decompress``."""

from __future__ import annotations

import argparse
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ugicm import bitstream
from ugicm.commands.batch import CodecTask, FileResult, run_codec_task
from ugicm.errors import ImageError, UsageError
from ugicm.files import STREAM_SUFFIX, Job, plan_jobs

if TYPE_CHECKING:
    from PIL import Image


@dataclass(kw_only=True)
class DecompressTask(CodecTask):
    """Decompress a bitstream file to an image file, whose EXIF description records bitstream and preference."""

    preference: float | Image.Image  # an image is a preference map
    image_format: str  # Pillow's name

    def run(self, job: Job) -> FileResult:
        from ugicm.images import save_image

        data = job.source.read_bytes()
        image = self.codec.decompress(data, self.preference)
        save_image(image, job.target, self._description(data), self.image_format)
        return FileResult(image.width * image.height)

    def mismatch(self, job: Job) -> str | None:
        """Compare an existing image by size and description."""
        from ugicm import images

        data = job.source.read_bytes()
        header = bitstream.parse(data)
        try:
            width, height = images.open_rgb(job.target).size
            description = images.description(job.target)
        except ImageError:
            return "is not a complete image"
        if (width, height) != (header.width, header.height):
            return f"has another size ({width}x{height})"
        if not images.holds_description(job.target):
            return f"{job.target.suffix} files do not record their bitstream and preference"
        if description != self._description(data):
            return f"was made from another bitstream or for another preference ({description or 'not recorded'})"
        return None

    def _description(self, data: bytes) -> str:
        """Return the EXIF description of an output: checksum of the bitstream, and the preference."""
        if not isinstance(self.preference, float):
            preference = f"map {zlib.crc32(self.preference.tobytes()):08x}"
        else:
            preference = {0: "human", 1: "machine"}.get(self.preference, f"{self.preference:g}")
        return f"ugicm {data[-4:].hex()} {preference}"


def run(args: argparse.Namespace) -> int:
    """Run the command. Returns the exit status."""
    suffix = "." + (args.format or "png").lstrip(".").lower()
    if not suffix[1:].isalnum():
        raise UsageError(f"--format {args.format}: not an extension; try png, webp, tiff, bmp, ppm or jpg")
    jobs = plan_jobs(args.input, args.output, [STREAM_SUFFIX], suffix)
    target = jobs[0].target
    if not Path(args.input).is_dir() and jobs[0].target_exists and not args.overwrite:
        raise UsageError(f"{target} exists; use --overwrite to replace it")
    from ugicm import images

    try:
        requested = images.image_format(target.with_suffix(suffix))
        image_format = images.image_format(target) if target.suffix else requested
        if args.format and image_format != requested:
            raise UsageError(f"{target} contradicts --format {args.format}: leave one out")
        preference = args.preference
        if isinstance(preference, Path):
            if any(job.target.exists() and job.target.samefile(preference) for job in jobs):
                raise UsageError(f"{preference}: the output would replace the preference map: choose another name")
            preference = images.open_rgb(preference).convert("L")
    except ImageError as error:
        raise UsageError(str(error)) from None
    task = DecompressTask(
        checkpoint=args.checkpoint, max_pixels=args.max_pixels, preference=preference, image_format=image_format
    )
    return run_codec_task(task, jobs, args)
