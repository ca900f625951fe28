"""The command ``ugicm decompress``."""

from __future__ import annotations

import argparse
import zlib
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ugicm import atomic, bitstream, files
from ugicm.commands.batch import CodecTask, FileResult, run_codec_task
from ugicm.errors import ImageError, UsageError
from ugicm.files import STREAM_SUFFIX, Job, read_bytes

if TYPE_CHECKING:
    from PIL import Image


@dataclass(kw_only=True)
class DecompressTask(CodecTask):
    """Decompress a bitstream file to image files, whose EXIF software records bitstream, preference and region."""

    preferences: dict[str, float | Image.Image]  # by name; an image is a preference map
    region: tuple[int, int, int, int] | None
    image_format: str  # Pillow's name

    def targets(self, job: Job) -> list[Path]:
        """Return the target of the job, or for several preferences one for each with its name before the extension."""
        if len(self.preferences) == 1:
            return [job.target]
        return [job.target.with_name(f"{job.target.stem}.{name}{job.target.suffix}") for name in self.preferences]

    def run(self, job: Job) -> FileResult:
        from ugicm.image_writer import save_image

        data = read_bytes(job.source)
        images = self.codec.decompress(data, list(self.preferences.values()), self.region)
        for image, target in zip(images, self.targets(job), strict=True):
            save_image(image, target, self._software(job, target, data), self.image_format)
        return FileResult(images[0].width * images[0].height)

    def mismatch(self, job: Job, target: Path) -> str | None:
        """Compare an existing image by size and EXIF software."""
        from ugicm import images
        from ugicm.image_writer import holds_software

        data = job.source.read_bytes()
        header = bitstream.parse(data)
        try:
            size = images.open_rgb(target).size
            software = images.software(target)
        except ImageError:
            return "incomplete"
        if size != (self.region[2:] if self.region else (header.width, header.height)):
            return f"of another size ({size[0]}x{size[1]})"
        if not holds_software(target):
            return f"{target.suffix} files, which do not record bitstream and preference"
        expected = self._software(job, target, data)
        if software == expected:
            return None
        prefix = expected[: len("ugicm ") + 8]
        if software and software.startswith(prefix):
            return f"for another preference or region ({software.removeprefix(prefix).strip()})"
        return "of other bitstreams" if software and software.startswith("ugicm ") else "from another program"

    def _software(self, job: Job, target: Path, data: bytes) -> str:
        """Return the EXIF software of an output: checksum of the bitstream, preference, region."""
        name, preference = list(self.preferences.items())[self.targets(job).index(target)]
        text = name if isinstance(preference, float) else f"map {zlib.crc32(preference.tobytes()):08x}"
        region = f" region {','.join(map(str, self.region))}" if self.region else ""
        return f"ugicm {data[-4:].hex()} {text}{region}"


def run(args: argparse.Namespace) -> int:
    """Run the command. Returns the exit status."""
    suffix = "." + (args.format or "png").lstrip(".").lower()
    if not suffix[1:].isalnum():
        raise UsageError(f"--format {args.format}: not an extension; try png, webp, tiff, bmp, ppm or jpg")
    inputs, output = files.split_arguments(args.paths, args.output, _is_output)
    plan = replace(files.plan_jobs(inputs, output, [STREAM_SUFFIX], suffix), left_out=Counter())  # no images are lost
    target = plan.jobs[0].target
    from ugicm import images
    from ugicm.image_writer import image_format

    try:
        requested = image_format(f"x{suffix}")
        name = image_format(target) if target.suffix else requested
        if args.format and name != requested:
            raise UsageError(f"{target} contradicts --format {args.format}: leave one out")
        preferences = {
            _name_of(p): images.open_rgb(p).convert("L") if isinstance(p, Path) else p for p in args.preference
        }
    except ImageError as error:
        raise UsageError(str(error)) from None
    task = DecompressTask(
        checkpoint=args.checkpoint, max_pixels=args.max_pixels, preferences=preferences, region=args.region,
        image_format=name,
    )  # fmt: skip
    targets = [target for job in plan.jobs for target in task.targets(job)]
    for path in (p for p in args.preference if isinstance(p, Path)):
        if any(target.exists() and target.samefile(path) for target in targets):
            raise UsageError(f"{path}: the output would replace the preference map: choose another name")
    if len(preferences) < len(args.preference):
        raise UsageError("two of the preferences have the same name")
    if len(preferences) > 1 and any(atomic.is_special(job.target) for job in plan.jobs):
        raise UsageError("several preferences need several output files: name an output file instead of -")
    existing = [target for target in targets if files.would_replace(target)]
    if existing and len(plan.jobs) == 1 and not plan.folder and not args.overwrite:
        raise UsageError(f"{existing[0]} exists; use --overwrite to replace it")
    return run_codec_task(task, plan, args)


def _is_output(name: str) -> bool:
    return Path(name).suffix.lower() != STREAM_SUFFIX


def _name_of(preference: float | Path) -> str:
    """Return the part of a file name that stands for a preference."""
    if isinstance(preference, Path):
        return preference.stem
    return {0: "human", 1: "machine"}.get(preference, f"{preference:g}")
