#!/usr/bin/env python3
"""Coverage-guided fuzzing of what reads hostile bytes: the file format, guard lists and the entropy decoder.

    pip install atheris                                          # Linux or macOS
    python -m scripts.stress.fuzz_atheris -max_total_time=120              # from seeds of its own
    python -m scripts.stress.fuzz_atheris corpus/ -max_total_time=3600     # keeps what it finds interesting in corpus/
    python -m scripts.stress.fuzz_atheris crash-0123abcd                   # once more what it stopped at

Options are libFuzzer's. pytest does not collect this file. The first byte of an input says what the rest is: a file
as it is; a file that lacks its checksum; or strings for a small model of the compact form or of one that reads guard
lists, behind a true header. Anything but StreamError, or an image or latent of the declared size, ends the run.
"""

from __future__ import annotations

import os
import sys
import tempfile
import zlib
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

try:
    import atheris
except ImportError:
    sys.exit("this needs atheris: pip install atheris")

with atheris.instrument_imports(include=["ugicm.coding", "ugicm.tiling", "ugicm.codec"]):
    from ugicm import bitstream
    from ugicm.codec import Codec

import numpy as np
import torch
from PIL import Image
from small_models import small_model

from ugicm.errors import StreamError

AS_IT_IS, CHECKED, COMPACT, GUARDED = range(4)
LIMIT = 2**15  # pixels, so that an input takes milliseconds
CODECS = {}


def target(data: bytes) -> None:
    """Read one input; raises whatever should not have been raised."""
    if not data:
        return
    what, rest = data[0] % 4, data[1:]
    if what in (AS_IT_IS, CHECKED):
        read_file(rest if what == AS_IT_IS else rest + zlib.crc32(rest).to_bytes(4, "little"))
    else:
        read_string(CODECS[what], rest)


def read_file(data: bytes) -> None:
    try:
        parsed = bitstream.parse(data)
    except StreamError:
        return
    assert 0 < parsed.padded.width * parsed.padded.height <= LIMIT
    assert len(parsed.strings) == len(parsed.digests) == len(parsed.tiles)
    assert parsed.payload_bytes < len(data)
    assert bitstream.parse(parsed.pack()) == parsed
    if parsed.fingerprint == CODECS[COMPACT].model.fingerprint:
        try:
            assert CODECS[COMPACT].decompress(data).size == (parsed.width, parsed.height)
        except StreamError:
            pass


def read_string(codec: Codec, string: bytes) -> None:
    parsed = bitstream.Stream(64, 64, codec.model.fingerprint, 0.5, 0, (0,), (string,))
    try:
        y_hat, _ = codec.model.decompress([string], (64, 64))
        assert y_hat.shape == (1, codec.config.M, 4, 4)
        codec.parse(bitstream.parse(parsed.pack()))
    except StreamError:
        pass


def seeds(folder: Path) -> None:
    """Real inputs of every kind to begin from."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 100, 3), dtype=np.uint8))
    for tile in (0, 64):
        data = CODECS[COMPACT].compress(noise, tile=tile)
        (folder / f"file-{tile}").write_bytes(bytes([AS_IT_IS]) + data)
        (folder / f"checked-{tile}").write_bytes(bytes([CHECKED]) + data[:-4])
    for what in (COMPACT, GUARDED):
        string = bitstream.parse(CODECS[what].compress(noise.crop((0, 0, 64, 64)))).strings[0]
        (folder / f"string-{what}").write_bytes(bytes([what]) + string)
        (folder / f"escapes-{what}").write_bytes(bytes([what, 0]) + b"\xff\xff\xff\x7f" * 750)


def main() -> None:
    torch.set_num_threads(1)
    bitstream.MAX_PIXELS = LIMIT
    CODECS[COMPACT], CODECS[GUARDED] = Codec(small_model()), Codec(small_model("bmshj2018"))
    with tempfile.TemporaryDirectory() as folder:
        arguments = list(sys.argv)
        if not any(os.path.exists(argument) for argument in arguments[1:]):
            seeds(Path(folder))
            arguments.append(folder)
        atheris.Setup([*arguments, "-max_len=8192"], target)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
