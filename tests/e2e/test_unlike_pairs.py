"""A fine-tune that transformers saved otherwise than its base: dtypes, ties, tokens, heads and prefixes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from impart_core.apply.dense import reconstruct
from impart_core.artifacts.block import BlockContent, TensorEntry
from impart_core.artifacts.delta import Delta
from impart_core.checkpoint.index import open_checkpoint
from impart_core.store.store import Store
from tests.architectures import ARCHITECTURES, load_whole, logits, make_model, tune_
from tests.impart_core.pipeline import compress, config_of

pytestmark = pytest.mark.e2e

KEPT = "norm|Norm|ln_|embed|wte|head|cls|pooler|classifier"  # the parameters whose change is stored at 16 bits
VOCABULARY, WIDTH = 320, 160


def made(name: str, dtype: torch.dtype = torch.bfloat16, model: str | None = None, **settings: Any) -> PreTrainedModel:
    """Make an architecture's model, with other settings or of another class."""
    wanted, config = ARCHITECTURES[name], ARCHITECTURES[name].config()
    config.update(settings)
    return make_model(config, model or wanted.model, dtype)


def from_folder(folder: Path, model: str, dtype: torch.dtype = torch.bfloat16, **settings: Any) -> PreTrainedModel:
    """Load a model for a task of its own from a base; what the base lacks is new."""
    import transformers

    loaded: PreTrainedModel = getattr(transformers, model).from_pretrained(folder, dtype=dtype, **settings)
    return loaded.eval()


