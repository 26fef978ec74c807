//! One step between two products, on the CPU: the residual addition, the norm, and its e4m3 codes.

use device::{ActivationShape, E4m3, QuantizedActivation};
use layers::Norm;

fn main() -> device::Result<()> {
    let features = 8;
    let norm = Norm::rms(features, 1e-5)?;
    let mut residual: Vec<f32> = (0..features).map(|i| i as f32 - 3.5).collect();
    let attention = vec![0.25; features];

    let (mut codes, mut scales, mut group_sums) = ([E4m3::NAN; 8], [f32::NAN; 1], [f32::NAN; 2]);
    let mut output = QuantizedActivation {
        shape: ActivationShape { tokens: 1, features, group_size: 4 },
        codes: &mut codes[..],
        scales: &mut scales[..],
        group_sums: &mut group_sums[..],
    };
    norm.reference_quantized(&vec![1.0; features], None, &[&attention], &mut residual, &mut output)?;

    println!("residual   {residual:?}");
    println!("codes      {:?}", codes.map(E4m3::to_f32));
    println!("scale      {:?}", scales[0]);
    println!("group sums {group_sums:?}");
    Ok(())
}
