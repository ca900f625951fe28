"""What Pillow does not read, or misreads, of image files.

These are color chunks of PNG, AVIF and JPEG 2000, PNG with long texts, uncompressed TIFF in planes, pages and previews.
"""

from __future__ import annotations

import importlib
import io
import os
import struct
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from PIL import Image

from ugicm.errors import MissingPackageError
from ugicm.files import IMAGE_PACKAGES

_PNG = b"\x89PNG\r\n\x1a\n"
_JP2 = b"\0\0\0\x0cjP  \r\n\x87\n"
# Chunks that decide pixels and colors. Pillow refuses files with other chunks that are invalid or expand to more than
# 1 MiB, although it does not need them.
_PNG_CHUNKS = frozenset(
    (b"IHDR", b"PLTE", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"eXIf", b"acTL", b"fcTL", b"fdAT", b"IDAT", b"IEND")
)
_PNG_TEXTS = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")  # texts that hold metadata
_JXL = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")
_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis")
_GRAY_STEP = {1: 255, 2: 85, 4: 17}  # level of gray per unit, by bits
# TIFF tags
_SUBFILE_TYPE, _BITS_PER_SAMPLE, _PLANAR_CONFIGURATION, _SUB_IFDS, _DNG_VERSION = 0xFE, 0x102, 0x11C, 0x14A, 0xC612
_REDUCED, _MASK = 1, 4  # bits of the subfile type
_LONGEST_TEXT = 2**20
_LONGEST_PROFILE = 2**24
_MOST_BOXES = 1000


def prepare(source: str | os.PathLike | BinaryIO) -> tuple[str | os.PathLike | BinaryIO, dict[str, Any]]:
    """Return what Pillow should open instead of a file, and entries to add to the ``info`` of the image.

    The entries are ``icc_profile`` (bytes), ``cicp`` (color primaries and transfer characteristics as numbered by ITU-T
    H.273) and ``transparency`` (in levels of the decoded image).

    Raises:
        MissingPackageError: Pillow reads the format only with a package that is not installed.
        OSError: the file cannot be read.
    """
    if isinstance(source, (str, os.PathLike)):
        with open(source, "rb") as file:
            opened, info = prepare(file)
        return source if opened is file else opened, info
    if not hasattr(source, "seek"):
        source = io.BytesIO(source.read())
    source.seek(0)
    head = source.read(64)
    source.seek(0)
    _load_plugin(head)
    if head.startswith(_PNG):
        return _prepare_png(source.read())
    info = {}
    if head.startswith(_JP2):
        info = _box_colors(source, (b"jp2h",))
    elif head[4:8] == b"ftyp":
        info = _box_colors(source, (b"meta", b"iprp", b"ipco"))
    source.seek(0)
    return source, info


def _load_plugin(head: bytes) -> None:
    """Register the plugin of Pillow for HEIC or JPEG XL, if a file begins with ``head``. Raises MissingPackageError."""
    if head[4:8] == b"ftyp" and any(brand in head[8:] for brand in _HEIC_BRANDS):
        name = "pillow_heif"
    elif head.startswith(_JXL):
        name = "pillow_jxl"
    else:
        return
    try:
        plugin = importlib.import_module(name)
    except ImportError:
        package, _ = IMAGE_PACKAGES[name]
        raise MissingPackageError(f"this format needs {package}: pip install {package}") from None
    if name == "pillow_heif":
        plugin.register_heif_opener()


def _prepare_png(data: bytes) -> tuple[BinaryIO, dict[str, Any]]:
    view, kept, info, position = memoryview(data), [data[:8]], {}, 8
    bits, color = 8, 2
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data):
            break
        content = view[position + 8 : end - 4]
        if kind in _PNG_CHUNKS or kind in (b"iTXt", b"zTXt") and _is_short_metadata(kind, bytes(content)):
            kept.append(view[position:end])
        if kind == b"IHDR" and length >= 10:
            bits, color = content[8], content[9]
        elif kind == b"iCCP":
            _, _, compressed = bytes(content).partition(b"\0")
            info["icc_profile"] = _inflate(compressed[1:], _LONGEST_PROFILE)
        elif kind == b"cICP" and length == 4:
            info["cicp"] = content[0], content[1]
        elif kind == b"tRNS" and color == 0 and length == 2 and bits in _GRAY_STEP:
            info["transparency"] = struct.unpack(">H", content)[0] * _GRAY_STEP[bits]
        elif kind == b"tRNS" and color == 2 and length == 6 and bits == 16:
            info["transparency"] = tuple(content[::2])  # Pillow keeps the high bytes of pixels
        position = end
    kept.append(view[position:])  # the rest of a truncated file, for Pillow to complain about
    return io.BytesIO(b"".join(kept)), info


