"""Mutated bitstreams: a Hypothesis strategy for fuzzing the decoder."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from itertools import zip_longest
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from hypothesis import strategies as st

from ugicm import bitstream, images
from ugicm.bitstream import varint
from ugicm.codec import Codec
from ugicm.entropy import coders
from ugicm.entropy.ans import ESCAPE_BYTES, SymbolDecoder, SymbolEncoder, Tables
from ugicm.errors import StreamError
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
    digests: list[bytes]
    lengths: list[bytes]  # of all strings but the last
    strings: list[bytes]

    @classmethod
    def of(cls, body: bytes) -> Fields:
        parsed = bitstream.parse(with_checksum(body))
        size = varint(parsed.width) + varint(parsed.height)
        digests = [digest.to_bytes(2, "little") for digest in parsed.digests]
        tile = bytes([parsed.tile // Z_STRIDE])
        fields = cls(body[:7], size, body[7 + len(size) :][:2], tile, digests, [], list(parsed.strings))
        fields.measure()
        return fields

    def measure(self) -> None:
        """Set the lengths to those of the strings."""
        self.lengths = [varint(len(string)) for string in self.strings[:-1]]

    def join(self) -> bytes:
        table = (part for entry in zip_longest(self.digests, self.lengths, fillvalue=b"") for part in entry)
        return b"".join((self.head, self.size, self.quality, self.tile, *table, *self.strings))


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
    fields = Fields.of(other)
    return replace(Fields.of(body), digests=fields.digests, lengths=fields.lengths, strings=fields.strings).join()


def change_length(draw: Draw, body: bytes, _: Sequence[bytes]) -> bytes:
    """Change a length, or insert one for the last string, which has none."""
    fields = Fields.of(body)
    i = draw(st.integers(0, len(fields.lengths)))
    length = len(fields.strings[i])
    wrong = [varint(n) for n in (0, 1, max(length - 1, 0), length + 1, 2 * length, 2**31 - 1, 2**31, 2**32, 2**35 - 1)]
    overlong = [b"\x80" * 5, b"\xff" * 11, varint(length)[:-1] + bytes([varint(length)[-1] | 0x80, 0])]
    fields.lengths[i:] = [draw(st.sampled_from(wrong + overlong)), *fields.lengths[i + 1 :]]
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
        fields.digests, fields.lengths = draw(st.permutations(fields.digests)), draw(st.permutations(fields.lengths))
    elif what == "fewer":
        fields.digests.pop()
    elif what == "more":
        fields.digests.append(draw(st.sampled_from(fields.digests)))
    else:
        count = draw(st.sampled_from((1, 4, 100)))
        fields.size, fields.tile = 2 * varint(draw(st.sampled_from((100, 200, 500)))), b"\x01"
        fields.digests, fields.lengths, fields.strings = [bytes(2)] * count, [bytes(1)] * (count - 1), []
    return fields.join()


def replace_strings(draw: Draw, body: bytes, others: Sequence[bytes]) -> bytes:
    """Change strings under a header with the correct lengths, so that they reach the entropy decoder."""
    fields = Fields.of(body)
    for i in draw(st.sets(st.integers(0, len(fields.strings) - 1), min_size=1, max_size=4)):
        string = fields.strings[i]
        begin = string[: draw(st.integers(0, len(string)))]
        other = draw(st.sampled_from(Fields.of(draw(st.sampled_from(others))).strings))
        made = (begin, other, begin + garbage(draw), garbage(draw), string + garbage(draw), garbage(draw) + string)
        fields.strings[i] = draw(st.sampled_from(made))
    fields.measure()
    return fields.join()


def change_boxes(draw: Draw, body: bytes, others: Sequence[bytes]) -> bytes:
    """Put garbage into boxes after the strings, and set flags."""
    names = draw(st.sets(st.sampled_from(sorted(bitstream.BOXES))))
    boxes = {name: garbage(draw) for name in sorted(names)}
    parsed = replace(bitstream.parse(with_checksum(body)), gray=draw(st.booleans()), boxes=boxes)
    extended = replace(parsed, stored=not parsed.tile and draw(st.booleans())).pack()[:-4]
    return change_header(draw, extended, others) if draw(st.booleans()) else extended


def garbage(draw: Draw) -> bytes:
    """Return random bytes, or a pattern: zeros, ones, the longest escapes and guard lists, words of ones and zeros."""
    size = draw(st.sampled_from((1, 3, 8, 50, 1000, 8000, 40000, 300000)))
    pattern = draw(st.sampled_from((None, b"\0", b"\x01", b"\xff", b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff\0\0\0\0")))
    if pattern is None:
        return random.Random(draw(st.integers(0, 2**32))).randbytes(size)
    return (pattern * size)[:size]


MUTATIONS = (change_bytes, change_header, truncate, extend, splice, change_length, change_size, change_tiles,
             replace_strings)  # fmt: skip


EXTENDED_MUTATIONS = (*MUTATIONS, change_boxes)  # for readers of version 5


class Mutant(NamedTuple):
    """A mutated bitstream. With ``forge``, it is to be replaced by :func:`forged`, which takes the model."""

    kind: str
    data: bytes
    forge: bool
    preference: float


@st.composite
def mutants(draw: Draw, corpus: Sequence[bytes], mutations: Sequence[Callable] = MUTATIONS) -> Mutant:
    """Strategy for mutants of the bitstreams in ``corpus``."""
    mutate = draw(st.sampled_from(mutations))
    original = draw(st.sampled_from(corpus))
    body = mutate(draw, original[:-4], [data[:-4] for data in corpus])
    checksum = draw(st.sampled_from(3 * ("repaired",) + ("forged",) + 3 * ("kept",) + ("missing",)))
    data = with_checksum(body) if checksum in ("repaired", "forged") else body + original[-4:] * (checksum == "kept")
    return Mutant(mutate.__name__, data, checksum == "forged", draw(st.sampled_from((0.0, 1.0))))


def with_checksum(body: bytes) -> bytes:
    return body + zlib.crc32(body).to_bytes(4, "little")


# Valid bitstreams with the symbols of invalid ones


class _Recoder(SymbolDecoder):
    """Decodes any bytes, and encodes the symbols that it finds. Escapes that do not end stand for the largest ones."""

    def __init__(self, string: bytes):
        super().__init__(string.lstrip(b"\0"))
        self.size, self.encoder = len(string), SymbolEncoder()

    def decode(self, rows: np.ndarray, tables: Tables) -> np.ndarray:
        symbols = super().decode(rows, tables)
        self.encoder.encode(symbols, rows, tables)
        return symbols

    def _decode_excess(self, count: int) -> np.ndarray:
        try:
            return super()._decode_excess(count)
        except StreamError:
            return np.full(count, 2 ** (7 * ESCAPE_BYTES) - 1, dtype=np.int32)

    def finish(self) -> None:
        pass


def forged(codec: Codec, data: bytes) -> bytes:
    """Return a valid bitstream of the symbols that any other decodes to, however it ends. Raises StreamError."""
    parsed = bitstream.parse(data)
    if parsed.fingerprint != codec.model.fingerprint:
        raise StreamError("the bitstream was written by another model")
    recoders: list[_Recoder] = []

    def recoder(string: bytes) -> _Recoder:
        recoders.append(_Recoder(string))
        return recoders[-1]

    with mock.patch.object(coders, "SymbolDecoder", recoder), torch.inference_mode():
        for string, box in zip(parsed.strings, parsed.tiles):
            codec.model.entropy_decode([string], (box.height, box.width), parsed.extent(box))
    guard_lists = [string[: len(string) - made.size] for string, made in zip(parsed.strings, recoders)]
    strings = tuple(guards + made.encoder.flush() for guards, made in zip(guard_lists, recoders))
    return replace(parsed, strings=strings, digests=tuple(made.encoder.digest for made in recoders)).pack()
