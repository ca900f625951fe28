"""Released checkpoints, valid and invalid."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from reference import reference_state
from small_models import CONFIGS, small_model

from ugicm.checkpoints.native import load_model, read_metadata
from ugicm.checkpoints.released import build, load_released, reference_name
from ugicm.errors import CheckpointError
from ugicm.models.ugicm import UGICM

SCRIPT = "scripts/convert_checkpoint.py"


@pytest.fixture(scope="module")
def model() -> UGICM:
    return small_model("mlicpp")


@pytest.fixture
def state(model) -> dict[str, torch.Tensor]:
    """Weights of a small model under the reference code's names."""
    return {reference_name(name): parameter.detach().clone() for name, parameter in model.named_parameters()}


def save(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "checkpoint.pth.tar"
    torch.save(content, path)
    return path


def same(first: UGICM, second: UGICM) -> bool:
    theirs = dict(second.named_parameters())
    return all(torch.equal(p, theirs[name]) for name, p in first.named_parameters())


def test_reference_names_are_those_of_the_reference_code(state):
    assert "g_s.synthesis_transform.2._proj1.0.weight" in state
    assert "entropy_parameters_nonanchor.1.fusion.2.bias" in state
    assert not [name for name in state if name.startswith(("entropy_model.", "preference."))]


def test_load_released_infers_sizes(model, state, tmp_path):
    loaded = load_released(save(tmp_path, {"state_dict": state, "epoch": 3}))
    assert loaded.config == CONFIGS["mlicpp"]
    assert same(loaded, model) and not loaded.training


def test_load_released_accepts_a_wider_synthesis_stem(tmp_path):
    torch.manual_seed(0)
    wide = UGICM(replace(CONFIGS["mlicpp"], stem_width=64))
    state = {reference_name(name): parameter.detach() for name, parameter in wide.named_parameters()}
    loaded = load_released(save(tmp_path, {"state_dict": state}))
    assert loaded.config.stem_width == 64 and same(loaded, wide)


def test_load_released_accepts_a_bare_state_dict(model, state, tmp_path):
    assert same(load_released(save(tmp_path, state)), model)


def test_load_released_removes_the_data_parallel_prefix(model, state, tmp_path):
    assert same(load_released(save(tmp_path, {"state_dict": {f"module.{k}": v for k, v in state.items()}})), model)


def test_load_released_accepts_old_names_of_the_factorized_prior(model, state, tmp_path):
    old = {"matrices.": "_matrix", "biases.": "_bias", "factors.": "_factor"}
    for name in [n for n in state if n.startswith("entropy_bottleneck.")]:
        renamed = name
        for modern, ancient in old.items():
            renamed = renamed.replace(modern, ancient)
        state[renamed] = state.pop(name)
    assert "entropy_bottleneck._matrix0" in state
    assert same(load_released(save(tmp_path, state)), model)


@pytest.mark.parametrize("length", [0, 7, 3133])
def test_load_released_ignores_cdf_tables(model, state, tmp_path, length):
    state["gaussian_conditional._quantized_cdf"] = torch.zeros(64 if length else 0, length, dtype=torch.int32)
    state["gaussian_conditional._offset"] = torch.zeros(64 if length else 0, dtype=torch.int32)
    state["entropy_bottleneck._quantized_cdf"] = torch.zeros(16, length, dtype=torch.int32)
    state["local_context.0.relative_position_index"] = torch.zeros(25, 25, dtype=torch.int64)
    loaded = load_released(save(tmp_path, state)).prepare_for_coding()
    assert loaded.entropy_model.gaussian.quantized_cdf.shape[0] == 64
    assert loaded.fingerprint == build(state).prepare_for_coding().fingerprint


def test_load_released_uses_the_scale_table(state):
    table = torch.exp(torch.linspace(torch.tensor(0.11).log(), torch.tensor(128.0).log(), 32))
    config = build(state | {"gaussian_conditional.scale_table": table}).config
    assert (config.scale_levels, config.scale_min, config.scale_max) == (32, 0.11, 128.0)


@torch.inference_mode()
def test_preference_has_no_effect_without_conditioning(state, tmp_path):
    plain = {k: v for k, v in state.items() if not k.startswith("global_cond.") and "._proj" not in k}
    assert len(plain) < len(state)
    loaded = load_released(save(tmp_path, plain))
    y_hat = torch.randn(1, 64, 4, 4)
    human, machine = (loaded.synthesize(y_hat, torch.tensor([beta]), torch.ones(1)) for beta in (0.0, 1.0))
    assert torch.equal(human, machine)


def assert_rejected(tmp_path: Path, content: object, *words: str) -> None:
    path = save(tmp_path, content)
    with pytest.raises(CheckpointError) as caught:
        load_released(path)
    for word in (str(path), *words):
        assert word in str(caught.value)


def test_load_released_rejects_values_that_are_not_finite(state, tmp_path):
    state["h_a.reduction.0.weight"][0, 0, 0, 0] = float("nan")
    assert_rejected(tmp_path, state, "not finite", "h_a.reduction.0.weight")


def test_load_released_rejects_wrong_shapes(state, tmp_path):
    state["h_a.reduction.0.bias"] = torch.zeros(5)
    assert_rejected(tmp_path, state, "h_a.reduction.0.bias is [5], expected [16]")


def test_load_released_rejects_missing_tensors(state, tmp_path):
    del state["lrp_anchor.1.lrp_transform.2.weight"], state["h_s.increase.0.bias"]
    assert_rejected(tmp_path, state, "missing", "h_s.increase.0.bias")


def test_load_released_rejects_incomplete_conditioning(state, tmp_path):
    del state["global_cond.beta_mlp.fc2.weight"]
    assert_rejected(tmp_path, state, "missing", "global_cond.beta_mlp.fc2.weight")


def test_load_released_rejects_unexpected_tensors(state, tmp_path):
    state["g_a.extra"] = torch.zeros(1)
    assert_rejected(tmp_path, state, "unexpected", "g_a.extra")


@pytest.mark.parametrize("odd", [torch.zeros(16).to(torch.float8_e4m3fn), torch.zeros(16, dtype=torch.cfloat)])
def test_load_released_rejects_unusual_types(state, tmp_path, odd):
    state["h_a.reduction.0.bias"] = odd
    assert_rejected(tmp_path, state, "no dense floating point tensors: h_a.reduction.0.bias")


def test_load_released_rejects_expanded_tensors(state, tmp_path):
    state["h_a.reduction.0.weight"] = torch.zeros(1).expand(state["h_a.reduction.0.weight"].shape)
    assert_rejected(tmp_path, state, "not dense tensors in CPU memory: h_a.reduction.0.weight")


@pytest.mark.parametrize("table", [torch.ones(2, dtype=torch.cfloat), torch.zeros(2).to(torch.float8_e4m3fn)])
def test_load_released_ignores_scale_tables_of_unusual_types(state, tmp_path, table):
    state["gaussian_conditional.scale_table"] = table
    assert build(state).config.scale_levels == CONFIGS["mlicpp"].scale_levels


def test_load_released_rejects_names_with_huge_numbers(state, tmp_path):
    state[f"local_context.{'1' * 5000}.norm1.weight"] = torch.zeros(1)
    assert_rejected(tmp_path, state, "unexpected")


def test_load_released_rejects_other_networks(tmp_path):
    assert_rejected(tmp_path, {"state_dict": torch.nn.Linear(2, 2).state_dict()}, "not a UG-ICM", "found weight, bias")


@pytest.mark.parametrize(
    "content", [{}, [1, 2], {"state_dict": {}}, {"weight": 3}, {"a": {"b": torch.zeros(1)}}, torch.zeros(2)]
)
def test_load_released_rejects_other_contents(tmp_path, content):
    assert_rejected(tmp_path, content, "expected a state dict")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", bytes(range(256)) * 16, b"PK\x03\x04" + bytes(100)])
def test_load_released_rejects_arbitrary_bytes(tmp_path, content):
    path = tmp_path / "garbage.pth.tar"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="garbage.pth.tar"):
        load_released(path)


