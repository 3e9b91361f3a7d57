"""Scale distillation: BitDelta's scales are tuned until the model's logits are those of the fine-tune.

Liu et al. 2024 (arXiv 2402.10193), §3.2. Of the model only the scales are trained; signs and masks are
those that the method stores.
"""

import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from impart_core.base.errors import CalibrationError
from impart_core.base.foreign import explained_failures
from impart_core.base.numerics import one_thread_per_kernel
from impart_core.base.settings import Frozen
from impart_core.checkpoint.index import Checkpoint
from impart_core.checkpoint.layout import Block, Role
from impart_core.checkpoint.pairing import Pair, Pairs
from impart_core.checkpoint.writer import folder_of
from impart_core.delta.load import Loaded, load_block
from impart_core.methods import METHODS
from impart_core.methods.base import Coding, Projection

Progress = Callable[[int, int], None]
Scales = dict[str, torch.Tensor]
logger = logging.getLogger(__name__)

_HELD_OUT = 10  # one in so many sequences is not trained on, but decides which scales are the best
_CHECKS = 10  # how often that is looked at


class DistilOptions(Frozen):
    """How scales are trained.

    The paper takes 200 steps of 4 sequences at rate 1e-4, on the scales themselves. Here a factor of each scale is
    trained, which starts at 1, so that one rate suits deltas of any magnitude.
    """

    steps: int = Field(default=200, ge=1, description="optimizer steps")
    batch: int = Field(default=4, ge=1, description="sequences a step")
    rate: float = Field(default=0.03, gt=0.0, description="Adam's rate at first, by which a factor moves a step")


def distil_scales(
    base: Checkpoint,
    finetuned: Checkpoint,
    pairs: Pairs,
    coding: Coding,
    tokens: torch.Tensor,
    *,
    options: DistilOptions,
    device: torch.device,
    progress: Progress | None = None,
) -> Scales:
    """Return scales that bring the logits of the compressed model closest to those of the fine-tuned one.

    Minimised by Adam is the mean squared difference of logits over all tokens and the whole vocabulary, between the
    fine-tuned model and one whose projections are base + s·sign(ΔW), everything else being the fine-tune's. A tenth
    of the sequences is held out; of the scales on the way those with the smallest difference there are returned, the
    initial ones among them. On a CPU, equal arguments give equal scales.

    Memory holds two models in float32, the signs at one byte an entry, and for the backward pass the rebuilt
    projections and a batch's activations; the fine-tune's logits are there for one batch at a time.

    Args:
        base: the base's checkpoint.
        finetuned: the fine-tune's checkpoint, a folder of this machine that transformers loads as a causal model.
        pairs: the tensors' pairs by name.
        coding: a request with the method `bitdelta`, whose seed is also that of the order of sequences.
        tokens: token ids, any integer dtype, (sequences, length), no padding.
        options: steps, batch and rate.
        device: where both models run.
        progress: called with steps done and their number.

    Returns:
        Scales by the projection's name, as they are stored: float32, (1,), or (m,) with one for each row. Left out,
        and as in the fine-tune while others are trained, are projections of which nothing is stored, stacks of
        experts, and what transformers holds under other names or in other shapes: the method computes their scales.

    Raises:
        CalibrationError: the model or the tokens cannot be used.
    """
    with one_thread_per_kernel(), folder_of(finetuned) as folder:
        teacher, student = (_load_model(folder, finetuned.location).to(device) for _ in range(2))
        _check_tokens(tokens, teacher)
        signed = _sign_projections(student, pairs, coding)
        if not signed:
            raise CalibrationError(
                f"The model that transformers loads from {finetuned.location} has no projection that differs from "
                f"{base.location} under the name that the checkpoint gives it. Compress without distil."
            )
        generator = torch.Generator().manual_seed(coding.seed)
        order = tokens.long()[torch.randperm(len(tokens), generator=generator)].to(device)
        _Distillation(teacher, student, signed, order, options).run(generator, progress)
        return {name: module.scales().cpu() for name, module in signed.items()}


