"""Released checkpoints: ``.pth.tar`` files of UG-ICM and MLIC++.

The sizes of the network are inferred from the shapes of the tensors, which are renamed by one table (:data:`KEY_MAP`).
An MLIC++ checkpoint has no preference: its projections are set to zero, so that the preference has no effect until it
is trained. Integer CDF tables in the file are ignored: they follow from the parameters and are built again, as the
reference code does after loading. To fix them, convert the checkpoint with ``scripts/convert_checkpoint.py``.

Files are read with ``weights_only=True``: nothing in them is executed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

import torch
from torch import Tensor

from ugicm.checkpoints.native import blank_model, is_native, is_weight, load_model, load_weights
from ugicm.checkpoints.state_dict import read_state_dict
from ugicm.config import MlicppConfig
from ugicm.errors import CheckpointError, ConfigError, first_of
from ugicm.models.conditional_decoder import PreferenceEmbedding
from ugicm.models.ugicm import UGICM

# (prefix in the reference code, prefix in UGICM); "#" stands for the number of a slice. In both directions, the first
# match counts.
KEY_MAP: tuple[tuple[str, str], ...] = (
    ("g_a.analysis_transform.", "g_a."),
    ("h_a.reduction.", "h_a."),
    ("h_s.increase.", "entropy_model.h_s."),
    ("entropy_bottleneck.", "entropy_model.bottleneck."),
    ("global_cond.beta_mlp.", "preference."),
    *(
        (f"g_s.synthesis_transform.{2 * i}.{reference}", f"g_s.blocks.{i}.{native}")
        for i in range(4)
        for reference, native in (("_proj1.0.", "shift1."), ("_proj2.0.", "shift2."), ("", ""))
    ),
    *(
        (f"g_s.synthesis_transform.{2 * i + 1}.{reference}", f"g_s.ups.{i}.{native}")
        for i in range(3)
        for reference, native in (("subpel_conv.", "up."), ("upsample.", "skip."), ("", ""))
    ),
    ("g_s.synthesis_transform.7.", "g_s.head."),
    ("local_context.#.relative_position_table", "entropy_model.slices.local.#.position_bias"),
    ("local_context.#.qkv_proj.", "entropy_model.slices.local.#.qkv."),
    ("local_context.#.proj.", "entropy_model.slices.local.#.project."),
    ("local_context.#.mlp.fc1.", "entropy_model.slices.local.#.mlp.0."),
    ("local_context.#.mlp.fc2.", "entropy_model.slices.local.#.mlp.2."),
    ("local_context.#.norm1.", "entropy_model.slices.local.#.norm."),
    ("local_context.#.norm2.", "entropy_model.slices.local.#.mlp_norm."),
    ("local_context.#.", "entropy_model.slices.local.#."),
    ("channel_context.#.fushion.", "entropy_model.slices.channel.#."),
    *(
        (f"global_{kind}_context.#.{reference}", f"entropy_model.slices.{kind}.#.{native}")
        for kind in ("inter", "intra")
        for reference, native in (
            ("queries.", "query."), ("keys.", "key."), ("values.", "value."), ("reprojection.", "fusion."),
            ("", ""),
        )
    ),
    ("entropy_parameters_anchor.#.fusion.", "entropy_model.slices.anchor_params.#."),
    ("entropy_parameters_nonanchor.#.fusion.", "entropy_model.slices.non_anchor_params.#."),
    ("lrp_anchor.#.lrp_transform.", "entropy_model.slices.anchor_lrp.#.layers."),
    ("lrp_nonanchor.#.lrp_transform.", "entropy_model.slices.non_anchor_lrp.#.layers."),
)  # fmt: skip

# CompressAI before 1.2 numbered the factorized prior's tensors in their names: _matrix0, _bias0, _factor0.
_OLD_PRIOR = re.compile(r"^(entropy_bottleneck)\._(matrix|bias|factor)(\d+)$")
_OLD_PRIOR_NAMES = {"matrix": "matrices", "bias": "biases", "factor": "factors"}

# Buffers that follow from parameters or from the configuration.
_IGNORED = re.compile(
    r"(^|\.)(_offset|_quantized_cdf|_cdf_length|target|bound|pedestal|scale_bound|scale_table|attn_mask"
    r"|relative_position_index)$"
)


def load_any(path: str | os.PathLike) -> UGICM:
    """Load a native checkpoint (``.safetensors``) or a released one (any other suffix).

    See :func:`ugicm.checkpoints.native.load_model` and :func:`load_released`. Raises CheckpointError.
    """
    return load_model(path) if is_native(path) else load_released(path)


def load_released(path: str | os.PathLike) -> UGICM:
    """Load a released UG-ICM or MLIC++ checkpoint: float32, on the CPU, in eval mode.

    Raises:
        CheckpointError: the file cannot be read without executing code, is not such a checkpoint, or tensors are
            missing, unexpected, mis-shaped or not finite.
    """
    return build(read_state_dict(path), str(path))


def infer_config(state: dict[str, Tensor], where: str = "checkpoint") -> MlicppConfig:
    """Infer the sizes of the network from a state dict with reference names. Raises CheckpointError."""

    def shape(name: str, dimensions: int) -> torch.Size:
        if name not in state:
            raise CheckpointError(
                f"{where}: not a UG-ICM or MLIC++ checkpoint: no tensor {name!r}; found {first_of(state)}"
            )
        if state[name].dim() != dimensions:
            raise CheckpointError(f"{where}: {name} is {list(state[name].shape)}, expected {dimensions} dimensions")
        return state[name].shape

    def hidden_widths(prefix: str) -> tuple[int, ...]:
        """Return the output widths of the convolutions prefix.0, prefix.2, ..., except for the last one."""
        names = (f"{prefix}.{2 * i}.weight" for i in range(len(state)))
        widths = []
        for name in names:
            if widths and name not in state:
                break
            widths.append(shape(name, 4)[0])
        return tuple(widths[:-1])

    M, N = shape("g_a.analysis_transform.6.weight", 4)[:2]
    numbered = (re.match(r"local_context\.(\d{1,4})\.", name) for name in state)
    slices = 1 + max((int(m[1]) for m in numbered if m), default=0)
    widths = tuple(shape(f"local_context.{k}.norm1.weight", 1)[0] for k in range(slices))
    sizes = dict(
        N=N,
        M=M,
        slice_widths=widths,
        parameter_widths=hidden_widths("entropy_parameters_anchor.0.fusion"),
        channel_widths=hidden_widths("channel_context.1.fushion") if slices > 1 else (),
        lrp="full" if len(hidden_widths("lrp_anchor.0.lrp_transform")) == 3 else "slim",
    )
    stem = shape("g_s.synthesis_transform.0.conv2.weight", 4)[0]
    if stem != N:  # later MLIC++ code begins the synthesis M wide
        sizes["stem_width"] = stem
    if _has_condition(state):
        width, features = shape("global_cond.beta_mlp.fc1.weight", 2)
        sizes.update(beta_width=width, beta_frequencies=(features - 1) // 2)
    table = state.get("gaussian_conditional.scale_table")
    if table is not None and is_weight(table) and shape("gaussian_conditional.scale_table", 1)[0] > 1:
        sizes.update(scale_levels=table.numel(), scale_min=_decimal(table[0]), scale_max=_decimal(table[-1]))
    try:
        return MlicppConfig(**sizes)
    except ConfigError as error:
        raise CheckpointError(f"{where}: its tensors do not fit together: {error}") from None


def _decimal(value: Tensor) -> float:
    """Return a tabulated scale as the decimal it was computed from, without the rounding errors of log and exp."""
    return float(f"{value.item():.5g}")


def _has_condition(state: Iterable[str]) -> bool:
    return any(name.startswith("global_cond.") or "._proj" in name for name in state)


def build(state: dict[str, Tensor], where: str = "checkpoint") -> UGICM:
    """Build the model that a state dict with reference names describes, in eval mode. Raises CheckpointError."""
    model = blank_model(infer_config(state, where), where, sum(tensor.nbytes for tensor in state.values()))
    reference_names = {native_name(name): name for name in state if not _IGNORED.search(name)}
    tensors = {native: state[name] for native, name in reference_names.items()}
    if not _has_condition(state):  # MLIC++: the preference has no effect until it is trained
        start = PreferenceEmbedding(model.config.beta_frequencies, model.config.beta_width).state_dict()
        tensors |= {f"preference.{name}": tensor for name, tensor in start.items()}
        tensors |= {name: torch.zeros(p.shape) for name, p in model.named_parameters() if ".shift" in name}
    tensors["entropy_model.gaussian.scale_table"] = model.entropy_model.gaussian.scale_table
    load_weights(model, tensors, where, lambda native: reference_names.get(native) or reference_name(native))
    return model.eval()


def native_name(name: str) -> str:
    """Translate a reference name to the one in :class:`~ugicm.models.ugicm.UGICM`. Unknown names stay as they are."""
    name = _OLD_PRIOR.sub(lambda m: f"{m[1]}.{_OLD_PRIOR_NAMES[m[2]]}.{m[3]}", name)
    return _translate(name, KEY_MAP)


def reference_name(name: str) -> str:
    """Invert :func:`native_name`."""
    return _translate(name, ((native, reference) for reference, native in KEY_MAP))


def _translate(name: str, table: Iterable[tuple[str, str]]) -> str:
    for source, target in table:
        match = re.match(re.escape(source).replace(r"\#", r"(\d+)"), name)
        if match:
            return (target.replace("#", match[1]) if match.groups() else target) + name[match.end() :]
    return name
