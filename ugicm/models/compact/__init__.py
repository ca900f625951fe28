"""The compact network: nearly all work at 1/8 resolution or below, for laptops.

Analysis folds 8x8 pixels into channels and works with pointwise and depthwise convolutions at 1/8 and 1/16
resolution; synthesis mirrors it, modulated by the viewer's preference. The parsing side (hyper-synthesis, contexts,
entropy parameters) is made of :mod:`ugicm.entropy.fixed_point` layers only.
"""

from ugicm.models.compact.analysis import CompactHyperAnalysis, PatchAnalysis
from ugicm.models.compact.context import CompactHyperSynthesis, CompactSlices
from ugicm.models.compact.synthesis import PatchSynthesis

__all__ = ["CompactHyperAnalysis", "CompactHyperSynthesis", "CompactSlices", "PatchAnalysis", "PatchSynthesis"]
