"""Opens a model folder as a language model of lm-evaluation-harness, without its chatter."""

import logging
from pathlib import Path
from typing import Any

from impart_core.base.errors import EvaluationError, ModelError
from impart_core.base.foreign import explained_failures
from impart_core.base.parallel import making_a_model
from impart_core.evaluation.options import MeasureOptions


def open_model(folder: Path, device: str, options: MeasureOptions) -> Any:
    """Load a Hugging Face folder with its tokenizer.

    Weights are read as safetensors only, and no code from the folder is run. On a CPU all arithmetic is in
    float32; elsewhere it is in the checkpoint's dtype. Log-probabilities are float32 everywhere.

    Args:
        folder: the model folder.
        device: a torch device.
        options: batch size, model settings, chat template.

    Returns:
        lm-eval's HFLM.

    Raises:
        EvaluationError: the folder is missing.
        ModelError: it cannot be loaded, or has no chat template where one is to be used.
    """
    from lm_eval.models.huggingface import HFLM

    if not folder.is_dir():
        raise EvaluationError(f"There is no model folder at {folder}.")
    usual = {"dtype": "float32" if device == "cpu" else "auto", "softmax_dtype": "float32"}
    needed = "It needs config.json, safetensors weights and tokenizer files that the installed transformers can read."
    doing = f"The model in {folder} cannot be loaded for evaluation"
    with explained_failures(doing, lambda: needed, ModelError), making_a_model():
        model = HFLM(
            pretrained=str(folder),
            device=device,
            batch_size=options.batch_size,
            use_safetensors=True,
            trust_remote_code=False,
            **{**usual, **options.model_args},
        )
    if options.apply_chat_template and not getattr(model.tokenizer, "chat_template", None):
        raise ModelError(f"The tokenizer in {folder} has no chat template. Leave apply_chat_template out.")
    return model


def misfit(model: Any) -> str:
    """Return what of a loaded model explains that it fails on text, as a sentence; empty where nothing is known."""
    try:
        ids, rows = len(model.tokenizer), model.model.get_input_embeddings().weight.shape[0]
    except Exception:  # a model may have neither
        return ""
    return f"Its tokenizer gives ids up to {ids - 1}, and its embedding has {rows} rows only." if ids > rows else ""


def hush() -> None:
    """Turn off the remarks and progress bars of lm-eval and of what it uses; calling it again changes nothing."""
    import datasets
    import lm_eval.api.model
    import lm_eval.api.task
    import lm_eval.models.huggingface
    from transformers.utils import logging as transformers_logging

    for name in ("lm_eval", "datasets", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
    for module in (lm_eval.api.model, lm_eval.api.task, lm_eval.models.huggingface):
        module.tqdm = _no_bar


def _no_bar(*args: Any, **options: Any) -> Any:
    from tqdm import tqdm  # type: ignore[import-untyped]

    return tqdm(*args, **{**options, "disable": True})
