"""Streams written under one setting of the machine are read under others, in processes of their own."""

import pytest
import torch
from small_models import small_model

from ugicm.evaluation import portability
from ugicm.models.gaussian import log_spaced
from ugicm.released import reference_name


def test_released_checkpoints_get_the_same_tables_under_other_instruction_sets(photos, tmp_path):
    """Their tables are built on loading; a difference in one bit would make streams those of another model."""
    state = {reference_name(name): parameter.data for name, parameter in small_model("mlicpp").named_parameters()}
    torch.save({"state_dict": state}, tmp_path / "released.pth.tar")
    chosen = [s for s in portability.settings() if s.name in ("1 thread", "no vector instructions")]
    picture = sorted(photos.rglob("*.png"))[:1]
    report = portability.check(str(tmp_path / "released.pth.tar"), picture, [0.5], chosen, tmp_path)
    assert report["mismatches"] == 0 and report["streams"] == 4


def test_scales_are_those_of_compressai_but_for_the_last_bit():
    from compressai.models.base import get_scale_table

    found = torch.tensor(log_spaced(0.11, 256, 64))
    torch.testing.assert_close(found, get_scale_table(0.11, 256, 64), rtol=3e-7, atol=0)
    assert found[0] == torch.tensor(0.11)
    assert log_spaced(2.0, 4.0, 1) == [pytest.approx(2.0)]  # a checkpoint may ask for a single row


def test_streams_decode_under_other_threads_and_instruction_sets(checkpoint, photos, tmp_path):
    chosen = [s for s in portability.settings() if s.name in ("2 threads", "no vector instructions")]
    pictures = sorted(photos.rglob("*.png")) + sorted(photos.rglob("*.jpg"))
    report = portability.check(str(checkpoint), pictures, [0.2, 0.8], chosen, tmp_path)
    assert report["mismatches"] == 0
    assert report["streams"] == 4 * len(pictures) * 2
    assert 0 < report["closest_to_a_bound"] < 0.1


def test_a_process_that_fails_says_what_it_said(photos, tmp_path):
    with pytest.raises(RuntimeError, match="no such file"):
        portability.check("absent.safetensors", [], [0.5], portability.settings()[:1], tmp_path)
