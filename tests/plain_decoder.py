"""A decoder written from docs/bitstream.md: strings in plain Python, files of compact models up to ŷ in NumPy.

It shares no code with the package.
"""

import zlib
from dataclasses import dataclass, field

import numpy as np


class PlainDecoder:
    """Strings as docs/bitstream.md describes them, one symbol at a time."""

    def __init__(self, string, cdfs, lengths, offsets):
        self.use(cdfs, lengths, offsets)
        number = string + b"\0" if string else b""
        self.bytes = bytes(-len(number) % 4) + number
        self.position = self.state = self.crc = 0
        self.steps = []  # (index, CDF) of everything that was decoded

    def use(self, cdfs, lengths, offsets):
        """Set the tables of the following calls."""
        self.cdfs = [cdf[:length] for cdf, length in zip(cdfs, lengths)]
        self.offsets = offsets

    def refill(self):
        while self.state < 2**32 and self.position < len(self.bytes):
            word = int.from_bytes(self.bytes[self.position : self.position + 4], "big")
            self.state = self.state * 2**32 + word
            self.position += 4

    def index(self, cdf):
        self.refill()
        remainder = self.state % 2**24
        i = 0
        while cdf[i + 1] * 256 <= remainder:
            i += 1
        self.state = self.state // 2**24 * (cdf[i + 1] - cdf[i]) * 256 + remainder - cdf[i] * 256
        self.steps.append((i, cdf))
        return i

    def call(self, rows):
        symbols, escaped = [0] * len(rows), []
        for row in sorted(set(rows)):
            for position in [p for p, r in enumerate(rows) if r == row]:
                i = self.index(self.cdfs[row])
                symbols[position] = self.offsets[row] + i
                if i == len(self.cdfs[row]) - 2:
                    escaped.append(position)
        excess, pending, shift = dict.fromkeys(escaped, 0), escaped, 0
        while pending:
            values = [self.index(range(0, 2**16 + 1, 256)) for _ in pending]
            for position, value in zip(pending, values):
                excess[position] += value % 128 << shift
            pending = [position for position, value in zip(pending, values) if value >= 128]
            shift += 7
        for position, e in excess.items():
            if e % 2 == 0:
                symbols[position] += e // 2
            else:
                symbols[position] = self.offsets[rows[position]] - 1 - e // 2
        for symbol in symbols:
            self.crc = zlib.crc32(symbol.to_bytes(4, "little", signed=True), self.crc)
        return symbols

    def is_used_up(self):
        return self.state == 0 and self.position == len(self.bytes)


