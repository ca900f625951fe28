"""Writers of PNG and TIFF files with fields that Pillow does not write."""

import struct
import zlib

import numpy as np

_TYPES = {"H": 3, "I": 4, "Q": 5}  # TIFF field types by letter of struct; Q: a rational in units of 1/10000


def png_chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(rows, bits, color, before=(), after=()):
    """Return a PNG file of packed ``rows`` (bytes) with chunks ``(kind, content)`` before and after the pixels."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    width = len(rows[0]) * 8 // (bits * channels)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, len(rows), bits, color, 0, 0, 0)), *before, (b"IDAT", pixels),
              *after, (b"IEND", b"")]  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def gray_png(level=100, **chunks):
    """Return a gray RGB image of 8x8 pixels of one level."""
    return png([bytes([level] * 24)] * 8, 8, 2, **chunks)


def tiff(*pages, order="<"):
    """Return a TIFF file. A page is (list of planes, {tag: (letter, *values)}); planes are arrays of one data type."""
    data, link = bytearray(struct.pack(order + "2sHI", b"II" if order == "<" else b"MM", 42, 8)), 4
    for planes, extra in pages:
        height, width = planes[0].shape[:2]
        samples = len(planes) if len(planes) > 1 else (planes[0].shape[2] if planes[0].ndim == 3 else 1)
        offsets = []
        for plane in planes:
            offsets.append(len(data))
            data += plane.astype(plane.dtype.newbyteorder(order)).tobytes()
        tags = {
            256: ("I", width), 257: ("I", height), 258: ("H", *[8 * planes[0].itemsize] * samples), 259: ("H", 1),
            262: ("H", 2 if samples > 2 else 1), 273: ("I", *offsets), 277: ("H", samples), 278: ("I", height),
            279: ("I", *[plane.nbytes for plane in planes]), 284: ("H", 2 if len(planes) > 1 else 1),
            339: ("H", *[{"u": 1, "i": 2, "f": 3}[planes[0].dtype.kind]] * samples), **extra,
        }  # fmt: skip
        table = b""
        for tag, (letter, *values) in sorted(tags.items()):
            if letter == "Q":
                content = struct.pack(
                    f"{order}{2 * len(values)}I", *(n for v in values for n in (round(v * 1e4), 10000))
                )
            else:
                content = struct.pack(f"{order}{len(values)}{letter}", *values)
            if len(content) > 4:
                data += content
                content = struct.pack(order + "I", len(data) - len(content))
            table += struct.pack(order + "HHI", tag, _TYPES[letter], len(values)) + content.ljust(4, b"\0")
        struct.pack_into(order + "I", data, link, len(data))
        data += struct.pack(order + "H", len(tags)) + table
        link = len(data)
        data += bytes(4)
    return bytes(data)


def ramp(width=20, height=12):
    """Return values that grow from 0 to 1."""
    return np.linspace(0, 1, width * height).reshape(height, width)
