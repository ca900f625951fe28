"""Mutated bitstreams: a Hypothesis strategy for fuzzing the decoder."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any, NamedTuple

from hypothesis import strategies as st

from ugicm import bitstream, images
from ugicm.bitstream import varint
from ugicm.codec import Codec
from ugicm.tiling import Z_STRIDE

SIZES = ((64, 64), (96, 70), (128, 128), (192, 128))
Draw = Callable[[st.SearchStrategy], Any]


def valid_bitstreams(codec: Codec) -> list[bytes]:
    """Return bitstreams of crops of the packaged samples, of several sizes and qualities, with and without tiles."""
    found, qualities = [], (0.1, 0.5, 0.9) if codec.has_quality else (0.5,)
    for i, name in enumerate(sorted(p.name for p in (resources.files("ugicm") / "samples").iterdir())):
        with resources.as_file(resources.files("ugicm") / "samples" / name) as path:
            image = images.open_rgb(path)
        for j, (width, height) in enumerate(SIZES):
            left, top = 100 + 40 * i, 90 + 60 * j
            crop = image.crop((left, top, left + width, top + height))
            found.append(codec.compress(crop, qualities[(i + j) % len(qualities)], tile=64 * (j % 2)))
    return found


@dataclass
class Fields:
    """The fields of a bitstream as bytes, which need not agree with each other."""

    head: bytes
    size: bytes
    quality: bytes
    tile: bytes
    table: list[bytes]
    strings: list[bytes]

    @classmethod
    def of(cls, body: bytes) -> Fields:
        parsed = bitstream.parse(with_checksum(body))
        size = varint(parsed.width) + varint(parsed.height)
        table = [varint(len(s)) + d.to_bytes(2, "little") for s, d in zip(parsed.strings, parsed.digests)]
        tile = bytes([parsed.tile // Z_STRIDE])
        return cls(body[:7], size, body[7 + len(size) :][:2], tile, table, list(parsed.strings))

    def join(self) -> bytes:
        return b"".join((self.head, self.size, self.quality, self.tile, *self.table, *self.strings))


# Mutations: (draw, bitstream without checksum, others) -> bytes


def change_bytes(draw: Draw, body: bytes, _: Sequence[bytes], end: int | None = None) -> bytes:
    changed = bytearray(body)
    rng = random.Random(draw(st.integers(0, 2**32)))  # uniform positions: Hypothesis prefers small integers
    for position in rng.choices(range(end or len(body)), k=draw(st.integers(1, 8))):
        changed[position] = draw(st.integers(0, 255)) if draw(st.booleans()) else body[position] ^ 1 << rng.randrange(8)
    return bytes(changed)


def change_header(draw: Draw, body: bytes, others: Sequence[bytes]) -> bytes:
    return change_bytes(draw, body, others, end=24)


def truncate(draw: Draw, body: bytes, _: Sequence[bytes]) -> bytes:
    return body[: draw(st.integers(0, len(body) - 1))]


def extend(draw: Draw, body: bytes, _: Sequence[bytes]) -> bytes:
    return body + garbage(draw)


def splice(draw: Draw, body: bytes, others: Sequence[bytes]) -> bytes:
    other = draw(st.sampled_from(others))
    if draw(st.booleans()):
        return body[: draw(st.integers(0, len(body)))] + other[draw(st.integers(0, len(other))) :]
    return replace(Fields.of(body), table=Fields.of(other).table, strings=Fields.of(other).strings).join()


def change_length(draw: Draw, body: bytes, _: Sequence[bytes]) -> bytes:
    fields = Fields.of(body)
    i = draw(st.integers(0, len(fields.table) - 1))
    length = len(fields.strings[i])
    wrong = [varint(n) for n in (0, 1, length - 1, length + 1, 2 * length, 2**31 - 1, 2**31, 2**32, 2**35 - 1)]
    overlong = [b"\x80" * 5, b"\xff" * 11, varint(length)[:-1] + bytes([varint(length)[-1] | 0x80, 0])]
    fields.table[i] = draw(st.sampled_from(wrong + overlong)) + fields.table[i][-2:]
    return fields.join()


def change_size(draw: Draw, body: bytes, _: Sequence[bytes]) -> bytes:
    fields = Fields.of(body)
    side = st.integers(0, 300) | st.sampled_from((1, 2**12, 2**16, 2**18, 2**26, 2**31, 2**32 - 1, 2**35 - 1))
    fields.size = varint(draw(side)) + varint(draw(side))
    fields.tile = draw(st.sampled_from((fields.tile, b"\x00", b"\x01", b"\xff")))
    return fields.join()


def change_tiles(draw: Draw, body: bytes, _: Sequence[bytes]) -> bytes:
    fields = Fields.of(body)
    what = draw(st.sampled_from(("side", "order", "fewer", "more", "empty")))
    if what == "side":
        fields.tile = draw(st.sampled_from((b"\x00", b"\x01", b"\x02", b"\xff")))
    elif what == "order":
        fields.table = draw(st.permutations(fields.table))
    elif what == "fewer":
        fields.table.pop()
    elif what == "more":
        fields.table.append(draw(st.sampled_from(fields.table)))
    else:
        fields.size, fields.tile = 2 * varint(draw(st.sampled_from((100, 200, 500)))), b"\x01"
        fields.table, fields.strings = [bytes(3)] * draw(st.sampled_from((1, 4, 100))), []
    return fields.join()


def replace_strings(draw: Draw, body: bytes, others: Sequence[bytes]) -> bytes:
    """Change strings under a header with the correct lengths, so that they reach the entropy decoder."""
    fields = Fields.of(body)
    for i in draw(st.sets(st.integers(0, len(fields.strings) - 1), min_size=1, max_size=4)):
        string = fields.strings[i]
        begin = string[: draw(st.integers(0, len(string)))]
        other = draw(st.sampled_from(Fields.of(draw(st.sampled_from(others))).strings))
        string = draw(st.sampled_from((begin, other, begin + garbage(draw), garbage(draw), string + garbage(draw))))
        fields.strings[i], fields.table[i] = string, varint(len(string)) + fields.table[i][-2:]
    return fields.join()


def garbage(draw: Draw) -> bytes:
    """Return random bytes, or a pattern: zeros, ones, the smallest initial rANS state, escapes."""
    size = draw(st.sampled_from((1, 3, 8, 50, 1000, 8000, 40000)))
    pattern = draw(st.sampled_from((None, b"\0", b"\xff", b"\0\0\0\x80\0\0\0\0", b"\xff\xff\xff\x7f")))
    if pattern is None:
        return random.Random(draw(st.integers(0, 2**32))).randbytes(size)
    return (pattern * size)[:size]


MUTATIONS = (change_bytes, change_header, truncate, extend, splice, change_length, change_size, change_tiles,
             replace_strings)  # fmt: skip


class Mutant(NamedTuple):
    """A mutated bitstream. With ``forge``, its digests are to be corrected, which takes the model."""

    kind: str
    data: bytes
    forge: bool
    preference: float


@st.composite
def mutants(draw: Draw, corpus: Sequence[bytes]) -> Mutant:
    """Strategy for mutants of the bitstreams in ``corpus``."""
    mutate = draw(st.sampled_from(MUTATIONS))
    original = draw(st.sampled_from(corpus))
    body = mutate(draw, original[:-4], [data[:-4] for data in corpus])
    checksum = draw(st.sampled_from(3 * ("repaired",) + ("forged",) + 3 * ("kept",) + ("missing",)))
    data = with_checksum(body) if checksum in ("repaired", "forged") else body + original[-4:] * (checksum == "kept")
    return Mutant(mutate.__name__, data, checksum == "forged", draw(st.sampled_from((0.0, 1.0))))


def with_checksum(body: bytes) -> bytes:
    return body + zlib.crc32(body).to_bytes(4, "little")
