"""The file format: round trips, limits, and a StreamError that names each fault."""

import io
import zlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ugicm
from ugicm import bitstream
from ugicm.bitstream import Bitstream, parse
from ugicm.tiling import Box

EXAMPLE = Bitstream(768, 512, b"abc", bitstream.quantize_quality(0.5), 0, (0xBEEF,), (b"payload",))
TILED = Bitstream(130, 60, b"abc", 0.0, 64, (1, 2, 3), (b"first", b"second", b"third"))


def with_checksum(body: bytes) -> bytes:
    return body + zlib.crc32(body).to_bytes(4, "little")


@given(
    width=st.integers(1, 2**13),
    height=st.integers(1, 2**13),
    fingerprint=st.binary(min_size=3, max_size=3),
    quality=st.floats(0, 1),
    digest=st.integers(0, 0xFFFF),
    payload=st.binary(max_size=300),
)
def test_pack_and_parse_round_trip(width, height, fingerprint, quality, digest, payload):
    written = Bitstream(width, height, fingerprint, bitstream.quantize_quality(quality), 0, (digest,), (payload,))
    data = written.pack()
    assert parse(data) == written
    assert len(data) - len(payload) <= 20
    assert abs(written.quality - quality) <= 0.5 / 65535 + 1e-12


@given(width=st.integers(1, 500), height=st.integers(1, 500), tile=st.sampled_from([64, 128, 192]))
def test_tiles_cover_the_padded_image_once(width, height, tile):
    count = -(-width // tile) * -(-height // tile)
    strings = tuple(bytes([i % 256]) * (i % 5) for i in range(count))
    written = Bitstream(width, height, b"abc", 0.0, tile, tuple(range(count)), strings)
    assert parse(written.pack()) == written
    assert sum(box.width * box.height for box in written.tiles) == written.padded.width * written.padded.height
    assert all(side % 64 == 0 for box in written.tiles for side in (box.width, box.height))


def test_coded_extent_counts_positions_that_show_the_image():
    padded, tile = bitstream.padded_box(300, 130), Box(256, 128, 320, 192)
    assert bitstream.coded_extent(padded, 300, 130) == (9, 19)  # of 12 x 20
    assert bitstream.coded_extent(padded, 301, 128) == (9, 20)  # the next position influences the last pixels
    assert bitstream.coded_extent(tile, 300, 130) == (1, 3)
    assert bitstream.coded_extent(padded, 320, 177) is None
    assert bitstream.coded_extent(Box(0, 0, 64, 64), 300, 130) is None
    assert Bitstream(301, 128, b"abc", 0.5, 0, (0,), (b"",)).extent(padded) == (9, 20)


def test_too_large_counts_padded_pixels_inclusively(monkeypatch):
    monkeypatch.setattr(bitstream, "MAX_PIXELS", 128 * 64)
    assert bitstream.too_large(65, 1) is None and bitstream.too_large(128, 64) is None
    assert bitstream.too_large(129, 1) is not None and bitstream.too_large(1, 129) is not None


def test_large_images_need_tiles():
    """A photograph of 200 megapixels is accepted in tiles, so that memory is bounded."""
    assert bitstream.too_large(16320, 12288) is None and bitstream.too_large(16320, 12288, 1024) is None
    for tile in (0, 16320):
        complaint = bitstream.too_large(16320, 12288, tile)
        assert "more than the limit of 67108864 for one tile; to accept it, use --max-pixels 0" in complaint
    assert bitstream.too_large(8192, 8192, 0) is None and bitstream.too_large(100, 100, 16320) is None
    assert "use --max-pixels 269484032 or set" in bitstream.too_large(16400, 16384, 1024)
    tiny = Bitstream(16320, 12288, b"abc", 0.0, 1024, (0,) * 192, (b"",) * 192)
    assert parse(tiny.pack()) == tiny
    with pytest.raises(ugicm.StreamError, match="for one tile"):
        parse(Bitstream(16320, 12288, b"abc", 0.5, 0, (0,), (b"",)).pack())


def test_box_meets_only_if_pixels_overlap():
    box = Box(64, 64, 128, 128)
    assert box.meets(Box(127, 127, 200, 200)) and box.meets(Box(0, 0, 65, 65))
    for other in (Box(128, 64, 192, 128), Box(0, 64, 64, 128), Box(64, 128, 128, 192), Box(64, 0, 128, 64)):
        assert not box.meets(other)


@pytest.mark.parametrize(("side", "size"), [(127, 18), (16383, 20), (2**21, 24), (2**32 - 1, 26)])
def test_size_of_header_and_checksum(side, size):
    string = bytes(1000)
    assert len(Bitstream(side, side, b"abc", 1.0, 0, (0xFFFF,), (string,)).pack()) == size + len(string)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not a ugicm bitstream: it is empty"),
        (b"\x89PNG\r\n\x1a\n", "not a ugicm bitstream"),
        (b"UGI", "truncated"),
        (b"UGI\x04abc", "truncated"),
        (b"UGI\x01" + EXAMPLE.pack()[4:], "unsupported version of the bitstream: 1"),
        (
            b"UGI\x03" + EXAMPLE.pack()[4:],
            "bitstream: 3; this program reads versions 4 and 5",
        ),
        (EXAMPLE.pack()[:18], "truncated bitstream: 18 of at least 20 bytes"),
        (EXAMPLE.pack()[:-1], "corrupt bitstream: the checksum does not match; the file is damaged or incomplete"),
        (EXAMPLE.pack() + b"x", "corrupt bitstream: the checksum does not match; the file is damaged or incomplete"),
        (EXAMPLE.pack().replace(b"payload", b"pAyload"), "checksum"),
        (TILED.pack()[:-9], "truncated bitstream: 32 of at least 36 bytes"),
        (with_checksum(b"UGI\x04abc" + b"\x80" * 9 + bytes(30)), "a varint of more than 5 bytes"),
        (with_checksum(b"UGI\x04abc\x00\x05" + bytes(9)), "0x5"),
        (with_checksum(b"UGI\x04abc" + b"\x81\x80\x80\x80\x80\x00" + bytes(30)), "a varint of more than 5 bytes"),
    ],
)
def test_parse_names_each_fault(data, says):
    with pytest.raises(ugicm.StreamError, match=says):
        parse(data)


