"""Put into docs/viewer what is not in the repository: the exported model, samples, and ONNX Runtime's files.

Needs npm, and the extra ``export``. Then: python -m http.server -d docs/viewer
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import ugicm
from ugicm import atomic
from ugicm.arguments import ArgumentParser, run_command
from ugicm.errors import UsageError
from ugicm.export.files import export
from ugicm.extras import require_packages

VIEWER = Path(__file__).resolve().parents[1] / "docs" / "viewer"
SAMPLES = sorted((Path(ugicm.__file__).parent / "samples").glob("*.png"))
QUALITIES = (0.1, 0.5)
LIBRARY = (
    "ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm",
    "ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify.mjs", "ort-wasm-simd-threaded.asyncify.wasm",
)  # fmt: skip


def copy_library(folder: Path) -> None:
    """Install ONNX Runtime with npm and copy what the page loads into ``folder``."""
    npm = shutil.which("npm")
    if npm is None:
        raise UsageError("npm: not found; install Node.js")
    subprocess.run([npm, "ci", "--ignore-scripts", "--silent"], cwd=VIEWER, check=True)
    folder.mkdir(exist_ok=True)
    for name in LIBRARY:
        shutil.copy(VIEWER / "node_modules" / "onnxruntime-web" / "dist" / name, folder)


def write_samples(codec: ugicm.Codec, folder: Path) -> None:
    """Compress the sample images into ``folder``, and list them in its ``index.json``."""
    names = []
    for path in SAMPLES:
        for quality in QUALITIES:
            names.append(f"{path.stem}_{quality:g}.ugic")
            atomic.write(folder / names[-1], codec.compress(path, quality))
    atomic.write(folder / "index.json", json.dumps(names).encode())


def main() -> int:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("-c", "--checkpoint", help="a compact model (default: the shipped model)")
    args = parser.parse_args()
    require_packages("export", "scripts/build_viewer.py", "onnx", "onnxscript")
    copy_library(VIEWER / "lib")
    codec = ugicm.load(args.checkpoint)
    for path in export(codec.model, VIEWER / "model", half=True):
        print(path)
    write_samples(codec, VIEWER / "samples")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
