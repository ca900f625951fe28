"""The report as one self-contained HTML file; its content security policy forbids all requests."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

from ugicm.report.tables import COLORS


def page(document: dict[str, Any], viewers: Sequence[dict[str, Any] | None]) -> str:
    """Return the page of a results document. ``viewers``: :func:`ugicm.report.viewer.viewer_data` of each section."""
    data = json.dumps({**document, "viewers": list(viewers), "colors": COLORS}, allow_nan=False)
    parts = {
        "TITLE": html.escape(document["name"]),
        "STYLE": _read("report.css"),
        "SCRIPT": _read("report.js"),
        # "<" is the only character with a meaning inside a script element: its end, and comments.
        "DATA": data.replace("<", "\\u003c"),
    }
    pieces = re.split(r"@@(\w+)@@", _read("report.html"))  # text, name, text, name ... text
    return "".join(parts[piece] if index % 2 else piece for index, piece in enumerate(pieces))


def _read(name: str) -> str:
    return resources.files("ugicm.report").joinpath("page", name).read_text(encoding="utf-8")