BOXED = replace(EXAMPLE, gray=True, boxes={"alpha": b"alpha", "xmp": b"", "exif": bytes(200)})


def test_layout_of_an_extended_file():
    written = replace(TILED, boxes={"exif": b"II*", "alpha": b"a"})
    header = b"UGI\x05" + b"abc" + b"\x82\x01" + b"\x3c" + b"\0\0" + b"\x01" + b"\0" + b"\x08"
    body = header + b"\1\0\5" + b"\2\0\6" + b"\3\0" + b"firstsecondthird" + b"\2\3II*" + b"\1\1a"
    assert written.pack() == with_checksum(body) and parse(written.pack()) == written


def test_extended_files_round_trip():
    for change in ({}, {"boxes": {}}, {"gray": False}, {"stored": True}):
        written = replace(BOXED, **change)
        assert parse(written.pack()) == written and written.pack()[3] == written.version == 5
    plain = replace(BOXED, gray=False, boxes={})
    assert plain.version == 4 and plain.pack() == EXAMPLE.pack()
    fields = bitstream.info(BOXED.pack())
    assert fields["boxes"] == {"alpha": 5, "xmp": 0, "exif": 200} and fields["gray"] and fields["version"] == 5
    longest = Bitstream(2**32 - 1, 2**32 - 1, b"abc", 0.5, 0, (0,), (b"",), boxes={"xmp": bytes(2**21)})
    header, end = bitstream.parse_header(longest.pack()[: bitstream.HEADER_SIZE])
    assert header.width == 2**32 - 1 and end <= bitstream.HEADER_SIZE


def extended(boxes: bytes, flags: int = 0, tile: int = 0, declared: int | None = None) -> bytes:
    length = bitstream.varint(len(boxes) if declared is None else declared)
    return with_checksum(b"UGI\x05abc\x05\x05\0\0" + bytes([tile, flags]) + length + bytes(2) + b"string" + boxes)


