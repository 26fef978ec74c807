// W4A8 for large batches: weights widened once a launch, then products of them (src/launch/w4a8_widened.rs).
#include "w4a8_widened.cuh"

extern "C" __global__ void __launch_bounds__(w4a8::kWidenThreads)
    w4a8_g128_widen(const __grid_constant__ w4a8::WidenProblem problem) {
    w4a8::widen(problem);
}

extern "C" __global__ void __launch_bounds__(w4a8::Widened::kThreads, 1)
    w4a8_g128_widened_t256_f128(const __grid_constant__ CUtensorMap x, const __grid_constant__ w4a8::WidenedProblem problem) {
    w4a8::run_widened(&x, problem);
}
