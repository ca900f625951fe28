"""The file format of a compressed picture (``.ugic``).

All integers are little-endian; a *varint* is LEB128 (7 bits a byte, least significant first).

====================  =========  =====================================================================
field                 bytes      meaning
====================  =========  =====================================================================
magic                 3          ``"UGI"``
version               1          format version, now 1
fingerprint           3          of the model that wrote it: what parses, hashed
width, height         1-5 each   of the picture, in pixels, varints
quality               2          quality * 65535, rounded; ignored by a one-rate model, which writes one half
symbol digest         2          low 16 bits of the CRC-32 over all symbols in coding order, as int32
payload length        1-5        varint
payload               ...        one rANS string: z, then y slice by slice, anchors before the rest
checksum              4          CRC-32 over everything before it
====================  =========  =====================================================================

The header (everything but the payload) is 17 bytes for a small picture and never more than 30. The payload is for the
picture padded by replication to the right and below, to multiples of 64; the reader crops.

This module only needs the standard library: reading a header must be quick and safe.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from ugicm.errors import StreamError

MAGIC = b"UGI"
VERSION = 1
QUALITY_STEPS = 65535
# A decoder allocates in proportion to the declared size, so the size is believed only up to here. Raise it for
# larger pictures: ugicm.coding.stream.MAX_PIXELS = ...
MAX_PIXELS = 2**28
_CHECKSUM = struct.Struct("<I")
_FIXED = struct.Struct("<HH")


@dataclass(frozen=True)
class Stream:
    """A parsed file. ``quality`` is what the decoder must use, quantised to steps of 1/65535."""

    width: int
    height: int
    fingerprint: bytes
    quality: float
    digest: int
    payload: bytes
    version: int = VERSION

    def pack(self) -> bytes:
        """The bytes of the file. Raises ValueError for a field that does not fit, with its name and range."""
        for name, value, low, high in (
            ("width", self.width, 1, 2**32 - 1),
            ("height", self.height, 1, 2**32 - 1),
            ("quality", self.quality, 0, 1),
            ("digest", self.digest, 0, 0xFFFF),
            ("fingerprint length", len(self.fingerprint), 3, 3),
        ):
            if not low <= value <= high:
                raise ValueError(f"{name} is {value}, must be from {low} to {high}")
        body = b"".join((
            MAGIC, bytes([self.version]), self.fingerprint, _varint(self.width), _varint(self.height),
            _FIXED.pack(round(self.quality * QUALITY_STEPS), self.digest), _varint(len(self.payload)), self.payload,
        ))  # fmt: skip
        return body + _CHECKSUM.pack(zlib.crc32(body))


def quantise_quality(quality: float) -> float:
    """The nearest quality that a header can hold; the writer must code with this one."""
    return round(quality * QUALITY_STEPS) / QUALITY_STEPS


def parse(data: bytes) -> Stream:
    """Bytes of a file -> its fields. Checks everything that can be checked without a model.

    Raises:
        StreamError: says whether the data is foreign, of an unknown version, truncated, or damaged.
    """
    data = bytes(data)
    if data[:3] != MAGIC:
        what = "empty" if not data else f"it begins with {data[:4]!r}"
        raise StreamError(f"not a ugicm stream: {what}, expected {MAGIC!r}")
    if len(data) < 4:
        raise StreamError(f"truncated stream: {len(data)} bytes end inside the header")
    if data[3] != VERSION:
        raise StreamError(f"unknown format version {data[3]}; this program reads version {VERSION}")
    fingerprint = data[4:7]
    width, position = _read_varint(data, 7)
    height, position = _read_varint(data, position)
    if len(data) < position + _FIXED.size:
        raise StreamError(f"truncated stream: {len(data)} bytes end inside the header")
    quality, digest = _FIXED.unpack_from(data, position)
    length, start = _read_varint(data, position + _FIXED.size)
    expected = start + length + _CHECKSUM.size
    if len(data) < expected:
        raise StreamError(f"truncated stream: {len(data)} of {expected} bytes")
    if len(data) > expected:
        raise StreamError(f"damaged stream: {len(data) - expected} bytes after its end")
    (checksum,) = _CHECKSUM.unpack_from(data, expected - _CHECKSUM.size)
    if checksum != zlib.crc32(data[: expected - _CHECKSUM.size]):
        raise StreamError("damaged stream: the checksum does not match")
    if not width or not height:
        raise StreamError(f"damaged stream: it declares a picture of {width}x{height}")
    if width * height > MAX_PIXELS:
        raise StreamError(
            f"the stream declares {width}x{height} pixels, more than the limit of {MAX_PIXELS}; "
            "raise ugicm.coding.stream.MAX_PIXELS if this is intended"
        )
    return Stream(width, height, fingerprint, quality / QUALITY_STEPS, digest, data[start : start + length])


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for count in range(5):
        if position + count >= len(data):
            raise StreamError(f"truncated stream: {len(data)} bytes end inside the header")
        byte = data[position + count]
        value |= (byte & 0x7F) << 7 * count
        if byte < 0x80:
            return value, position + count + 1
    raise StreamError("damaged stream: a length field does not end")
