"""The page of ``ugicm view``, its server, and the page in headless Chromium."""

import contextlib
import http.client
import json
import threading
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from small_models import small_model
from test_report import CHROMIUM

from ugicm import images, stored
from ugicm.codec import Codec
from ugicm.commands.main import main
from ugicm.commands.view import Server, Shown


@pytest.fixture(scope="module")
def codec():
    return Codec(small_model())


@pytest.fixture(scope="module")
def files(codec, make_image, tmp_path_factory):
    """Three bitstreams and their originals: an image, a transparent one, and one stored without loss."""
    folder = tmp_path_factory.mktemp("files")
    transparent = make_image(90, 60, 2)
    transparent.putalpha(100)
    originals = {"image": make_image(130, 70, 1), "transparent": transparent, "stored": Image.new("RGB", (50, 40))}
    for name, image in originals.items():
        image.save(folder / f"{name}.png")
        data = stored.pack(images.read(image)) if name == "stored" else codec.compress(image)
        (folder / f"{name}.ugic").write_bytes(data)
    return [folder / f"{name}.ugic" for name in originals], [folder / f"{name}.png" for name in originals]


@contextlib.contextmanager
def serving(codec, paths, originals):
    with Server(Shown(codec, paths, originals)) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def server(codec, files):
    with serving(codec, *files) as server:
        yield server


def get(server, path: str, host: str | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    connection.putrequest("GET", path, skip_host=True)
    connection.putheader("Host", host or f"127.0.0.1:{server.server_port}")
    connection.endheaders()
    response = connection.getresponse()
    return response.status, response.read()


def test_images_are_those_of_the_codec_after_one_entropy_decoding(server, codec, files, monkeypatch):
    decoded, entropy_decode = [], codec.entropy_decode
    monkeypatch.setattr(codec, "entropy_decode", lambda *a: decoded.append(a[0]) or entropy_decode(*a))
    for index, (path, original) in enumerate(zip(*files, strict=True)):
        for preference in (0, 0.3, 1, 0.3):
            status, content = get(server, f"/image/{index}/{preference}")
            assert status == 200
            expected = codec.decompress(path, preference)
            image = Image.open(BytesIO(content))
            assert image.mode == expected.mode and np.array_equal(image, expected)
        content = get(server, f"/image/{index}/original")[1]
        assert np.array_equal(Image.open(BytesIO(content)), images.open_rgb(original))
    with_latents = [parsed for parsed in decoded if parsed is server.shown._parsed[0]]
    assert len(with_latents) == 1  # the others are of codec.decompress


def test_facts_are_those_of_the_files(server, files):
    facts = json.loads(get(server, "/files.json")[1])
    assert [one["name"] for one in facts] == [path.name for path in files[0]]
    size = files[0][0].stat().st_size
    assert facts[0]["bytes"] == size and facts[0]["bpp"] == 8 * size / (130 * 70) and facts[2]["stored"]


@pytest.mark.parametrize("path", [
    "/view.py", "/../view.py", "/%2e%2e/view.py", "//etc/passwd", "/image/0/../../view.py", "/image/3/0", "/image/-1/0",
    "/image/0/2", "/image/0/nan", "/image/0/x", "/image/0", "/image/0/0/0", "/files.json/", "/image/²/0", "/image//0",
])  # fmt: skip
def test_nothing_else_is_served(server, path):
    assert get(server, path.replace("²", "%C2%B2")) == (404, b"not found")


@pytest.mark.parametrize("host", ["example.com", "127.0.0.1", "127.0.0.1:1", "example.com:{}", ""])
def test_other_hosts_are_refused(server, host):
    assert get(server, "/", host.format(server.server_port) or "-")[0] == 403
    assert get(server, "/", f"localhost:{server.server_port}")[0] == 200


def test_only_this_machine_is_listened_to(server):
    assert server.server_address[0] == "127.0.0.1"


def test_file_of_another_model_is_an_answer(codec, files, tmp_path):
    path = tmp_path / "other.ugic"
    path.write_bytes(Codec(small_model(seed=1)).compress(images.open_rgb(files[1][0])))
    with serving(codec, [path], []) as server:
        status, content = get(server, "/image/0/0")
        assert status == 422 and b"written by another model" in content
        assert get(server, "/image/0/original")[0] == 404


def test_invalid_commands(files, capsys, checkpoint):
    (first, second, _), (original, other, _) = files
    for arguments, message in (
        (["missing.ugic"], "missing.ugic: No such file"),
        ([original], "not a ugicm bitstream"),
        ([first, second, "--originals", original], "1 originals for 2 bitstreams"),
        ([first, "--originals", other], "is not of the size of"),
    ):
        assert main(["view", *map(str, arguments), "-c", str(checkpoint), "--device", "cpu", "--no-browser"]) > 0
        assert message in capsys.readouterr().err


@pytest.fixture
def page(server):
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if CHROMIUM is None:
        pytest.skip("needs chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.messages = []
        page.on("pageerror", lambda error: page.messages.append(str(error)))
        page.on("console", lambda message: page.messages.append(message.text))
        page.goto(server.url)
        yield page
        assert page.messages == []
        browser.close()


PIXELS = """async (id) => {
    const image = document.querySelector(`#${id} img`);
    const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    return Array.from(context.getImageData(0, 0, canvas.width, canvas.height).data);
}"""


def expect(page, selector: str, text: str) -> None:
    from playwright.sync_api import expect

    expect(page.locator(selector)).to_have_text(text, timeout=60_000)


def shown(page, figure: str, size: tuple[int, int]) -> np.ndarray:
    expect(page, "#status", "")
    return np.array(page.evaluate(PIXELS, figure), dtype=np.uint8).reshape(*size[::-1], 4)[..., :3]


def test_page_shows_the_files(page, codec, files):
    paths, originals = files
    for figure, expected in (
        ("original", images.open_rgb(originals[0])), ("human", codec.decompress(paths[0])),
        ("machine", codec.decompress(paths[0], 1)), ("between", codec.decompress(paths[0], 0.5)),
    ):  # fmt: skip
        assert np.array_equal(shown(page, figure, (130, 70)), expected), figure
    page.evaluate("""() => {
        const slider = document.querySelector("#preference");
        for (const value of [0.1, 0.6, 0.8]) {
            slider.value = value;
            slider.dispatchEvent(new Event("input"));
        }
    }""")
    expect(page, "#value", "0.80")
    assert np.array_equal(shown(page, "between", (130, 70)), codec.decompress(paths[0], 0.8))
    assert "bits per pixel" in page.text_content("#facts")
    page.select_option("#zoom", "4")
    assert page.evaluate("document.querySelector('#human img').getBoundingClientRect().width") == 4 * 130
    page.evaluate("document.querySelector('#human div').scrollLeft = 37")
    page.wait_for_timeout(100)
    assert page.evaluate("document.querySelector('#machine div').scrollLeft") == 37
    page.select_option("#file", "2")
    assert shown(page, "between", (50, 40)).max() == 0 and "stored without loss" in page.text_content("#facts")
