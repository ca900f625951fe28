#!/usr/bin/env python3
"""Write docs/api.md, the public names and their docstrings.

python scripts/make_api.py            # write
python scripts/make_api.py --check    # exit status 1 if the page differs from the docstrings
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ugicm.arguments import ArgumentParser, run_command

PAGE = Path(__file__).resolve().parents[1] / "docs" / "api.md"
INTRODUCTION = """\
# API

<!-- Written by scripts/make_api.py from docstrings. -->

These names are stable: a change that breaks their use is announced in the changelog, and comes with a new minor version
before 1.0, with a new major version after it. Other names are internal. [usage.md](usage.md) shows how they work.
"""
# Public names of each module. Classes with their public methods.
NAMES = {
    "ugicm": ["load", "Codec", "info", "StreamError", "CheckpointError", "ImageError", "ConfigError"],
    "ugicm.bitstream": ["parse", "read", "Bitstream"],
    "ugicm.images": ["open_rgb"],
    "ugicm.quality_map": ["emphasize"],
    "ugicm.integrations.pillow": ["register", "UgicImageFile", "load", "is_bitstream"],
    "ugicm.integrations.torchvision": ["BitstreamFolder", "Recompress"],
    "ugicm.integrations.webdataset": ["handler"],
}
_SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Yields):")
_ENTRY = re.compile(r"([\w, ]+): (.*)", re.DOTALL)


def page() -> str:
    """Return the page."""
    return "\n".join([INTRODUCTION, *(line for module, names in NAMES.items() for line in of_module(module, names))])


def of_module(module: str, names: list[str]) -> Iterator[str]:
    """Yield the lines about the names of a module."""
    found = importlib.import_module(module)
    yield f"## {module}\n"
    for name in names:
        value = getattr(found, name)
        yield from of_object(f"{module}.{name}", value, "###")
        if inspect.isclass(value) and not issubclass(value, Exception):
            for member in (m for m in vars(value) if not m.startswith("_")):
                # Overridden methods are those of their libraries.
                inherited = any(hasattr(base, member) for base in value.__bases__ if base is not object)
                if not inherited and inspect.getdoc(getattr(value, member)) and callable(getattr(value, member)):
                    yield from of_object(f"{name}.{member}", getattr(value, member), "####")


def of_object(name: str, value: Any, heading: str) -> Iterator[str]:
    """Yield the lines about a class or function."""
    arguments = "" if inspect.isclass(value) and issubclass(value, Exception) else signature(value)
    yield f"{heading} {name}\n"
    if arguments:
        yield f"```python\n{name.rpartition('.')[2]}{arguments}\n```\n"
    yield markdown(inspect.getdoc(value)) + "\n"


def signature(value: Any) -> str:
    """Return names and defaults of arguments, whose types are in the docstring. Functions as defaults are left out."""
    found = inspect.signature(value)
    parameters = [
        p.replace(annotation=p.empty) for p in found.parameters.values()
        if p.name != "self" and (p.default is p.empty or not callable(p.default))
    ]  # fmt: skip
    return str(found.replace(parameters=parameters, return_annotation=found.empty))


def markdown(docstring: str) -> str:
    """Return a docstring in Markdown: sections of arguments as lists, examples as code."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", docstring).replace("``", "`")
    blocks = []
    for block in text.split("\n\n"):
        lines = block.splitlines()
        if _SECTION.fullmatch(lines[0]):
            entries = re.split(r"\n(?=\S)", textwrap.dedent("\n".join(lines[1:])))
            items = [_ENTRY.fullmatch(" ".join(entry.split())) for entry in entries]
            blocks.append(f"**{lines[0][:-1]}**\n")
            blocks[-1] += "".join(f"\n- `{item[1]}`: {item[2]}" for item in items)
        elif lines[0].startswith(">>>"):
            blocks.append("```python\n" + "\n".join(line.removeprefix(">>> ") for line in lines) + "\n```")
        else:
            blocks.append(block)
    return "\n\n".join(blocks)


def main() -> int:
    """Run the command and return its exit status."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check, text = parser.parse_args().check, page()
    if check and PAGE.read_text(encoding="utf-8") != text:
        print(f"{PAGE}: differs from the docstrings; run python scripts/make_api.py", file=sys.stderr)
        return 1
    if not check:
        PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
