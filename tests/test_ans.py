"""The entropy coder: round trips, hostile strings, and a coder in plain Python written from docs/bitstream.md."""

import copy
import pickle
from itertools import product

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from plain_decoder import PlainDecoder

from ugicm.entropy.ans import SYMBOL_LIMIT, SymbolDecoder, SymbolEncoder, Tables
from ugicm.errors import StreamError

# The tables and the calls of the example in docs/bitstream.md.
CDFS = [[0, 10000, 50000, 65000, 65536], [0, 30000, 65535, 65536, 0]]
LENGTHS, OFFSETS = [5, 4], [-1, 0]
CALLS = [([0, 1, -1, 0, 5], [0, 1, 0, 1, 0]), ([0, 0, -300, 1], [0, 0, 1, 1])]
STRING, DIGEST = bytes.fromhex("01f076f0ed5dfe6f"), 0xDD31


def tables_of(cdfs, lengths, offsets):
    width = max(map(len, cdfs))
    return Tables(np.array([cdf + [0] * (width - len(cdf)) for cdf in cdfs]), np.array(lengths), np.array(offsets))


def encode(calls, tables):
    encoder = SymbolEncoder()
    for symbols, rows in calls:
        encoder.encode(np.array(symbols, dtype=np.int32), np.array(rows, dtype=np.int64), tables)
    return encoder.flush(), encoder.digest


def decode(string, calls_rows, tables):
    decoder = SymbolDecoder(string)
    symbols = [decoder.decode(np.array(rows, dtype=np.int64), tables).tolist() for rows in calls_rows]
    decoder.finish()
    return symbols, decoder.digest


def plain_encode(steps):
    """Encode indexes as docs/bitstream.md describes it."""
    state, words = 0, b""
    for i, cdf in reversed(steps):
        f = 256 * (cdf[i + 1] - cdf[i])
        if state // 2**40 >= f:
            words = (state % 2**32).to_bytes(4, "big") + words
            state //= 2**32
        state = state // f * 2**24 + state % f + 256 * cdf[i]
    return (state.to_bytes(8, "big") + words).lstrip(b"\0")[:-1]


@st.composite
def coded(draw):
    """Tables (CDFs, lengths, offsets) and calls (symbols, rows)."""
    cdfs, offsets = [], []
    for _ in range(draw(st.integers(1, 4))):
        inner = draw(st.sets(st.integers(1, 65535), min_size=1, max_size=20))
        cdfs.append([0, *sorted(inner), 65536])
        offsets.append(draw(st.integers(-12, 3)))
    limit = SYMBOL_LIMIT - 1
    symbol = st.integers(-15, 15) | st.integers(-limit, limit) | st.sampled_from([limit, -limit])
    calls = []
    for _ in range(draw(st.integers(0, 3))):
        symbols = draw(st.lists(symbol, max_size=30))
        rows = draw(st.lists(st.integers(0, len(cdfs) - 1), min_size=len(symbols), max_size=len(symbols)))
        calls.append((symbols, rows))
    return (cdfs, [len(cdf) for cdf in cdfs], offsets), calls


@given(case=coded())
def test_round_trip_and_a_decoder_from_the_page(case):
    parts, calls = case
    string, digest = encode(calls, tables_of(*parts))
    wanted = [symbols for symbols, _ in calls]
    assert decode(string, [rows for _, rows in calls], tables_of(*parts)) == (wanted, digest)
    plain = PlainDecoder(string, *parts)
    assert [plain.call(rows) for _, rows in calls] == wanted
    assert plain.is_used_up() and plain.crc & 0xFFFF == digest
    assert plain_encode(plain.steps) == string


def test_known_string():
    string, digest = encode(CALLS, tables_of(CDFS, LENGTHS, OFFSETS))
    assert (string, digest) == (STRING, DIGEST)
    plain = PlainDecoder(STRING, CDFS, LENGTHS, OFFSETS)
    assert [plain.call(rows) for _, rows in CALLS] == [symbols for symbols, _ in CALLS] and plain.is_used_up()
    page = (ROOT / "docs" / "bitstream.md").read_text()
    assert f"`{STRING.hex()}`" in page and f"the digest {DIGEST:X}" in page


def test_size_is_that_of_the_information():
    generator = np.random.default_rng(0)
    tables = tables_of(CDFS, LENGTHS, OFFSETS)
    symbols = generator.choice([-1, 0, 1], 20_000, p=np.diff(CDFS[0])[:3] / 65000)
    bits = -np.log2(np.diff(CDFS[0]) / 2**16)[symbols + 1].sum()
    string, _ = encode([(symbols, np.zeros_like(symbols))], tables)
    assert bits / 8 <= len(string) <= bits / 8 + 3


def test_no_symbols_make_an_empty_string():
    tables = tables_of(CDFS, LENGTHS, OFFSETS)
    assert encode([], tables) == (b"", 0) and encode([([], [])], tables) == (b"", 0)
    assert decode(b"", [[]], tables) == ([[]], 0)


def test_every_short_string_decodes_to_what_encodes_to_it_or_is_rejected():
    tables, rows = tables_of(CDFS, LENGTHS, OFFSETS), [0, 1, 1]
    accepted = 0
    for string in (bytes(pair) for n in range(3) for pair in product(range(256), repeat=n)):
        try:
            (symbols,), digest = decode(string, [rows], tables)
        except StreamError:
            continue
        accepted += 1
        assert encode([(symbols, rows)], tables) == (string, digest)
    assert accepted == 7


@given(string=st.binary(max_size=40), rows=st.lists(st.integers(0, 1), max_size=40))
def test_any_bytes_decode_or_are_rejected(string, rows):
    try:
        (symbols,), _ = decode(string, [rows], tables_of(CDFS, LENGTHS, OFFSETS))
    except StreamError:
        return
    assert len(symbols) == len(rows) and all(abs(symbol) < 2**28 for symbol in symbols)


@pytest.mark.parametrize(("string", "says"), [
    (b"\0" + STRING, "starts with a zero byte"),
    (STRING[:-1], "does not end with its last symbol"),
    (STRING + b"\0\0\0\0", "does not end with its last symbol"),
    (b"\xff" * 40, "an escape of more than 4 bytes"),
])  # fmt: skip
def test_faults_are_named(string, says):
    with pytest.raises(StreamError, match=f"^corrupt bitstream: .*{says}"):
        decode(string, [rows for _, rows in CALLS], tables_of(CDFS, LENGTHS, OFFSETS))


def test_tables_can_be_copied_after_use():
    tables = tables_of(CDFS, LENGTHS, OFFSETS)
    encode(CALLS, tables)
    for other in (copy.deepcopy(tables), pickle.loads(pickle.dumps(tables))):
        assert encode(CALLS, other)[0] == STRING
