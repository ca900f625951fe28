"""The page in docs/viewer decodes and encodes what the package does. Runs in headless Chromium."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from pathlib import Path

import golden_files as golden
import numpy as np
import pytest
from conftest import ROOT
from hypothesis import HealthCheck, assume, given, settings
from PIL import Image
from test_report import CHROMIUM

import ugicm
from scripts.stress.mutants import mutants, valid_bitstreams, with_checksum
from ugicm import bitstream, images, runtime, stored
from ugicm.entropy.ans import SymbolEncoder, Tables
from ugicm.errors import StreamError

VIEWER = ROOT / "docs" / "viewer"
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
if CHROMIUM is None:
    pytest.skip("needs chromium", allow_module_level=True)

LOAD = """async () => {
    const ort = await import("/lib/ort.wasm.min.mjs"), { Codec } = await import("/codec.js");
    ort.env.wasm.wasmPaths = "/lib/";
    ort.env.wasm.numThreads = 1;
    window.codec = await Codec.load(ort, "/model/");
}"""
DECODE = """async ({ data, betas }) => {
    const symbols = [];
    try {
        const decoded = await codec.decode(Uint8Array.from(data), (residuals) => symbols.push(...residuals));
        const images = [];
        for (const beta of betas) images.push(Array.from(await codec.synthesize(decoded, beta)));
        return { symbols, images };
    } catch (error) {
        return { name: error.constructor.name, message: error.message };
    }
}"""


@pytest.fixture(autouse=True)
def limit_of_the_page(monkeypatch):
    """The page accepts images of fewer pixels than the package."""
    monkeypatch.setattr(bitstream, "MAX_PIXELS", 2**24)


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves docs/viewer, with other folders for ``model`` and ``samples``."""

    def translate_path(self, path):
        first, _, rest = path.partition("?")[0].lstrip("/").partition("/")
        return str(self.server.folders.get(first, VIEWER / first) / rest)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def serve():
    """serve(model=..., samples=...) -> URL of the page with these folders."""
    servers = []

    def start(**folders: Path) -> str:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.folders = folders
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def modules(browser, serve):
    """A page of the server, without the viewer, that can import its modules."""
    page = browser.new_page()
    page.goto(f"{serve()}/style.css")
    return page


def needs_library() -> None:
    if not (VIEWER / "lib").is_dir():
        pytest.skip("needs ONNX Runtime for browsers: run scripts/build_viewer.py")


def page_with_codec(browser, url):
    needs_library()
    page = browser.new_page()
    page.goto(f"{url}/style.css")
    page.evaluate(LOAD)
    return page


@pytest.fixture(scope="module")
def page(browser, serve, exported):
    """A page that has loaded the small model as ``codec``."""
    return page_with_codec(browser, serve(model=exported))


@pytest.fixture(scope="module")
def reference(checkpoint):
    return ugicm.load(checkpoint, fast=False)


def decode(page, data: bytes, betas=()) -> dict:
    return page.evaluate(DECODE, {"data": list(data), "betas": list(betas)})


def as_image(pixels: list[int], size: tuple[int, int]) -> np.ndarray:
    image = np.array(pixels, dtype=np.int16).reshape(*size[::-1], 4)
    assert (image[..., 3] == 255).all()
    return image[..., :3]


def instead_of(message: str) -> str:
    return message.partition(";")[0]  # without what to do


# Files and strings, without networks


