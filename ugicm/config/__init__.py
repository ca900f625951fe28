"""Configuration of models and training runs: frozen dataclasses and a strict YAML loader."""

from ugicm.config.loader import from_dict, load_config, to_dict
from ugicm.config.model import LARGEST_SCALE, MLICPP, ModelConfig
from ugicm.config.training import (
    SEMANTIC_TERMS,
    DataConfig,
    Draw,
    LpipsConfig,
    ObjectiveConfig,
    OptimConfig,
    PrecisionConfig,
    RunConfig,
    Source,
    TeacherConfig,
    TermConfig,
    TrainConfig,
)

__all__ = [
    "LARGEST_SCALE", "MLICPP", "SEMANTIC_TERMS", "DataConfig", "Draw", "LpipsConfig", "ModelConfig", "ObjectiveConfig",
    "OptimConfig", "PrecisionConfig", "RunConfig", "Source", "TeacherConfig", "TermConfig", "TrainConfig", "from_dict",
    "load_config", "to_dict",
]  # fmt: skip
