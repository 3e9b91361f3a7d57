"""Safetensors checkpoints, local and remote: indexed from headers, read, written, paired, digested."""
