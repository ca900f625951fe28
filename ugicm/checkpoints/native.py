"""The checkpoint format: a safetensors file whose metadata holds the whole configuration.

Metadata keys: ``format`` ("ugicm"), ``config`` (the model's configuration, JSON), and whatever the writer adds (step,
git revision, versions ...). Tensors have the module names of :class:`ugicm.models.ugicm.UGICM` and are float32 or
float16; the entropy coder's integer CDF tables are among them.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import safetensors
import safetensors.torch
import torch
import torch.utils.deterministic
from torch.overrides import TorchFunctionMode

from ugicm import atomic
from ugicm.config import LARGEST_SCALE, ModelConfig, from_dict, to_dict
from ugicm.entropy.tables import TABLES
from ugicm.errors import CheckpointError, UsageError, first_line, first_of
from ugicm.models.ugicm import UGICM

FORMAT = "ugicm"
LARGEST_OFFSET = 2**16  # of a CDF table: its symbols, less this, stay below what the coder can escape
LARGEST_QUANTILE = 2**12  # the tables of the factorized prior reach from the lowest to the highest quantile
_WEIGHT_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Buffers that follow from the configuration or are constants: not stored.
_DERIVED = ("likelihood_lower_bound.bound", "lower_bound_scale.bound", "lowest.bound", "bottleneck.target", "pedestal",
            "lower_bound.bound", "relative_position_index")  # fmt: skip


def model_state(model: UGICM) -> dict[str, torch.Tensor]:
    """Return what a checkpoint stores: parameters and CDF tables."""
    return {k: v for k, v in model.state_dict().items() if not k.endswith(_DERIVED) and v.numel()}


def save_model(path: str | os.PathLike, model: UGICM, metadata: dict[str, str] | None = None, half: bool = False):
    """Write a model to a safetensors file, atomically.

    Args:
        path: the file; an existing one is replaced.
        model: before ``prepare_for_coding``. CDF tables are stored if they have been built
            (``model.entropy_model.build_tables()``).
        metadata: added to the file's metadata.
        half: store weights as float16, except for the factorized prior and the tabulated scales.

    Raises:
        ValueError: the model is prepared for coding; its weights are rounded.
        CheckpointError: a value is not finite.
        WriteError: the file cannot be written.
    """
    if model.fingerprint:
        raise ValueError("a model after prepare_for_coding() cannot be saved: its weights are rounded")
    state = {}
    for name, tensor in model_state(model).items():
        tensor = tensor.detach().cpu().contiguous()
        narrow = half and tensor.is_floating_point() and "bottleneck" not in name and "scale_table" not in name
        state[name] = tensor.half() if narrow else tensor
    infinite = [k for k, v in state.items() if not bool(torch.isfinite(v).all())]
    _require_none(infinite, str(path), "values that are not finite")
    described = {**(metadata or {}), "format": FORMAT, "config": json.dumps(to_dict(model.config))}
    with atomic.replacing(path) as temporary:
        try:
            safetensors.torch.save_file(state, temporary, metadata=described)
        except safetensors.SafetensorError as error:  # raised if the file cannot be written
            raise OSError(errno.EIO, first_line(error)) from None
        os.chmod(temporary, 0o644)  # safetensors creates private files


def check_output(path: Path, overwrite: bool) -> None:
    """Raise UsageError if a model cannot be written to ``path``; called before any work is done."""
    if path.suffix != ".safetensors":
        raise UsageError(f"{path}: name must end in .safetensors")
    if path.is_dir():
        raise UsageError(f"{path}: cannot be written: it is a folder")
    if path.exists() and not overwrite:
        raise UsageError(f"{path}: exists; choose another name or use --overwrite")
    if why := atomic.why_not_writable(path.parent):
        raise UsageError(f"{path}: cannot be written: {why}")


def is_native(path: str | os.PathLike) -> bool:
    """Return whether a checkpoint has the suffix of this format. Others are taken for released checkpoints."""
    return Path(path).suffix.lower() == ".safetensors"


def check_readable(path: str | os.PathLike) -> None:
    """Raise CheckpointError if there is no file to read."""
    path = Path(path)
    try:
        if path.is_dir():
            raise CheckpointError(f"{path}: is a folder: name the file in it")
        if not path.is_file():  # opening a pipe would block
            raise CheckpointError(f"{path}: no such file")
        path.open("rb").close()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from None


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """Return the metadata of a native checkpoint. Raises CheckpointError for any other file."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read as a safetensors checkpoint: {error}") from None
    if metadata.get("format") != FORMAT or "config" not in metadata:
        raise CheckpointError(f"{path}: a safetensors file, but not a ugicm checkpoint (no config in its metadata)")
    return metadata


