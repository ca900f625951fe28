"""The report as one HTML file that needs nothing else: styles, script, numbers and images are inside, and the page
forbids itself every request."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

from ugicm.report.tables import COLORS


def page(document: dict[str, Any], viewers: Sequence[dict[str, Any] | None]) -> str:
    """The page for a results document and what the viewer of each of its sections shows (None: no viewer)."""
    data = json.dumps({**document, "viewers": list(viewers), "colors": COLORS}, allow_nan=False)
    parts = {
        "TITLE": html.escape(document["name"]),
        "STYLE": _part("report.css"),
        "SCRIPT": _part("report.js"),
        # Inside a script element only what begins with < has a meaning: its end, and comments.
        "DATA": data.replace("<", "\\u003c"),
    }
    pieces = re.split(r"@@(\w+)@@", _part("report.html"))  # text, name, text, name ... text
    return "".join(parts[piece] if index % 2 else piece for index, piece in enumerate(pieces))


def _part(name: str) -> str:
    return resources.files("ugicm.report").joinpath("page", name).read_text(encoding="utf-8")
