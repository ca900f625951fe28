"""Zero-shot classification with CLIP: images are compared with text prompts that name the classes.

Radford et al., "Learning transferable visual models from natural language supervision", ICML 2021.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ugicm.errors import ConfigError
from ugicm.evaluation.specs import Spec, download, set_attributes
from ugicm.evaluation.tasks.classifiers import Classifier, Preprocess
from ugicm.evaluation.tasks.labels import read_class_names
from ugicm.extras import require_packages


class ZeroShotClassifier(nn.Module):
    """Scaled cosine similarity of the image embeddings of a CLIP model and class embeddings [D, classes]."""

    def __init__(self, clip: nn.Module, weights: Tensor):
        super().__init__()
        self.clip = clip
        self.register_buffer("weights", weights)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, classes] for normalized images [B, 3, h, w]."""
        return 100 * self.clip.encode_image(images, normalize=True) @ self.weights


def load_zero_shot(spec: Spec, name: str, device: str) -> Classifier:
    """Load ``open_clip/NAME=TAG_OR_PATH``. The default tag is ``openai``.

    Options: ``templates=simple`` (7 prompts per class) or ``openai`` (80), and ``classes=FILE``, class names, one per
    line (default: ImageNet's).

    Raises ConfigError and CheckpointError as :func:`ugicm.evaluation.tasks.classifiers.load_classifier`.
    """
    require_packages("eval", spec.text, "open_clip")
    import open_clip

    if name not in open_clip.list_models():
        raise ConfigError(f"{spec.text}: open_clip has no model '{name}'; see open_clip.list_models()")
    tag = spec.where or "openai"
    clip = download(lambda: open_clip.create_model(name, pretrained=tag), spec, f"weights '{tag}'")
    set_attributes(clip, spec.attributes, spec.text)
    config = open_clip.get_model_preprocess_cfg(clip)
    size = config["size"] if isinstance(config["size"], int) else config["size"][0]
    preprocess = Preprocess(size, size, config["interpolation"], tuple(config["mean"]), tuple(config["std"]))
    preprocess = preprocess.with_options(spec, "templates", "classes")
    templates, file = spec.options.get("templates", "simple"), spec.options.get("classes")
    prompts = {"simple": open_clip.SIMPLE_IMAGENET_TEMPLATES, "openai": open_clip.OPENAI_IMAGENET_TEMPLATES}
    if templates not in prompts:
        raise ConfigError(f"{spec.text}: unknown templates={templates}; available: {', '.join(prompts)}")
    names = open_clip.IMAGENET_CLASSNAMES if file is None else read_class_names(str(file))
    clip = clip.eval().to(device)
    with torch.inference_mode():
        weights = open_clip.build_zero_shot_classifier(
            clip, open_clip.get_tokenizer(name), names, prompts[templates], num_classes_per_batch=20, device=device
        )
    origin = f"open_clip {name}{spec.changes} {tag} zero-shot, {templates} prompts"
    return Classifier(spec.label, ZeroShotClassifier(clip, weights).eval(), preprocess, len(names), device, origin)
