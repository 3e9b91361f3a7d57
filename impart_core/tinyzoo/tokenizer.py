"""The zoo's tokenizer: one token a character, as an ordinary Hugging Face fast tokenizer."""

import string
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, UNKNOWN = "<pad>", "<bos>", "<eos>", "<unk>"
CHARACTERS = "\n " + string.digits + string.ascii_letters + string.punctuation
MAX_POSITIONS = 256


def vocabulary() -> dict[str, int]:
    """Return the 100 tokens and their ids: four special tokens, then every printable ASCII character and a new line."""
    return {token: number for number, token in enumerate([PAD, BOS, EOS, UNKNOWN, *CHARACTERS])}


def build_tokenizer() -> "PreTrainedTokenizerFast":
    """Build the tokenizer; `save_pretrained` makes files that `AutoTokenizer` loads.

    It adds no special tokens, so the tokens of a text are those of its first part, then those of its second.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel(vocabulary(), unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