class Round:
    """A pair of folders, compressed and rebuilt."""

    def __init__(self, root: Path, **settings: Any) -> None:
        """Compress `base` and `finetuned` in a folder and rebuild the latter into `out`."""
        self.base, self.finetuned, self.out = (root / name for name in ("base", "finetuned", "out"))
        self.delta: Delta = compress(Store(root / "store"), self.base, self.finetuned, config_of(4, **settings))
        reconstruct(self.delta, open_checkpoint(self.base), self.out)

    def entry(self, name: str) -> TensorEntry:
        """Return how a tensor was stored."""
        contents = [block.content for block in self.delta.blocks]
        return next(made.tensors[name] for made in contents if isinstance(made, BlockContent) and name in made.tensors)

    def both(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a tensor as it was rebuilt and as it was fine-tuned."""
        rebuilt, finetuned = (load_file(folder / "model.safetensors")[name] for folder in (self.out, self.finetuned))
        return rebuilt, finetuned

    def assert_same_answers(self, model: str) -> None:
        """Check that the rebuilt model loads and answers as its fine-tune does."""
        found, expected = (logits(load_whole(folder, model)) for folder in (self.out, self.finetuned))
        # What is kept at 16 bits is rounded by at most one part in 2048, or in the fine-tune's own dtype.
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-3 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32), (torch.float16, torch.bfloat16)],
)
def test_a_finetune_keeps_its_own_dtype_whatever_that_of_its_base(
    ours: torch.dtype, theirs: torch.dtype, tmp_path: Path
) -> None:
    model = made("llama", ours)
    model.save_pretrained(tmp_path / "base")
    tune_(model, matching="norm").to(theirs).save_pretrained(tmp_path / "finetuned")
    done = Round(tmp_path)
    assert {info.torch_dtype for info in open_checkpoint(done.out).tensors.values()} == {theirs}
    done.assert_same_answers("LlamaForCausalLM")
    for name in ("model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"):
        assert done.entry(name).method == "omitted"  # a cast alone is no change
        assert torch.equal(*done.both(name))


def test_a_head_untied_from_its_embedding_is_a_delta_against_it(tmp_path: Path) -> None:
    made("llama", tie_word_embeddings=True).save_pretrained(tmp_path / "base")
    base = load_file(tmp_path / "base" / "model.safetensors")
    assert "lm_head.weight" not in base
    untied = made("llama", tie_word_embeddings=False)
    untied.load_state_dict({**base, "lm_head.weight": base["model.embed_tokens.weight"].clone()})
    untied.get_output_embeddings().weight.data[[5, 300]] += 0.5
    tune_(untied, matching="norm").save_pretrained(tmp_path / "finetuned")
    done = Round(tmp_path)
    rows = 1 + 2 * (4 + 2 * WIDTH)  # an exponent; an index and its values for each
    assert (done.entry("lm_head.weight").method, done.entry("lm_head.weight").bytes) == ("rows", rows)
    assert torch.equal(*done.both("lm_head.weight"))
    done.assert_same_answers("LlamaForCausalLM")


def test_a_head_tied_to_its_embedding_is_gone(tmp_path: Path) -> None:
    made("llama").save_pretrained(tmp_path / "base")
    tied = made("llama", tie_word_embeddings=True)
    tune_(tied, matching=KEPT).save_pretrained(tmp_path / "finetuned")
    done = Round(tmp_path)
    assert "lm_head.weight" not in open_checkpoint(done.out).tensors
    done.assert_same_answers("LlamaForCausalLM")


GROWN = {
    "llama": ("LlamaForCausalLM", ["model.embed_tokens.weight", "lm_head.weight"]),
    "gemma": ("GemmaForCausalLM", ["model.embed_tokens.weight"]),
    "phi": ("PhiForCausalLM", ["model.embed_tokens.weight", "lm_head.weight", "lm_head.bias"]),
    "bert": ("BertForMaskedLM", ["bert.embeddings.word_embeddings.weight", "cls.predictions.bias"]),
}


@pytest.mark.parametrize("name", GROWN)
@pytest.mark.parametrize("tuned", [False, True], ids=["old rows as they were", "old rows changed"])
@pytest.mark.parametrize("policy", ["keep", "auto"])
def test_tokens_that_were_added_are_stored_as_they_are(name: str, tuned: bool, policy: str, tmp_path: Path) -> None:
    kind, grown = GROWN[name]
    model = made(name)
    model.save_pretrained(tmp_path / "base")
    model.resize_token_embeddings(VOCABULARY + 3)
    tune_(model, matching=KEPT if tuned else "norm|Norm").save_pretrained(tmp_path / "finetuned")
    done = Round(tmp_path, embeddings=policy)
    for tensor in grown:
        rebuilt, finetuned = done.both(tensor)
        assert rebuilt.shape == finetuned.shape
        assert rebuilt.shape[0] == VOCABULARY + 3
        assert torch.equal(rebuilt[VOCABULARY:], finetuned[VOCABULARY:])
        if not tuned:
            assert torch.equal(rebuilt, finetuned)
            assert done.entry(tensor).bytes == finetuned[VOCABULARY:].nbytes
    if policy == "keep":
        done.assert_same_answers(kind)


def classifier_of_a_masked_language_model(root: Path) -> str:
    made("bert").save_pretrained(root / "base")
    model = from_folder(root / "base", "BertForSequenceClassification", num_labels=3)
    tune_(model, matching=KEPT).save_pretrained(root / "finetuned")
    return "BertForSequenceClassification"


def classifier_of_one_with_more_labels(root: Path) -> str:
    made("bert-classifier").save_pretrained(root / "base")
    model = from_folder(root / "base", "BertForSequenceClassification", num_labels=2, ignore_mismatched_sizes=True)
    tune_(model, matching="norm|Norm|embed|classifier").save_pretrained(root / "finetuned")
    return "BertForSequenceClassification"


def masked_language_model_of_a_classifier(root: Path) -> str:
    made("bert-classifier").save_pretrained(root / "base")
    tune_(from_folder(root / "base", "BertForMaskedLM"), matching=KEPT).save_pretrained(root / "finetuned")
    return "BertForMaskedLM"


def language_model_of_a_body(root: Path) -> str:
    made("gpt2", model="GPT2Model").save_pretrained(root / "base")
    tune_(from_folder(root / "base", "GPT2LMHeadModel"), matching=KEPT).save_pretrained(root / "finetuned")
    return "GPT2LMHeadModel"


def reward_model_of_a_language_model(root: Path) -> str:
    made("llama").save_pretrained(root / "base")
    model = from_folder(root / "base", "LlamaForSequenceClassification", num_labels=1)
    tune_(model, matching=KEPT).save_pretrained(root / "finetuned")
    return "LlamaForSequenceClassification"


@pytest.mark.parametrize(
    "save",
    [
        classifier_of_a_masked_language_model,
        classifier_of_one_with_more_labels,
        masked_language_model_of_a_classifier,
        language_model_of_a_body,
        reward_model_of_a_language_model,
    ],
)
def test_a_task_may_bring_a_head_of_its_own_and_leave_the_bases(save: Callable[[Path], str], tmp_path: Path) -> None:
    model = save(tmp_path)
    done = Round(tmp_path)
    done.assert_same_answers(model)
    ours, theirs = (open_checkpoint(folder).tensors for folder in (done.base, done.finetuned))
    for name in theirs:
        if name.removeprefix("transformer.") not in ours:
            assert done.entry(name).method == "value" or name == "lm_head.weight"
            assert torch.equal(*done.both(name))
    assert done.delta.content.cr_projection is None  # not a projection of the body was changed


def test_a_body_saved_alone_costs_no_more_than_the_one_below_a_head(tmp_path: Path) -> None:
    costs = []
    for kind in ("GPT2Model", "GPT2LMHeadModel"):
        root = tmp_path / kind
        made("gpt2", model=kind).save_pretrained(root / "base")
        tune_(from_folder(root / "base", "GPT2LMHeadModel")).save_pretrained(root / "finetuned")
        done = Round(root)
        assert done.delta.content.cr_projection is not None
        costs.append(done.delta.content.projection_bytes)
        assert "value" not in {done.entry(name).method for name in open_checkpoint(done.out).tensors}
    assert costs[0] == costs[1]