def test_parse_raises_the_errors_of_the_package(modules):
    boxes = bitstream.Bitstream(
        9, 9, b"abc", 0.5, 0, (1,), (b"one",), gray=True, boxes={"exif": b"xyz", "xmp": b""}
    ).pack()
    whole = bitstream.Bitstream(100, 70, b"abc", 0.25, 64, (1, 2, 3, 4), (b"one", b"", b"three", b"4")).pack()
    body = b"UGI\x04abc"
    cases = [data[:n] for data in (whole, boxes) for n in range(len(data))] + [
        whole, with_checksum(boxes[:-4] + b"\x01"), with_checksum(boxes[:-6]),
        with_checksum(boxes[:12] + b"\x04" + boxes[13:-4]),
        b"UG\\'", b'a"\'\n', b"\x7f\x80\t ", b"UGI\x03" + whole[4:], whole[:-1] + b"x",
        with_checksum(body + b"\x00\x01" + bytes(20)), with_checksum(body + b"\xff" * 20),
        with_checksum(body + bitstream.varint(2**32 - 1) * 2 + bytes(20)),
        with_checksum(body + bitstream.varint(8192) * 2 + b"\x00\x80\x01" + bytes(300)),
    ]  # fmt: skip
    found = modules.evaluate(
        """async (cases) => {
            const { parse, pack } = await import("/bitstream.js");
            return cases.map((data) => {
                try { return Array.from(pack(parse(Uint8Array.from(data)))); }
                catch (error) { return error.message; }
            });
        }""",
        [list(data) for data in cases],
    )
    for data, result in zip(cases, found, strict=True):
        try:
            wanted = list(bitstream.parse(data).pack())
        except StreamError as error:
            wanted = str(error)
        assert result in (wanted, instead_of(wanted) if isinstance(wanted, str) else list(data))
    assert found.count(list(whole)) == 1


def test_strings_are_those_of_the_package(modules):
    """Symbols of two calls, with escapes of one to four bytes."""
    rng = np.random.default_rng(0)
    lengths = np.array([4, 3, 40])
    cdfs = np.zeros((3, 40), dtype=np.int32)
    for row, length in zip(cdfs, lengths):
        row[1:length] = np.cumsum(np.diff(np.r_[0, np.sort(rng.choice(65535, length - 2, replace=False)) + 1, 65536]))
    offsets = np.array([-1, 0, -20])
    spread = rng.choice([1, 4, 300, 2**14, 2**25], 5000, p=[0.5, 0.4, 0.06, 0.03, 0.01])
    symbols = (rng.normal(size=5000) * spread).clip(-(2**26) + 1, 2**26 - 1).astype(np.int32)
    rows = rng.integers(0, 3, 5000)
    encoder, tables = SymbolEncoder(), Tables(cdfs, lengths, offsets)
    for part in (slice(0, 2000), slice(2000, None)):
        encoder.encode(symbols[part], rows[part], tables)
    string = encoder.flush()
    given_tables = {"cdfs": [cdf[:n].tolist() for cdf, n in zip(cdfs, lengths)], "offsets": offsets.tolist()}
    encoded, digest, decoded, finished = modules.evaluate(
        """async ({ symbols, rows, tables, string }) => {
            const { SymbolDecoder, SymbolEncoder, readTables } = await import("/ans.js");
            tables = readTables(tables);
            const parts = (list) => [list.slice(0, 2000), list.slice(2000)];
            const encoder = new SymbolEncoder(), decoder = new SymbolDecoder(Uint8Array.from(string));
            parts(rows).forEach((part, n) => encoder.encode(Int32Array.from(parts(symbols)[n]), part, tables));
            const decoded = parts(rows).flatMap((part) => Array.from(decoder.decode(part, tables)));
            decoder.finish();
            return [Array.from(encoder.flush()), encoder.digest, decoded, decoder.digest];
        }""",
        {"symbols": symbols.tolist(), "rows": rows.tolist(), "tables": given_tables, "string": list(string)},
    )
    assert bytes(encoded) == string and digest == finished == encoder.digest
    assert decoded == symbols.tolist()


def test_largest_frequencies_are_exact(modules):
    """A row with one frequency of 65,534 of 65,536, and states of all sizes."""
    rows = [0] * 3000
    tables = {"cdfs": [[0, 65534, 65535, 65536]], "offsets": [0]}
    symbols = [int(n % 37 == 5) for n in range(3000)]
    encoder = SymbolEncoder()
    encoder.encode(np.array(symbols, np.int32), np.array(rows), Tables(np.array(tables["cdfs"]), [4], [0]))
    found = modules.evaluate(
        """async ({ symbols, rows, tables }) => {
            const { SymbolDecoder, SymbolEncoder, readTables } = await import("/ans.js");
            const encoder = new SymbolEncoder();
            encoder.encode(Int32Array.from(symbols), rows, readTables(tables));
            const string = encoder.flush(), decoder = new SymbolDecoder(string);
            return [Array.from(string), Array.from(decoder.decode(rows, readTables(tables)))];
        }""",
        {"symbols": symbols, "rows": rows, "tables": tables},
    )
    assert bytes(found[0]) == encoder.flush() and found[1] == symbols


