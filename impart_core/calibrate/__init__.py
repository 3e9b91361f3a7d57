"""Calibration: what methods are told of the model's activations, from text that runs through it."""