def _is_short_metadata(kind: bytes, content: bytes) -> bool:
    """Return whether a text chunk holds EXIF or XMP, and expands to a length that Pillow accepts."""
    if not content.startswith(_PNG_TEXTS):
        return False
    keyword, _, rest = content.partition(b"\0")
    if kind == b"iTXt":
        compressed = rest[:1] == b"\1"
        rest = b"\0" + rest[2:].split(b"\0", 2)[-1] if compressed else b""
    return _inflate(rest[1:], _LONGEST_TEXT) is not None if rest else len(content) <= _LONGEST_TEXT


def _inflate(data: bytes, limit: int) -> bytes | None:
    """Return what zlib data expands to, or None if it is invalid or expands to more than ``limit`` bytes."""
    stream = zlib.decompressobj()
    try:
        inflated = stream.decompress(data, limit)
    except zlib.error:
        return None
    return None if stream.unconsumed_tail else inflated


def _box_colors(file: BinaryIO, path: tuple[bytes, ...]) -> dict[str, Any]:
    """Return the colors that the ``colr`` boxes below a path of nested boxes declare. The first of a kind counts."""
    info: dict[str, Any] = {}
    for content in _find_boxes(file, (*path, b"colr"), file.seek(0, io.SEEK_END)):
        if content[:4] == b"nclx":
            info.setdefault("cicp", struct.unpack_from(">HH", content.ljust(8, b"\0"), 4))
        elif content[:1] == b"\2":  # JPEG 2000. Pillow reads the profiles of AVIF.
            info.setdefault("icc_profile", content[3:])
    return info


def _find_boxes(file: BinaryIO, path: tuple[bytes, ...], end: int) -> Iterator[bytes]:
    """Yield the contents of boxes of the ISO base media file format."""
    position = 0
    for _ in range(_MOST_BOXES):
        file.seek(position)
        length, kind = struct.unpack(">I4s", file.read(8).ljust(8, b"\0"))
        length, header = length or end - position, 8
        if length == 1:
            length, header = struct.unpack(">Q", file.read(8).ljust(8, b"\0"))[0], 16
        stop = min(position + length, end)
        if length < header or stop <= position:
            return
        if kind != path[0]:
            position = stop
        elif len(path) == 1:
            yield file.read(min(stop - position - header, _LONGEST_PROFILE))
            position = stop
        else:  # enter the box
            path, end = path[1:], stop
            position += header + 4 * (kind == b"meta")  # version and flags
        if position >= end:
            return


def count_frames(image: Image.Image) -> int:
    """Return the number of pages or frames, without previews, masks, layers and gain maps."""
    if image.format == "PSD":  # frames are layers, and the first image is all of them
        return 1
    if image.format == "MPO":
        kinds = [entry["Attribute"]["MPType"] for entry in image.mpinfo[0xB002]]
        return 1 + sum(kind.startswith("Multi-Frame") for kind in kinds[1:])
    total = getattr(image, "n_frames", 1)
    if image.format != "TIFF" or total == 1:
        return total
    kinds = []
    for page in range(total):
        image.seek(page)
        kinds.append(image.tag_v2.get(_SUBFILE_TYPE, 0))
    image.seek(0)
    return 1 + sum(not kind & (_REDUCED | _MASK) for kind in kinds[1:])


def is_preview(image: Image.Image, frames: int) -> bool:
    """Return whether an open file is a raw photograph of which Pillow reads the preview."""
    tags = getattr(image, "tag_v2", {})
    reduced = tags.get(_SUBFILE_TYPE, 0) & _REDUCED
    return bool(reduced and (frames > 1 or _SUB_IFDS in tags or _DNG_VERSION in tags))


def fix_planes(image: Image.Image) -> None:
    """Correct how Pillow decodes uncompressed TIFF files with a plane for each channel.

    It takes all planes as 8 bits, and does not know the letters that stand for superfluous planes.
    """
    if image.format != "TIFF" or image.tag_v2.get(_PLANAR_CONFIGURATION) != 2 or image.tile[0].codec_name != "raw":
        return
    deep = ""
    if image.tag_v2[_BITS_PER_SAMPLE][0] == 16:
        deep = ";16B" if image.tag_v2.prefix == b"MM" else ";16L"
    channels = [(tile, tile.args[0]) for tile in image.tile if tile.args[0] in "RGBACMYK"]
    image.tile = [tile._replace(args=(channel + deep, *tile.args[1:])) for tile, channel in channels]
