"""Artifacts that leave a store: to another one, or to the Hugging Face Hub with a model card."""
