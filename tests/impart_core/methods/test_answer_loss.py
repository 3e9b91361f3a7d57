"""On real fine-tunes ImPart at its defaults loses less the more bytes it has."""

from typing import Any

import pytest
import torch

from impart_core import tinyzoo
from impart_core.checkpoint.index import open_checkpoint
from impart_core.checkpoint.layout import Block, Role
from impart_core.checkpoint.preflight import preflight
from impart_core.delta.load import load_block
from impart_core.delta.svd import decompose
from impart_core.evaluation.answer_loss import answer_losses
from impart_core.evaluation.catalogue import USUAL
from impart_core.evaluation.items import ordered_task
from impart_core.methods import METHODS
from impart_core.methods.base import Projection
from tests.impart_core.pipeline import config_of

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


def answer_loss(model: Any, task: str, count: int = 100) -> float:
    """The mean negative log-likelihood of the validation split's first right answers, in nats a token."""
    ordered = ordered_task(f"tinyzoo_{task}", "validation")
    losses, _ = answer_losses(model, ordered.name, ordered.fresh(), range(count), USUAL)
    return sum(losses) / count


@pytest.mark.parametrize("task", tinyzoo.FINE_TUNES)
def test_more_bytes_lose_less_on_held_out_answers(task: str) -> None:
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base, finetuned = (open_checkpoint(tinyzoo.path(name)) for name in ("base", task))
    pairs = preflight(base, finetuned)
    model = AutoModelForCausalLM.from_pretrained(tinyzoo.path(task), dtype=torch.float32).eval()
    measured = HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(tinyzoo.path(task)), batch_size=100)
    parameters = dict(model.named_parameters())
    names = tuple(name for name, pair in pairs.items() if pair.role is Role.PROJECTION)
    loaded = {one.tensor: (one.base, one.delta()) for one in load_block(pairs, Block("all", names), ({}, {}))}
    factors = {name: decompose(delta, name) for name, (_, delta) in loaded.items()}
    method, losses = METHODS.get("impart"), []
    for cr in (2, 4, 8, 16, 32):
        for name, (ours, delta) in loaded.items():
            assert ours is not None
            m, n = delta.shape
            projection = Projection(name, (m, n), lambda delta=delta: delta, lambda name=name: factors[name])  # type: ignore[misc]
            codes = method.encode(projection, config_of(cr))
            parameters[name].data.copy_(ours.float() + method.decode(codes, name, (m, n), 0))
        losses.append(answer_loss(measured, task))
    assert losses == sorted(losses)
    assert losses[1] < 0.005  # 0.010 to 0.021 with β 0.6
