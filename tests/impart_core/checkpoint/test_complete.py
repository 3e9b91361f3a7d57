"""Incomplete fine-tunes are refused by name: whatever transformers would fill with random values."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers
from safetensors.torch import load_file, save_file

from impart_core.base.errors import CheckpointError, MismatchError
from impart_core.checkpoint.index import open_checkpoint
from impart_core.checkpoint.model import find_gaps
from impart_core.engine.plan import Work, check_request
from tests.architectures import ARCHITECTURES, make_model, save_pair, tune_
from tests.impart_core.pipeline import config_of

EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"


def without(folder: Path, pattern: str) -> list[str]:
    """Take tensors whose names hold a pattern out of a folder's single file, and return their names."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    gone = [name for name in tensors if re.search(pattern, name)]
    assert gone
    save_file({name: tensor for name, tensor in tensors.items() if name not in gone}, file, {"format": "pt"})
    return gone


def configure(folder: Path, **keys: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **keys}))


def random_in(folder: Path, model: str) -> set[str]:
    """Return what transformers itself says that it fills with random values, loading a folder."""
    _, found = getattr(transformers, model).from_pretrained(folder, output_loading_info=True)
    return set(found["missing_keys"])


def check(root: Path) -> Work:
    return check_request(open_checkpoint(root / "base"), open_checkpoint(root / "finetuned"), config_of(4))


@pytest.fixture(params=sorted(ARCHITECTURES))
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_every_architecture_is_complete_as_transformers_saves_it(architecture: str, tmp_path: Path) -> None:
    save_pair(tmp_path, architecture)
    assert check(tmp_path).notes == ()


def save_llama(root: Path, *, tied: bool = False) -> None:
    """Save a base and its fine-tune, each in one file."""
    wanted = ARCHITECTURES["llama"]
    config = wanted.config()
    config.update({"tie_word_embeddings": tied})
    model = make_model(config, wanted.model, wanted.dtype)
    for side in ("base", "finetuned"):
        model.save_pretrained(root / side)
        tune_(model)


@pytest.mark.parametrize("pattern", ["lm_head", "embed_tokens", r"model\.norm", "input_layernorm"])
@pytest.mark.parametrize("everywhere", [False, True], ids=["the base has it", "nobody has it"])
def test_what_is_missing_is_named_and_is_what_transformers_makes_up(
    pattern: str, everywhere: bool, tmp_path: Path
) -> None:
    save_llama(tmp_path)
    gone = without(tmp_path / "finetuned", pattern)
    if everywhere:
        without(tmp_path / "base", pattern)
    assert random_in(tmp_path / "finetuned", "LlamaForCausalLM") == set(gone)
    assert find_gaps(open_checkpoint(tmp_path / "finetuned")).missing == tuple(sorted(gone))
    with pytest.raises(CheckpointError, match="random values") as caught:
        check(tmp_path)
    line = f"{re.sub(r'[.][0-9]+[.]', '.*.', gone[0])}: missing" + ("" if everywhere else ", the base has it")
    assert line + (f" ({len(gone)} times)" if len(gone) > 1 else "") in str(caught.value).split("\n  - ")[1]


def test_a_head_that_is_tied_to_the_embedding_may_be_missing_and_so_may_the_embedding(tmp_path: Path) -> None:
    save_llama(tmp_path, tied=True)
    assert HEAD not in open_checkpoint(tmp_path / "finetuned").tensors
    assert check(tmp_path).notes == ()
    for side in ("base", "finetuned"):
        tensors = load_file(tmp_path / side / "model.safetensors")
        tensors[HEAD] = tensors.pop(EMBEDDING)
        save_file(tensors, tmp_path / side / "model.safetensors", {"format": "pt"})
    assert random_in(tmp_path / "finetuned", "LlamaForCausalLM") == set()
    assert check(tmp_path).notes == ()


def test_an_expert_that_is_missing_is_told_from_a_model_that_has_fewer(tmp_path: Path) -> None:
    save_pair(tmp_path, "qwen3-moe")
    for side in ("base", "finetuned"):
        without(tmp_path / side, r"layers\.1\.mlp\.experts\.3\.")
    with pytest.raises(CheckpointError, match=r"mlp\.experts\.gate_up_proj: (missing|shape)"):
        check(tmp_path)


def test_tensors_that_are_not_of_the_configured_shape_are_named(tmp_path: Path) -> None:
    save_llama(tmp_path)
    configure(tmp_path / "finetuned", vocab_size=321)
    with pytest.raises(
        CheckpointError, match=r"embed_tokens.weight: shape \[320, 160\], by the configuration \[321, 160\]"
    ):
        check(tmp_path)


def test_a_layer_that_is_missing_is_told_from_another_base(tmp_path: Path) -> None:
    save_llama(tmp_path)
    without(tmp_path / "finetuned", r"layers\.1\.")
    with pytest.raises(MismatchError, match=r"only in the base[^#]*The fine-tuned checkpoint lacks them\. Copy all"):
        check(tmp_path)


def of_an_unknown_kind(folder: Path) -> None:
    configure(folder, model_type="llama9")


def of_an_unknown_class(folder: Path) -> None:
    configure(folder, architectures=["MyOwnModel"])


def without_sizes(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))


def with_impossible_sizes(folder: Path) -> None:
    configure(folder, num_attention_heads=0)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (of_an_unknown_kind, "does not know the model_type 'llama9'"),
        (of_an_unknown_class, "does not know the model 'MyOwnModel'"),
        (without_sizes, "does not say how many layers"),
        (with_impossible_sizes, "transformers cannot make the model"),
    ],
)
def test_what_cannot_be_checked_is_said(change: Callable[[Path], None], why: str, tmp_path: Path) -> None:
    save_llama(tmp_path)
    for side in ("base", "finetuned"):
        change(tmp_path / side)
    without(tmp_path / "finetuned", "lm_head")
    (note,) = check(tmp_path).notes
    assert note.startswith(f"It was not checked that {tmp_path / 'finetuned'} holds all that its model needs: ")
    assert why in note
