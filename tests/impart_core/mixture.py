"""A small pair of checkpoints with everything that is not an ordinary matrix: experts, a router, a grown vocabulary."""

from pathlib import Path

import torch

from impart_core.checkpoint.index import Checkpoint, open_checkpoint
from tests.support import decaying_delta, save_checkpoint

EXPERTS = "model.layers.0.mlp.experts.up_proj"
Q = "model.layers.0.self_attn.q_proj.weight"
ROUTER = "model.layers.0.mlp.gate.weight"
NORM = "model.layers.0.input_layernorm.weight"
EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
ROWS = (3, 17)  # of the embedding, that were changed
SAME = 1  # the expert that was not


def base_tensors() -> dict[str, torch.Tensor]:
    """Return the base: its head is tied to its embedding."""
    generator = torch.Generator().manual_seed(0)
    shapes = {EXPERTS: (3, 24, 32), Q: (32, 32), ROUTER: (3, 32), NORM: (32,), EMBEDDING: (40, 32)}
    return {name: (torch.randn(shape, generator=generator) * 0.05).bfloat16() for name, shape in shapes.items()}


def finetuned_tensors() -> dict[str, torch.Tensor]:
    """Return the fine-tune: one expert is as it was, two tokens were changed and three added, the head is its own."""
    base = base_tensors()
    tuned = {name: tensor.float() for name, tensor in base.items()}
    for index in (0, 2):
        tuned[EXPERTS][index] += decaying_delta(24, 32, seed=index)
    tuned[Q] += decaying_delta(32, 32, seed=5)
    tuned[ROUTER] += 0.01
    tuned[NORM] += 0.5
    added = torch.full((3, 32), 0.25)
    tuned[HEAD] = torch.cat([tuned[EMBEDDING] + decaying_delta(40, 32, seed=6), -added])
    tuned[EMBEDDING][list(ROWS)] += 0.125
    tuned[EMBEDDING] = torch.cat([tuned[EMBEDDING], added])
    return {name: tensor.bfloat16() for name, tensor in tuned.items()}


def save_mixture(root: Path) -> tuple[Path, Path]:
    """Save both and return their folders."""
    config = {"num_local_experts": 3}
    return (
        save_checkpoint(root / "base", base_tensors(), {**config, "vocab_size": 40, "tie_word_embeddings": True}),
        save_checkpoint(root / "finetuned", finetuned_tensors(), {**config, "vocab_size": 43}),
    )


def open_mixture(root: Path) -> tuple[Checkpoint, Checkpoint]:
    """Save both and open them."""
    base, finetuned = save_mixture(root)
    return open_checkpoint(base), open_checkpoint(finetuned)
