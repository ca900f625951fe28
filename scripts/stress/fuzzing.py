"""Hostile streams by the hundred thousand: real ones, mutated, each of which must end in StreamError or in an image.

A mutant follows from the corpus, the seed and its number alone. Some get a repaired checksum, so that what lies behind
it is reached, and some of these get the digests that their symbols have, as an attacker with the model can make them,
so that garbage reaches the synthesis too. Mutants are decoded by another process, whose death is a finding and not
the end of the run. A *finding* is whatever is neither a StreamError nor an image of the declared size, or takes more
time or memory than :data:`SECONDS` and :data:`MEMORY` grant to the padded image.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.benchmark.memory import memory, reset_peak
from ugicm import atomic, bitstream
from ugicm.errors import StreamError
from ugicm.tiling import Z_STRIDE

if TYPE_CHECKING:
    from ugicm.codec import Codec

SECONDS = (1.0, 20e-6)  # of processor time: granted to any stream, and to every pixel of its padded image
MEMORY = (64 * 2**20, 400)  # bytes likewise
LIMIT = 2**18  # the limit on pixels during the run, so that claims that are believed remain quick to refute
HANG = 120  # seconds of silence after which the decoding process is taken for hung
ADDRESS_SPACE = 6 * 2**30  # bytes that the decoding process may take beyond its model, lest it take the machine down
INFO_EVERY = 50  # every so many mutants, ``ugicm info`` looks at one as well
SIZES = ((64, 64), (96, 70), (128, 128), (192, 128))

_REFUSALS = {
    "not a ugicm stream": "foreign", "unknown format version": "version", "truncated": "truncated",
    "more than the limit": "too large", "checksum": "checksum", "another model": "model", "digest": "digest",
}  # fmt: skip


def corpus(codec: Codec) -> list[bytes]:
    """Real streams of small cuts from the packaged samples: several sizes and qualities, in one piece and in tiles."""
    from ugicm import images

    found = []
    for i, sample in enumerate(sorted(p.name for p in (resources.files("ugicm") / "samples").iterdir())):
        with resources.as_file(resources.files("ugicm") / "samples" / sample) as path:
            image = images.open_rgb(path)
        for j, (width, height) in enumerate(SIZES):
            left, top = 100 + 40 * i, 90 + 60 * j
            cut = image.crop((left, top, left + width, top + height))
            found.append(codec.compress(cut, (0.1, 0.5, 0.9)[(i + j) % 3], tile=64 * (j % 2)))
    return found


# Mutations: (generator, stream, corpus) -> bytes that end in four of checksum, right or wrong


@dataclass
class _Pieces:
    """A stream taken apart into bytes that need not agree with each other any more."""

    head: bytes
    width: bytes
    height: bytes
    quality: bytes
    tile: bytes
    table: list[bytes]
    strings: list[bytes]
    checksum: bytes

    @classmethod
    def of(cls, data: bytes) -> _Pieces:
        parsed = bitstream.parse(data)
        table = [bitstream.varint(len(s)) + d.to_bytes(2, "little") for s, d in zip(parsed.strings, parsed.digests)]
        width, height = bitstream.varint(parsed.width), bitstream.varint(parsed.height)
        quality = data[7 + len(width) + len(height) :][:2]
        tile = bytes([parsed.tile // Z_STRIDE])
        return cls(data[:7], width, height, quality, tile, table, list(parsed.strings), data[-4:])

    def join(self) -> bytes:
        parts = (self.head, self.width, self.height, self.quality, self.tile, *self.table, *self.strings)
        return b"".join(parts) + self.checksum


def _flip_bits(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _change_bytes(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        changed[rng.randrange(len(changed))] = rng.choice((0, 255, 0x7F, 0x80, rng.randrange(256)))
    return bytes(changed)


def _change_header(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2))):
        changed[rng.randrange(min(24, len(changed)))] = rng.choice((0, 255, 0x80, rng.randrange(256)))
    return bytes(changed)


def _truncate(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    return data[: rng.randrange(len(data))]


def _extend(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    extra = _garbage(rng, rng.choice((1, 4, 100, 5000)))
    return data + extra if rng.random() < 0.5 else data[:-4] + extra + data[-4:]


def _splice(rng: random.Random, data: bytes, known: Sequence[bytes]) -> bytes:
    other = rng.choice(known)
    if rng.random() < 0.5:
        return data[: rng.randrange(len(data))] + other[rng.randrange(len(other)) :]
    first, second = _Pieces.of(data), _Pieces.of(other)  # one's header over another's strings, lengths in order
    first.table, first.strings = second.table, second.strings
    return first.join()


def _lie_about_lengths(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    pieces = _Pieces.of(data)
    i = rng.randrange(len(pieces.table))
    length = len(pieces.strings[i])
    lie = rng.choice((
        bitstream.varint(rng.choice((0, 1, length - 1, length + 1, 2 * length, 2**31 - 1, 2**31, 2**32, 2**35 - 1))),
        b"\x80" * rng.randrange(1, 12), b"\xff" * rng.randrange(1, 12), bitstream.varint(length)[:-1] + b"\x80\x00",
    ))  # fmt: skip
    pieces.table[i] = lie + pieces.table[i][-2:]
    return pieces.join()


def _claim_a_huge_image(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    pieces = _Pieces.of(data)
    sides = (1, 2**16, 2**18, 2**24, 2**26, 2**31 - 1, 2**31, 2**32 - 1, 2**35 - 1)
    pieces.width, pieces.height = bitstream.varint(rng.choice(sides)), bitstream.varint(rng.choice(sides))
    pieces.tile = bytes([rng.choice((0, 1, 16, 255))])
    return pieces.join()


def _claim_another_size(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    pieces = _Pieces.of(data)
    side = rng.choice((65, 129, 300))
    pieces.width, pieces.height = bitstream.varint(rng.randrange(side)), bitstream.varint(rng.randrange(side))
    if rng.random() < 0.1:
        pieces.width, pieces.height = bitstream.varint(rng.randrange(1, LIMIT // 64)), bitstream.varint(1)
    return pieces.join()


def _lie_about_tiles(rng: random.Random, data: bytes, known: Sequence[bytes]) -> bytes:
    pieces = _Pieces.of(data)
    what = rng.randrange(4)
    if what == 0:
        pieces.tile = bytes([rng.choice((0, 1, 2, 3, 255))])
    elif what == 1:  # in another order
        order = rng.sample(range(len(pieces.table)), len(pieces.table))
        pieces.table = [pieces.table[i] for i in order]
        if rng.random() < 0.5:
            pieces.strings = [pieces.strings[i] for i in order]
    elif what == 2:  # one entry more or fewer
        if rng.random() < 0.5:
            pieces.table.pop()
        else:
            pieces.table.append(rng.choice(pieces.table))
    else:  # small tiles for a table that is all zeros
        pieces.tile, pieces.table = b"\x01", [bytes(3)] * rng.choice((1, 4, 100))
        pieces.width = pieces.height = bitstream.varint(rng.choice((100, 200, 500)))
        pieces.strings = []
    return pieces.join()


def _replace_strings(rng: random.Random, data: bytes, known: Sequence[bytes]) -> bytes:
    """The header tells the truth about strings that no writer wrote: all of this reaches the entropy decoder."""
    pieces = _Pieces.of(data)
    for i in {rng.randrange(len(pieces.strings)) for _ in range(rng.choice((1, 4)))}:
        string = pieces.strings[i]
        what = rng.randrange(6)
        if what == 0:
            string = _garbage(rng, rng.choice((0, 1, 3, 8, 50, 1000, 8000, 40000)))
        elif what == 1:
            string = string[: rng.randrange(len(string) + 1)]
        elif what == 2:
            string += _garbage(rng, rng.choice((1, 4, 300, 10000)))
        elif what == 3:
            string = rng.choice(_Pieces.of(rng.choice(known)).strings)
        elif what == 4:  # a true beginning, then garbage
            string = string[: rng.randrange(len(string) + 1)] + _garbage(rng, rng.choice((8, 300, 10000)))
        else:
            string = _flip_bits(rng, string, known) if string else b"\xff"
        pieces.strings[i] = string
        pieces.table[i] = bitstream.varint(len(string)) + pieces.table[i][-2:]
    return pieces.join()


def _garbage(rng: random.Random, size: int) -> bytes:
    pattern = rng.choice((None, b"\x00", b"\xff", b"\x0f\0\0\0", b"\xff\xff\xff\x7f"))
    return rng.randbytes(size) if pattern is None else (pattern * size)[:size]


# Kind of mutation -> how, and how often a mutant gets a repaired checksum: rarely where the payload is not the point.
MUTATIONS: dict[str, tuple[Callable[[random.Random, bytes, Sequence[bytes]], bytes], float]] = {
    "bits flipped": (_flip_bits, 0.3),
    "bytes changed": (_change_bytes, 0.3),
    "header bytes changed": (_change_header, 0.7),
    "truncated": (_truncate, 0.5),
    "extended": (_extend, 0.5),
    "spliced": (_splice, 0.5),
    "lengths lie": (_lie_about_lengths, 0.7),
    "huge image claimed": (_claim_a_huge_image, 0.7),
    "another size claimed": (_claim_another_size, 0.4),
    "tile table lies": (_lie_about_tiles, 0.5),
    "strings replaced": (_replace_strings, 0.5),
}
FORGED = 0.1  # share of the repaired ones whose digests are made to fit


@dataclass(frozen=True)
class Mutant:
    """One hostile stream. ``forge``: its digests are to be made right as well, which takes the model."""

    kind: str
    repaired: bool
    forge: bool
    data: bytes


def mutant(known: Sequence[bytes], seed: int, number: int) -> Mutant:
    """The mutant of that number: the same bytes on every machine."""
    rng = random.Random(f"{seed} {number}")
    kind = rng.choice(list(MUTATIONS))
    mutate, repair = MUTATIONS[kind]
    data = mutate(rng, rng.choice(known), known)
    repaired = rng.random() < repair
    if repaired and len(data) > 4:
        data = with_checksum(data[:-4])
    return Mutant(kind, repaired, repaired and rng.random() < FORGED, data)


def with_checksum(body: bytes) -> bytes:
    """A file with the checksum that a reader expects."""
    return body + zlib.crc32(body).to_bytes(4, "little")


def forged(codec: Codec, data: bytes) -> bytes:
    """The stream with the digests that its symbols have: only what comes after parsing can still refuse it.

    Raises StreamError for a stream that is refused earlier.
    """
    import torch

    parsed = bitstream.parse(data)
    if parsed.fingerprint != codec.model.fingerprint:
        raise StreamError("the stream was written by another model")
    with torch.inference_mode():
        digests = [
            codec.model.decompress([string], (box.height, box.width), parsed.inside(box))[1][0]
            for string, box in zip(parsed.strings, parsed.tiles)
        ]
    return replace(parsed, digests=tuple(digests)).pack()


def attempt(codec: Codec, data: bytes, preference: float = 0.0) -> tuple[str, str]:
    """Decode. Returns the outcome and details: "image", the reason of a StreamError, or "finding: ..."."""
    try:
        parsed = bitstream.parse(data)
        image = codec.decompress(data, preference)
        if image.size != (parsed.width, parsed.height) or len(image.tobytes()) != 3 * parsed.width * parsed.height:
            return "finding: wrong image", f"{image.mode} {image.size}, declared {parsed.width}x{parsed.height}"
        return "image", ""
    except StreamError as error:
        return next((f"refused: {name}" for text, name in _REFUSALS.items() if text in str(error)),
                    "refused: damaged"), str(error)  # fmt: skip
    except Exception as error:  # whatever it is, it is what the run is looking for
        return f"finding: {type(error).__name__}", str(error)


def padded_pixels(data: bytes) -> int:
    """Pixels of the padded image that a reader which believes the header has to do with; 0 if it does not."""
    try:
        padded = bitstream.parse(data).padded
    except StreamError:
        return 0
    return padded.width * padded.height


# The process that decodes


def work(text: str) -> None:
    """Decode the mutants of a task given as JSON; one JSON list a line says how each ended."""
    import torch

    from ugicm.codec import load

    task = json.loads(text)
    torch.set_num_threads(1)
    known = [base64.b64decode(data) for data in task["corpus"]]
    codec = load(task["checkpoint"])
    for data in known:  # so that no mutant pays for what happens once
        codec.decompress(data, 1.0)
    _limit_address_space()
    print(json.dumps(["ready"]), flush=True)
    if "claims" in task:
        for side in task["claims"]:
            for full in (False, True):
                print(json.dumps(["claim", claim(codec, side, full)]), flush=True)
        return
    bitstream.MAX_PIXELS = LIMIT
    with tempfile.TemporaryDirectory() as folder:
        for number in range(task["first"], task["last"]):
            subject = mutant(known, task["seed"], number)
            record = _observe(codec, subject, number)
            if number % INFO_EVERY == 0 and not record[2].startswith("finding"):
                complaint = _info(Path(folder) / "x.ugic", subject.data)
                if complaint:
                    record[2:4] = ["finding: ugicm info", complaint]
            print(json.dumps(record), flush=True)


def _observe(codec: Codec, subject: Mutant, number: int) -> list[Any]:
    data, how = subject.data, subject.kind
    pixels = padded_pixels(data)
    reset_peak()
    before, start = memory("VmRSS"), time.process_time()
    if subject.forge and pixels:
        try:
            data = forged(codec, data)
        except StreamError:
            pass
        except Exception as error:
            return [number, how, f"finding: {type(error).__name__}", str(error), 0, 0, pixels]
    outcome, details = attempt(codec, data, preference=float(number % 2))
    seconds, grown = time.process_time() - start, memory("VmHWM") - before
    if seconds > SECONDS[0] + SECONDS[1] * pixels:
        outcome, details = "finding: slow", f"{seconds:.2f} s for {pixels} pixels; {outcome}: {details}"
    elif grown > MEMORY[0] + MEMORY[1] * pixels:
        outcome, details = "finding: memory", f"{grown} bytes for {pixels} pixels; {outcome}: {details}"
    return [number, how, outcome, details[:300], round(seconds, 4), grown, pixels]


def _info(path: Path, data: bytes) -> str:
    """What is wrong with what ``ugicm info`` does about the stream; empty if nothing is."""
    from ugicm.commands import main as cli

    path.write_bytes(data)
    expected = 0 if padded_pixels(data) else 1
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            status = cli.main(["info", str(path)])
        except BaseException as error:
            return f"{type(error).__name__}: {error}"
    if status != expected or bool(out.getvalue()) == bool(err.getvalue()):
        return f"exit status {status}, expected {expected}"
    return ""


def claim(codec: Codec, side: int, full: bool = False) -> dict[str, Any]:
    """The cost of believing a stream that claims ``side`` x ``side`` pixels in one piece, its digest forged.

    Its string is the shortest that is believed, or with ``full`` the longest, and all escapes. Returns its bytes,
    processor seconds and peak bytes of parsing and synthesis above what was there before.
    """
    from ugicm.entropy import rans

    config, cells = codec.config, (side // Z_STRIDE) ** 2
    words = rans.LONGEST * cells * (16 * config.M + config.N) // 4 if full else 2
    unpacked = bitstream.Stream(side, side, codec.model.fingerprint, 0.5, 0, (0,), (b"\xff\xff\xff\x7f" * words,))
    data = forged(codec, unpacked.pack())
    del unpacked
    reset_peak()
    before, start = memory("VmRSS"), time.process_time()
    outcome, _ = attempt(codec, data)
    seconds, grown = time.process_time() - start, memory("VmHWM") - before
    return {"side": side, "bytes": len(data), "outcome": outcome, "seconds": round(seconds, 3), "memory_bytes": grown,
            "memory_bytes_per_pixel": round(grown / side**2, 1)}  # fmt: skip


def _limit_address_space() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (memory("VmSize") + ADDRESS_SPACE,) * 2)


# The process that watches


@dataclass
class Tally:
    """How a run went: for every kind of mutation how often it ended how, the extremes, and the findings."""

    counts: dict[str, Counter] = field(default_factory=dict)
    slowest: dict[str, Any] = field(default_factory=lambda: {"seconds": 0.0})
    largest: dict[str, Any] = field(default_factory=lambda: {"memory_bytes": 0})
    findings: list[dict[str, Any]] = field(default_factory=list)

    @property
    def done(self) -> int:
        return sum(sum(counter.values()) for counter in self.counts.values())

    @property
    def outcomes(self) -> Counter:
        """Over all kinds."""
        return sum(self.counts.values(), Counter())

    def add(self, record: Sequence[Any]) -> None:
        number, kind, outcome, details, seconds, grown, pixels = record
        self.counts.setdefault(kind, Counter())[outcome] += 1
        about = {"number": number, "kind": kind, "outcome": outcome, "padded_pixels": pixels}
        if seconds > self.slowest["seconds"]:
            self.slowest = {"seconds": seconds, **about}
        if grown > self.largest["memory_bytes"]:
            self.largest = {"memory_bytes": grown, **about}
        if outcome.startswith("finding"):
            self.findings.append({**about, "details": details})

    def as_json(self) -> dict[str, Any]:
        return {
            "streams": self.done,
            "findings": self.findings,
            "outcomes": dict(sorted(self.outcomes.items())),
            "by_kind": {kind: dict(sorted(counter.items())) for kind, counter in sorted(self.counts.items())},
            "slowest": self.slowest,
            "most_memory": self.largest,
        }


def run(
    checkpoint: str | None,
    known: Sequence[bytes],
    seed: int,
    count: int,
    folder: Path,
    block: int = 20000,
    minutes: float | None = None,
    progress: Callable[[Tally], None] = lambda tally: None,
) -> tuple[Tally, str]:
    """Decode ``count`` mutants, ``block`` of them in one process; streams of findings are saved in ``folder``.

    Returns the tally, and why the run ended early ("interrupted", "out of time"; empty if it did not).
    """
    tally, first, end = Tally(), 0, None if minutes is None else time.monotonic() + 60 * minutes
    try:
        while first < count:
            last = min(count, first + block)
            for record in _decoded(checkpoint, known, seed, first, last):
                tally.add(record)
                first = record[0] + 1
                if record[2].startswith("finding"):
                    _save(folder, record, known, seed)
                progress(tally)
                if end is not None and time.monotonic() > end:
                    return tally, "out of time"
    except KeyboardInterrupt:
        return tally, "interrupted"
    return tally, ""


def measure_claims(checkpoint: str | None, known: Sequence[bytes], sides: Sequence[int]) -> list[dict[str, Any]]:
    """:func:`claim` for every side, in a process of its own. Raises RuntimeError if it fails."""
    task = {"checkpoint": checkpoint, "corpus": _packed(known), "claims": list(sides)}
    return [record[1] for record in _lines(task) if record[0] == "claim"] if sides else []


def _packed(known: Sequence[bytes]) -> list[str]:
    return [base64.b64encode(data).decode() for data in known]


def _save(folder: Path, record: Sequence[Any], known: Sequence[bytes], seed: int) -> None:
    name = f"{seed}-{record[0]} {record[2].removeprefix('finding: ')}.ugic".replace(" ", "-")
    atomic.write(folder / name, mutant(known, seed, record[0]).data)


def _decoded(checkpoint: str | None, known: Sequence[bytes], seed: int, first: int, last: int) -> Iterator[list]:
    """Records of the mutants ``first ... last - 1``; ends early, with a finding, where one ends the process."""
    task = {
        "checkpoint": checkpoint, "corpus": _packed(known), "seed": seed, "first": first, "last": last,
    }  # fmt: skip
    number = first
    try:
        for record in _lines(task):
            if record[0] != "ready":
                yield record
                number += 1
    except RuntimeError as error:
        yield [number, mutant(known, seed, number).kind, f"finding: {error.args[0]}", error.args[1], 0, 0, 0]


def _lines(task: dict[str, Any]) -> Iterator[list]:
    """What :func:`work` says about a task, in a process of its own.

    Raises RuntimeError(what, its last words) where it dies, hangs or fails; also where it never got ready.
    """
    program = "import sys; from scripts.stress.fuzzing import work; work(sys.stdin.read())"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    with tempfile.TemporaryFile() as words:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-X", "faulthandler", "-c", program], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=words, env=environment, start_new_session=True,
        )  # fmt: skip
        ready, hung = False, False
        try:
            process.stdin.write(json.dumps(task).encode())
            process.stdin.close()
            for line in _timed(process):
                if line is None:
                    hung = True
                    break
                record = json.loads(line)
                ready = ready or record == ["ready"]
                yield record
        finally:
            process.kill()
            process.wait()
        if process.returncode == 0:
            return
        words.seek(0)
        last = words.read().decode(errors="replace").strip()[-2000:]
    if not ready and not hung:
        raise OSError(f"the decoding process did not start: {last}")
    died = signal.Signals(-process.returncode).name if process.returncode < 0 else f"exit status {process.returncode}"
    raise RuntimeError("hang" if hung else f"crash, {died}", last)


def _timed(process: subprocess.Popen) -> Iterator[bytes | None]:
    """Lines that a process writes, until it closes its output; None where it was silent for too long."""
    pending = b""
    while True:
        if not select.select([process.stdout], [], [], HANG)[0]:
            yield None
            return
        data = os.read(process.stdout.fileno(), 1 << 16)
        if not data:
            process.wait()
            return
        *lines, pending = (pending + data).split(b"\n")
        yield from lines
