"""Training configurations from YAML files and command-line overrides."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ugicm.config.schema import FileText, check, require, shown
from ugicm.config.training import TrainConfig
from ugicm.errors import ConfigError
from ugicm.extras import require_packages

REPLACING = {"backbone", "fixed", "choices", "range"}  # a section with one of them does not extend that of its base


def load_config(path: str | os.PathLike, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a training configuration.

    A file may name another one as its ``base``. Its own keys are laid over those of the base, section by section. null
    resets a key to its default, and ``{}`` a whole section. A section that names its ``backbone``, and a
    distribution such as ``{fixed: 0.5}``, replaces that of the base. Paths are relative to the file that contains them.

    Args:
        path: YAML file.
        overrides: ``KEY=VALUE`` with the path of a key and a YAML value, for example ``optim.lr=1e-5``. Paths are
            relative to the current directory.

    Raises:
        ConfigError: a file cannot be read, or a key or value is not allowed. The message names the file and the key.
    """
    layers = [*_read(Path(path)), *map(_override, overrides)]
    merged = functools.reduce(_overlay, (values for _, values in layers if values), {})
    try:
        return check(TrainConfig, merged, "")
    except ConfigError as error:
        message = str(error).lstrip(".: ")
        key = message.partition(":")[0].partition("[")[0].split(".")
        where = next((place for place, values in reversed(layers) if _contains(values, key)), path)
        raise ConfigError(f"{where}: {message}") from None


@functools.cache
def _yaml_loader() -> type:
    """Return a class that reads YAML: PyYAML is needed for training only."""
    require_packages("train", "a configuration file", "yaml")
    import yaml

    class YamlLoader(yaml.SafeLoader):
        """Keep the folder that paths are relative to, and refuse duplicate keys, of which PyYAML keeps the last one."""

        folder: Path

        def construct_yaml_str(self, node: yaml.ScalarNode) -> FileText:
            text = FileText(super().construct_yaml_str(node))
            text.folder = self.folder
            return text

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
            keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
            if twice := next((key for i, key in enumerate(keys) if isinstance(key, str) and key in keys[:i]), None):
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {twice!r}", node.start_mark)
            return super().construct_mapping(node, deep)

    YamlLoader.add_constructor("tag:yaml.org,2002:str", YamlLoader.construct_yaml_str)
    return YamlLoader


def _parse(text: str, folder: Path, where: str) -> Any:
    loader_class = _yaml_loader()
    import yaml

    try:
        loader = loader_class(text)
        loader.folder = folder
        return loader.get_single_data()
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: invalid YAML: {' '.join(str(error).split())}") from None


def _read(path: Path, above: tuple[Path, ...] = ()) -> list[tuple[str, dict]]:
    """Return the names and values of a file and of all its bases, the lowest base first."""
    path = path.absolute()
    require(path not in above, f"{path}: is its own base")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    values = _parse(text, path.parent, str(path))
    require(isinstance(values, dict), f"{path}: expected a mapping of keys, got {shown(values)}")
    base = check(str | None, values.pop("base", None), f"{path}: base")
    return [*(_read(path.parent / base, (*above, path)) if base else ()), (str(path), values)]


def _override(text: str) -> tuple[str, dict]:
    key, equals, value = text.partition("=")
    require(equals and all(key.split(".")), f"--set {text}: expected KEY=VALUE, for example optim.lr=1e-5")
    values = _parse(value, Path.cwd(), f"--set {text}")
    for part in reversed(key.split(".")):
        values = {part: values}
    return f"--set {text}", values


def _overlay(lower: Any, upper: Any) -> Any:
    """Return ``upper`` laid over ``lower``."""
    if not isinstance(upper, dict) or not upper or not isinstance(lower, dict) or REPLACING & upper.keys():
        return upper
    return {**lower, **{key: _overlay(lower.get(key), value) for key, value in upper.items()}}


def _contains(values: Any, key: list[str]) -> bool:
    return not key or isinstance(values, dict) and key[0] in values and _contains(values[key[0]], key[1:])
