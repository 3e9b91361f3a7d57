"""Small models with real tokenizers, for merges of models whose tokens are not the same."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from impart_core.checkpoint.source import SourceFile
from impart_core.merging.merged import Merge
from tests.support import save_checkpoint

TEXT = "the cat sat on the mat and the hat"
_CORPUS = [TEXT, "hello world, hello cats and mats", "a rat sat on that hat"] * 4
_SPECIAL = ["<unk>", "<s>", "</s>"]
_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def _bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(_CORPUS, trainers.BpeTrainer(vocab_size=60, special_tokens=_SPECIAL))
    return tokenizer


def _word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(_CORPUS, trainers.WordPieceTrainer(vocab_size=60, special_tokens=_SPECIAL))
    return tokenizer


def _unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=40, special_tokens=_SPECIAL, unk_token="<unk>")
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return tokenizer


@dataclass(frozen=True)
class Kind:
    """An architecture, and how its tokenizer is trained.

    Attributes:
        model: name of the class in transformers.
        trained: trains the tokenizer.
        settings: of the configuration.
    """

    model: str
    trained: Callable[[], Tokenizer]
    settings: Mapping[str, Any]

    def made(self, rows: int, seed: int) -> PreTrainedModel:
        """Return a model with random weights whose embedding has so many rows."""
        made = getattr(transformers, self.model)
        torch.manual_seed(seed)
        model: PreTrainedModel = made(made.config_class(vocab_size=rows, **_IDS, **self.settings))
        for parameter in (*model.parameters(), *model.buffers()):
            if parameter.is_floating_point():
                parameter.data.normal_(std=0.3)
        return model.eval()


KINDS = {
    "llama": Kind("LlamaForCausalLM", _bpe, _SIZES),
    "gpt2": Kind("GPT2LMHeadModel", _unigram, {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128}),
    "bert": Kind("BertForMaskedLM", _word_piece, {**_SIZES, "max_position_embeddings": 128}),
    "bart": Kind(
        "BartForConditionalGeneration",
        _bpe,
        {
            **{f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in
               (("layers", 1), ("attention_heads", 2), ("ffn_dim", 48))},
            "d_model": 32,
            "max_position_embeddings": 128,
            "decoder_start_token_id": 2,
            "forced_eos_token_id": None,
        },
    ),
}  # fmt: skip


def wrapped(tokenizer: Tokenizer, added: Sequence[AddedToken | str] = (), **settings: Any) -> PreTrainedTokenizerFast:
    """Return a tokenizer as transformers has it, with tokens added to it."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", **settings
    )
    fast.add_tokens(list(added))
    return fast


def turned(tokenizer: Tokenizer) -> Tokenizer:
    """Return a tokenizer of the same tokens with other ids: the last is the first."""
    import json

    stored = json.loads(tokenizer.to_str())
    vocabulary, last = stored["model"]["vocab"], tokenizer.get_vocab_size() - 1
    if isinstance(vocabulary, list):
        stored["model"] |= {"vocab": vocabulary[::-1], "unk_id": last - stored["model"]["unk_id"]}
    else:
        stored["model"]["vocab"] = {token: last - at for token, at in vocabulary.items()}
    for added in stored["added_tokens"]:
        added["id"] = last - added["id"]
    stored["added_tokens"].reverse()
    return Tokenizer.from_str(json.dumps(stored))


def saved(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast | None) -> Path:
    """Save a model with its tokenizer."""
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


def written(folder: Path, merge: Merge) -> Path:
    """Write a merged model."""
    whole = merge.checkpoint()
    save_checkpoint(folder, {name: merge.compute(name) for name in whole.tensors})
    for name, file in whole.carried.items():
        file.copy_to(folder / name)
    return folder


def logits(model: PreTrainedModel, ids: Sequence[int]) -> torch.Tensor:
    """Return a model's outputs for a sequence, (tokens, vocabulary)."""
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.tensor([list(ids)])).logits[0]
    return found


def content(file: SourceFile) -> bytes:
    """Return a file's bytes."""
    return bytes(file.read(0, file.size))
