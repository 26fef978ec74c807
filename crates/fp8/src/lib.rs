//! e4m3 and e5m2 numerics, quantization per tensor and per token, and the FP8 x FP8 product