@dataclass
class PlainFile:
    """The header of a file, and its parts."""

    fingerprint: bytes
    width: int
    height: int
    quality: float
    side: int  # of the tiles in pixels; 0: one tile
    digests: list
    strings: list
    flags: int = 0
    boxes: dict = field(default_factory=dict)  # contents by type

    def tiles(self):
        """Yield (top, left, bottom, right) of every tile."""
        padded_width, padded_height = (-(-side // 64) * 64 for side in (self.width, self.height))
        side = self.side or max(padded_width, padded_height)
        for top in range(0, padded_height, side):
            for left in range(0, padded_width, side):
                yield top, left, min(top + side, padded_height), min(left + side, padded_width)


def read_file(data):
    """Parse a file."""
    assert data[:4] in (b"UGI\x04", b"UGI\x05") and zlib.crc32(data[:-4]) == int.from_bytes(data[-4:], "little")
    position = 7

    def integer(size):
        nonlocal position
        position += size
        return int.from_bytes(data[position - size : position], "little")

    def varint():
        value, shift = 0, 0
        while True:
            byte = integer(1)
            value += byte % 128 << shift
            shift += 7
            if byte < 128:
                return value

    width, height = varint(), varint()
    file = PlainFile(data[4:7], width, height, integer(2) / 65535, 64 * integer(1), [], [])
    box_bytes = 0
    if data[3] == 5:
        file.flags, box_bytes = integer(1), varint()
    count, lengths = len(list(file.tiles())), []
    for number in range(count):
        file.digests.append(integer(2))
        if number < count - 1:
            lengths.append(varint())
    for length in lengths:
        file.strings.append(data[position : position + length])
        position += length
    end = len(data) - 4 - box_bytes
    file.strings.append(data[position:end])
    position = end
    while position < len(data) - 4:
        kind, length = integer(1), varint()
        file.boxes[kind] = data[position : position + length]
        position += length
    assert position == len(data) - 4
    return file


class PlainModel:
    """Entropy decoding of the compact model, from the tensors of its checkpoint.

    Args:
        tensors: arrays by name.
        config: the configuration in the checkpoint's metadata.
    """

    def __init__(self, tensors, config):
        self.tensors = {name.removeprefix("entropy_model."): np.asarray(t) for name, t in tensors.items()}
        self.widths, self.levels = config["slice_widths"], config["scale_levels"]

    def tables(self, prior):
        return [self.tensors[f"{prior}.{name}"].tolist() for name in ("_quantized_cdf", "_cdf_length", "_offset")]

    def integer_layer(self, name, x, high=127):
        w, b = (self.tensors[f"{name}.{part}"].astype(np.float64) for part in ("weight", "bias"))
        a = np.frexp(np.abs(w).max(axis=1))[1]
        s = np.clip(7 - a, 0, 16)
        weight = np.clip(np.round(w * 2.0 ** s[:, None]), -127, 127).astype(np.int64)
        bias = np.round(b * 16 * 2.0**s).astype(np.int64) + 2**s // 2
        total = np.tensordot(weight, x, axes=1) + bias[:, None, None]
        return np.clip(total >> s[:, None, None], 0, high)

    def hyper_context(self, z):
        h = np.clip(4 * z, -127, 127)
        for conv, up in (("h_s.conv1", "h_s.up1"), ("h_s.conv2", "h_s.up2")):
            h = pixel_shuffle(self.integer_layer(up, self.integer_layer(conv, neighborhood(h))))
        return h

    def rows(self, k, h, residuals):
        if k:
            levels = []
            for r in residuals:
                a = np.minimum(np.abs(r), 8)
                t = neighborhood(a).reshape(9, *a.shape).sum(axis=0)
                levels += [8 * a, 4 * np.minimum(t, 31)]
            h = np.concatenate([h, self.integer_layer(f"indexes.channel.{k}", np.concatenate(levels))])
        layers = sum(name.startswith(f"indexes.networks.{k}.") for name in self.tensors) // 2
        for n in range(layers):
            h = self.integer_layer(f"indexes.networks.{k}.{n}", h, self.levels - 1 if n == layers - 1 else 127)
        return h

    def decode(self, data):
        """Yield (tile, hyper context, residuals of every slice) for every tile of a file."""
        file = read_file(data)
        z_tables, y_tables = self.tables("bottleneck"), self.tables("gaussian")
        for (top, left, bottom, right), string, digest in zip(file.tiles(), file.strings, file.digests, strict=True):
            plain = PlainDecoder(string, *z_tables)
            channels, height, width = len(z_tables[1]), (bottom - top) // 64, (right - left) // 64
            rows = np.repeat(np.arange(channels), height * width)
            h = self.hyper_context(np.array(plain.call(rows.tolist())).reshape(channels, height, width))
            plain.use(*y_tables)
            rows = -(-(min(bottom, file.height + 4) - top) // 16)
            columns = -(-(min(right, file.width + 4) - left) // 16)
            inside = np.zeros(h.shape[1:], dtype=bool)
            inside[:rows, :columns] = True
            residuals = []
            for k in range(len(self.widths)):
                rows = self.rows(k, h, residuals)
                coded = inside & (rows > 0)
                r = np.zeros(rows.shape, dtype=np.int64)
                r[coded] = plain.call(rows[coded].tolist())
                residuals.append(r)
            assert plain.is_used_up() and plain.crc & 0xFFFF == digest
            yield (top, left, bottom, right), h, residuals

    def y_hat(self, h, residuals):
        """Return the latents of a tile, [M, H/16, W/16]."""
        done, hyper = [], h / 16
        anchor = np.indices(h.shape[1:]).sum(axis=0) % 2 == 1
        for k, r in enumerate(residuals):
            past = [hyper]
            if k:
                weight, bias = self.convolution(f"slices.channel.{k}.0")
                taps = neighborhood(np.concatenate(done))
                weight = weight.transpose(0, 2, 3, 1).reshape(len(weight), -1)
                past.insert(0, leaky_relu(np.tensordot(weight, taps, axes=1) + bias))
            y = np.where(anchor, self.network(f"slices.anchor_params.{k}", past) + r, 0)
            near = self.pointwise(f"slices.local.{k}.0", opposite_neighbors(y))
            mean = self.network(f"slices.non_anchor_params.{k}", [leaky_relu(near), *past])
            done.append(np.where(anchor, y, mean + r))
        return np.concatenate(done)

    def convolution(self, name):
        weight, bias = (self.tensors[f"{name}.{part}"].astype(np.float64) for part in ("weight", "bias"))
        return weight, bias[:, None, None]

    def pointwise(self, name, x):
        weight, bias = self.convolution(name)
        return np.tensordot(weight[:, :, 0, 0], x, axes=1) + bias

    def network(self, name, arguments):
        x = np.concatenate(arguments)
        names = sorted({key.rsplit(".", 1)[0] for key in self.tensors if key.startswith(name + ".")})
        for layer in names[:-1]:
            x = leaky_relu(self.pointwise(layer, x))
        return self.pointwise(names[-1], x)


def leaky_relu(x):
    return np.where(x < 0, x / 8, x)


def neighborhood(x):
    height, width = x.shape[1:]
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    return np.concatenate([padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)])


def opposite_neighbors(x):
    height, width = x.shape[1:]
    padded = np.pad(x, ((0, 0), (2, 2), (2, 2)))
    return np.concatenate([
        padded[:, 2 + dr : 2 + dr + height, 2 + dc : 2 + dc + width]
        for dr in range(-2, 3) for dc in range(-2, 3) if (dr + dc) % 2
    ])  # fmt: skip


def pixel_shuffle(x):
    n, height, width = len(x) // 4, *x.shape[1:]
    return x.reshape(2, 2, n, height, width).transpose(2, 3, 0, 4, 1).reshape(n, 2 * height, 2 * width)
