"""The file format of a compressed image (``.ugic``).

All integers are little-endian; a *varint* is LEB128 (7 bits a byte, least significant first).

====================  =========  =====================================================================
field                 bytes      meaning
====================  =========  =====================================================================
magic                 3          ``"UGI"``
version               1          format version, now 3
fingerprint           3          of the model that wrote it: what parses, hashed
width, height         1-5 each   of the image, in pixels, varints
quality               2          quality * 65535, rounded; ignored by a one-rate model, which writes one half
tile                  1          side of the tiles in units of 64 pixels; 0: one piece
then for every tile, row by row:
  length              1-5        of its string, varint
  digest              2          low 16 bits of the CRC-32 over its symbols in coding order, as int32
strings               ...        one rANS string a tile: z, then y slice by slice, anchors before the rest
checksum              4          CRC-32 over everything before it
====================  =========  =====================================================================

What is not string is 20 bytes for a small image in one piece and at most 32 for any, and up to 7 for every further
tile. The strings are for the image padded by replication to the right and below, to multiples of 64; the reader
crops. Positions of y whose 16x16 pixels all lie :data:`BEYOND` pixels or more outside the image are not in a string:
y_hat is their mean. Versions 1, with all positions in it, and 2, without any that is outside, are still read.

This module only needs the standard library: reading a header must be quick and safe.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from ugicm.errors import StreamError
from ugicm.tiling import Y_STRIDE, Z_STRIDE, Box, cut

MAGIC = b"UGI"
VERSION = 3
READABLE = (1, 2, 3)
BEYOND = 4  # pixels: how far outside synthesis looks for the color of an image's last pixels, mostly
QUALITY_STEPS = 65535
LARGEST_TILE = 255 * Z_STRIDE  # side, which the header has one byte for
# A decoder allocates in proportion to the padded image, so a declared size is believed only up to here, and a writer
# makes nothing larger. Raise it for larger images: ugicm.bitstream.MAX_PIXELS = ... (None: no limit), as Pillow's
# Image.MAX_IMAGE_PIXELS; on the command line, --max-pixels.
MAX_PIXELS: int | None = 2**26
_CHECKSUM = struct.Struct("<I")
_QUALITY_AND_TILE = struct.Struct("<HB")
_DIGEST = struct.Struct("<H")


@dataclass(frozen=True)
class Stream:
    """A parsed file.

    ``quality`` is what the decoder must use, in steps of 1/65535. ``tile`` is the tiles' side in pixels, 0 for one
    piece. ``strings`` and ``digests`` have one entry a tile, in the order of :attr:`tiles`.
    """

    width: int
    height: int
    fingerprint: bytes
    quality: float
    tile: int
    digests: tuple[int, ...]
    strings: tuple[bytes, ...]
    version: int = VERSION

    @property
    def padded(self) -> Box:
        """The padded image."""
        return padded_box(self.width, self.height)

    @property
    def tiles(self) -> list[Box]:
        """Where each string belongs, in pixels of the padded image."""
        return list(cut(self.padded, self.tile))

    def inside(self, tile: Box) -> tuple[int, int] | None:
        """Rows and columns of y that the tile's string holds; None: all, as always in version 1."""
        if self.version == 1:
            return None
        return inside_of(tile, self.width, self.height, beyond=0 if self.version == 2 else BEYOND)

    @property
    def payload_bytes(self) -> int:
        """Entropy-coded bytes, without header, table and checksum."""
        return sum(map(len, self.strings))

    def pack(self) -> bytes:
        """The bytes of the file. Raises ValueError for a field that does not fit, with its name and range."""
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
        table = b"".join(
            varint(len(string)) + _DIGEST.pack(digest)
            for string, digest in zip(self.strings, self.digests, strict=True)
        )
        body = b"".join((
            MAGIC, bytes([self.version]), self.fingerprint, varint(self.width), varint(self.height),
            _QUALITY_AND_TILE.pack(round(self.quality * QUALITY_STEPS), self.tile // Z_STRIDE), table, *self.strings,
        ))  # fmt: skip
        return body + _CHECKSUM.pack(zlib.crc32(body))


def padded_box(width: int, height: int) -> Box:
    """The smallest box of multiples of 64 that holds the image."""
    return Box(0, 0, width, height).aligned(Z_STRIDE)


def inside_of(box: Box, width: int, height: int, beyond: int = BEYOND) -> tuple[int, int] | None:
    """How many rows and columns of y in a tile see any of the image or of ``beyond`` pixels around it; None where
    all do."""
    rows, columns = (-(-(min(end, size + beyond) - start) // Y_STRIDE) for start, end, size in (
        (box.top, box.bottom, height), (box.left, box.right, width)))  # fmt: skip
    return None if (Y_STRIDE * rows, Y_STRIDE * columns) == (box.height, box.width) else (rows, columns)


def too_large(width: int, height: int) -> str | None:
    """What is wrong with an image of more pixels than ``MAX_PIXELS``, None for a smaller one.

    Padded pixels count: those of an image one pixel high are 64 times its own.
    """
    padded = padded_box(width, height)
    if MAX_PIXELS is None or padded.width * padded.height <= MAX_PIXELS:
        return None
    return (
        f"{width}x{height} pixels, {padded.width}x{padded.height} as coded: more than the limit of {MAX_PIXELS}; if "
        "this is intended raise it, ugicm.bitstream.MAX_PIXELS or --max-pixels"
    )


def quantize_quality(quality: float) -> float:
    """The nearest quality that a header can hold; the writer must code with this one."""
    return round(quality * QUALITY_STEPS) / QUALITY_STEPS


def parse(data: bytes) -> Stream:
    """Bytes of a file -> its fields. Checks everything that can be checked without a model.

    Raises:
        StreamError: says whether the data is foreign, of an unknown version, truncated, or damaged.
    """
    if isinstance(data, int):  # of which bytes() would make so many zeros
        raise TypeError(f"a stream is bytes, got {data!r}")
    data = bytes(data)
    if data[:3] != MAGIC:
        what = "empty" if not data else f"it begins with {data[:4]!r}"
        raise StreamError(f"not a ugicm stream: {what}, expected {MAGIC!r}")
    if len(data) < 4:
        raise StreamError(f"truncated stream: {len(data)} bytes end inside the header")
    if data[3] not in READABLE:
        raise StreamError(
            f"unknown format version {data[3]}; this program reads versions {', '.join(map(str, READABLE))}"
        )
    fingerprint = data[4:7]
    width, position = read_varint(data, 7)
    height, position = read_varint(data, position)
    _require(data, position + _QUALITY_AND_TILE.size)
    quality, tile = _QUALITY_AND_TILE.unpack_from(data, position)
    position += _QUALITY_AND_TILE.size
    if not width or not height:
        raise StreamError(f"damaged stream: it declares an image of {width}x{height}")
    if complaint := too_large(width, height):
        raise StreamError(f"the stream declares {complaint}")
    tile *= Z_STRIDE
    count = -(-width // tile) * -(-height // tile) if tile else 1
    _require(data, position + 3 * count)  # the least that the table of a stream of so many tiles takes
    lengths, digests = [], []
    for _ in range(count):
        length, position = read_varint(data, position)
        _require(data, position + _DIGEST.size)
        lengths.append(length)
        digests.extend(_DIGEST.unpack_from(data, position))
        position += _DIGEST.size
    expected = position + sum(lengths) + _CHECKSUM.size
    if len(data) < expected:
        raise StreamError(f"truncated stream: {len(data)} of {expected} bytes")
    if len(data) > expected:
        raise StreamError(f"damaged stream: {len(data) - expected} bytes after its end")
    (checksum,) = _CHECKSUM.unpack_from(data, expected - _CHECKSUM.size)
    if checksum != zlib.crc32(data[: expected - _CHECKSUM.size]):
        raise StreamError("damaged stream: the checksum does not match")
    strings = []
    for length in lengths:
        strings.append(data[position : position + length])
        position += length
    return Stream(width, height, fingerprint, quality / QUALITY_STEPS, tile, tuple(digests), tuple(strings), data[3])


def _require(data: bytes, size: int) -> None:
    if len(data) < size:
        raise StreamError(f"truncated stream: {len(data)} bytes end inside the header")


def varint(value: int) -> bytes:
    """LEB128 of a number that is not negative."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(data: bytes, position: int) -> tuple[int, int]:
    """The varint at ``position``, and where it ends. Raises StreamError."""
    value = 0
    for count in range(5):
        _require(data, position + count + 1)
        byte = data[position + count]
        value |= (byte & 0x7F) << 7 * count
        if byte < 0x80:
            return value, position + count + 1
    raise StreamError("damaged stream: a length field does not end")
