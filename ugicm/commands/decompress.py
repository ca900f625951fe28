"""The command ``ugicm decompress``."""

from __future__ import annotations

import argparse
import zlib
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ugicm import atomic, bitstream, files
from ugicm.commands import shards
from ugicm.commands.batch import CodecTask, FileResult, run_codec_task
from ugicm.errors import ImageError, UsageError
from ugicm.files import STREAM_SUFFIX, Job, read_bytes
from ugicm.shards.convert import Converted

if TYPE_CHECKING:
    from PIL import Image


@dataclass(kw_only=True)
class DecompressTask(CodecTask):
    """Decompress a bitstream file to image files, whose EXIF software records bitstream, preference and region."""

    preferences: dict[str, float | Image.Image]  # by name; an image is a preference map
    region: tuple[int, int, int, int] | None
    image_format: str  # Pillow's name
    suffix: str  # of image files in shards

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

    def convert(self, name: str, data: bytes) -> Converted:
        """Convert a bitstream of a shard."""
        from ugicm.image_writer import encode_image

        images = self.codec.decompress(data, list(self.preferences.values()), self.region)
        names = self.preferences if len(images) > 1 else [""]
        suffixes = [f".{part}{self.suffix}" if part else self.suffix for part in names]
        software = [self._software_of(preference, data) for preference in self.preferences]
        members = {
            suffix: encode_image(image, name, text, self.image_format)
            for suffix, image, text in zip(suffixes, images, software, strict=True)
        }
        return Converted(members, images[0].width * images[0].height)

    def settings(self) -> dict[str, Any]:
        """Return what images depend on, besides their bitstreams."""
        preferences = [self._software_of(name, b"\0\0\0\0") for name in self.preferences]
        return {"preferences": preferences, "format": self.image_format, "model": self.codec.fingerprint}

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
        return self._software_of(list(self.preferences)[self.targets(job).index(target)], data)

    def _software_of(self, name: str, data: bytes) -> str:
        preference = self.preferences[name]
        text = name if isinstance(preference, float) else f"map {zlib.crc32(preference.tobytes()):08x}"
        region = f" region {','.join(map(str, self.region))}" if self.region else ""
        return f"ugicm {data[-4:].hex()} {text}{region}"


def run(args: argparse.Namespace) -> int:
    """Run the command. Returns the exit status."""
    suffix = "." + (args.format or "png").lstrip(".").lower()
    if not suffix[1:].isalnum():
        raise UsageError(f"--format {args.format}: not an extension; try png, webp, tiff, bmp, ppm or jpg")
    inputs, output = files.split_arguments(args.paths, args.output, _is_output)
    if shards.are_shards(inputs, args):
        return shards.run(_task(args, Path(f"x{suffix}"), suffix), inputs, output, [STREAM_SUFFIX], args)
    plan = replace(files.plan_jobs(inputs, output, [STREAM_SUFFIX], suffix), left_out=Counter())  # no images are lost
    task = _task(args, plan.jobs[0].target, suffix)
    _check_targets(task, plan, args)
    return run_codec_task(task, plan, args)


def _task(args: argparse.Namespace, target: Path, suffix: str) -> DecompressTask:
    """Return the task for files of the kind of ``target``, the first, or with ``suffix`` if it has no extension."""
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
    if len(preferences) < len(args.preference):
        raise UsageError("two of the preferences have the same name")
    return DecompressTask(
        checkpoint=args.checkpoint, max_pixels=args.max_pixels, preferences=preferences, region=args.region,
        image_format=name, suffix=suffix,
    )  # fmt: skip


def _check_targets(task: DecompressTask, plan: files.Plan, args: argparse.Namespace) -> None:
    """Raise UsageError if outputs would replace a preference map or an existing file, or cannot be several."""
    targets = [target for job in plan.jobs for target in task.targets(job)]
    for path in (p for p in args.preference if isinstance(p, Path)):
        if any(target.exists() and target.samefile(path) for target in targets):
            raise UsageError(f"{path}: the output would replace the preference map: choose another name")
    if len(task.preferences) > 1 and any(atomic.is_special(job.target) for job in plan.jobs):
        raise UsageError("several preferences need several output files: name an output file instead of -")
    existing = [target for target in targets if files.would_replace(target)]
    if existing and len(plan.jobs) == 1 and not plan.folder and not args.overwrite:
        raise UsageError(f"{existing[0]} exists; use --overwrite to replace it")


def _is_output(name: str) -> bool:
    return Path(name).suffix.lower() != STREAM_SUFFIX


def _name_of(preference: float | Path) -> str:
    """Return the part of a file name that stands for a preference."""
    if isinstance(preference, Path):
        return preference.stem
    return {0: "human", 1: "machine"}.get(preference, f"{preference:g}")
