//! The two 8-bit floats of the OCP FP8 specification (arXiv:2209.05433).
//!
//! ```text
//!            7   6 5 4 3   2 1 0
//!   e4m3   [ s | e e e e | m m m ]   bias 7, no infinities, NaN = S.1111.111, largest 448
//!   e5m2   [ s | e e e e e | m m ]   bias 15, infinities and NaNs as in IEEE 754, largest 57344
//! ```

use bytemuck::{Pod, Zeroable};

/// An e4m3 code. Equality compares codes, not values: two NaNs of the same sign are equal, +0 and -0 are not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Pod, Zeroable)]
#[repr(transparent)]
pub struct E4m3(pub u8);

/// An e5m2 code. Equality compares codes, not values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Pod, Zeroable)]
#[repr(transparent)]
pub struct E5m2(pub u8);

impl E4m3 {
    /// The largest finite value, 448.
    pub const MAX: f32 = 448.0;
    /// A positive NaN.
    pub const NAN: Self = Self(0x7f);

    /// The nearest code, ties to even. Values beyond the range, infinities among them, saturate to +-448 as the
    /// hardware's `cvt.rn.satfinite` does; NaN stays NaN.
    pub fn from_f32(value: f32) -> Self {
        Self(encode::<3, 7>(value, 0x7e, 0x7e))
    }

    /// The exact value.
    pub fn to_f32(self) -> f32 {
        if self.0 & 0x7f == 0x7f { f32::NAN.copysign(sign(self.0)) } else { decode::<3, 7>(self.0) }
    }

    /// Whether this is one of the two NaN codes.
    pub fn is_nan(self) -> bool {
        self.0 & 0x7f == 0x7f
    }
}

impl E5m2 {
    /// The largest finite value, 57344.
    pub const MAX: f32 = 57344.0;

    /// The nearest code, ties to even. Finite values beyond the range and infinities saturate to +-57344 as the
    /// hardware's `cvt.rn.satfinite` does; NaN stays NaN.
    pub fn from_f32(value: f32) -> Self {
        Self(encode::<2, 15>(value, 0x7b, 0x7b))
    }

    /// The nearest code, ties to even, with IEEE overflow: values that round beyond the range become infinite.
    pub fn from_f32_ieee(value: f32) -> Self {
        Self(encode::<2, 15>(value, 0x7b, 0x7c))
    }

    /// The exact value.
    pub fn to_f32(self) -> f32 {
        match self.0 & 0x7f {
            0x7c => f32::INFINITY.copysign(sign(self.0)),
            0x7d.. => f32::NAN.copysign(sign(self.0)),
            _ => decode::<2, 15>(self.0),
        }
    }
}

fn sign(code: u8) -> f32 {
    if code & 0x80 == 0 { 1.0 } else { -1.0 }
}

/// A power of two between 2^-126 and 2^127, built from its exponent bits.
fn pow2(exponent: i32) -> f32 {
    f32::from_bits(((exponent + 127) as u32) << 23)
}

fn decode<const MANTISSA: u32, const BIAS: i32>(code: u8) -> f32 {
    let magnitude = i32::from(code & 0x7f);
    let (exponent, mantissa) = (magnitude >> MANTISSA, magnitude & ((1 << MANTISSA) - 1));
    // A subnormal has the exponent of the first normals and no hidden one.
    let significand = if exponent == 0 { mantissa } else { mantissa | 1 << MANTISSA };
    sign(code) * significand as f32 * pow2(exponent.max(1) - BIAS - MANTISSA as i32)
}

/// `largest` is the code of the largest finite value, `overflow` what stands for anything beyond it.
fn encode<const MANTISSA: u32, const BIAS: i32>(value: f32, largest: u8, overflow: u8) -> u8 {
    let sign = ((value.to_bits() >> 24) & 0x80) as u8;
    if value.is_nan() {
        return sign | 0x7f;
    }
    if value.is_infinite() {
        return sign | overflow;
    }
    // One unit in the last place of the 8-bit format at this magnitude; dividing by it is exact.
    let exponent = ((value.to_bits() >> 23) & 0xff) as i32 - 127;
    let unit_exponent = exponent.max(1 - BIAS) - MANTISSA as i32;
    let units = (value.abs() / pow2(unit_exponent)).round_ties_even() as i32;
    // `units` may reach 2^(MANTISSA + 1): adding it to the exponent field carries into it, as it should.
    let magnitude = ((unit_exponent + BIAS + MANTISSA as i32 - 1) << MANTISSA) + units;
    if magnitude > i32::from(largest) { sign | overflow } else { sign | magnitude as u8 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_codes() {
        let e4m3 =
            [(0x00, 0.0), (0x01, 0.001953125), (0x08, 0.015625), (0x38, 1.0), (0x7e, 448.0), (0xfe, -448.0)];
        for (code, value) in e4m3 {
            assert_eq!(E4m3(code).to_f32(), value);
            assert_eq!(E4m3::from_f32(value), E4m3(code));
        }
        assert_eq!(E4m3::from_f32(f32::INFINITY), E4m3(0x7e));
        assert_eq!(E4m3::from_f32(464.0), E4m3(0x7e));
        assert_eq!(E5m2::from_f32(61440.0), E5m2(0x7b));
        assert_eq!(E5m2::from_f32_ieee(61440.0), E5m2(0x7c));
        assert!(E4m3::from_f32(f32::NAN).to_f32().is_nan());
        // The first sixteen codes are one ramp: uint4 codes are e4m3 codes of 2^-9 times themselves.
        for code in 0..16 {
            assert_eq!(E4m3(code).to_f32(), f32::from(code) / 512.0);
        }
    }
}
