//! Quantizes a layer to INT4, writes it as an AutoAWQ checkpoint would hold it, reads it back and multiplies.
//!
//! `cargo run --example awq-gemm`

use awq_gemm::formats::auto_awq;
use awq_gemm::{Int4Shape, W4A8, quantize};
use device::{ActivationShape, E4m3, QuantizedActivation};
use half::f16;

fn main() -> device::Result<()> {
    let (in_features, out_features, group_size) = (256, 8, 128);
    let shape = Int4Shape::new(in_features, out_features, group_size)?;
    let dense: Vec<f32> = (0..in_features * out_features).map(|i| 0.5 + (i as f32 * 0.37).sin()).collect();

    let tensors = auto_awq::write::<f16>(&quantize(shape, &dense)?)?;
    let weights = auto_awq::read(shape, &tensors.qweight, &tensors.qzeros, &tensors.scales)?;

    // One token whose features are all 0.5 = 1.0 (e4m3) * 0.5 (the token's scale).
    let codes = vec![E4m3::from_f32(1.0); in_features];
    let x = QuantizedActivation {
        shape: ActivationShape { tokens: 1, features: in_features, group_size },
        codes: &codes[..],
        scales: &[0.5][..],
        group_sums: &[128.0; 2][..],
    };
    let mut y = vec![0.0; out_features];
    W4A8::new(shape).reference(&x, &weights, None, &mut y)?;

    for (n, y) in y.iter().enumerate() {
        let exact: f32 = dense[n * in_features..][..in_features].iter().map(|w| 0.5 * w).sum();
        println!("output feature {n}: {y:8.4} from INT4 weights, {exact:8.4} from the plain ones");
    }
    Ok(())
}
