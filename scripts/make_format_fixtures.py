#!/usr/bin/env python3
"""Write crates/models/tests/formats: a tiny checkpoint in every weight format, and what its weights are.

    python3 -m venv venv && venv/bin/pip install numpy
    venv/bin/python scripts/make_format_fixtures.py            # writes all of them
    venv/bin/python scripts/make_format_fixtures.py --check    # unpacks the committed files again and compares

Only numpy and the standard library: safetensors are written by hand and the packing follows the formats' own papers and
files, so that nothing here shares code with the packers it is to be compared with. Numbers come from SHAKE-256 of the
tensors' names and are the same everywhere.
"""

import argparse
import hashlib
import json
import math
import shutil
import struct
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent / "crates/models/tests/formats"
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]  # the column that nibble i of a word holds, among its eight
DTYPES = {"F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "I64": 8, "I32": 4, "I8": 1, "U8": 1}


# Numbers.


def stream(label, size):
    return np.frombuffer(hashlib.shake_256(label.encode()).digest(size), dtype=np.uint8)


def uniform(label, shape, low, high):
    """float64 in [low, high), from 16 random bits each."""
    count = math.prod(shape)
    bits = stream(label, 2 * count).view("<u2").astype(np.float64)
    return (low + bits / 65536 * (high - low)).reshape(shape)


def nibbles(label, shape):
    return (stream(label, math.prod(shape)) % 16).reshape(shape)


def to_bf16(values):
    """The nearest bf16, ties to even, as its bits."""
    bits = np.asarray(values, dtype=np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def e4m3_table():
    """The value of every code: sign, 4 bits of exponent with bias 7, 3 of mantissa, subnormals, no infinities."""
    values = np.empty(256, dtype=np.float32)
    for code in range(256):
        exponent, mantissa = (code >> 3) & 15, code & 7
        value = mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
        values[code] = math.nan if code & 127 == 127 else value * (-1 if code & 128 else 1)
    return values


E4M3 = e4m3_table()


def e4m3_codes(label, shape):
    codes = stream(label, math.prod(shape)).copy()
    codes[codes & 127 == 127] ^= 1  # no NaN
    return codes.reshape(shape)


# Files.


class Tensors(dict):
    """Name to (dtype, shape, bytes), in the order they were added."""

    def put(self, name, dtype, array, shape=None):
        array = np.ascontiguousarray(array)
        shape = list(array.shape if shape is None else shape)
        data = array.astype(array.dtype.newbyteorder("<")).tobytes()
        assert len(data) == math.prod(shape) * DTYPES[dtype], name
        self[name] = (dtype, shape, data)

    def put_floats(self, name, dtype, values):
        """Stores values in a float type; gives back what was stored, as f32."""
        values = np.asarray(values)
        if dtype == "BF16":
            bits = to_bf16(values)
            self.put(name, dtype, bits, values.shape)
            return from_bf16(bits).reshape(values.shape)
        stored = values.astype({"F16": np.float16, "F32": np.float32}[dtype])
        self.put(name, dtype, stored, values.shape)
        return stored.astype(np.float32)


def write_safetensors(path, tensors):
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, (dtype, shape, piece) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(piece)]}
        data += piece
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def read_safetensors(path):
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__", None)
    base = 8 + length
    return {
        name: (entry["dtype"], entry["shape"], raw[base + entry["data_offsets"][0] : base + entry["data_offsets"][1]])
        for name, entry in header.items()
    }


