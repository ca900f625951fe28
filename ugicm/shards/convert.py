"""Convert the images of a shard, with all other members kept as they are, and describe the result in a manifest."""

from __future__ import annotations

import hashlib
import json
import tarfile
import zlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from ugicm import __version__
from ugicm.errors import UgicmError, UsageError, error_message
from ugicm.shards.files import SHARD_SUFFIXES, open_file, replacing, size_of

MAX_IMAGE_BYTES = 1 << 30  # of an image file, which is read into memory
MANIFEST_SUFFIX = ".manifest.json"


class ShardError(UgicmError):
    """A shard is corrupt or truncated, or its output exists and differs."""


class ShardJob(NamedTuple):
    """URLs of a shard and of its output."""

    source: str
    target: str

    @property
    def manifest(self) -> str:
        return self.target.removesuffix(".tar") + MANIFEST_SUFFIX


class Converted(NamedTuple):
    """What an image becomes: contents by the suffix that replaces its extension, its pixels, and its frames."""

    members: dict[str, bytes]
    pixels: int
    frames: int = 1


Convert = Callable[[str, bytes], Converted]  # of a member's name and contents


@dataclass
class Counts:
    """What a shard holds. Failed images are kept as they are.

    Attributes:
        members: members of the input.
        images: converted images; ``pixels``: of these.
        reduced: images of which one page or frame of several is kept.
        image_bytes: bytes of the converted images before, ``converted_bytes`` after.
        failed: name and error of each image that could not be converted.
    """

    members: int = 0
    images: int = 0
    pixels: int = 0
    reduced: int = 0
    image_bytes: int = 0
    converted_bytes: int = 0
    failed: list[dict[str, str]] = field(default_factory=list)


class Member(tarfile.TarInfo):
    """A member of a shard. An invalid header is an error at any place, where ``tarfile`` would take it for the end."""

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> Member:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):  # the end
                raise
            raise tarfile.ReadError(f"truncated or corrupt ({error})") from None


def plan_shards(sources: Collection[str], folder: str) -> list[ShardJob]:
    """Return the jobs that convert shards to shards of the same names in a folder.

    Raises UsageError if two shards have the same name, or if an output would replace its input.
    """
    jobs: dict[str, ShardJob] = {}
    for source in sources:
        name = source.rpartition("/")[2]
        suffix = next(suffix for suffix in SHARD_SUFFIXES if name.lower().endswith(suffix))
        target = f"{folder.rstrip('/')}/{name[: -len(suffix)]}.tar"
        if target == source:
            raise UsageError(f"{source}: the output would replace the input: choose another folder")
        if target in jobs:
            raise UsageError(f"{jobs[target].source} and {source} have the same output, {target}")
        jobs[target] = ShardJob(source, target)
    return list(jobs.values())


def is_finished(job: ShardJob, settings: dict[str, Any]) -> bool:
    """Return whether the output of a shard is complete.

    Raises ShardError if it is of other settings or of another input.
    """
    if size_of(job.manifest) is None:
        return False
    try:
        with open_file(job.manifest) as file:
            manifest = json.load(file)
        expected = {"settings": settings, "source_bytes": size_of(job.source), "bytes": size_of(job.target)}
        different = [name for name, value in expected.items() if manifest[name] != value]
    except (ValueError, KeyError, TypeError):
        different = ["manifest"]
    if different:
        reason = f"exists, with other {', '.join(different)} than expected"
        raise ShardError(f"{job.target}: {reason}; use --overwrite to replace it")
    return True


def convert_shard(
    job: ShardJob, suffixes: Collection[str], convert: Convert, settings: dict[str, Any]
) -> dict[str, Any]:
    """Write the output of a shard, then its manifest, and return the manifest.

    Members keep their order. An image that cannot be converted is kept as it is, and named in the manifest.

    Args:
        job: input and output.
        suffixes: extensions of the members to convert, in lower case.
        convert: converts a member. ValueError, OSError, MemoryError and RuntimeError count as a failure of the image.
        settings: of the conversion, for the manifest.

    Raises ShardError if the input is not a complete tar file, OSError or WriteError if a file cannot be read or
    written.
    """
    counts = Counts()
    with replacing(job.target) as part:
        try:
            with (
                open_file(job.source) as file,
                tarfile.open(fileobj=file, mode="r|*", tarinfo=Member) as shard,
                tarfile.open(part, "w", format=tarfile.PAX_FORMAT) as out,
            ):
                _convert_members(shard, out, suffixes, convert, counts)
        except (tarfile.TarError, EOFError, zlib.error) as error:
            raise ShardError(f"{job.source}: not a complete shard: {error}") from None
        size, digest = part.stat().st_size, _digest(part)
    manifest = {
        "source": job.source, "source_bytes": size_of(job.source), "bytes": size, "sha256": digest,
        "ugicm": __version__, "settings": settings, **vars(counts),
    }  # fmt: skip
    with replacing(job.manifest) as part:
        part.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest


def _convert_members(
    shard: tarfile.TarFile, out: tarfile.TarFile, suffixes: Collection[str], convert: Convert, counts: Counts
) -> None:
    written: set[str] = set()
    for member in shard:
        shard.members.clear()  # which grow without bound
        out.members.clear()
        counts.members += 1
        # PAX headers have priority over the fields that they were read into.
        member.pax_headers = {k: v for k, v in member.pax_headers.items() if k not in ("path", "linkpath", "size")}
        stem, dot, extension = member.name.rpartition(".")
        if not member.isfile() or (dot + extension).lower() not in suffixes:
            out.addfile(member, shard.extractfile(member) if member.isfile() else None)
        elif member.size > MAX_IMAGE_BYTES:
            counts.failed.append({"member": member.name, "error": f"more than {MAX_IMAGE_BYTES} bytes"})
            out.addfile(member, shard.extractfile(member))
        else:
            data = shard.extractfile(member).read()
            for suffix, content in _convert_image(member.name, data, convert, counts).items():
                short = stem + suffix
                name = short if suffix and short not in written else member.name + suffix  # a.png beside a.jpg
                written.add(name)
                _add(out, member, name, content)


def _convert_image(name: str, data: bytes, convert: Convert, counts: Counts) -> dict[str, bytes]:
    """Return the contents that replace an image by suffix, or for "" the image itself if it cannot be converted."""
    try:
        converted = convert(name, data)
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        counts.failed.append({"member": name, "error": error_message(error)})
        return {"": data}
    counts.images += 1
    counts.pixels += converted.pixels
    counts.reduced += converted.frames > 1
    counts.image_bytes += len(data)
    counts.converted_bytes += sum(map(len, converted.members.values()))
    return converted.members


def _add(out: tarfile.TarFile, member: tarfile.TarInfo, name: str, content: bytes) -> None:
    changed = member.replace(name=name)
    changed.size = len(content)
    out.addfile(changed, BytesIO(content))


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
