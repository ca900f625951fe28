"""The file format of a compressed image (``.ugic``).

All integers are little-endian. A *varint* is LEB128: 7 bits per byte, least significant first.

====================  =========  =====================================================================
field                 bytes      meaning
====================  =========  =====================================================================
magic                 3          ``"UGI"``
version               1          format version, 4 or 5
fingerprint           3          of the model: a hash of its entropy model
width, height         1-5 each   of the image in pixels, varints
quality               2          quality * 65535, rounded; one half and ignored for a one-rate model
tile                  1          side of the tiles in units of 64 pixels; 0: a single tile
only in version 5:
  flags               1          1: gray image; 2: the string is an image file
  boxes               1-5        bytes of all boxes, varint
then for every tile, row by row:
  digest              2          low 16 bits of the CRC-32 over its symbols, as int32
  length              1-5        of its string, varint; not for the last tile, whose string is the rest
strings               ...        one string per tile
boxes                 ...        for each: type (1 byte), length of the content (varint), content
checksum              4          CRC-32 over everything before it
====================  =========  =====================================================================

Everything but the string takes 18 to 24 bytes for an image in one tile (26 with sides of 2^28 or more), and 3 to 7 for
every further tile. Strings are for the image padded by replication to the right and below, to multiples of 64. The
decoder crops. Positions of y whose 16x16 pixels all lie :data:`MARGIN` pixels or more outside of the image are not
coded. ``docs/bitstream.md`` specifies strings and all else that a decoder needs.

This module needs the standard library only: reading a header must be fast and safe.
"""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple

from ugicm.errors import StreamError
from ugicm.tiling import Y_STRIDE, Z_STRIDE, Box, cut

MAGIC = b"UGI"
VERSION = 4  # of files without the fields "flags" and "boxes"
EXTENDED_VERSION = 5
VERSIONS = (VERSION, EXTENDED_VERSION)
CHECKSUM_SIZE = 4
MARGIN = 4  # pixels outside of the image that still influence the color of its last pixels
QUALITY_STEPS = 65535
BOXES = {"alpha": 1, "exif": 2, "xmp": 3}  # types of boxes by name
HEADER_SIZE = 26  # of the longest header, without the table of tiles
LARGEST_TILE = 255 * Z_STRIDE  # side; the header has one byte for it
# A decoder allocates memory in proportion to the padded image, so a declared size is accepted only up to this limit.
# An encoder writes nothing larger. To raise it, set ugicm.bitstream.MAX_PIXELS (None: no limit), as with Pillow's
# Image.MAX_IMAGE_PIXELS; on the command line, use --max-pixels.
MAX_PIXELS: int | None = 2**28
MAX_TILE_PIXELS = 2**26  # of one tile: networks that entropy-decode need memory in proportion to it
Source = bytes | bytearray | memoryview | str | os.PathLike | BinaryIO
_GRAY, _STORED = 1, 2  # flags
_CHECKSUM = struct.Struct("<I")
_QUALITY_AND_TILE = struct.Struct("<HB")
_DIGEST = struct.Struct("<H")


class Header(NamedTuple):
    """The first fields of a file, as :class:`Bitstream` has them."""

    width: int
    height: int
    fingerprint: bytes
    quality: float
    tile: int
    flags: int = 0
    box_bytes: int = 0

    @property
    def gray(self) -> bool:
        """Whether the image is gray."""
        return bool(self.flags & _GRAY)


