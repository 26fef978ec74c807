// Entry point of sample.cuh: a block of 1024 threads a row.
#include "sample.cuh"

extern "C" __global__ void __launch_bounds__(sampling::kThreads) sample_f32(const __grid_constant__ sampling::Batch batch) {
    sampling::sample(batch);
}