class _Signed(torch.nn.Module):
    """Makes a projection of the base's: adds signs times scales. What is trained is a factor of each scale."""

    signs: torch.Tensor  # int8, (m, n)
    initial: torch.Tensor  # float32, (1, 1) or (m, 1)

    def __init__(self, signs: torch.Tensor, scales: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("signs", signs)
        self.register_buffer("initial", scales[:, None])
        self.factor = torch.nn.Parameter(torch.ones_like(self.initial))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + self.initial * self.factor * self.signs

    def scales(self) -> torch.Tensor:
        """Return s, float32, (1,) or (m,)."""
        return (self.initial * self.factor).detach()[:, 0]


class _Distillation:
    """One training run: the models, the projections whose scales are trained, and the sequences."""

    def __init__(
        self, teacher: Any, student: Any, signed: dict[str, _Signed], tokens: torch.Tensor, options: DistilOptions
    ) -> None:
        held_out = math.ceil(len(tokens) / _HELD_OUT)
        self.teacher, self.student, self.options = teacher, student, options
        self.held_out = tokens[:held_out]
        self.trained_on = tokens[held_out:] if len(tokens) > 1 else tokens
        self.factors = [module.factor for module in signed.values()]

    def run(self, generator: torch.Generator, progress: Progress | None) -> None:
        """Train the factors, and leave them at their best."""
        steps = self.options.steps
        optimizer = torch.optim.Adam(self.factors, lr=self.options.rate)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, steps)
        first = least = self._held_out_loss()
        best = self._copy()
        for step, batch in zip(range(1, steps + 1), self._batches(generator), strict=False):
            optimizer.zero_grad(set_to_none=True)
            self._loss(batch).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            if step % math.ceil(steps / _CHECKS) == 0 or step == steps:
                loss = self._held_out_loss()
                if loss < least:
                    least, best = loss, self._copy()
            if progress:
                progress(step, steps)
        with torch.no_grad():
            for factor, value in zip(self.factors, best, strict=True):
                factor.copy_(value)
        if least < first:
            logger.info("Distilled %d projections: logit error %.4g → %.4g.", len(best), first, least)
        else:
            logger.warning(
                "Distillation found no scales that are better than the initial ones, which are kept (logit error "
                "%.4g). Lower the rate, or give more calibration text.",
                first,
            )

    def _copy(self) -> list[torch.Tensor]:
        return [factor.detach().clone() for factor in self.factors]

    def _batches(self, generator: torch.Generator) -> Iterator[torch.Tensor]:
        """Yield batches without end, every sequence once before any comes again."""
        while True:
            order = torch.randperm(len(self.trained_on), generator=generator)
            yield from (self.trained_on[picked] for picked in torch.split(order, self.options.batch))

    def _loss(self, batch: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            wanted = self.teacher(input_ids=batch, use_cache=False).logits
        return torch.nn.functional.mse_loss(self.student(input_ids=batch, use_cache=False).logits, wanted)

    @torch.no_grad()
    def _held_out_loss(self) -> float:
        """Return the mean squared difference over the sequences that are not trained on."""
        batches = torch.split(self.held_out, self.options.batch)
        return sum(float(self._loss(batch)) * len(batch) for batch in batches) / len(self.held_out)


def _load_model(folder: Path, location: str) -> Any:
    """Return a folder's causal language model in float32, frozen; no code from it is run."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    needed = "It must be a decoder-only language model that transformers knows."
    with explained_failures(
        f"The model in {location} cannot be loaded for calibration", lambda: needed, CalibrationError
    ):
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
        )
    return model.eval().requires_grad_(False)


def _check_tokens(tokens: torch.Tensor, model: Any) -> None:
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


def _sign_projections(model: Any, pairs: Pairs, coding: Coding) -> dict[str, _Signed]:
    """Replace a model's projections by base + s·sign(ΔW), and return what makes them, by the projection's name."""
    parameters = dict(model.named_parameters())
    wanted = tuple(name for name, pair in pairs.items() if _is_matrix(pair))
    signed = {}
    for loaded in load_block(pairs, Block("projections", wanted), ({}, {})):
        found = _parameter_of(loaded, parameters, model.base_model_prefix)
        made = _signed(loaded, coding)
        if found is None or made is None:
            continue
        assert loaded.base is not None
        parameters[found].copy_(loaded.base)
        path, _, attribute = found.rpartition(".")
        made = made.to(parameters[found].device)
        torch.nn.utils.parametrize.register_parametrization(model.get_submodule(path), attribute, made, unsafe=True)
        signed[loaded.tensor] = made
    return signed


def _is_matrix(pair: Pair) -> bool:
    return pair.role is Role.PROJECTION and pair.base is not None and not pair.is_stack


def _parameter_of(loaded: Loaded, parameters: dict[str, torch.nn.Parameter], prefix: str) -> str | None:
    """Return the parameter that holds a tensor of the checkpoint as it is there, with the body's prefix or without."""
    for name in (loaded.tensor, f"{prefix}.{loaded.tensor}"):
        found = parameters.get(name)
        if found is not None and torch.equal(found.detach().cpu(), loaded.finetuned.float()):
            return name
    return None


def _signed(loaded: Loaded, coding: Coding) -> _Signed | None:
    """Return the signs, masked, and the scales that the method stores; None where it stores nothing."""
    delta, method = loaded.delta(), METHODS.get(coding.method)
    if not bool(delta.any()):
        return None
    codes = method.encode(Projection.of(delta, loaded.pair.name), coding)
    m, n = delta.shape
    ones = {**codes, "scales": torch.ones_like(codes["scales"])}
    signs = method.decode(ones, loaded.pair.name, (m, n), coding.seed).to(torch.int8)
    return _Signed(signs, codes["scales"]) if len(codes["scales"]) else None
