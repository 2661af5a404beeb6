"""Arithmetic on arrays: comparison, quantization, reconstruction; pure numpy, no graph."""
