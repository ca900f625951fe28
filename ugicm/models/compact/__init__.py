"""Compact model: nearly all computation at 1/8 resolution or below.

Analysis folds blocks of 8x8 pixels into channels and applies pointwise and depthwise convolutions at 1/8 and 1/16
resolution. Synthesis mirrors it, modulated by the preference. Table rows of the entropy coder come from
:mod:`ugicm.entropy.integer` layers, means from floating-point contexts.
"""

from ugicm.models.compact.analysis import CompactAnalysis, CompactHyperAnalysis
from ugicm.models.compact.context import CompactHyperSynthesis, CompactIndexes, CompactSlices
from ugicm.models.compact.synthesis import CompactSynthesis

__all__ = [
    "CompactAnalysis", "CompactHyperAnalysis", "CompactHyperSynthesis", "CompactIndexes", "CompactSlices",
    "CompactSynthesis",
]  # fmt: skip
