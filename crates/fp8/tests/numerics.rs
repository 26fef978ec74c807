//! The 8-bit formats, exhaustively: values against the specification's formula, rounding against a search for the nearest
//! value.

use fp8::{E4m3, E5m2};
use half::{bf16, f16};
use op_test::Rng;

/// A format as the specification (arXiv:2209.05433, table 1) gives it.
struct Format {
    mantissa_bits: i32,
    bias: i32,
    /// The code of the largest finite value.
    largest: u8,
    /// What stands for values beyond the range.
    overflow: u8,
    encode: fn(f32) -> u8,
    decode: fn(u8) -> f32,
}

const E4M3: Format = Format {
    mantissa_bits: 3,
    bias: 7,
    largest: 0x7e,
    overflow: 0x7e,
    encode: |x| E4m3::from_f32(x).0,
    decode: |code| E4m3(code).to_f32(),
};
const E5M2: Format = Format {
    mantissa_bits: 2,
    bias: 15,
    largest: 0x7b,
    overflow: 0x7b,
    encode: |x| E5m2::from_f32(x).0,
    decode: |code| E5m2(code).to_f32(),
};
const E5M2_IEEE: Format = Format { overflow: 0x7c, encode: |x| E5m2::from_f32_ieee(x).0, ..E5M2 };

impl Format {
    /// The value of a finite, non-negative code: (-1)^s * 2^(e - bias) * (1 + m / 2^M), or the subnormals'
    /// 2^(1 - bias) * m / 2^M.
    fn value(&self, code: u8) -> f64 {
        let (e, m) = (i32::from(code) >> self.mantissa_bits, f64::from(code % (1 << self.mantissa_bits)));
        let fraction = m / 2f64.powi(self.mantissa_bits);
        if e == 0 { 2f64.powi(1 - self.bias) * fraction } else { 2f64.powi(e - self.bias) * (1.0 + fraction) }
    }

    /// The values of all finite, non-negative codes.
    fn values(&self) -> Vec<f64> {
        (0..=self.largest).map(|code| self.value(code)).collect()
    }

    /// The code nearest to `x`, the even one of two as near, found by looking at all of them.
    fn nearest(&self, values: &[f64], x: f32) -> u8 {
        let sign = if x.is_sign_negative() { 0x80 } else { 0 };
        let magnitude = f64::from(x.abs());
        // The value that would follow the largest decides where the range ends.
        let last = values.len() - 1;
        let beyond = 2.0 * values[last] - values[last - 1];
        if magnitude >= (values[last] + beyond) / 2.0 {
            return sign | self.overflow;
        }
        let distance = |code: usize| (values[code] - magnitude).abs();
        let better = |a: usize, b: usize| {
            distance(b) < distance(a) || distance(b) == distance(a) && b.is_multiple_of(2)
        };
        let nearest = (1..values.len()).fold(0, |best, code| if better(best, code) { code } else { best });
        sign | nearest as u8
    }

    #[track_caller]
    fn check(&self, values: &[f64], x: f32) {
        let got = (self.encode)(x);
        if x.is_nan() {
            assert!((self.decode)(got).is_nan(), "NaN became {got:#04x}");
        } else {
            assert_eq!(got, self.nearest(values, x), "{x:e} ({:#010x})", x.to_bits());
        }
    }
}

const FORMATS: [Format; 3] = [E4M3, E5M2, E5M2_IEEE];

#[test]
fn every_code_has_the_value_of_the_specification() {
    for format in &FORMATS {
        for code in 0..=format.largest {
            assert_eq!(f64::from((format.decode)(code)), format.value(code), "{code:#04x}");
            assert_eq!(f64::from((format.decode)(code | 0x80)), -format.value(code), "{code:#04x}");
            assert!((format.decode)(code | 0x80).is_sign_negative());
        }
    }
    for sign in [0, 0x80] {
        assert!(E4m3(sign | 0x7f).to_f32().is_nan() && E4m3(sign | 0x7f).is_nan());
        assert_eq!(E5m2(sign | 0x7c).to_f32(), if sign == 0 { f32::INFINITY } else { f32::NEG_INFINITY });
        for mantissa in 1..4 {
            assert!(E5m2(sign | 0x7c | mantissa).to_f32().is_nan());
        }
    }
    assert_eq!(E4m3::MAX, E4m3(0x7e).to_f32());
    assert_eq!(E5m2::MAX, E5m2(0x7b).to_f32());
}

#[test]
fn an_e5m2_code_is_the_upper_half_of_an_f16() {
    for code in 0..=255u8 {
        let (got, want) = (E5m2(code).to_f32(), f16::from_bits(u16::from(code) << 8).to_f32());
        assert!(
            got == want && got.is_sign_negative() == want.is_sign_negative() || got.is_nan() && want.is_nan()
        );
    }
}

#[test]
fn encoding_inverts_decoding() {
    for format in &FORMATS {
        for code in (0..=format.largest).flat_map(|code| [code, code | 0x80]) {
            assert_eq!((format.encode)((format.decode)(code)), code);
        }
    }
}

#[test]
fn every_f16_and_every_bf16_rounds_to_the_nearest() {
    for format in &FORMATS {
        let values = format.values();
        for bits in 0..=u16::MAX {
            format.check(&values, f16::from_bits(bits).to_f32());
            format.check(&values, bf16::from_bits(bits).to_f32());
        }
    }
}

#[test]
fn ties_and_their_neighbours_round_to_the_nearest() {
    for format in &FORMATS {
        let values = format.values();
        for (code, &value) in values.iter().enumerate() {
            // Behind the largest code comes what would follow it: its tie is where saturation or overflow begins.
            let step = values.get(code + 1).map_or_else(|| value - values[code - 1], |next| next - value);
            for place in [0.0, 0.25, 0.5, 0.75, 1.0] {
                let x = (value + place * step) as f32;
                for x in [x.next_down(), x, x.next_up()] {
                    format.check(&values, x);
                    format.check(&values, -x);
                }
            }
        }
        for x in
            [f32::MIN_POSITIVE, f32::from_bits(1), f32::MAX, f32::INFINITY, f32::NAN, 464.0, 480.0, 61440.0]
        {
            format.check(&values, x);
            format.check(&values, -x);
        }
    }
}

#[test]
fn f32_of_all_exponents_round_to_the_nearest() {
    for format in &FORMATS {
        let (mut rng, values) = (Rng::new(1), format.values());
        for _ in 0..200_000 {
            format.check(&values, f32::from_bits(rng.bits() as u32));
            // Most of all f32 lie outside an 8-bit format's range: as many samples are drawn inside.
            format.check(&values, rng.signed() * 2f32.powi(rng.below(0..24) as i32 - 12));
        }
    }
}
