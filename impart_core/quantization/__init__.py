"""Quantisation of sparse factors and deltas (paper §3.3): grids, GPTQ, rank groups and signs, as pure functions."""
