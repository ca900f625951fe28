"""Measuring: rate, distortion, task scores and speed, and the records they are kept in."""
