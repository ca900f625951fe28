"""Measure an exported model: agreement with PyTorch, speed, sizes, and the page in docs/viewer.

    python -m scripts.benchmark.exported -o docs/results/export.json --screenshot docs/images/viewer.png

Close other programs first. Times of PyTorch and ONNX Runtime are of alternating calls. The page needs
scripts/build_viewer.py and Chromium, and is left out without them.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import http.server
import json
import os
import re
import shutil
import statistics
import sys
import tempfile
import threading
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import ugicm
from scripts.benchmark.roofline import median_ratio, seconds_in_turns
from scripts.processes import log, run_python
from ugicm import atomic, bitstream, runtime
from ugicm.arguments import ArgumentParser, positive, run_command
from ugicm.evaluation import results
from ugicm.export.files import export, store_as_float16

VIEWER = Path(__file__).resolve().parents[2] / "docs" / "viewer"
SAMPLES = sorted((Path(ugicm.__file__).parent / "samples").glob("*.png"))
QUALITY = 0.5
STEPS = {  # of the page: functions of one argument
    "load": """async () => {
        const ort = await import("./lib/ort.wasm.min.mjs"), { Codec } = await import("./codec.js");
        ort.env.wasm.wasmPaths = new URL("./lib/", location).href;
        ort.env.wasm.numThreads = 1;
        window.codec = await Codec.load(ort, "./model/");
    }""",
    "prepare": """({ bitstream, pixels }) => {
        const bytes = (text) => Uint8ClampedArray.from(atob(text), (letter) => letter.charCodeAt());
        window.file = { data: new Uint8Array(bytes(bitstream)), pixels: bytes(pixels) };
    }""",
    "decode": """async () => {
        file.decoded = await codec.decode(file.data);
        await codec.synthesize(file.decoded, 0);
    }""",
    "slider": "async () => { await codec.synthesize(file.decoded, 0.5); }",
    "encode": """async ({ size, quality }) => {
        return Array.from((await codec.encode(file.pixels, ...size, quality)).data);
    }""",
}


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(np.float64) - b) ** 2)))


def residuals(codec: runtime.Codec, data: bytes) -> np.ndarray:
    """Return the residuals of a bitstream of one tile."""
    parsed = bitstream.parse(data)
    (tile,) = parsed.tiles
    return codec.decode_symbols(parsed.strings[0], parsed.digests[0], tile, parsed.extent(tile))[1]


def changed_symbols(codec: runtime.Codec, data: bytes, wanted: bytes) -> int:
    return int((residuals(codec, data) != residuals(codec, wanted)).sum())


def agreement(codec: ugicm.Codec, exported: runtime.Codec, half: runtime.Codec) -> dict[str, Any]:
    """Compare images and bitstreams of the samples."""
    largest, changed, total, loss, pixels = 0, 0, 0, 0.0, []
    for path in SAMPLES:
        original = np.asarray(Image.open(path).convert("RGB"))
        data = codec.compress(path, QUALITY, tile=0)
        changed += changed_symbols(exported, exported.compress(original, QUALITY), data)
        total += residuals(exported, data).size
        preferences = [0.0, 1.0]
        for wanted, found, narrow in zip(*(c.decompress(data, preferences) for c in (codec, exported, half))):
            apart = np.abs(found - np.asarray(wanted).astype(np.int16))
            largest = max(largest, int(apart.max()))
            pixels.append(float((apart > 0).any(axis=2).mean()))
            loss = max(loss, psnr(found, original) - psnr(narrow, original))
    return {
        "images": len(SAMPLES), "quality": QUALITY, "largest_difference_levels": largest,
        "share_of_pixels_that_differ": statistics.mean(pixels), "symbols": total,
        "symbols_changed_by_analysis": changed, "largest_psnr_loss_of_float16_weights_db": round(loss, 6),
    }  # fmt: skip


def to_float16(folder: Path, target: Path) -> None:
    """Write the files of ``ugicm export`` in ``folder`` as with ``--half``."""
    import onnx

    shutil.copytree(folder, target)
    for path in target.glob("*.onnx"):
        proto = onnx.load(path)
        store_as_float16(proto, exact=path.stem.startswith(("hyper_synthesis", "indices")))
        path.write_bytes(proto.SerializeToString())


def speed(codec: ugicm.Codec, exported: runtime.Codec, folder: Path, repeats: int) -> dict[str, Any]:
    """Time both codecs in turns: loaded ones, and processes that start, load and decode one image."""
    data = codec.compress(SAMPLES[0], QUALITY)
    pixels = np.asarray(Image.open(SAMPLES[0]).convert("RGB"))
    image = Image.fromarray(pixels)
    with tempfile.TemporaryDirectory() as made:
        path = Path(made) / "sample.ugic"
        path.write_bytes(data)
        decode = f"codec.decompress(open({str(path)!r}, 'rb').read())"
        works = {
            "decompress": (lambda: codec.decompress(data), lambda: exported.decompress(data)),
            "compress": (lambda: codec.compress(image), lambda: exported.compress(pixels)),
            "start, load and decompress": (
                lambda: run_python("-c", f"import ugicm; codec = ugicm.load(); {decode}"),
                lambda: run_python("-c", f"from ugicm import runtime; codec = runtime.load({str(folder)!r}); {decode}"),
            ),
        }
        report: dict[str, Any] = {"size": list(pixels.shape[:2])}
        for name, pair in works.items():
            ours, other = seconds_in_turns(pair, repeats)
            report[name] = {
                "pytorch_seconds": statistics.median(ours), "runtime_seconds": statistics.median(other),
                "ratio": median_ratio(other, ours),
            }  # fmt: skip
    return report


def installed_bytes(*names: str) -> int:
    """Return the size of distributions and all that they require."""
    found: set[str] = set()
    pending = list(names)
    while pending:
        name = re.match(r"[\w.-]+", pending.pop()).group().lower().replace("_", "-")
        try:
            needed = metadata.distribution(name).requires or []
        except metadata.PackageNotFoundError:
            continue  # for another system
        if name not in found:
            found.add(name)
            pending += [line for line in needed if "extra ==" not in line]
    files = (metadata.distribution(name).locate_file(f) for name in found for f in metadata.files(name) or [])
    return sum(os.path.getsize(path) for path in files if os.path.isfile(path))


def page(codec: ugicm.Codec, exported: runtime.Codec, screenshot: str | None) -> dict[str, Any] | None:
    """Time the page in headless Chromium, compare what it encodes, and save a screenshot of it."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None or not (VIEWER / "lib").is_dir():
        log("no page: needs Chromium and scripts/build_viewer.py")
        return None
    from playwright.sync_api import sync_playwright

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=VIEWER))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    seconds: dict[str, list[float]] = {}
    changed = []
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1100, "height": 450})
        tab.set_default_timeout(300_000)
        tab.goto(f"{url}/style.css")

        def step(name: str, argument: Any = None) -> Any:
            before = renderer_seconds()
            result = tab.evaluate(STEPS[name], argument)
            seconds.setdefault(name, []).append(renderer_seconds() - before)
            return result

        step("load")
        for path in SAMPLES:
            image, data = Image.open(path).convert("RGBA"), codec.compress(path, QUALITY)
            contents = {"bitstream": data, "pixels": image.tobytes()}
            step("prepare", {name: base64.b64encode(content).decode() for name, content in contents.items()})
            step("decode")
            step("slider")
            changed.append(
                changed_symbols(exported, bytes(step("encode", {"size": image.size, "quality": QUALITY})), data)
            )
        memory = renderer_memory()
        if screenshot:
            tab.goto(f"{url}/index.html")
            tab.wait_for_selector("#status[data-state=ready]", state="attached")
            tab.select_option("#sample", json.loads((VIEWER / "samples" / "index.json").read_text())[-2])
            tab.wait_for_selector("#difference-caption:not(:empty)")
            tab.wait_for_selector("#status[data-state=ready]", state="attached")
            with atomic.replacing(screenshot) as temporary:
                temporary.write_bytes(tab.screenshot())
        version = browser.version
        browser.close()
    server.shutdown()
    size = sum(path.stat().st_size for path in (VIEWER / "model").iterdir())
    del seconds["prepare"]
    return {
        "chromium": version, "threads": 1, "model_bytes": size, "peak_memory_bytes": memory,
        "cpu_seconds": {name: statistics.median(taken) for name, taken in seconds.items()},
        "images_encoded": len(changed), "symbols_changed_by_analysis": sum(changed),
    }  # fmt: skip


