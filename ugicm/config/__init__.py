"""Configuration of models and training runs: frozen dataclasses and a strict YAML loader."""

from ugicm.config.loader import load_config
from ugicm.config.model import (
    LARGEST_SCALE,
    MLICPP,
    CompactConfig,
    HyperpriorConfig,
    MlicppConfig,
    ModelConfig,
)  # fmt: skip
from ugicm.config.schema import from_dict, to_dict
from ugicm.config.training import (
    SEMANTIC_TERMS,
    DataConfig,
    Draw,
    ImageSource,
    ObjectiveConfig,
    OptimConfig,
    PrecisionConfig,
    RunConfig,
    TeacherConfig,
    TermConfig,
    TrainConfig,
)  # fmt: skip

__all__ = [
    "LARGEST_SCALE", "MLICPP", "SEMANTIC_TERMS", "CompactConfig", "DataConfig", "Draw", "HyperpriorConfig",
    "ImageSource", "MlicppConfig", "ModelConfig", "ObjectiveConfig", "OptimConfig", "PrecisionConfig", "RunConfig",
    "TeacherConfig", "TermConfig", "TrainConfig", "from_dict", "load_config", "to_dict",
]  # fmt: skip
