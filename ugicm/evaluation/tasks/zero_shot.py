"""A CLIP model as a judge that was never taught the classes: it compares images with texts that name them.

Radford et al., "Learning transferable visual models from natural language supervision", 2021.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ugicm.errors import ConfigError
from ugicm.evaluation.specs import Spec, set_attributes
from ugicm.evaluation.tasks.classifiers import Judge, Preprocess
from ugicm.evaluation.tasks.hub import downloaded

TEMPLATES = ("simple", "openai", "photo")


class ZeroShotClassifier(nn.Module):
    """Cosine similarity of image and class embeddings.

    Args:
        clip: a model with ``encode_image(images, normalize=True)``.
        weights: class embeddings of length one [D, classes].
    """

    def __init__(self, clip: nn.Module, weights: Tensor):
        super().__init__()
        self.clip = clip
        self.register_buffer("weights", weights)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, h, w], normalized -> [B, classes]"""
        return 100 * self.clip.encode_image(images, normalize=True) @ self.weights


def load_zero_shot(spec: Spec, name: str, device: str) -> Judge:
    """``open_clip/NAME=TAG_OR_PATH``; without a tag, OpenAI's weights.

    Options: ``templates=simple`` (7 prompts a class), ``openai`` (80) or ``photo`` ("a photo of a ..."), and
    ``classes=FILE``: class names, one a line or a json list (of names, or of objects with ``name`` in order);
    without it ImageNet's 1000.

    Raises ConfigError and CheckpointError as :func:`ugicm.evaluation.tasks.classifiers.load_judge`.
    """
    try:
        import open_clip
    except ImportError:
        raise ConfigError(f"{spec.text}: needs open_clip; pip install open_clip_torch") from None

    if name not in open_clip.list_models():
        raise ConfigError(f"{spec.text}: open_clip has no model '{name}'")
    tag = spec.where or "openai"
    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag not in tags and not Path(tag).is_file():
        available = ", ".join(tags) or "none"
        raise ConfigError(
            f"{spec.text}: '{tag}' is neither a file nor a pretrained tag of {name}; available: {available}"
        )
    clip = downloaded(lambda: open_clip.create_model(name, pretrained=tag), spec, f"its weights '{tag}'")
    set_attributes(clip, spec.attributes, spec.text)
    config = open_clip.get_model_preprocess_cfg(clip)
    size = config["size"] if isinstance(config["size"], int) else config["size"][0]
    preprocess = Preprocess(size, size, config["interpolation"], tuple(config["mean"]), tuple(config["std"]))
    preprocess = preprocess.changed(spec, "templates", "classes")
    templates, file = spec.options.get("templates", "simple"), spec.options.get("classes")
    names = open_clip.IMAGENET_CLASSNAMES if file is None else read_classes(str(file))
    clip = clip.eval().to(device)
    weights = class_embeddings(clip, open_clip.get_tokenizer(name), names, prompts(templates), device)
    return Judge(
        spec.label,
        ZeroShotClassifier(clip, weights).eval(),
        preprocess,
        len(names),
        device,
        f"open_clip {name}{spec.changes} {tag} zero-shot, {templates} prompts",
    )


def prompts(name: str) -> Sequence:
    """Prompt templates: functions from a class name to a text. Raises ConfigError."""
    import open_clip

    if name not in TEMPLATES:
        raise ConfigError(f"templates={name}; available: {', '.join(TEMPLATES)}")
    known = {
        "simple": open_clip.SIMPLE_IMAGENET_TEMPLATES,
        "openai": open_clip.OPENAI_IMAGENET_TEMPLATES,
        "photo": (lambda c: f"a photo of a {c}.",),
    }
    return known[name]


@torch.inference_mode()
def class_embeddings(clip: nn.Module, tokenizer, names: Sequence[str], templates: Sequence, device: str) -> Tensor:
    """Mean text embedding over templates, of length one, per class: [D, classes]."""
    from open_clip import build_zero_shot_classifier

    return build_zero_shot_classifier(clip, tokenizer, names, templates, num_classes_per_batch=20, device=device)


def read_classes(path: str | Path) -> list[str]:
    """Class names from a file. Raises ConfigError."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        if not text.lstrip().startswith("["):
            return [line.strip() for line in text.splitlines() if line.strip()]
        names = [row["name"] if isinstance(row, dict) else row for row in json.loads(text)]
        if all(isinstance(name, str) for name in names):
            return [name.replace("_", " ") for name in names]
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{path}: cannot be read as class names: {error}") from None
    raise ConfigError(f"{path}: expected a list of names")