def test_boxes_of_unknown_types_are_left_out():
    assert parse(extended(b"\x07\x02no\x03\x03yes")).boxes == {"xmp": b"yes"}


@pytest.mark.parametrize(("data", "says"), [
    (extended(b"\x01\x05no"), "a box is longer than the file"),
    (extended(b"\x01\xff\xff\xff\xff\x7f"), "a box is longer than the file"),
    (extended(b"\x01\x01a\x01\x01b"), "two of a type"),
    (extended(b"\x01"), "box is longer|ends inside|bytes end"),
    (extended(b"", declared=2**32), "truncated bitstream"),
    (extended(b"", flags=4), "flags 4"),
    (extended(b"", flags=2, tile=1), "flags 2 with tiles of 64"),
    (extended(b"")[:14], "truncated"),
])  # fmt: skip
def test_parse_names_faults_of_extended_files(data, says):
    with pytest.raises(ugicm.StreamError, match=says):
        parse(data)


@given(boxes=st.binary(max_size=40), flags=st.integers(0, 255), declared=st.integers(0, 50))
def test_parse_of_extended_files_raises_only_stream_errors(boxes, flags, declared):
    try:
        parsed = parse(extended(boxes, flags, declared=declared))
    except ugicm.StreamError:
        return
    assert sum(map(len, parsed.boxes.values())) <= len(boxes)


def test_parse_reads_paths_and_files(tmp_path):
    path = tmp_path / "x.ugic"
    path.write_bytes(EXAMPLE.pack())
    for source in (path, str(path), io.BytesIO(EXAMPLE.pack()), bytearray(EXAMPLE.pack()), memoryview(EXAMPLE.pack())):
        assert parse(source) == EXAMPLE
    with path.open("rb") as file:
        assert parse(file) == EXAMPLE
    with pytest.raises(ugicm.StreamError, match="gone.ugic: cannot be read: No such file or directory"):
        parse(tmp_path / "gone.ugic")
    for wrong in (5, None, io.StringIO("UGI"), [1, 2]):
        with pytest.raises(TypeError, match="^a bitstream must be bytes, a path or a file open for reading bytes, got"):
            parse(wrong)


@pytest.mark.parametrize(("change", "says"), [
    ({"digests": (65536,)}, "digest is 65536, must be from 0 to 65535"),
    ({"width": 0}, "width is 0, must be from 1 to 4294967295"),
    ({"height": 2**32}, "height is 4294967296, must be from 1 to"),
    ({"quality": 1.1}, "quality is 1.1, must be from 0 to 1"),
    ({"tile": 100}, "tile modulo 64 is 36, must be from 0 to 0"),
    ({"tile": 256 * 64}, "tile is 16384, must be from 0 to 16320"),
    ({"fingerprint": b"ab"}, "fingerprint length is 2, must be from 3 to 3"),
    ({"strings": (b"", b"")}, "number of strings is 2, must be from 1 to 1"),
])  # fmt: skip
def test_pack_names_a_field_out_of_range(change, says):
    with pytest.raises(ValueError, match=f"^{says}"):
        replace(EXAMPLE, **change).pack()


@given(data=st.binary(max_size=60), prefix=st.sampled_from([b"", b"UGI", b"UGI\x04"]))
def test_parse_raises_only_stream_errors(data, prefix):
    for candidate in (prefix + data, with_checksum(prefix + data)):
        try:
            parse(candidate)
        except ugicm.StreamError:
            pass


def test_layout_of_a_tiled_file():
    body = b"UGI\x04" + b"abc" + b"\x82\x01" + b"\x3c" + b"\0\0" + b"\x01" + b"\1\0\5" + b"\2\0\6" + b"\3\0"
    assert TILED.pack() == with_checksum(body + b"firstsecondthird")
    assert parse(TILED.pack()) == TILED


@given(position=st.integers(0, len(EXAMPLE.pack()) - 1), bit=st.integers(0, 7))
def test_parse_detects_any_flipped_bit(position, bit):
    data = bytearray(EXAMPLE.pack())
    data[position] ^= 1 << bit
    with pytest.raises(ugicm.StreamError):
        parse(bytes(data))
