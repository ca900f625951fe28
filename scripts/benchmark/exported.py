"""Measure an exported model: agreement with PyTorch, speed, sizes, and the page in docs/viewer.

    python -m scripts.benchmark.exported -o docs/results/export.json --screenshot docs/images/viewer.png

Close other programs first. Times of PyTorch and ONNX Runtime are of alternating calls. The page needs
scripts/build_viewer.py and Chromium, and is left out without them.
"""

from __future__ import annotations

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
from ugicm.export.files import export

VIEWER = Path(__file__).resolve().parents[2] / "docs" / "viewer"
SAMPLES = sorted((Path(ugicm.__file__).parent / "samples").glob("*.png"))
QUALITIES = (0.1, 0.5, 0.9)
PAGE = """async (files) => {
    const ort = await import("./lib/ort.wasm.min.mjs"), { Codec } = await import("./codec.js");
    ort.env.wasm.wasmPaths = new URL("./lib/", location).href;
    ort.env.wasm.numThreads = 1;
    const seconds = async (work) => {
        const start = performance.now(), result = await work();
        return [(performance.now() - start) / 1000, result];
    };
    const [load, codec] = await seconds(() => Codec.load(ort, "./model/"));
    const times = { load, decode: [], slider: [], encode: [] }, encoded = [];
    for (const { bitstream, pixels, size, quality } of files) {
        const [decode, decoded] = await seconds(async () => {
            const decoded = await codec.decode(Uint8Array.from(bitstream));
            await codec.synthesize(decoded, 0);
            return decoded;
        });
        const [slider] = await seconds(() => codec.synthesize(decoded, 0.5));
        const [encode, { data }] = await seconds(() => codec.encode(Uint8ClampedArray.from(pixels), ...size, quality));
        times.decode.push(decode);
        times.slider.push(slider);
        times.encode.push(encode);
        encoded.push(Array.from(data));
    }
    return { times, encoded };
}"""


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
    """Compare images and bitstreams of the samples at several qualities."""
    largest, changed, total, loss, pixels = 0, 0, 0, 0.0, []
    for path in SAMPLES:
        original = np.asarray(Image.open(path).convert("RGB"))
        for quality in QUALITIES:
            data = codec.compress(path, quality, tile=0)
            changed += changed_symbols(exported, exported.compress(original, quality), data)
            total += residuals(exported, data).size
            for preference in (0.0, 1.0):
                wanted = np.asarray(codec.decompress(data, preference)).astype(np.int16)
                found, narrow = (c.decompress(data, preference) for c in (exported, half))
                apart = np.abs(found - wanted)
                largest = max(largest, int(apart.max()))
                pixels.append(float((apart > 0).any(axis=2).mean()))
                loss = max(loss, psnr(found, original) - psnr(narrow, original))
    return {
        "images": len(SAMPLES), "qualities": QUALITIES, "largest_difference_levels": largest,
        "share_of_pixels_that_differ": statistics.mean(pixels), "symbols": total,
        "symbols_changed_by_analysis": changed, "largest_psnr_loss_of_float16_weights_db": round(loss, 6),
    }  # fmt: skip


def speed(codec: ugicm.Codec, exported: runtime.Codec, folder: Path, repeats: int) -> dict[str, Any]:
    """Time both codecs in turns: loaded ones, and processes that start, load and decode one image."""
    data = codec.compress(SAMPLES[0], 0.5)
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
    files = []
    for path in SAMPLES:
        image = Image.open(path).convert("RGBA")
        files.append({"bitstream": list(codec.compress(path, 0.5)), "pixels": list(image.tobytes()),
                      "size": image.size, "quality": 0.5})  # fmt: skip
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1500, "height": 840})
        tab.goto(f"{url}/style.css")
        found = tab.evaluate(PAGE, files)
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
    changed = [changed_symbols(exported, bytes(data), bytes(file["bitstream"]))
               for data, file in zip(found["encoded"], files)]  # fmt: skip
    size = sum(path.stat().st_size for path in (VIEWER / "model").iterdir())
    times = {name: statistics.median(value) if isinstance(value, list) else value
             for name, value in found["times"].items()}  # fmt: skip
    return {
        "chromium": version, "threads": 1, "seconds": times, "model_bytes": size, "peak_memory_bytes": memory,
        "images_encoded": len(changed), "symbols_changed_by_analysis": sum(changed),
    }  # fmt: skip


def renderer_memory() -> int:
    """Return the largest peak memory of a renderer process of Chromium."""
    peaks = [0]
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            if b"--type=renderer" in (status.parent / "cmdline").read_bytes():
                peaks += [1024 * int(kib) for kib in re.findall(r"VmHWM:\s+(\d+)", status.read_text())]
        except OSError:  # it has ended
            continue
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
        exported, sizes, seconds = {}, {}, 0.0
        for kind in ("float32", "float16"):
            log(f"export with weights in {kind} ...")
            start = time.perf_counter()
            sizes[kind] = sum(path.stat().st_size for path in export(codec.model, Path(made) / kind, kind == "float16"))
            seconds = time.perf_counter() - start
            exported[kind] = runtime.load(Path(made) / kind)
        log("agreement ...")
        report = {"export_seconds": seconds, "bytes": sizes, "agreement": agreement(codec, *exported.values())}
        log("speed ...")
        report["speed"] = speed(codec, exported["float32"], Path(made) / "float32", args.repeats)
        report["installed_bytes"] = {
            "pytorch": installed_bytes("torch"),
            "runtime": installed_bytes("numpy", "constriction", "onnxruntime"),
        }
        log("page ...")
        report["page"] = page(codec, exported["float32"], args.screenshot)
    report |= {"model": codec.describe(), "environment": results.environment()}
    atomic.write(args.output, (json.dumps(report, indent=2) + "\n").encode())
    print(json.dumps(report, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
