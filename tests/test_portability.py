"""Streams written under one setting of the machine are read under others, in processes of their own."""

import pytest

from ugicm.evaluation import portability


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