def load_model(path: str | os.PathLike) -> UGICM:
    """Build the model that a native checkpoint describes: float32, on the CPU, in eval mode.

    Raises:
        CheckpointError: not a native checkpoint, or tensors are missing, unexpected, mis-shaped or not finite.
    """
    metadata = read_metadata(path)
    try:
        config = from_dict(ModelConfig, json.loads(metadata["config"]), f"{path}: config")
    except (ValueError, RecursionError) as error:  # json and int() raise plain ones
        raise CheckpointError(f"{path}: {error}") from None
    try:
        state = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read as a safetensors checkpoint: {error}") from None
    model = blank_model(config, str(path), os.path.getsize(path))
    load_weights(model, state, str(path))
    return model.eval()


def blank_model(config: ModelConfig, where: str, size: int) -> UGICM:
    """Build a model with uninitialized parameters, to be loaded from a file of ``size`` bytes.

    Random initial values would take seconds for the large models. Besides, memory that is never written costs nothing:
    if the configuration of a small file asks for more memory than the machine has, the shapes of its tensors are found
    to be wrong before that does harm. (GDN still computes with its N x N initial values.)

    Raises CheckpointError, starting with ``where``, if the configuration is invalid or needs a larger file.
    """
    if 2 * config.N**2 > size:  # every model has layers of N x N, with two bytes per weight at least
        raise CheckpointError(f"{where}: {size} bytes cannot hold a model of its configuration: N is {config.N}")
    try:
        with _SkipInitialization(), _uninitialized_memory():
            return UGICM(config)
    except (RuntimeError, MemoryError, ValueError) as error:
        raise CheckpointError(f"{where}: cannot build a model of its configuration: {first_line(error)}") from None


@contextlib.contextmanager
def _uninitialized_memory() -> Iterator[None]:
    """Keep PyTorch's deterministic mode from filling new memory."""
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = fill


