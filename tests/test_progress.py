"""Progress bars over windows and tiles of one image."""

import io
import re
import sys

from small_models import small_model

from ugicm import progress, windows
from ugicm.codec import Codec


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_large_images_have_bars(make_image, monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setattr(windows, "WINDOW", 64)
    codec = Codec(small_model())
    with progress.shown():
        image = codec.decompress(codec.compress(make_image(128, 64), tile=64))
    assert image.size == (128, 64)
    for name in ("analyzing", "entropy encoding", "entropy decoding", "synthesizing"):
        assert re.search(rf"{name}: .*/2 ", terminal.getvalue())


def test_no_bars_unless_asked_for_on_a_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    assert list(progress.steps(range(3), "counting", "step")) == [0, 1, 2]
    with progress.shown():
        assert list(progress.steps(range(1), "counting", "step")) == [0]
        monkeypatch.setattr(sys, "stderr", io.StringIO())  # a file
        assert list(progress.steps(range(3), "counting", "step")) == [0, 1, 2]
        assert not sys.stderr.getvalue()
    assert not terminal.getvalue()
