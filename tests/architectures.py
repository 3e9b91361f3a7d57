"""Small real models of many architectures, each with a fine-tune, as transformers saves them."""

import re
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel

_VOCABULARY, _POSITIONS, _WIDTH, _INNER = 320, 64, 160, 192
# Every projection is at least 128×160, of which one vector pair takes a 68th: CR 64 leaves something of each.
_DECODER = {
    "vocab_size": _VOCABULARY,
    "max_position_embeddings": _POSITIONS,
    "hidden_size": _WIDTH,
    "intermediate_size": _INNER,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "pad_token_id": 0,
}
_QWEN2 = {**{key: value for key, value in _DECODER.items() if key != "head_dim"}, "hidden_size": 256}
_ENCODER = {key: value for key, value in _DECODER.items() if key not in ("head_dim", "num_key_value_heads")}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": _INNER}

_LAYER = r"model\.layers\.\d+\."
_ATTENTION = r"self_attn\.[qkvo]_proj\.weight"
_GATED = r"(gate|up|down)_proj\.weight"
_BERT_LAYER = (
    r"bert\.encoder\.layer\.\d+\.(attention\.(self\.(query|key|value)|output\.dense)|(intermediate|output)\.dense)"
)


@dataclass(frozen=True)
class Architecture:
    """A model to make and what its tensors are, each kind as a pattern of whole names.

    Attributes:
        model: name of the class in transformers.
        settings: what its configuration is made with.
        projections: what is compressed.
        embeddings: its embeddings.
        heads: its heads' matrices; None where they are tied to the embedding, or there is none.
        routers: what chooses between experts; None in a dense model.
        dtype: of the weights.
        sharded: which sides are saved in several files.
    """

    model: str
    settings: dict[str, object]
    projections: str
    embeddings: str = r"model\.embed_tokens\.weight"
    heads: str | None = r"lm_head\.weight"
    routers: str | None = None
    dtype: torch.dtype = torch.bfloat16
    sharded: tuple[str, ...] = field(default=())

    def config(self) -> PreTrainedConfig:
        """Return the configuration."""
        return getattr(transformers, self.model).config_class(**self.settings)


ARCHITECTURES = {
    "llama": Architecture("LlamaForCausalLM", _DECODER, f"{_LAYER}({_ATTENTION}|mlp.{_GATED})", sharded=("base",)),
    "mistral": Architecture(
        "MistralForCausalLM", _DECODER, f"{_LAYER}({_ATTENTION}|mlp.{_GATED})", sharded=("finetuned",)
    ),
    "qwen2": Architecture("Qwen2ForCausalLM", _QWEN2, f"{_LAYER}({_ATTENTION}|mlp.{_GATED})", dtype=torch.float16),
    "qwen3": Architecture("Qwen3ForCausalLM", _DECODER, f"{_LAYER}({_ATTENTION}|mlp.{_GATED})"),
    "gemma": Architecture("GemmaForCausalLM", _DECODER, f"{_LAYER}({_ATTENTION}|mlp.{_GATED})", heads=None),
    "phi": Architecture(
        "PhiForCausalLM",
        _ENCODER,
        rf"{_LAYER}(self_attn\.([qkv]_proj|dense)|mlp\.fc[12])\.weight",
        dtype=torch.float16,
        sharded=("finetuned",),
    ),
    "phi3": Architecture(
        "Phi3ForCausalLM", _DECODER, rf"{_LAYER}(self_attn\.(qkv|o)_proj|mlp\.(gate_up|down)_proj)\.weight"
    ),
    "opt": Architecture(
        "OPTForCausalLM",
        {**_ENCODER, "ffn_dim": _INNER, "word_embed_proj_dim": _WIDTH},
        r"model\.decoder\.layers\.\d+\.(self_attn\.([qkv]|out)_proj|fc[12])\.weight",
        embeddings=r"model\.decoder\.embed_(tokens|positions)\.weight",
        heads=None,
        dtype=torch.float32,
    ),
    "gpt2": Architecture(
        "GPT2LMHeadModel",
        {"vocab_size": _VOCABULARY, "n_positions": _POSITIONS, "n_embd": _WIDTH, "n_layer": 2, "n_head": 4},
        r"transformer\.h\.\d+\.(attn\.(c_attn|c_proj)|mlp\.(c_fc|c_proj))\.weight",
        embeddings=r"transformer\.w[tp]e\.weight",
        heads=None,
        dtype=torch.float32,
        sharded=("base",),
    ),
    "mixtral": Architecture(
        "MixtralForCausalLM",
        {**_DECODER, "num_local_experts": 4},
        rf"{_LAYER}({_ATTENTION}|block_sparse_moe\.experts\.\d\.w[123]\.weight)",
        routers=rf"{_LAYER}block_sparse_moe\.gate\.weight",
    ),
    "qwen2-moe": Architecture(
        "Qwen2MoeForCausalLM",
        {**_QWEN2, **_EXPERTS, "shared_expert_intermediate_size": _INNER},
        rf"{_LAYER}({_ATTENTION}|mlp\.(experts\.\d|shared_expert)\.{_GATED})",
        routers=rf"{_LAYER}mlp\.gate\.weight",
        sharded=("finetuned",),
    ),
    "qwen3-moe": Architecture(
        "Qwen3MoeForCausalLM",
        {**_DECODER, **_EXPERTS},
        rf"{_LAYER}({_ATTENTION}|mlp\.experts\.\d\.{_GATED})",
        routers=rf"{_LAYER}mlp\.gate\.weight",
        dtype=torch.float16,
    ),
    "gpt-oss": Architecture(
        "GptOssForCausalLM",
        {**_DECODER, "num_local_experts": 4},
        rf"{_LAYER}({_ATTENTION}|mlp\.experts\.(gate_up|down)_proj)",
        routers=rf"{_LAYER}mlp\.router\.weight",
    ),
    "llama4": Architecture(
        "Llama4ForCausalLM",
        {**_DECODER, "num_local_experts": 4, "intermediate_size_mlp": _INNER, "interleave_moe_layer_step": 1},
        rf"{_LAYER}({_ATTENTION}|feed_forward\.(experts\.(gate_up|down)_proj|shared_expert\.{_GATED}))",
        routers=rf"{_LAYER}feed_forward\.router\.weight",
        sharded=("base",),
    ),
    "bert": Architecture(
        "BertForMaskedLM",
        _ENCODER,
        rf"{_BERT_LAYER}\.weight",
        embeddings=r"bert\.embeddings\.(word|position|token_type)_embeddings\.weight",
        heads=r"cls\.predictions\.transform\.dense\.weight",
        dtype=torch.float32,
    ),
    "bert-classifier": Architecture(
        "BertForSequenceClassification",
        {**_ENCODER, "num_labels": 3},
        rf"({_BERT_LAYER}|bert\.pooler\.dense)\.weight",
        embeddings=r"bert\.embeddings\.(word|position|token_type)_embeddings\.weight",
        heads=r"classifier\.weight",
    ),
    "t5": Architecture(
        "T5ForConditionalGeneration",
        {"vocab_size": _VOCABULARY, "d_model": _WIDTH, "d_kv": 64, "d_ff": _INNER, "num_layers": 2, "num_heads": 4},
        r"(en|de)coder\.block\.\d\.layer\.\d\.((Self|EncDec)Attention\.[qkvo]|DenseReluDense\.w[io])\.weight",
        embeddings=r"shared\.weight|(en|de)coder\.block\.0\.layer\.0\.SelfAttention\.relative_attention_bias\.weight",
        heads=None,
    ),
    "cohere": Architecture(
        "CohereForCausalLM",
        {**_ENCODER, "num_key_value_heads": 4, "use_qk_norm": True},
        f"{_LAYER}({_ATTENTION}|mlp.{_GATED})",
        heads=None,
    ),
}