def test_load_released_names_a_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere"):
        load_released(tmp_path / "nowhere.pth.tar")


class Malicious:
    """Pickles to a call that creates a file."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return (Path.touch, (self.trace,))


@pytest.mark.parametrize("write", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_load_released_does_not_execute_code(tmp_path, write):
    trace = tmp_path / "executed"
    path = tmp_path / "evil.pth.tar"
    write({"state_dict": {"weight": Malicious(trace)}}, path)
    with pytest.raises(CheckpointError, match="evil.pth.tar"):
        load_released(path)
    assert not trace.exists()


def test_convert_checkpoint(model, state, tmp_path, run_script):
    source, target = save(tmp_path, {"state_dict": state}), tmp_path / "converted.safetensors"
    run = run_script(SCRIPT, source, target)
    assert run.returncode == 0, run.stderr
    converted = load_model(target)
    assert same(converted, model)
    fingerprint = load_released(source).prepare_for_coding().fingerprint
    assert converted.prepare_for_coding().fingerprint == fingerprint
    assert read_metadata(target)["fingerprint"] == fingerprint.hex()
    again = run_script(SCRIPT, source, target)
    assert again.returncode == 2 and "--overwrite" in again.stderr


def test_load_released_reads_the_parity_weights(tmp_path):
    assert load_released(save(tmp_path, {"state_dict": reference_state()})).config.M == 96
