"""Coverage-guided fuzzing of the file format, the guard lists and the entropy decoder.

    pip install atheris                                                        # Linux or macOS
    python -m scripts.stress.fuzz_atheris -max_total_time=120                  # from seeds of its own
    python -m scripts.stress.fuzz_atheris corpus/ -max_total_time=3600         # keep interesting inputs in corpus/
    python -m scripts.stress.fuzz_atheris crash-0123abcd                       # reproduce a crash

Options are those of libFuzzer. The first byte of an input selects how the rest is used: as a file, as a file without
its checksum, or as a string behind a valid header, for a small compact model or a small model with guard lists.
Anything but a StreamError, or an image or latent of the declared size, ends the run.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

try:
    import atheris
except ImportError:
    sys.exit("this needs atheris: pip install atheris")

with atheris.instrument_imports(include=["ugicm.bitstream", "ugicm.entropy", "ugicm.tiling", "ugicm.codec"]):
    from ugicm import bitstream
    from ugicm.codec import Codec

from scripts.stress.mutants import forged, with_checksum
from tests.small_models import small_model
from ugicm.errors import StreamError

FILE, FILE_WITHOUT_CHECKSUM, COMPACT, GUARDED = range(4)
MAX_PIXELS = 2**15  # of an image, so that an input takes milliseconds
CODECS: dict[int, Codec] = {}


def test_input(data: bytes) -> None:
    """Decode one input. Raises any exception that is not a StreamError."""
    if not data:
        return
    kind, rest = data[0] % 4, data[1:]
    try:
        if kind in (COMPACT, GUARDED):
            decode_string(CODECS[kind], rest)
        else:
            decode_file(rest if kind == FILE else with_checksum(rest))
    except StreamError:
        pass


def decode_file(data: bytes) -> None:
    parsed = bitstream.parse(data)
    assert 0 < parsed.padded.width * parsed.padded.height <= MAX_PIXELS
    assert len(parsed.strings) == len(parsed.digests) == len(parsed.tiles)
    assert parsed.payload_bytes < len(data)
    assert bitstream.parse(parsed.pack()) == parsed
    if parsed.fingerprint == CODECS[COMPACT].model.fingerprint:
        assert CODECS[COMPACT].decompress(data).size == (parsed.width, parsed.height)


def decode_string(codec: Codec, string: bytes) -> None:
    data = forged(codec, bitstream.Bitstream(64, 64, codec.model.fingerprint, 0.5, 0, (0,), (string,)).pack())
    y_hat = codec.entropy_decode(bitstream.parse(data))
    assert y_hat.shape == (1, codec.config.M, 4, 4)
    assert codec.decompress(data).size == (64, 64)
    codec.model.entropy_decode([string], (64, 64))


def write_seeds(folder: Path) -> None:
    """Write valid inputs of every kind."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 100, 3), dtype=np.uint8))
    for tile in (0, 64):
        data = CODECS[COMPACT].compress(noise, tile=tile)
        (folder / f"file-{tile}").write_bytes(bytes([FILE]) + data)
        (folder / f"body-{tile}").write_bytes(bytes([FILE_WITHOUT_CHECKSUM]) + data[:-4])
    for kind in (COMPACT, GUARDED):
        string = bitstream.parse(CODECS[kind].compress(noise.crop((0, 0, 64, 64)))).strings[0]
        (folder / f"string-{kind}").write_bytes(bytes([kind]) + string)
        (folder / f"escapes-{kind}").write_bytes(bytes([kind, 0]) + b"\xff\xff\xff\x7f" * 750)


def main() -> None:
    torch.set_num_threads(1)
    bitstream.MAX_PIXELS = MAX_PIXELS
    CODECS[COMPACT], CODECS[GUARDED] = Codec(small_model()), Codec(small_model("bmshj2018"))
    with tempfile.TemporaryDirectory() as folder:
        arguments = list(sys.argv)
        if not any(os.path.exists(argument) for argument in arguments[1:]):
            write_seeds(Path(folder))
            arguments.append(folder)
        atheris.Setup([*arguments, "-max_len=8192"], test_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