def write_sharded(folder, tensors, shards):
    names, weight_map = list(tensors), {}
    for index in range(shards):
        shard = f"model-{index + 1:05}-of-{shards:05}.safetensors"
        own = names[index * len(names) // shards : (index + 1) * len(names) // shards]
        write_safetensors(folder / shard, {name: tensors[name] for name in own})
        weight_map.update({name: shard for name in own})
    total = sum(len(piece) for _, _, piece in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


# Packing. Codes are [N, K], scales and zeros [N, groups].


def pack_words(values):
    """Eight nibbles along the last axis to a word, the first lowest."""
    values = values.reshape(*values.shape[:-1], -1, 8).astype(np.uint32)
    return np.bitwise_or.reduce(values << (4 * np.arange(8, dtype=np.uint32)), axis=-1).astype(np.uint32).view(np.int32)


def pack_awq(columns):
    """AutoAWQ: columns [rows, N] to words [rows, N / 8], nibbles in its order."""
    rows, n = columns.shape
    return pack_words(columns.reshape(rows, n // 8, 8)[:, :, AWQ_ORDER].reshape(rows, n))


def unpack_words(words):
    words = words.view(np.uint32)
    return ((words[..., None] >> (4 * np.arange(8, dtype=np.uint32))) & 15).reshape(*words.shape[:-1], -1).astype(np.int64)


def group_scales(label, n, groups):
    return uniform(label, (n, groups), 0.002, 0.008)


def dequantize(codes, zeros, scales):
    """(code - zero) * scale, the difference exact, the product rounded to f32 once."""
    group_size = codes.shape[1] // scales.shape[1]
    steps = codes.astype(np.int64) - np.repeat(zeros.astype(np.int64), group_size, axis=1)
    return steps.astype(np.float32) * np.repeat(scales.astype(np.float32), group_size, axis=1)


class Plain:
    """bf16, f16 or f32 weights."""

    def __init__(self, dtype):
        self.dtype = dtype

    def layer(self, tensors, prefix, n, k):
        bound = math.sqrt(3 / k)
        return tensors.put_floats(f"{prefix}.weight", self.dtype, uniform(f"{prefix}.weight", (n, k), -bound, bound)), {}

    def config(self):
        return None


class AutoAwq:
    def __init__(self, group_size):
        self.group_size = group_size

    def layer(self, tensors, prefix, n, k):
        groups = k // self.group_size
        codes, zeros = nibbles(f"{prefix}.codes", (n, k)), nibbles(f"{prefix}.zeros", (n, groups))
        scales = group_scales(f"{prefix}.scales", n, groups).astype(np.float16)
        tensors.put(f"{prefix}.qweight", "I32", pack_awq(codes.T))
        tensors.put(f"{prefix}.qzeros", "I32", pack_awq(zeros.T))
        tensors.put(f"{prefix}.scales", "F16", scales.T)
        return dequantize(codes, zeros, scales), {}

    def unpack(self, tensors, prefix, n, k):
        inverse = np.argsort(AWQ_ORDER)
        def columns(name):
            words = array(tensors, f"{prefix}.{name}")
            return unpack_words(words).reshape(words.shape[0], -1, 8)[:, :, inverse].reshape(words.shape[0], -1)
        scales = array(tensors, f"{prefix}.scales").astype(np.float32)
        return dequantize(columns("qweight").T, columns("qzeros").T, scales.T)

    def config(self):
        return {"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": self.group_size, "zero_point": True,
                "modules_to_not_convert": None}


class PackQuantized:
    """compressed-tensors, signed codes -8..=7 stored plus 8."""

    def __init__(self, group_size=None, symmetric=True, byte_zeros=False):
        self.group_size, self.symmetric, self.byte_zeros = group_size, symmetric, byte_zeros

    def layer(self, tensors, prefix, n, k):
        groups = 1 if self.group_size is None else k // self.group_size
        codes = nibbles(f"{prefix}.codes", (n, k))
        tensors.put(f"{prefix}.weight_packed", "I32", pack_words(codes))
        scales = tensors.put_floats(f"{prefix}.weight_scale", "BF16", group_scales(f"{prefix}.scales", n, groups))
        tensors.put(f"{prefix}.weight_shape", "I64", np.array([n, k], dtype=np.int64))
        zeros = np.full((n, groups), 8)
        if not self.symmetric:
            zeros = nibbles(f"{prefix}.zeros", (n, groups))
            if self.byte_zeros:  # as versions before 0.10 wrote them
                tensors.put(f"{prefix}.weight_zero_point", "I8", (zeros.astype(np.int64) - 8).astype(np.int8))
            else:  # packed along the rows
                tensors.put(f"{prefix}.weight_zero_point", "I32", pack_words(zeros.T).T)
        return dequantize(codes, zeros, scales), {}

    def unpack(self, tensors, prefix, n, k):
        scales = array(tensors, f"{prefix}.weight_scale")
        zeros = np.zeros_like(scales, dtype=np.int64)
        if not self.symmetric:
            zeros = array(tensors, f"{prefix}.weight_zero_point")
            zeros = zeros if self.byte_zeros else unpack_words(np.ascontiguousarray(zeros.T)).T[:n] - 8
        return dequantize(unpack_words(array(tensors, f"{prefix}.weight_packed")) - 8, zeros, scales)

    def config(self):
        weights = {"num_bits": 4, "type": "int", "symmetric": self.symmetric, "dynamic": False, "actorder": None,
                   "strategy": "channel" if self.group_size is None else "group", "group_size": self.group_size,
                   "observer": "minmax", "block_structure": None}
        group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
        return {"quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
                "config_groups": {"group_0": group}, "ignore": ["lm_head"], "kv_cache_scheme": None}


class Fp8:
    """e4m3 codes; one scale to the tensor or to a row; producer compressed-tensors or ModelOpt."""

    def __init__(self, per_row, static_input, model_opt=False, kv_cache=False, scale_dtype="F32"):
        self.per_row, self.static_input, self.model_opt = per_row, static_input, model_opt
        self.kv_cache, self.scale_dtype = kv_cache, scale_dtype

    def layer(self, tensors, prefix, n, k):
        codes = e4m3_codes(f"{prefix}.codes", (n, k))
        tensors.put(f"{prefix}.weight", "F8_E4M3", codes)
        # Codes of random bits have a root mean square of about 100.
        shape = ((n,) if self.model_opt else (n, 1)) if self.per_row else (() if self.model_opt else (1,))
        scale = uniform(f"{prefix}.scale", shape, 1e-4, 1e-3)
        scale = tensors.put_floats(f"{prefix}.weight_scale", self.scale_dtype, scale)
        extra = {}
        if self.static_input:
            value = uniform(f"{prefix}.input_scale", () if self.model_opt else (1,), 0.01, 0.05)
            value = tensors.put_floats(f"{prefix}.input_scale", self.scale_dtype, value)
            extra["input_scale"] = float(value.ravel()[0])
        return E4M3[codes] * scale.reshape(-1, 1), extra

    def unpack(self, tensors, prefix, n, k):
        scale = array(tensors, f"{prefix}.weight_scale").astype(np.float32)
        return E4M3[array(tensors, f"{prefix}.weight")] * scale.reshape(-1, 1)

    def attention(self, tensors, prefix):
        if not self.kv_cache:
            return None
        names = ["k_proj.k_scale", "v_proj.v_scale"] if self.model_opt else ["k_scale", "v_scale"]
        values = []
        for name in names:
            label = f"{prefix}.{name}"
            values.append(tensors.put_floats(label, "F32", uniform(label, () if self.model_opt else (1,), 0.01, 0.1)))
        return [float(value.ravel()[0]) for value in values]

    def config(self):
        if self.model_opt:
            return None
        weights = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": False, "group_size": None,
                   "strategy": "channel" if self.per_row else "tensor", "observer": "minmax"}
        inputs = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": not self.static_input,
                  "strategy": "tensor" if self.static_input else "token", "observer": None}
        cache = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": False, "strategy": "tensor"}
        group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs, "output_activations": None}
        return {"quant_method": "compressed-tensors", "format": "float-quantized", "quantization_status": "frozen",
                "config_groups": {"group_0": group}, "ignore": ["re:.*lm_head"],
                "kv_cache_scheme": cache if self.kv_cache else None}

    def model_opt_file(self):
        algorithm = "FP8_PER_CHANNEL_PER_TOKEN" if self.per_row else "FP8"
        return {"quant_algo": algorithm, "kv_cache_quant_algo": "FP8" if self.kv_cache else None,
                "exclude_modules": ["lm_head"]}


class W4a8Awq:
    """ModelOpt: signed codes, two rows to a byte; weight_scale is the whole scale of a weight."""

    model_opt = True

    def __init__(self, group_size):
        self.group_size = group_size

    def layer(self, tensors, prefix, n, k):
        codes = nibbles(f"{prefix}.codes", (n, k)).astype(np.int64) - 8
        packed = (codes[0::2] & 15) | ((codes[1::2] & 15) << 4)
        tensors.put(f"{prefix}.weight", "U8", packed.astype(np.uint8))
        groups = k // self.group_size
        scales = tensors.put_floats(f"{prefix}.weight_scale", "F32", group_scales(f"{prefix}.scales", n, groups))
        weight = dequantize(codes, np.zeros((n, groups)), scales)
        # The parts of a fused layer share these two.
        shared = prefix.replace("q_proj", "qkv").replace("k_proj", "qkv").replace("v_proj", "qkv")
        shared = shared.replace("gate_proj", "gate_up").replace("up_proj", "gate_up")
        extra = {"input_scale": float(np.float32(uniform(f"{shared}.input_scale", (), 0.01, 0.05)))}
        tensors.put_floats(f"{prefix}.weight_scale_2", "F32", uniform(f"{shared}.weight_scale_2", (), 1e-4, 2e-4))
        tensors.put_floats(f"{prefix}.input_scale", "F32", np.array(extra["input_scale"]))
        if prefix.endswith(("o_proj", "down_proj")):  # where the producer cannot fold it into the step before
            multiplier = uniform(f"{prefix}.pre_quant_scale", (k,), 0.5, 2)
            stored = tensors.put_floats(f"{prefix}.pre_quant_scale", "BF16", multiplier)
            extra["input_multiplier"] = describe(stored)
        return weight, extra

    def unpack(self, tensors, prefix, n, k):
        packed = array(tensors, f"{prefix}.weight").astype(np.int64)
        codes = np.empty((n, k), dtype=np.int64)
        codes[0::2], codes[1::2] = packed & 15, packed >> 4
        codes[codes > 7] -= 16
        scales = array(tensors, f"{prefix}.weight_scale")
        return dequantize(codes, np.zeros_like(scales), scales)

    def config(self):
        return None

    def model_opt_file(self):
        return {"quant_algo": "W4A8_AWQ", "kv_cache_quant_algo": None, "group_size": self.group_size,
                "has_zero_point": False, "pre_quant_scale": True, "exclude_modules": ["lm_head"]}


# Models.


def llama(hidden, ffn, tied):
    heads, kv_heads, vocab = 4, 1, 32
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": hidden,
              "intermediate_size": ffn, "num_hidden_layers": 1, "num_attention_heads": heads,
              "num_key_value_heads": kv_heads, "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
              "max_position_embeddings": 128, "vocab_size": vocab, "bos_token_id": 1, "eos_token_id": 2,
              "tie_word_embeddings": tied, "torch_dtype": "bfloat16"}
    kv, layer = hidden // heads * kv_heads, "model.layers.0"
    linear = [(f"{layer}.self_attn.q_proj", hidden, hidden), (f"{layer}.self_attn.k_proj", kv, hidden),
              (f"{layer}.self_attn.v_proj", kv, hidden), (f"{layer}.self_attn.o_proj", hidden, hidden),
              (f"{layer}.mlp.gate_proj", ffn, hidden), (f"{layer}.mlp.up_proj", ffn, hidden),
              (f"{layer}.mlp.down_proj", hidden, ffn)]
    vectors = [(f"{layer}.input_layernorm.weight", hidden), (f"{layer}.post_attention_layernorm.weight", hidden),
               ("model.norm.weight", hidden)]
    matrices = [("model.embed_tokens.weight", vocab, hidden)]
    if not tied:
        matrices.append(("lm_head.weight", vocab, hidden))
    return config, linear, vectors, matrices, f"{layer}.self_attn"