# Decoding and encoding


@pytest.mark.parametrize("size, tile", [((64, 64), 0), ((100, 70), 0), ((1, 1), 0), ((200, 130), 64)])
def test_decoding(page, exported, reference, make_image, size, tile):
    data = reference.compress(make_image(*size), 0.8, tile=tile)
    betas = [0.0, 0.4, 1.0]
    found = decode(page, data, betas)
    parsed, plain = bitstream.parse(data), runtime.load(exported)
    wanted = [
        plain.decode_symbols(string, digest, box, parsed.extent(box))[1].ravel()
        for box, string, digest in zip(parsed.tiles, parsed.strings, parsed.digests)
    ]
    assert np.array_equal(found["symbols"], np.concatenate(wanted))
    for pixels, image in zip(found["images"], reference.decompress(data, betas), strict=True):
        assert np.abs(as_image(pixels, size) - np.asarray(image)).max() <= 1


def test_gray_alpha_and_stored_images(page, reference, make_image):
    gray, transparent = make_image().convert("L"), make_image(seed=3).convert("RGBA")
    transparent.putalpha(make_image(seed=4).convert("L"))
    flat = Image.new("RGB", (40, 30), (200, 10, 77))
    files = [reference.compress(gray), reference.compress(transparent), stored.pack(images.read(flat))]
    for data in files:
        (pixels,) = decode(page, data, [0.0])["images"]
        wanted = np.asarray(reference.decompress(data).convert("RGBA"))
        apart = np.abs(np.array(pixels).reshape(wanted.shape) - wanted)
        assert apart.max() <= 1 and not apart[..., 3].any()
    assert wanted[0, 0].tolist() == [200, 10, 77, 255]


def test_windows(page, reference, make_image):
    """An image of more than one window."""
    size = (1100, 70)
    data = reference.compress(make_image(*size))
    (pixels,) = decode(page, data, [0.0])["images"]
    assert np.abs(as_image(pixels, size) - np.asarray(reference.decompress(data))).max() <= 1


def test_mutants_end_in_the_errors_of_the_package(page, reference):
    outcomes = set()

    @settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(mutants(valid_bitstreams(reference)))
    def run(mutant):
        try:
            padded = bitstream.parse(mutant.data).padded
            assume(padded.width * padded.height < 2**18)  # others take long
            reference.decompress(mutant.data)
            wanted = "image"
        except StreamError as error:
            wanted = instead_of(str(error))
        found = decode(page, mutant.data, [0.0])
        assert instead_of(found.get("message", "image")) == wanted and found.get("name") in (None, "StreamError")
        outcomes.add(wanted.partition(":")[0])

    run()
    assert {"corrupt bitstream", "truncated bitstream"} <= outcomes


