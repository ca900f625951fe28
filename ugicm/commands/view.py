"""The command ``ugicm view``: a page on this machine that shows bitstreams at any preference.

The server accepts connections of this machine only, and names no file: requests give the index of an argument. Pages of
other sites cannot read from it, since it checks the Host header and sends no permission for other origins.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import sys
import threading
import webbrowser
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ugicm import bitstream
from ugicm.arguments import pick_device
from ugicm.commands.batch import import_torch
from ugicm.errors import StreamError, UsageError, error_message

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from ugicm.codec import Codec

PAGE = {"": "index.html", "view.css": "view.css", "view.js": "view.js"}  # files by the paths of requests
_MEDIA_TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript"}
_POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob: data:"
_LATENTS_KEPT = 4  # files whose latents stay in memory


class Shown:
    """The bitstreams and originals that a page shows.

    Args:
        codec: the codec of the bitstreams.
        paths: bitstream files.
        originals: for each bitstream an image file of the same size; or none at all.

    Raises:
        StreamError: a file is not a bitstream.
        ImageError: an original cannot be read.
        UsageError: an original has another size.
        OSError: a file cannot be read.
    """

    def __init__(self, codec: Codec, paths: list[Path], originals: list[Path]):
        from ugicm.images import open_rgb

        self._codec = codec
        self._parsed = []
        self._originals = [open_rgb(path) for path in originals]
        self.facts = []
        for index, path in enumerate(paths):
            data = path.read_bytes()
            try:
                self._parsed.append(bitstream.parse(data))
            except StreamError as error:
                raise StreamError(f"{path}: {error}") from None
            info = bitstream.info(data)
            if originals and self._originals[index].size != (info["width"], info["height"]):
                raise UsageError(f"{originals[index]} is not of the size of {path}, {info['width']}x{info['height']}")
            shown = {key: info[key] for key in ("width", "height", "bytes", "bpp", "quality", "stored")}
            self.facts.append({"name": path.name, "original": bool(originals), **shown})
        self._lock = threading.Lock()  # one computation at a time, with all threads of PyTorch
        self._latents = functools.lru_cache(_LATENTS_KEPT)(self._entropy_decode)

    def _entropy_decode(self, index: int) -> Tensor:
        return self._codec.entropy_decode(self._parsed[index])

    def original(self, index: int) -> Image.Image:
        """Return the original of a file. Raises IndexError if there is none."""
        return self._originals[index]

    def decoded(self, index: int, preference: float) -> Image.Image:
        """Return a file's image for a preference. A file is entropy-decoded for its first image only.

        Raises:
            IndexError: there is no such file.
            StreamError: the file is corrupt, or of another model.
            ValueError: a preference outside of [0, 1].
        """
        from ugicm.preference import to_beta

        parsed = self._parsed[index]
        beta = to_beta(preference, (parsed.width, parsed.height))
        with self._lock:
            y_hat = None if parsed.stored else self._latents(index)
            (image,) = self._codec.restore(parsed, y_hat, [beta])
        return image


class Server(ThreadingHTTPServer):
    """A server of the page on a free port of 127.0.0.1."""

    def __init__(self, shown: Shown):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.shown = shown
        self.url = f"http://127.0.0.1:{self.server_port}/"

    def handle_error(self, *request: Any) -> None:
        """Print errors that are bugs, but not that a browser has closed a connection."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(*request)


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        # A site whose name is made to resolve to 127.0.0.1 would count as the same origin.
        if self.headers["Host"] not in (f"127.0.0.1:{self.server.server_port}", f"localhost:{self.server.server_port}"):
            self._send(HTTPStatus.FORBIDDEN, b"unknown host", "text/plain")
            return
        try:
            media_type, content = self._content(self.path.removeprefix("/").split("/"))
        except StreamError as error:
            self._send(HTTPStatus.UNPROCESSABLE_ENTITY, error_message(error).encode(), "text/plain")
        except (IndexError, ValueError):
            self._send(HTTPStatus.NOT_FOUND, b"not found", "text/plain")
        else:
            self._send(HTTPStatus.OK, content, media_type)

    def _content(self, parts: list[str]) -> tuple[str, bytes]:
        """Return media type and content of ``/``, ``/files.json``, ``/image/INDEX/PREFERENCE`` and so on."""
        if len(parts) == 1 and parts[0] in PAGE:
            name = PAGE[parts[0]]
            content = (resources.files("ugicm.commands") / "view_page" / name).read_bytes()
            return _MEDIA_TYPES[Path(name).suffix], content
        if parts == ["files.json"]:
            return "application/json", json.dumps(self.server.shown.facts).encode()
        kind, index, preference = parts
        if kind != "image" or not index.isdecimal():
            raise IndexError
        shown, index = self.server.shown, int(index)
        original = preference == "original"
        return "image/png", _png(shown.original(index) if original else shown.decoded(index, float(preference)))

    def _send(self, status: HTTPStatus, content: bytes, media_type: str) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": media_type, "Content-Length": str(len(content)), "Content-Security-Policy": _POLICY,
            "Cross-Origin-Resource-Policy": "same-origin", "X-Content-Type-Options": "nosniff",
            "Cache-Control": "no-store",
        }.items():  # fmt: skip
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1, exif=b"")
    return buffer.getvalue()


def run(args: argparse.Namespace) -> int:
    """Run the command until it is interrupted. Returns the exit status."""
    if args.originals and len(args.originals) != len(args.inputs):
        raise UsageError(f"{len(args.originals)} originals for {len(args.inputs)} bitstreams: name one for each")
    import_torch()
    from ugicm.codec import load

    codec = load(args.checkpoint, pick_device(args.device))
    shown = Shown(codec, [Path(name) for name in args.inputs], [Path(name) for name in args.originals])
    with Server(shown) as server:
        print(f"{server.url} shows {len(args.inputs)} of your files to programs of this machine; end with Ctrl-C",
              flush=True)  # fmt: skip
        if args.open:
            webbrowser.open(server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass
    return 0
