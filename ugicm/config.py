"""Configuration: frozen dataclasses and a strict yaml loader.

Every key of a yaml file is a field of a dataclass. An unknown key, a value of the wrong type and values that
do not fit together are :class:`~ugicm.errors.ConfigError` with the file, the key and what would have worked.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from dataclasses import dataclass
from typing import Any

from ugicm.errors import ConfigError

BACKBONES = ("compact", "mlicpp", "bmshj2018")
LRP_FORMS = ("full", "slim", "none")
PARSING = ("fixed", "float64", "float32")


@dataclass(frozen=True)
class ModelConfig:
    """The network's form. The defaults are the compact model; ``MLICPP`` below is the released one.

    Widths that a backbone does not use are ignored by it; the docstring of each class says what it uses.
    """

    backbone: str = "compact"
    N: int = 128  # width of the hyper latent z; in mlicpp and bmshj2018 also of the transforms
    M: int = 192  # channels of the latent y
    slices: int = 4  # channel groups of y, coded one after another
    slice_widths: tuple[int, ...] = (16, 32, 48, 96)  # channels of each slice; empty: M / slices each
    parameter_widths: tuple[int, ...] = (160, 128)  # hidden widths of the entropy parameter networks
    channel_widths: tuple[int, ...] = ()  # hidden widths of the channel context (mlicpp)
    context_width: int = 64  # output width of each context network (compact)
    hyper_width: int = 160  # channels of the hyper context (compact); the others use 2M
    window: int = 5  # side of the local context's window, odd
    lrp: str = "none"  # latent residual prediction: full | slim | none
    width_8: int = 192  # compact: width of the transforms at 1/8 resolution
    depth_8: int = 4  # compact: blocks at 1/8 resolution
    width_16: int = 256
    depth_16: int = 3
    beta_frequencies: int = 2  # sin/cos pairs in the preference embedding
    beta_width: int = 64  # width of the preference embedding
    quality_points: int = 6  # trained points of the quality gains; 0: a one-rate model
    scale_levels: int = 64  # entropy coder: number of tabulated scales ...
    scale_min: float = 0.11
    scale_max: float = 64.0  # ... log-spaced between these two
    sparse_coding: bool = True  # nearest tabulated scale; positions on the smallest one are not coded
    parsing: str = "fixed"  # arithmetic that decides symbols: fixed (compact) | float64 | float32

    def __post_init__(self) -> None:
        def require(condition: bool, message: str) -> None:
            if not condition:
                raise ConfigError(f"model: {message}")

        require(self.backbone in BACKBONES, f"backbone {self.backbone!r} not found; available: {', '.join(BACKBONES)}")
        require(self.lrp in LRP_FORMS, f"lrp {self.lrp!r} not found; available: {', '.join(LRP_FORMS)}")
        require(self.parsing in PARSING, f"parsing {self.parsing!r} not found; available: {', '.join(PARSING)}")
        require(
            (self.parsing == "fixed") == (self.backbone == "compact"),
            f"parsing {self.parsing!r} does not go with {self.backbone}: compact is fixed, the others are not",
        )
        for name in ("N", "M", "slices", "beta_width", "scale_levels"):
            require(getattr(self, name) > 0, f"{name} must be positive, got {getattr(self, name)}")
        if self.slice_widths:
            require(
                len(self.slice_widths) == self.slices and sum(self.slice_widths) == self.M,
                f"slice_widths {list(self.slice_widths)} must be {self.slices} numbers that add up to M = {self.M}",
            )
        else:
            require(self.M % self.slices == 0, f"M = {self.M} is not divisible by slices = {self.slices}")
        require(self.window % 2 == 1 and self.window > 0, f"window must be odd, got {self.window}")
        require(self.quality_points != 1 and self.quality_points >= 0, "quality_points must be 0 or at least 2")
        require(0 < self.scale_min < self.scale_max, "0 < scale_min < scale_max must hold")
        if self.backbone == "bmshj2018":
            require(self.slices == 1, "bmshj2018 codes the latent in one pass: slices must be 1")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each slice of y."""
        return self.slice_widths or (self.M // self.slices,) * self.slices


# The released UG-ICM network (117.78 M parameters) and the mean-scale hyperprior under the same decoder.
_REFERENCE = dict(
    slice_widths=(), channel_widths=(192, 128), parameter_widths=(320, 256, 128), beta_frequencies=10, beta_width=512,
    quality_points=0, scale_max=256.0, sparse_coding=False, parsing="float64",
)  # fmt: skip
MLICPP = ModelConfig(backbone="mlicpp", N=192, M=320, slices=10, lrp="full", **_REFERENCE)
BMSHJ2018 = ModelConfig(backbone="bmshj2018", N=192, M=320, slices=1, **_REFERENCE)


def from_dict(cls: type, values: Any, where: str) -> Any:
    """Build the dataclass ``cls`` from plain yaml values.

    ``where`` names the source for messages (``configs/x.yaml: model``). Nested dataclasses, tuples, optional
    fields and unions with ``None`` are converted by field type; PyYAML reads ``1e-4`` as a string, so numbers
    are accepted in string form. Raises :class:`ConfigError`.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: expected a mapping of keys, got {values!r}")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(fields)}"
            raise ConfigError(f"{where}: unknown key {key!r}; {hint}")
    missing = [
        name for name, f in fields.items()
        if name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]  # fmt: skip
    if missing:
        raise ConfigError(f"{where}: missing key {missing[0]!r}")
    converted = {key: _convert(hints[key], value, f"{where}.{key}") for key, value in values.items()}
    try:
        return cls(**converted)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        errors = []
        for option in arguments:
            if option is not type(None):
                try:
                    return _convert(option, value, where)
                except ConfigError as error:
                    errors.append(error)
        raise errors[0]
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where)
    if origin in (tuple, list):
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where}: expected a list, got {value!r}")
        items = [_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
        return origin(items)
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: expected a mapping, got {value!r}")
        return {str(k): _convert(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    if hint is bool:
        if isinstance(value, bool):
            return value
        raise ConfigError(f"{where}: expected true or false, got {value!r}")
    if hint in (int, float) and not isinstance(value, bool):
        try:
            number = float(value)
            if hint is float:
                return number
            if number == int(number):
                return int(number)
        except (TypeError, ValueError, OverflowError):
            pass
    elif hint is str and isinstance(value, str):
        return value
    raise ConfigError(f"{where}: expected {getattr(hint, '__name__', hint)}, got {value!r}")


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as plain values that yaml and json can hold (tuples become lists)."""
    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        return [plain(v) for v in value] if isinstance(value, (tuple, list)) else value

    return plain(dataclasses.asdict(config))
