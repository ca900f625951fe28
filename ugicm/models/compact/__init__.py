"""Compact model: nearly all computation at 1/8 resolution or below.

Analysis folds blocks of 8x8 pixels into channels and applies pointwise and depthwise convolutions at 1/8 and 1/16
resolution. Synthesis mirrors it, modulated by the preference. The entropy model (hyper-synthesis, contexts, entropy
parameters) consists of :mod:`ugicm.entropy.fixed_point` layers only.
"""

from ugicm.models.compact.analysis import CompactAnalysis, CompactHyperAnalysis
from ugicm.models.compact.context import CompactHyperSynthesis, CompactSlices
from ugicm.models.compact.synthesis import CompactSynthesis

__all__ = ["CompactAnalysis", "CompactHyperAnalysis", "CompactHyperSynthesis", "CompactSlices", "CompactSynthesis"]