def falcon(hidden, ffn):
    """The new decoder architecture, two query heads to a KV head; AutoAWQ's scaled activation before the last product."""
    heads, kv_heads, vocab, layer = 4, 2, 32, "transformer.h.0"
    config = {"model_type": "falcon", "architectures": ["FalconForCausalLM"], "hidden_size": hidden,
              "ffn_hidden_size": ffn, "num_hidden_layers": 1, "num_attention_heads": heads, "num_kv_heads": kv_heads,
              "new_decoder_architecture": True, "parallel_attn": True, "multi_query": True, "bias": False,
              "alibi": False, "layer_norm_epsilon": 1e-5, "vocab_size": vocab, "bos_token_id": 11, "eos_token_id": 11,
              "torch_dtype": "float16"}
    qkv = (heads + 2 * kv_heads) * (hidden // heads)
    linear = [(f"{layer}.self_attention.query_key_value", qkv, hidden), (f"{layer}.self_attention.dense", hidden, hidden),
              (f"{layer}.mlp.dense_h_to_4h", ffn, hidden), (f"{layer}.mlp.dense_4h_to_h", hidden, ffn)]
    norms = [f"{layer}.ln_attn", f"{layer}.ln_mlp", "transformer.ln_f"]
    vectors = [(f"{norm}.{part}", hidden) for norm in norms for part in ("weight", "bias")]
    vectors.append((f"{layer}.mlp.act.scales", ffn))
    return config, linear, vectors, [("transformer.word_embeddings.weight", vocab, hidden)], f"{layer}.self_attention"


# Name: purpose, model, format, dtype of what is plain, files that the tensors are spread over.
FIXTURES = {
    "llama-plain-bf16": ("plain bf16, head of its own", llama(32, 64, False), Plain("BF16"), "BF16", 1),
    "llama-plain-f16-sharded": ("plain f16, three files and an index", llama(32, 64, False), Plain("F16"), "F16", 3),
    "llama-plain-f32": ("plain f32, tied head", llama(32, 64, True), Plain("F32"), "F32", 1),
    "llama-autoawq": ("AutoAWQ, group 128", llama(128, 256, False), AutoAwq(128), "F16", 1),
    "falcon-autoawq": ("AutoAWQ, group 64; fused qkv, mlp.act.scales", falcon(128, 256), AutoAwq(64), "F16", 1),
    "llama-pack-quantized": (
        "pack-quantized, symmetric, group 128, two files", llama(128, 256, False), PackQuantized(128), "BF16", 2),
    "llama-pack-quantized-channel": (
        "pack-quantized, symmetric, one scale to a row", llama(64, 128, True), PackQuantized(), "BF16", 1),
    "llama-pack-quantized-asymmetric": (
        "pack-quantized, packed zero points, group 32", llama(64, 128, True), PackQuantized(32, False), "BF16", 1),
    "llama-pack-quantized-byte-zeros": (
        "pack-quantized, zero points as signed bytes, group 32",
        llama(64, 128, True), PackQuantized(32, False, True), "BF16", 1),
    "llama-fp8-static": (
        "float-quantized, one scale to a tensor, static inputs, FP8 KV cache",
        llama(64, 128, False), Fp8(False, True, kv_cache=True), "BF16", 1),
    "llama-fp8-dynamic": (
        "float-quantized, a bf16 scale to a row, dynamic inputs",
        llama(64, 128, False), Fp8(True, False, scale_dtype="BF16"), "BF16", 1),
    "llama-modelopt-fp8": (
        "ModelOpt FP8, scalar scales, FP8 KV cache", llama(64, 128, False), Fp8(False, True, True, True), "BF16", 1),
    "llama-modelopt-fp8-rows": (
        "ModelOpt FP8_PER_CHANNEL_PER_TOKEN", llama(64, 128, True), Fp8(True, False, True), "BF16", 1),
    "llama-modelopt-w4a8-awq": ("ModelOpt W4A8_AWQ, group 128", llama(128, 256, False), W4a8Awq(128), "BF16", 1),
}

def array(tensors, name):
    dtype, shape, data = tensors[name]
    if dtype == "BF16":
        return from_bf16(np.frombuffer(data, dtype="<u2")).reshape(shape)
    kind = {"F32": "<f4", "F16": "<f2", "F8_E4M3": "u1", "I64": "<i8", "I32": "<i4", "I8": "i1", "U8": "u1"}[dtype]
    return np.frombuffer(data, dtype=kind).reshape(shape)


def describe(values):
    """What a test compares with: the digest of the little-endian f32 bytes, and the first and last values."""
    values = np.ascontiguousarray(values, dtype="<f4")
    assert np.isfinite(values).all()
    flat = values.ravel()
    return {"shape": list(values.shape), "sha256": hashlib.sha256(values.tobytes()).hexdigest(),
            "first": [float(value) for value in flat[:4]], "last": [float(value) for value in flat[-4:]]}


def build(name):
    purpose, (config, linear, vectors, matrices, attention), format, dtype, _ = FIXTURES[name]
    tensors, layers, others = Tensors(), {}, {}
    for prefix, n, k in linear:
        weight, extra = format.layer(tensors, prefix, n, k)
        layers[prefix] = {"in_features": k, "out_features": n, "weight": describe(weight), **extra}
    for label, size in vectors:
        others[label] = describe(tensors.put_floats(label, dtype, uniform(label, (size,), 0.5, 1.5)))
    for label, rows, columns in matrices:
        others[label] = describe(tensors.put_floats(label, dtype, uniform(label, (rows, columns), -1, 1)))
    expected = {"purpose": purpose, "linear": layers, "tensors": others}
    scales = format.attention(tensors, attention) if hasattr(format, "attention") else None
    if scales is not None:
        expected["kv_scales"] = {attention: scales}
    config = dict(config)
    if format.config() is not None:
        config["quantization_config"] = format.config()
    return config, tensors, expected


def write(name):
    folder, format, shards = ROOT / name, FIXTURES[name][2], FIXTURES[name][4]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config, tensors, expected = build(name)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    if getattr(format, "model_opt", False):
        quantization = {"producer": {"name": "modelopt", "version": "0.29.0"}, "quantization": format.model_opt_file()}
        (folder / "hf_quant_config.json").write_text(json.dumps(quantization, indent=1) + "\n")
    if shards > 1:
        write_sharded(folder, tensors, shards)
    else:
        write_safetensors(folder / "model.safetensors", tensors)


def check(name):
    """Reads the committed files and unpacks them, the other way round from how they were packed."""
    folder, format = ROOT / name, FIXTURES[name][2]
    expected = json.loads((folder / "expected.json").read_text())
    assert expected == build(name)[2], f"{name}: expected.json is not what this script writes"
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors.update(read_safetensors(path))
    for prefix, layer in expected["linear"].items():
        n, k = layer["out_features"], layer["in_features"]
        weight = format.unpack(tensors, prefix, n, k) if hasattr(format, "unpack") else array(tensors, f"{prefix}.weight")
        assert describe(weight) == layer["weight"], f"{name}: {prefix}"
    for label, described in expected["tensors"].items():
        assert describe(array(tensors, label)) == described, f"{name}: {label}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare the committed files instead of writing them")
    arguments = parser.parse_args()
    for name in FIXTURES:
        check(name) if arguments.check else write(name)
    total = sum(path.stat().st_size for path in ROOT.rglob("*") if path.is_file())
    print(f"{len(FIXTURES)} checkpoints, {total} bytes, {'unpacked and equal' if arguments.check else 'written'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
