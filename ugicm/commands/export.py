"""The command ``ugicm export``: ONNX files of a model."""

from __future__ import annotations

import argparse
from pathlib import Path

from ugicm.errors import UsageError
from ugicm.extras import require_packages


def run(args: argparse.Namespace) -> int:
    """Run the command. Returns the exit status."""
    require_packages("export", "ugicm export", "onnx", "onnxscript")
    folder = Path(args.output)
    if (folder / "model.json").exists() and not args.overwrite:
        raise UsageError(f"{folder}: has an exported model; choose another folder or use --overwrite")

    import ugicm
    from ugicm.export.files import export

    total = 0
    for path in export(ugicm.load(args.checkpoint).model, folder, args.half):
        size = path.stat().st_size
        total += size
        print(f"{path}  {size:,} bytes")
    print(f"{total:,} bytes")
    return 0