@dataclass(frozen=True)
class Bitstream:
    """The fields of a file.

    Attributes:
        width, height: of the image, in pixels.
        fingerprint: of the model, 3 bytes.
        quality: the quality that the decoder must use, in [0, 1], a multiple of 1/65535.
        tile: side of the tiles in pixels; 0 for a single tile.
        digests, strings: one entry per tile, in the order of :attr:`tiles`.
        gray: whether the image is gray, and decoded as such.
        stored: whether the only string is an image file, PNG or WebP, instead of an entropy-coded one.
        boxes: contents of boxes, by the names of :data:`BOXES`.
    """

    width: int
    height: int
    fingerprint: bytes
    quality: float
    tile: int
    digests: tuple[int, ...]
    strings: tuple[bytes, ...]
    gray: bool = False
    stored: bool = False
    boxes: dict[str, bytes] = field(default_factory=dict)

    @property
    def version(self) -> int:
        """Version of the file: the lowest that can hold its fields."""
        return EXTENDED_VERSION if self.gray or self.stored or self.boxes else VERSION

    @property
    def padded(self) -> Box:
        """The padded image."""
        return padded_box(self.width, self.height)

    @property
    def tiles(self) -> list[Box]:
        """Tiles, in pixels of the padded image."""
        return list(cut(self.padded, self.tile))

    def extent(self, tile: Box) -> tuple[int, int] | None:
        """Return :func:`coded_extent` of a tile."""
        return coded_extent(tile, self.width, self.height)

    @property
    def payload_bytes(self) -> int:
        """Entropy-coded bytes, without header, table and checksum."""
        return sum(map(len, self.strings))

    def pack(self) -> bytes:
        """Return the bytes of the file. Raises ValueError for a field out of range, with its name and range."""
        for name, value, low, high in (
            ("width", self.width, 1, 2**32 - 1),
            ("height", self.height, 1, 2**32 - 1),
            ("quality", self.quality, 0, 1),
            ("tile", self.tile, 0, LARGEST_TILE),
            ("tile modulo 64", self.tile % Z_STRIDE, 0, 0),
            ("fingerprint length", len(self.fingerprint), 3, 3),
            ("number of strings", len(self.strings), len(self.tiles), len(self.tiles)),
            *(("digest", digest, 0, 0xFFFF) for digest in self.digests),
        ):
            if not low <= value <= high:
                raise ValueError(f"{name} is {value}, must be from {low} to {high}")
        lengths = [*(varint(len(string)) for string in self.strings[:-1]), b""]
        table = b"".join(_DIGEST.pack(digest) + length for digest, length in zip(self.digests, lengths, strict=True))
        boxes = b"".join(bytes([BOXES[k]]) + varint(len(content)) + content for k, content in self.boxes.items())
        extension = bytes([_GRAY * self.gray | _STORED * self.stored]) + varint(len(boxes))
        body = b"".join((
            MAGIC, bytes([self.version]), self.fingerprint, varint(self.width), varint(self.height),
            _QUALITY_AND_TILE.pack(round(self.quality * QUALITY_STEPS), self.tile // Z_STRIDE),
            extension if self.version == EXTENDED_VERSION else b"", table, *self.strings, boxes,
        ))  # fmt: skip
        return body + _CHECKSUM.pack(zlib.crc32(body))


def padded_box(width: int, height: int) -> Box:
    """Return the smallest box of multiples of 64 that contains the image."""
    return Box(0, 0, width, height).aligned(Z_STRIDE)


def coded_extent(tile: Box, width: int, height: int) -> tuple[int, int] | None:
    """Return how many rows and columns of y in a tile are coded, or None if all are.

    Those are coded that show any of the image or of :data:`MARGIN` pixels around it.
    """
    rows, columns = (-(-(min(end, size + MARGIN) - start) // Y_STRIDE) for start, end, size in (
        (tile.top, tile.bottom, height), (tile.left, tile.right, width)))  # fmt: skip
    return None if (Y_STRIDE * rows, Y_STRIDE * columns) == (tile.height, tile.width) else (rows, columns)


def too_large(width: int, height: int, tile: int | None = None) -> str | None:
    """Return a complaint about an image of more pixels than ``MAX_PIXELS``, or None for a smaller one.

    Padded pixels count: an image one pixel high has 64 times as many as it has pixels. With ``tile`` (side in pixels, 0
    for a single tile), a tile may have ``MAX_TILE_PIXELS``.
    """
    padded = padded_box(width, height)
    pixels, size = padded.width * padded.height, f"{width}x{height} pixels, {padded.width}x{padded.height} as coded"
    if MAX_PIXELS is None:
        return None
    if pixels > MAX_PIXELS:
        advice = f"to accept it, use --max-pixels {pixels} or set ugicm.bitstream.MAX_PIXELS"
        return f"{size}: more than the limit of {MAX_PIXELS}; {advice}"
    if tile is not None and min(tile or pixels, padded.width) * min(tile or pixels, padded.height) > MAX_TILE_PIXELS:
        advice = "to accept it, use --max-pixels 0 or set ugicm.bitstream.MAX_PIXELS to None"
        return f"{size}: more than the limit of {MAX_TILE_PIXELS} for one tile; {advice}"
    return None


def quantize_quality(quality: float) -> float:
    """Return the nearest quality that a header can hold. The encoder must use this one."""
    return round(quality * QUALITY_STEPS) / QUALITY_STEPS


def read(source: Source) -> bytes:
    """Return the bytes of a bitstream given as bytes, as a path or as an open file.

    Raises:
        StreamError: the file cannot be read.
        TypeError: ``source`` is of another type.
    """
    try:
        if isinstance(source, (str, os.PathLike)):
            with open(source, "rb") as file:
                return file.read()
        return bytes(memoryview(source.read() if hasattr(source, "read") else source))
    except OSError as error:
        raise StreamError(f"{os.fsdecode(source)}: cannot be read: {error.strerror or error}") from None
    except TypeError:
        kind = type(source).__name__
        raise TypeError(f"a bitstream must be bytes, a path or a file open for reading bytes, got {kind}") from None


def parse(data: Source) -> Bitstream:
    """Parse a bitstream as :func:`read` takes it. Checks everything that can be checked without a model.

    Raises:
        StreamError: the data is no bitstream, or one of an unsupported version, truncated or corrupt.
    """
    data = read(data)
    (width, height, fingerprint, quality, tile, flags, box_bytes), position = parse_header(data)
    if complaint := too_large(width, height, tile):
        raise StreamError(f"the bitstream declares {complaint}")
    count = -(-width // tile) * -(-height // tile) if tile else 1
    _require(data, position + 3 * count - 1)  # the least that the table of so many tiles takes
    digests, lengths = [], []
    for tile_number in range(count):
        _require(data, position + _DIGEST.size)
        digests.extend(_DIGEST.unpack_from(data, position))
        position += _DIGEST.size
        if tile_number < count - 1:
            length, position = read_varint(data, position)
            lengths.append(length)
    end = len(data) - _CHECKSUM.size
    lengths.append(end - box_bytes - position - sum(lengths))
    if lengths[-1] < 0:
        raise StreamError(f"truncated bitstream: {len(data)} of at least {len(data) - lengths[-1]} bytes")
    (checksum,) = _CHECKSUM.unpack_from(data, end)
    if checksum != zlib.crc32(data[:end]):
        raise StreamError("corrupt bitstream: the checksum does not match; the file is damaged or incomplete")
    strings = []
    for length in lengths:
        strings.append(data[position : position + length])
        position += length
    return Bitstream(
        width, height, fingerprint, quality, tile, tuple(digests), tuple(strings), bool(flags & _GRAY),
        bool(flags & _STORED), parse_boxes(data, position, end),
    )  # fmt: skip


def parse_boxes(data: bytes, position: int, end: int) -> dict[str, bytes]:
    """Return the contents of the boxes by name. Boxes of unknown types are left out."""
    names, boxes = {number: name for name, number in BOXES.items()}, {}
    while position < end:
        number = data[position]
        length, start = read_varint(data, position + 1)
        position = start + length
        if position > end or names.get(number) in boxes:
            raise StreamError("corrupt bitstream: a box is longer than the file, or there are two of a type")
        if number in names:
            boxes[names[number]] = data[start:position]
    return boxes


def parse_header(data: bytes) -> tuple[Header, int]:
    """Parse the first bytes of a file, :data:`HEADER_SIZE` or more. Returns the header and the position after it.

    Raises:
        StreamError: the data is no bitstream, one of an unsupported version, or truncated.
    """
    if data[:3] != MAGIC:
        found = f"it starts with {data[:4]!r}" if data else "it is empty"
        raise StreamError(f"not a ugicm bitstream: {found}, expected {MAGIC!r}")
    if len(data) < 4:
        raise StreamError(f"truncated bitstream: {len(data)} bytes end inside the header")
    if data[3] not in VERSIONS:
        known = f"this program reads versions {VERSION} and {EXTENDED_VERSION}"
        raise StreamError(f"unsupported version of the bitstream: {data[3]}; {known}")
    width, position = read_varint(data, 7)
    height, position = read_varint(data, position)
    _require(data, position + _QUALITY_AND_TILE.size)
    quality, tile = _QUALITY_AND_TILE.unpack_from(data, position)
    if not width or not height:
        raise StreamError(f"corrupt bitstream: it declares an image of {width}x{height}")
    position += _QUALITY_AND_TILE.size
    flags = box_bytes = 0
    if data[3] == EXTENDED_VERSION:
        _require(data, position + 1)
        flags = data[position]
        box_bytes, position = read_varint(data, position + 1)
        if flags & ~(_GRAY | _STORED) or flags & _STORED and tile:
            raise StreamError(f"corrupt bitstream: flags {flags} with tiles of {tile * Z_STRIDE}")
    return Header(width, height, data[4:7], quality / QUALITY_STEPS, tile * Z_STRIDE, flags, box_bytes), position


def info(source: Source) -> dict[str, Any]:
    """Return the header fields of a bitstream, with its size in bytes and in bits per pixel. Raises StreamError."""
    data = read(source)
    parsed = parse(data)
    return {
        "width": parsed.width, "height": parsed.height, "quality": parsed.quality, "bytes": len(data),
        "bpp": 8 * len(data) / (parsed.width * parsed.height), "version": parsed.version,
        "model": parsed.fingerprint.hex(), "tiles": len(parsed.tiles), "gray": parsed.gray, "stored": parsed.stored,
        "boxes": {name: len(content) for name, content in parsed.boxes.items()},
    }  # fmt: skip


def _require(data: bytes, size: int) -> None:
    if len(data) < size:
        raise StreamError(f"truncated bitstream: {len(data)} bytes end inside the header")


def varint(value: int) -> bytes:
    """Return the LEB128 code of a non-negative integer."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(data: bytes, position: int) -> tuple[int, int]:
    """Return the varint at ``position`` and the position after it. Raises StreamError."""
    value = 0
    for count in range(5):
        _require(data, position + count + 1)
        byte = data[position + count]
        value |= (byte & 0x7F) << 7 * count
        if byte < 0x80:
            return value, position + count + 1
    raise StreamError("corrupt bitstream: a varint of more than 5 bytes")