def make_model(config: PreTrainedConfig, model: str, dtype: torch.dtype, seed: int = 0) -> PreTrainedModel:
    """Return a model with seeded weights."""
    torch.manual_seed(seed)
    made: PreTrainedModel = getattr(transformers, model)(config)
    return made.to(dtype).eval()


@torch.no_grad()
def tune_(model: PreTrainedModel, seed: int = 1, matching: str = "") -> PreTrainedModel:
    """Change parameters in place: matrices by rank 1, as large as their values, and all of them by a little noise.

    Args:
        model: the model.
        seed: of the changes.
        matching: a pattern that the parameters' names have to hold.
    """
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    for name, tensor in model.named_parameters():
        if re.search(matching, name):
            change = 1e-5 * noise(*tensor.shape)
            if tensor.dim() > 1:
                *stack, m, n = tensor.shape
                change += 0.02 * noise(*stack, m, 1) @ noise(*stack, 1, n)
            else:
                change += 0.02 * noise(*tensor.shape)
            tensor.copy_(tensor.float() + change)
    return model


def save_pair(root: Path, name: str) -> tuple[Path, Path]:
    """Save an architecture's base and fine-tune; return their folders."""
    wanted = ARCHITECTURES[name]
    model = make_model(wanted.config(), wanted.model, wanted.dtype)
    for side in ("base", "finetuned"):
        model.save_pretrained(root / side, max_shard_size="200KB" if side in wanted.sharded else "1GB")
        assert (root / side / "model.safetensors.index.json").exists() == (side in wanted.sharded)
        tune_(model)
    return root / "base", root / "finetuned"


def load_whole(folder: Path, model: str) -> PreTrainedModel:
    """Load a model folder in float32, which must hold every weight, each in its shape, and no other."""
    loaded, found = getattr(transformers, model).from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    assert not any(found[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")), found
    return loaded.eval()


@torch.no_grad()
def logits(model: PreTrainedModel, seed: int = 2) -> torch.Tensor:
    """Return what a model answers to a batch of seeded tokens."""
    tokens = torch.randint(1, _VOCABULARY, (4, 16), generator=torch.Generator().manual_seed(seed))
    decoder = {"decoder_input_ids": tokens} if model.config.is_encoder_decoder else {}
    return model(tokens, **decoder).logits