def renderers() -> list[Path]:
    """Return the folders in /proc of the renderer processes of Chromium."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            if b"--type=renderer" in (path / "cmdline").read_bytes():
                found.append(path)
    return found


def renderer_seconds() -> float:
    """Return the CPU time of all renderer processes."""
    ticks = 0
    for path in renderers():
        with contextlib.suppress(OSError):
            ticks += sum(map(int, (path / "stat").read_text().rpartition(")")[2].split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def renderer_memory() -> int:
    """Return the largest peak memory of a renderer process in bytes."""
    peaks = [0]
    for path in renderers():
        with contextlib.suppress(OSError):
            peaks += [1024 * int(kib) for kib in re.findall(r"VmHWM:\s+(\d+)", (path / "status").read_text())]
    return max(peaks)


def main() -> int:
    parser = ArgumentParser(prog="python -m scripts.benchmark.exported", description=__doc__)
    parser.add_argument("-c", "--checkpoint", help="a compact model (default: the shipped model)")
    parser.add_argument("--threads", type=positive, default=os.cpu_count(), help="of PyTorch (default: all cores)")
    parser.add_argument("--repeats", type=positive, default=7, help="timed runs (default: %(default)s)")
    parser.add_argument("--screenshot", metavar="PNG", help="write a screenshot of the page")
    parser.add_argument("-o", "--output", default="experiments/export.json", help="results (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    codec = ugicm.load(args.checkpoint, fast=False)
    with tempfile.TemporaryDirectory() as made:
        folder, half = Path(made) / "float32", Path(made) / "float16"
        log("export ...")
        start = time.perf_counter()
        list(export(codec.model, folder))
        report: dict[str, Any] = {"export_seconds": time.perf_counter() - start}
        to_float16(folder, half)
        report["bytes"] = {f.name: sum(path.stat().st_size for path in f.iterdir()) for f in (folder, half)}
        exported = runtime.load(folder)
        log("agreement ...")
        report["agreement"] = agreement(codec, exported, runtime.load(half))
        log("speed ...")
        report["speed"] = speed(codec, exported, folder, args.repeats)
        report["installed_bytes"] = {
            "pytorch": installed_bytes("torch"),
            "runtime": installed_bytes("numpy", "constriction", "onnxruntime"),
        }
        log("page ...")
        report["page"] = page(codec, exported, args.screenshot)
    report |= {"model": codec.describe(), "environment": results.environment()}
    atomic.write(args.output, (json.dumps(report, indent=2) + "\n").encode())
    print(json.dumps(report, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
