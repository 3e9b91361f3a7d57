"""Measures models with lm-evaluation-harness; its modules import lm-eval and transformers only to measure."""