class _SkipInitialization(TorchFunctionMode):
    """Ignore in-place operations on parameters."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        target = args[0] if args else kwargs.get("tensor")
        in_place = func.__name__.endswith("_") and not func.__name__.endswith("__")
        if in_place and isinstance(target, torch.nn.Parameter):
            return target
        return func(*args, **kwargs)


def load_weights(
    model: UGICM,
    state: dict[str, torch.Tensor],
    where: str,
    display_name: Callable[[str], str] = lambda name: name,
) -> None:
    """Load a state dict strictly, after checking it. CDF tables may have any length or be absent.

    ``display_name`` maps a tensor's name to the one that error messages show.

    Raises CheckpointError, starting with ``where`` and naming the first offending tensors.
    """
    own = {k: v for k, v in model.state_dict().items() if not k.endswith(_DERIVED)}
    weights = {k: v for k, v in own.items() if not k.endswith(TABLES)}

    def require_none(names: list[str], problem: str) -> None:
        _require_none([display_name(name) for name in names], where, problem)

    require_none([k for k in weights if k not in state], "missing tensors")
    require_none([k for k in state if k not in own], "unexpected tensors")
    _require_none([
        f"{display_name(k)} is {list(state[k].shape)}, expected {list(v.shape)}"
        for k, v in weights.items() if state[k].shape != v.shape
    ], where, "wrong shapes")  # fmt: skip
    require_none([k for k in weights if not is_weight(state[k])], "no dense floating point tensors")
    require_none([k for k in weights if not bool(torch.isfinite(state[k].float()).all())], "values that are not finite")
    for prior, rows in (("bottleneck", model.config.N), ("gaussian", model.config.scale_levels)):
        _check_tables(state, f"entropy_model.{prior}", rows, where)
    with torch.no_grad():
        for name, tensor in state.items():
            module_name, _, leaf = name.rpartition(".")
            if leaf in TABLES:
                setattr(model.get_submodule(module_name), leaf, tensor.to(torch.int32))
            else:
                own[name].copy_(tensor)
    _check_priors(model, where)


def is_weight(tensor: torch.Tensor) -> bool:
    """Return whether a tensor can hold weights: floating point of 16 bits or more, and :func:`is_dense`."""
    return tensor.dtype in _WEIGHT_TYPES and is_dense(tensor)


def is_dense(tensor: torch.Tensor) -> bool:
    """Return whether a tensor is in CPU memory with all its values: not sparse, quantized, meta or an expanded view."""
    if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        return False
    return tensor.untyped_storage().nbytes() >= tensor.nbytes


def _require_none(offending: list[str], where: str, problem: str) -> None:
    if offending:
        raise CheckpointError(f"{where}: {problem}: {first_of(offending)}")


def _check_priors(model: UGICM, where: str) -> None:
    """Raise CheckpointError if the CDF tables that follow from scales and quantiles would be too large."""
    scales, quantiles = model.entropy_model.gaussian.scale_table, model.entropy_model.bottleneck.quantiles
    if not bool((scales[0] > 0) & (scales.diff() > 0).all() & (scales[-1] <= LARGEST_SCALE)):
        raise CheckpointError(f"{where}: tabulated scales do not increase from above 0 to {LARGEST_SCALE:g} at most")
    if not bool((quantiles.diff() >= 0).all() & (quantiles.abs() <= LARGEST_QUANTILE).all()):
        raise CheckpointError(
            f"{where}: quantiles of its factorized prior do not increase within +-{LARGEST_QUANTILE}: "
            f"{quantiles.min():.4g} ... {quantiles.max():.4g}"
        )


def _check_tables(state: dict[str, torch.Tensor], prior: str, rows: int, where: str) -> None:
    """Raise CheckpointError for invalid CDF tables: the entropy coder does not check them."""
    offset, cdf, length = tables = [state.get(f"{prior}.{name}") for name in TABLES]
    if all(table is None for table in tables):
        return
    complaint = None
    if any(table is None for table in tables):
        complaint = "some of its CDF tables are missing"
    elif cdf.dim() != 2 or len(cdf) != rows or offset.shape != (rows,) or length.shape != (rows,):
        complaint = f"CDF tables of {list(cdf.shape)}, expected {rows} rows"
    elif any(table.dtype not in (torch.int32, torch.int64) for table in tables):
        complaint = "CDF tables must be integers"
    elif bool(((offset < -LARGEST_OFFSET) | (offset > LARGEST_OFFSET)).any()):
        complaint = f"CDF offsets beyond +-{LARGEST_OFFSET}"
    elif bool(((length < 3) | (length > cdf.shape[1])).any()):
        complaint = "CDF lengths out of range"
    else:
        used = torch.arange(cdf.shape[1], device=cdf.device)[None, :] < length[:, None]
        steps = (cdf[:, 1:].long() - cdf[:, :-1].long())[used[:, 1:]]
        last = cdf.gather(1, length.long()[:, None] - 1)
        if bool((cdf[:, 0] != 0).any()) or bool((last != 1 << 16).any()) or bool((steps <= 0).any()):
            complaint = "a CDF does not increase from 0 to 65536"
    if complaint:
        raise CheckpointError(f"{where}: {prior}: {complaint}")
