"""Evaluation: rate, distortion, task scores, and the result files that record them."""
