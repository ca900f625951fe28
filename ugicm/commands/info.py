"""The command ``ugicm info``. It reads headers and checksums, and imports only the standard library."""

from __future__ import annotations

import argparse
import json
from importlib import resources
from pathlib import Path
from typing import Any

from ugicm import bitstream, files
from ugicm.commands.batch import print_error
from ugicm.errors import StreamError, UsageError, error_message, printable


def run(args: argparse.Namespace) -> int:
    """Run the command. Returns the exit status."""
    bitstream.MAX_PIXELS = args.max_pixels
    status, found = 0, []
    shipped = _shipped_fingerprints()
    for name in args.inputs:
        try:
            paths = files.find(name, [files.STREAM_SUFFIX]) if Path(name).is_dir() else [Path(name)]
        except (UsageError, OSError) as error:
            status = 1
            print_error(error_message(error))
            continue
        for path in paths:
            try:
                fields = bitstream.info(files.read_bytes(path))
            except (OSError, StreamError) as error:
                status = 1
                print_error(f"{path}: {error}" if isinstance(error, StreamError) else error_message(error))
                continue
            found.append({"file": str(path), **fields, "shipped": fields["model"] in shipped})
    if args.json:
        print(json.dumps(found, indent=1))
    elif found:
        _print_table(found)
    return status


def _print_table(found: list[dict[str, Any]]) -> None:
    rows = [("file", "size", "quality", "bytes", "bpp", "version", "model")]
    for item in found:
        model = item["model"] + (" (shipped)" if item["shipped"] else " (not shipped)")
        model = "stored without loss" if item["stored"] else model
        rows.append((printable(item["file"]), f"{item['width']}x{item['height']}", f"{item['quality']:.3g}",
                     f"{item['bytes']:,}", f"{item['bpp']:.3f}", str(item["version"]), model))  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _shipped_fingerprints() -> set[str]:
    """Return the fingerprints of the models in the package.

    A safetensors file begins with the length of a JSON header (8 bytes, little-endian) and the header. It is read here
    because the safetensors library is slow to import.
    """
    found = set()
    for item in (resources.files("ugicm") / "weights").iterdir():
        if item.name.endswith(".safetensors"):
            with item.open("rb") as file:
                header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            found.add(header.get("__metadata__", {}).get("fingerprint", ""))
    return found
