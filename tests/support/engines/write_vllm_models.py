"""Writes small models with random weights that vLLM loads; run by the Python of vLLM's own environment.

    python write_vllm_models.py FOLDER

makes FOLDER/text (a Llama) and FOLDER/embedding (a BERT). Their tokenizer knows the 256 bytes, no more.
"""

import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SIZES = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
CHAT = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}assistant:"


def tokenizer():
    words = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    made = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    told = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    told.chat_template = CHAT
    return told, len(words)


def main(folder):
    words, count = tokenizer()
    torch.manual_seed(1)
    text = LlamaConfig(vocab_size=count, num_key_value_heads=2, bos_token_id=0, eos_token_id=1, **SIZES)
    LlamaForCausalLM(text).to(torch.bfloat16).save_pretrained(folder / "text")
    BertModel(BertConfig(vocab_size=count, **SIZES)).save_pretrained(folder / "embedding")
    for name in ("text", "embedding"):
        words.save_pretrained(folder / name)


main(Path(sys.argv[1]))
