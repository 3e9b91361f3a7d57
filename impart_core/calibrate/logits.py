"""A causal language model as a whole: its weights held as they are stored, its logits computed in float32.

A weight is float32 for as long as its layer runs; backwards, layers are run again. What a model predicts is kept as
the log-probabilities of its likeliest tokens, so that no second model is in memory while another is held against it.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch.nn.functional import log_softmax
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint as run_again

from impart_core.base.errors import CalibrationError
from impart_core.base.foreign import explained_failures
from impart_core.base.parallel import making_a_model
from impart_core.calibrate.architecture import model_config
from impart_core.calibrate.layer import batch_size
from impart_core.checkpoint.index import Checkpoint

LIKELIEST = 256  # tokens whose probabilities are kept of a prediction; all others are taken together
_LEAST = 1e-9  # of the probability of all others
_ADVICE = "It must be a decoder-only language model that transformers knows. Compress without distil."


def load_causal_model(checkpoint: Checkpoint, tensors: Mapping[str, torch.Tensor], device: torch.device) -> Any:
    """Return a checkpoint's causal language model with these tensors, frozen; no code from the checkpoint is run.

    This turns off transformers' progress bars for the process.

    Args:
        checkpoint: whose configuration it has.
        tensors: all of its tensors by name.
        device: where it goes.

    Raises:
        CalibrationError: it is no decoder-only language model, or transformers cannot load it.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING
    from transformers.utils import logging

    logging.disable_progress_bar()
    config = model_config(checkpoint)
    doing = f"The model in {checkpoint.location} cannot be loaded for calibration"
    with explained_failures(doing, lambda: _ADVICE, CalibrationError), making_a_model():
        model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        model = model_class.from_pretrained(None, config=config, state_dict=dict(tensors), dtype="auto")
        model = model.eval().requires_grad_(False).to(device)
        _run_layers_again(model)
    for module in list(model.modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_floating_point() and parameter.dtype != torch.float32:
                parametrize.register_parametrization(module, name, _AsFloat32(), unsafe=True)
    return model


class _AsFloat32(torch.nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.float()


def _run_layers_again(model: Any) -> None:
    """Let decoder layers keep nothing for the backward pass but what they are given."""
    count = model.config.get_text_config().num_hidden_layers
    stacks = (m for m in model.get_decoder().modules() if isinstance(m, torch.nn.ModuleList) and len(m) == count)
    for layer in next(stacks, ()):
        layer.forward = partial(run_again, layer.forward, use_reentrant=False, preserve_rng_state=False)


def check_tokens(tokens: torch.Tensor, model: Any) -> None:
    """Refuse tokens that a model cannot take.

    Raises:
        CalibrationError: they are no integers of shape (sequences, length), others than it knows, or too many.
    """
    if tokens.dim() != 2 or not tokens.numel() or tokens.is_floating_point():
        raise CalibrationError(
            f"Calibration tokens are {tokens.dtype} of shape {list(tokens.shape)}; expected integers of shape "
            "[sequences, length]."
        )
    known = model.get_input_embeddings().num_embeddings
    if int(tokens.min()) < 0 or int(tokens.max()) >= known:
        raise CalibrationError(
            f"Calibration tokens reach from {int(tokens.min())} to {int(tokens.max())}, but the model knows 0 to "
            f"{known - 1}. Tokenize the text with the fine-tuned model's own tokenizer."
        )
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest and tokens.shape[1] > longest:
        raise CalibrationError(
            f"Calibration sequences have {tokens.shape[1]} tokens, but the model takes {longest}. Shorten them."
        )


def logits_of(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Return a model's logits, float32, (B, L, vocabulary), for tokens, (B, L), on its device."""
    return model(input_ids=tokens, use_cache=False).logits.float()  # type: ignore[no-any-return]


@torch.no_grad()
def predictions(model: Any, tokens: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield what a model predicts, some sequences at a time.

    Args:
        model: the model.
        tokens: int64, (sequences, length), on its device.

    Yields:
        the log-probabilities of the likeliest tokens and these tokens, float32, (B, L, 2, k), on the CPU.
    """
    for part in torch.split(tokens, batch_size(tokens.shape[1])):
        found = log_softmax(logits_of(model, part), dim=-1)
        likeliest = found.topk(min(LIKELIEST, found.shape[-1]), dim=-1)
        yield torch.stack([likeliest.values, likeliest.indices.float()], dim=-2).cpu()


def foreseen(wanted: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Return the probability that was predicted for each token that follows, float32, (B, L); after the last one 0.

    Args:
        wanted: see `predictions`, (B, L, 2, k); tokens that are none of the k were not foreseen.
        tokens: int64, (B, L).
    """
    hit = wanted[:, :-1, 1].long() == tokens[:, 1:, None]
    found = torch.where(hit, wanted[:, :-1, 0].exp(), 0.0).sum(-1)
    return torch.cat([found, torch.zeros_like(found[:, :1])], dim=1)


def divergence(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Return the Kullback-Leibler divergence KL(p ‖ q) of each token, in nats, (B, L).

    Args:
        logits: those of q, (B, L, vocabulary).
        wanted: p, (B, L, 2, k), as `predictions` yields it; tokens that are none of the k are taken together.
    """
    log_p, tokens = wanted[..., 0, :], wanted[..., 1, :].long()
    log_q, p = log_softmax(logits, dim=-1).gather(-1, tokens), log_p.exp()
    found = (p * (log_p - log_q)).sum(-1)
    if tokens.shape[-1] == logits.shape[-1]:
        return found
    rest_p, rest_q = ((1 - each.sum(-1)).clamp_min(_LEAST) for each in (p, log_q.exp()))
    return found + rest_p * (rest_p.log() - rest_q.log())
