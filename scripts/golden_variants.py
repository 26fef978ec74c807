"""The models of make_goldens.py: one entry for each thing that a loader or an assembly can get wrong.

Most configs are written out as the published checkpoints of their kind write them, with the keys of their time and no
others, since that is what a reader of config.json meets; `as_saved` ones are written by the current transformers.
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class Variant:
    name: str
    purpose: str
    config: dict
    prompt_tokens: int
    as_saved: bool = False  # show config.json as this transformers saves it, instead of `config`
    modern: dict | None = None  # what transformers reads where `config` uses names that it no longer knows
    same_weights_as: str | None = None
    greedy: bool = True
    generation_config: dict | None = None
    stop: Callable | None = None  # puts EOS ids into a golden once its greedy tokens are known

    @property
    def seed_name(self):
        return self.same_weights_as or self.name


def falcon(hidden, heads, **more):
    return {"architectures": ["FalconForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2,
            "hidden_dropout": 0.0, "hidden_size": hidden, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05,
            "model_type": "falcon", "num_attention_heads": heads, "num_hidden_layers": 2, "torch_dtype": "bfloat16",
            "use_cache": True, "vocab_size": 192} | more


def llama(hidden, heads, intermediate, **more):
    return {"architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
            "hidden_size": hidden, "initializer_range": 0.02, "intermediate_size": intermediate,
            "max_position_embeddings": 512, "model_type": "llama", "num_attention_heads": heads,
            "num_hidden_layers": 2, "rms_norm_eps": 1e-05, "torch_dtype": "float16", "use_cache": True,
            "vocab_size": 192} | more


def renamed(config, model_type, dropped):
    """The same model under the names of the first Falcon configs."""
    names = {"num_attention_heads": "n_head", "num_hidden_layers": "n_layer", "num_kv_heads": "n_head_kv"}
    old = {names.get(key, key): value for key, value in config.items() if key not in dropped}
    return old | {"model_type": model_type, "architectures": ["RWForCausalLM"],
                  "apply_residual_connection_post_layernorm": False}


def stop_in_config(golden, stop_token, unused):
    golden["config"] = golden["config"] | {"eos_token_id": [unused[0], stop_token, unused[1]]}


def stop_in_generation_config(golden, stop_token, unused):
    golden["config"] = golden["config"] | {"eos_token_id": unused[0]}
    golden["generation_config"] |= {"eos_token_id": [unused[0], stop_token]}


FALCON_NEW = falcon(192, 6, num_kv_heads=2, alibi=False, bias=False, multi_query=True, new_decoder_architecture=True,
                    parallel_attn=True)
FALCON_7B = falcon(80, 5, alibi=False, bias=False, multi_query=True, new_decoder_architecture=False, parallel_attn=True)

VARIANTS = [
    Variant("falcon-new-group3", "new decoder architecture as 40B and 180B: 2 KV heads of 3 query heads each, head_dim 32, "
            "ln_attn and ln_mlp by default, tied head, default widths (4h, rope theta 10000)", FALCON_NEW, 70),
    Variant("falcon-new-group29", "Falcon-180B's 29 query heads to a KV head, on one KV head",
            falcon(232, 29, num_kv_heads=1, alibi=False, bias=False, multi_query=True, new_decoder_architecture=True,
                   parallel_attn=True), 80),
    Variant("falcon-new-group29-kv2", "58 query heads on 2 KV heads; ffn_hidden_size of its own; linear biases",
            falcon(464, 58, num_kv_heads=2, alibi=False, bias=True, multi_query=True, new_decoder_architecture=True,
                   parallel_attn=True, num_ln_in_parallel_attn=2, ffn_hidden_size=256, max_position_embeddings=512), 66,
            as_saved=True),
    Variant("falcon-7b", "multi-query: one K and V row block after all query heads; one input_layernorm; an odd number of heads",
            FALCON_7B, 40),
    Variant("falcon-11b", "new architecture with num_ln_in_parallel_attn 1 (a shared input_layernorm), untied head, "
            "rope theta 500042", falcon(128, 8, num_kv_heads=2, activation="gelu", alibi=False, bias=False, ff_factor=4,
            ffn_hidden_size=384, max_position_embeddings=8192, multi_query=True, new_decoder_architecture=True,
            num_ln_in_parallel_attn=1, parallel_attn=True, rope_scaling=None, rope_theta=500042.0,
            tie_word_embeddings=False), 134),
    Variant("falcon-rw", "RW: ALiBi, linear biases, per-head q k v triples, sequential blocks; 16 heads, whose slopes are not "
            "exact in bf16, and positions past 256, which are not either", falcon(128, 16, alibi=True, bias=True,
            multi_query=False, new_decoder_architecture=False, parallel_attn=False), 264),
    Variant("falcon-rw-heads6", "ALiBi with a number of heads that is not a power of two, multi-query, parallel",
            falcon(96, 6, alibi=True, bias=False, multi_query=True, new_decoder_architecture=False, parallel_attn=True), 30),
    Variant("falcon-sequential", "old style: attention, then post_attention_layernorm, then MLP; rotary; multi-query; "
            "layer_norm_epsilon large enough to matter", falcon(96, 4, alibi=False, bias=False, multi_query=True,
            new_decoder_architecture=False, parallel_attn=False, layer_norm_epsilon=1e-3), 24),
    Variant("falcon-triples", "old parallel style without multi-query: per-head q k v triples under rotary, with biases",
            falcon(96, 3, alibi=False, bias=True, multi_query=False, new_decoder_architecture=False, parallel_attn=True),
            24, as_saved=True),
    Variant("falcon-alias-refinedweb", "falcon-new-group3 under the first 40B config: RefinedWeb, n_head, n_layer, n_head_kv; "
            "the new architecture is implied by the model type",
            renamed(FALCON_NEW, "RefinedWeb", ("new_decoder_architecture", "multi_query")), 70,
            modern=FALCON_NEW, same_weights_as="falcon-new-group3"),
    Variant("falcon-alias-refinedwebmodel", "falcon-7b under the first 7B config: RefinedWebModel, n_head, n_layer",
            renamed(FALCON_7B, "RefinedWebModel", ("new_decoder_architecture",)), 40,
            modern=FALCON_7B, same_weights_as="falcon-7b"),

    Variant("llama-mha", "Llama 1: no num_key_value_heads, no rope keys, no tie_word_embeddings (untied is the default)",
            llama(128, 4, 256), 48),
    Variant("llama-gqa", "GQA of 4 query heads on 2 KV heads of 64, as the embedded model; tied head",
            llama(256, 4, 384, num_key_value_heads=2, tie_word_embeddings=True, attention_bias=False, mlp_bias=False),
            80, as_saved=True),
    Variant("llama-gqa-group5", "an odd group: 10 query heads on 2 KV heads of 16; untied head; rope theta 1000000",
            llama(160, 10, 224, num_key_value_heads=2, rope_scaling=None, rope_theta=1000000.0,
                  tie_word_embeddings=False), 129),
    Variant("llama-mqa", "one KV head; tied head; rms_norm_eps large enough to matter",
            llama(96, 6, 160, num_key_value_heads=1, tie_word_embeddings=True, rms_norm_eps=1e-2), 32),
    Variant("llama-rope-llama3", "rope_scaling of type llama3 (3.1's keys): all three bands within the prompt",
            llama(128, 4, 256, num_key_value_heads=2, attention_bias=False, rope_theta=10000.0, tie_word_embeddings=False,
                  rope_scaling={"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                "original_max_position_embeddings": 64, "rope_type": "llama3"}), 140),
    Variant("llama-rope-llama3-saved", "the same scaling as current transformers writes it: rope_parameters",
            llama(128, 4, 256, num_key_value_heads=2, attention_bias=False, rope_theta=10000.0, tie_word_embeddings=False,
                  rope_scaling={"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                "original_max_position_embeddings": 64, "rope_type": "llama3"}), 140, as_saved=True,
            same_weights_as="llama-rope-llama3"),
    Variant("llama-rope-linear", "linear scaling under the older key `type`",
            llama(128, 4, 192, num_key_value_heads=4, rope_scaling={"factor": 4.0, "type": "linear"},
                  rope_theta=10000.0, tie_word_embeddings=False), 72),
    Variant("llama-rope-dynamic-short", "dynamic NTK scaling, the sequence within max_position_embeddings: unscaled",
            llama(128, 4, 192, num_key_value_heads=2, max_position_embeddings=64, rope_theta=10000.0,
                  rope_scaling={"factor": 4.0, "type": "dynamic"}, tie_word_embeddings=False), 28),
    Variant("llama-rope-dynamic-long", "the same model and a prompt longer than max_position_embeddings: the base follows the "
            "prompt's length; prefill only", llama(128, 4, 192, num_key_value_heads=2, max_position_embeddings=64,
            rope_theta=10000.0, rope_scaling={"factor": 4.0, "type": "dynamic"}, tie_word_embeddings=False), 100,
            greedy=False),
    Variant("llama-bias", "attention_bias and mlp_bias", llama(128, 4, 192, num_key_value_heads=2, attention_bias=True,
            mlp_bias=True, rope_theta=500000.0, tie_word_embeddings=False), 36),
    Variant("llama-head-dim", "head_dim 32 where hidden / heads is 24", llama(96, 4, 160, num_key_value_heads=2, head_dim=32,
            rope_theta=10000.0, tie_word_embeddings=True), 65),
    Variant("llama-eos-list", "a list of EOS tokens in config.json", llama(64, 2, 128, num_key_value_heads=1,
            rope_theta=10000.0, tie_word_embeddings=True), 24, stop=stop_in_config),
    Variant("llama-eos-generation-config", "EOS tokens from generation_config.json, which take the place of the one in config.json",
            llama(64, 2, 128, num_key_value_heads=1, rope_theta=10000.0, tie_word_embeddings=True), 25,
            generation_config={"bos_token_id": 1, "do_sample": True, "temperature": 0.6, "top_p": 0.9},
            stop=stop_in_generation_config),
]
