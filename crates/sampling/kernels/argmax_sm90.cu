// Entry points of argmax.cuh: `slices` blocks a row, launched in clusters of `slices`.
#include "argmax.cuh"

extern "C" __global__ void __launch_bounds__(512)
    argmax_bf16(const uint16_t* logits, uint32_t vocab_size, uint32_t slices, uint32_t* tokens) {
    sampling::argmax<sampling::Bf16>(logits, vocab_size, slices, tokens);
}
extern "C" __global__ void __launch_bounds__(512)
    argmax_f32(const float* logits, uint32_t vocab_size, uint32_t slices, uint32_t* tokens) {
    sampling::argmax<sampling::F32>(logits, vocab_size, slices, tokens);
}