@pytest.mark.parametrize("size", [(100, 70), (1, 1)])
def test_encoding(page, reference, exported, make_image, size):
    """From the same latents, the file is that of the package."""
    image = make_image(*size).convert("RGBA")
    found = page.evaluate(
        """async ({ pixels, size }) => {
            const { data, y, z } = await codec.encode(Uint8ClampedArray.from(pixels), ...size, 0.7);
            return [data, y.data, z.data].map((array) => Array.from(array));
        }""",
        {"pixels": list(image.tobytes()), "size": list(size)},
    )
    data, y, z = bytes(found[0]), *(np.array(values, dtype=np.float32) for values in found[1:])
    parsed, plain = bitstream.parse(data), runtime.load(exported)
    assert (parsed.width, parsed.height, parsed.quality) == (*size, bitstream.quantize_quality(0.7))
    y = y.reshape(1, -1, parsed.padded.height // 16, parsed.padded.width // 16)
    z = z.reshape(1, -1, parsed.padded.height // 64, parsed.padded.width // 64)
    string, digest = plain._encode_tile(y, z, parsed.padded, parsed.extent(parsed.padded))
    assert ((string,), (digest,)) == (parsed.strings, parsed.digests)
    np.testing.assert_allclose(y, plain.analyze(np.asarray(image.convert("RGB")), parsed.quality), atol=1e-3)
    assert reference.decompress(data).size == size


# The page


@pytest.fixture
def opened(browser, serve, exported, reference, make_image, tmp_path):
    needs_library()
    (tmp_path / "a.ugic").write_bytes(reference.compress(make_image(100, 70)))
    (tmp_path / "index.json").write_text('["a.ugic"]')
    page = browser.new_page(viewport={"width": 1300, "height": 1000})
    page.requests, page.messages = [], []
    page.on("request", lambda request: page.requests.append(request.url))
    page.on("pageerror", lambda error: page.messages.append(str(error)))
    page.url_of_viewer = serve(model=exported, samples=tmp_path)
    page.goto(f"{page.url_of_viewer}/index.html")
    wait(page)
    yield page
    page.close()


def wait(page, state: str = "ready") -> None:
    page.wait_for_selector(f"#status[data-state={state}]", state="attached")


def test_page_decodes_a_sample_and_follows_the_slider(opened):
    opened.select_option("#sample", "a.ugic")
    opened.wait_for_selector("main:not([hidden])")
    wait(opened)
    facts = opened.inner_text("#facts")
    assert "100 × 70 pixels" in facts and "bits per pixel" in facts
    captions = set()
    for preference in ("0", "0.5", "1"):
        opened.locator("#preference").fill(preference)
        opened.wait_for_selector(f"#preference-value:text-is('{float(preference):.2f}')")
        captions.add(opened.inner_text("#difference-caption"))
    assert len(captions) == 3 and any("mean 0.00, largest 0" in caption for caption in captions)
    assert opened.messages == []
    assert all(url.startswith((opened.url_of_viewer, "data:", "blob:")) for url in opened.requests)


def test_page_shows_errors_and_goes_on(opened, tmp_path):
    (tmp_path / "broken.ugic").write_bytes((tmp_path / "a.ugic").read_bytes()[:-1])
    opened.set_input_files("#file", tmp_path / "broken.ugic")
    wait(opened, "error")
    assert "the checksum does not match" in opened.inner_text("#status")
    opened.set_input_files("#file", tmp_path / "a.ugic")
    wait(opened)
    assert opened.is_visible("main") and opened.messages == []


def test_page_encodes_an_image(opened, reference, make_image, tmp_path):
    make_image(90, 60).save(tmp_path / "photo.png")
    opened.locator("#quality").fill("0.8")
    opened.set_input_files("#file", tmp_path / "photo.png")
    opened.wait_for_selector("#download:not([hidden])")
    wait(opened)
    with opened.expect_download() as download:
        opened.click("#download")
    assert download.value.suggested_filename == "photo.ugic"
    image = reference.decompress(Path(download.value.path()).read_bytes())
    assert image.size == (90, 60) and opened.messages == []


# The shipped model


@pytest.mark.slow
def test_golden_files(browser, serve, exported_shipped):
    page = page_with_codec(browser, serve(model=exported_shipped))
    expected = json.loads((golden.GOLDEN / "expected.json").read_text())["symbols"]
    for name in golden.INPUTS:
        for quality in golden.QUALITIES:
            found = decode(page, golden.bitstream_path(name, quality).read_bytes(), [0.0, 1.0])
            digest = hashlib.sha256(np.array(found["symbols"]).astype("<i4").tobytes()).hexdigest()
            assert digest == expected[f"{name}_{quality:g}"]
            for preference, pixels in zip(golden.PREFERENCES, found["images"]):
                wanted = np.asarray(Image.open(golden.image_path(name, quality, preference)).convert("RGB"))
                assert np.abs(as_image(pixels, wanted.shape[1::-1]) - wanted).max() <= 1
