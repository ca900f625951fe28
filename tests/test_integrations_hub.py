"""Checkpoints of the Hugging Face Hub, by a cache in a temporary folder and without network."""

import json
import shutil

import pytest

import ugicm
from ugicm.commands.main import main

huggingface_hub = pytest.importorskip("huggingface_hub")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """cache(folder, repository, revision): put files where the Hub's library keeps downloads. Without a connection."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def put(folder, repository: str, revision: str = "main") -> None:
        stored = tmp_path / "cache" / f"models--{repository.replace('/', '--')}"
        (stored / "refs").mkdir(parents=True)
        (stored / "refs" / revision).write_text(COMMIT)
        shutil.copytree(folder, stored / "snapshots" / COMMIT)

    return put


@pytest.fixture
def published(tmp_path, checkpoint, run_script, monkeypatch, cache):
    """Publish a checkpoint as someone/model. The Hub is the cache."""

    def create_repo(self, repository, *, private, exist_ok):
        assert (repository, private, exist_ok) == ("someone/model", True, True)

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        cache(folder_path, repo_id)

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)
    done = run_script("scripts/push_to_hub.py", checkpoint, "someone/model", "--private")
    assert (done.returncode, done.stdout) == (0, "hf://someone/model/model.safetensors\n"), done.stderr
    return "hf://someone/model/model.safetensors"


def test_published_checkpoints_load(published, checkpoint, make_image, tmp_path):
    codec = ugicm.load(published)
    assert codec.fingerprint == ugicm.load(checkpoint).fingerprint
    assert ugicm.load("hf://someone/model@main/model.safetensors").fingerprint == codec.fingerprint
    assert ugicm.load(f"hf://someone/model@{COMMIT}/model.safetensors").fingerprint == codec.fingerprint
    make_image(64, 64).save(tmp_path / "a.png")
    assert main(["compress", str(tmp_path / "a.png"), str(tmp_path / "a.ugic"), "-c", published]) == 0
    assert (tmp_path / "a.ugic").read_bytes() == codec.compress(tmp_path / "a.png")


def test_model_card_and_configuration(checkpoint, tmp_path, run_script):
    done = run_script("scripts/push_to_hub.py", checkpoint, "someone/model", "--folder", tmp_path / "out")
    assert done.returncode == 0 and done.stdout.endswith("README.md config.json model.safetensors\n")
    card = huggingface_hub.ModelCard.load(tmp_path / "out" / "README.md")
    assert (card.data.license, card.data.library_name) == ("mit", "ugicm")
    assert 'ugicm.load("hf://someone/model/model.safetensors")' in card.text
    codec = ugicm.load(tmp_path / "out" / "model.safetensors")
    assert f"`{codec.fingerprint}`" in card.text and str(codec.describe()["parameters"]) in card.text
    assert json.loads((tmp_path / "out" / "config.json").read_text())["backbone"] == codec.config.backbone


def test_errors_say_what_to_do(published, tmp_path):
    for address, reason in (
        ("hf://someone/model/other.safetensors", "not in the cache.*HF_HUB_OFFLINE"),
        ("hf://someone/else/model.safetensors", "not in the cache"),
        ("hf://model.safetensors", "expected hf://user/repository"),
        ("hf://some one/model/model.safetensors", "cannot be loaded"),
    ):
        with pytest.raises(ugicm.CheckpointError, match=f"^{address}: .*{reason}"):
            ugicm.load(address)


@pytest.mark.parametrize("name, reason", [
    ("RepositoryNotFoundError", "no such repository"), ("RevisionNotFoundError", "no revision 'v2'"),
    ("RemoteEntryNotFoundError", "no such file"), ("GatedRepoError", "gated"),
])  # fmt: skip
def test_errors_of_the_hub(name, reason, monkeypatch):
    def fail(*_, **__):
        error = getattr(huggingface_hub.errors, name)
        raise error.__new__(error)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(ugicm.CheckpointError, match=reason):
        ugicm.load("hf://someone/model@v2/model.safetensors")


def test_failed_uploads_are_one_line(checkpoint, monkeypatch, run_script):
    def fail(*_, **__):
        raise ConnectionError("no route to the Hub\nmore")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", fail)
    done = run_script("scripts/push_to_hub.py", checkpoint, "someone/model")
    assert done.returncode == 1
    assert done.stderr.endswith("error: someone/model: cannot be uploaded: no route to the Hub\n")
