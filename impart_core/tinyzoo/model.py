"""The shape of the zoo's models: a small Llama with grouped-query attention."""

from typing import TYPE_CHECKING

from impart_core.tinyzoo.tokenizer import BOS, EOS, MAX_POSITIONS, PAD, vocabulary

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


def new_model() -> "LlamaForCausalLM":
    """Return a freshly initialised float32 model of about 1.8 million parameters.

    The initial weights come from torch's global generator; seed it first.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    ids = vocabulary()
    config = LlamaConfig(
        vocab_size=len(ids),
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=False,
        pad_token_id=ids[PAD],
        bos_token_id=ids[BOS],
        eos_token_id=ids[EOS],
    )
    return LlamaForCausalLM(config)
