"""Writes goldens.txt beside this file: inverse frequencies and ALiBi biases as Hugging Face transformers computes them.

Needs torch and transformers (made with 5.23.0). Each line is `name: f32 f32 ...`, every number as the hexadecimal bits
of its f32.
"""

import pathlib

import numpy
import torch
from transformers import LlamaConfig
from transformers.models.falcon.modeling_falcon import build_alibi_tensor
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

LLAMA3 = dict(rope_type="llama3", low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)
# Name: head_dim, trained context, rope parameters, context length asked for.
ROTARY = {
    "default_64": (64, 2048, dict(rope_type="default", rope_theta=10000.0), 1),
    "default_128": (128, 8192, dict(rope_type="default", rope_theta=500000.0), 1),
    "default_256": (256, 8192, dict(rope_type="default", rope_theta=1000042.0), 1),
    "linear_80": (80, 2048, dict(rope_type="linear", rope_theta=10000.0, factor=2.5), 1),
    "dynamic_64_within": (64, 2048, dict(rope_type="dynamic", rope_theta=10000.0, factor=1.7), 2048),
    "dynamic_64_beyond": (64, 2048, dict(rope_type="dynamic", rope_theta=10000.0, factor=1.7), 2049),
    "dynamic_128_far": (128, 4096, dict(rope_type="dynamic", rope_theta=500000.0, factor=4.0), 30001),
    "llama3_128": (128, 131072, dict(LLAMA3, rope_theta=500000.0, factor=8.0), 1),
    "llama3_64": (64, 131072, dict(LLAMA3, rope_theta=500000.0, factor=32.0), 1),
    "llama3_odd": (
        64,
        131072,
        dict(LLAMA3, rope_theta=10000.0, factor=3.3, low_freq_factor=0.7, original_max_position_embeddings=5000),
        1,
    ),
}
ALIBI_HEADS = [1, 2, 3, 8, 12, 71]
ALIBI_POSITIONS = [0, 1, 2, 3, 100, 255, 256, 257, 1023, 2047]


def bits(tensor):
    return " ".join(f"{word:08x}" for word in tensor.detach().float().numpy().view(numpy.uint32).ravel())


def inverse_frequencies(head_dim, trained, parameters, context_len):
    config = LlamaConfig(
        hidden_size=head_dim, num_attention_heads=1, max_position_embeddings=trained, rope_parameters=dict(parameters)
    )
    embedding = LlamaRotaryEmbedding(config)
    embedding(torch.zeros(1), torch.arange(context_len)[None])
    return embedding.inv_freq


lines = [f"{name}: {bits(inverse_frequencies(*case))}" for name, case in ROTARY.items()]
for heads in ALIBI_HEADS:
    mask = torch.ones(1, ALIBI_POSITIONS[-1] + 1, dtype=torch.long)
    alibi = build_alibi_tensor(mask, heads, torch.float32)[:, 0, ALIBI_POSITIONS]
    lines.append(f"alibi_{heads}: {bits(alibi)}")
pathlib.Path(__file__).with_name("goldens.txt").write_text("\n".join(lines) + "\n")
