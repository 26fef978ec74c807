//! The canonical form of INT4 weights.

use device::{Check, Result};
use rayon::prelude::*;

/// The largest code and the largest zero point: they have four bits.
pub const MAX_CODE: u8 = 15;

const CHECK: Check = Check("int4_weights");

/// The shape of INT4 weights: `[out_features, in_features]` in groups of `group_size` input features.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Int4Shape {
    in_features: usize,
    out_features: usize,
    group_size: usize,
}

impl Int4Shape {
    /// `group_size` divides `in_features`; a group that spans the whole row (written -1 in configurations) has
    /// `group_size == in_features`.
    pub fn new(in_features: usize, out_features: usize, group_size: usize) -> Result<Self> {
        CHECK.positive("in_features", in_features)?;
        CHECK.positive("out_features", out_features)?;
        let divides = group_size > 0 && in_features.is_multiple_of(group_size);
        CHECK.that(
            divides,
            "group_size",
            format_args!("a divisor of in_features {in_features}"),
            group_size,
        )?;
        CHECK.product("out_features", &[in_features, out_features])?;
        Ok(Self { in_features, out_features, group_size })
    }

    /// Elements of one row, the summed dimension (K).
    pub fn in_features(self) -> usize {
        self.in_features
    }

    /// Rows (N).
    pub fn out_features(self) -> usize {
        self.out_features
    }

    /// Input features that share a scale and a zero point.
    pub fn group_size(self) -> usize {
        self.group_size
    }

    /// Groups to a row.
    pub fn groups(self) -> usize {
        self.in_features / self.group_size
    }

    /// The same shape in the widest groups that the kernels have: 128 where that divides `group_size`, else 64.
    pub fn for_kernels(self) -> Result<Self> {
        match [128, 64].into_iter().find(|&size| self.group_size.is_multiple_of(size)) {
            Some(group_size) => Ok(Self { group_size, ..self }),
            None => Err(CHECK.error(
                "group_size",
                "a multiple of 64 (the kernels have groups of 64 and 128)",
                self.group_size,
            )),
        }
    }
}

/// INT4 weights: `w[n][k] = (code[n][k] - zero[n][k / group_size]) * scale[n][k / group_size]`.
///
/// ```
/// use awq_gemm::{Int4Shape, Int4Weights};
/// let shape = Int4Shape::new(4, 1, 2)?;
/// let weights = Int4Weights::new(shape, vec![0, 15, 8, 9], vec![8, 8], vec![0.5, 2.0])?;
/// assert_eq!(weights.dequantize(), [-4.0, 3.5, 0.0, 2.0]);
/// let error = Int4Weights::new(shape, vec![0, 16, 8, 9], vec![8, 8], vec![0.5, 2.0]).unwrap_err();
/// assert_eq!(error.to_string(), "int4_weights: codes: expected 0 to 15, got 16 at [1]");
/// # Ok::<(), device::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Int4Weights {
    shape: Int4Shape,
    codes: Vec<u8>,
    zeros: Vec<u8>,
    scales: Vec<f32>,
}

impl Int4Weights {
    /// - `codes` u8 `[out_features, in_features]`, each 0 to 15
    /// - `zeros` u8 `[out_features, groups]`, each 0 to 15 (8 everywhere for symmetric weights)
    /// - `scales` f32 `[out_features, groups]`, of any sign, 15 times each of them finite
    pub fn new(shape: Int4Shape, codes: Vec<u8>, zeros: Vec<u8>, scales: Vec<f32>) -> Result<Self> {
        // Neither product overflows: Int4Shape has checked the larger one.
        let groups = shape.out_features * shape.groups();
        CHECK.len("codes", &codes, shape.out_features * shape.in_features)?;
        CHECK.len("zeros", &zeros, groups)?;
        CHECK.len("scales", &scales, groups)?;
        four_bits("codes", &codes)?;
        four_bits("zeros", &zeros)?;
        let largest = f32::from(MAX_CODE);
        if let Some(at) = scales.iter().position(|scale| !(scale * largest).is_finite()) {
            let expected = "finite numbers, 15 times each of them finite too";
            return Err(CHECK.error("scales", expected, format_args!("{} at [{at}]", scales[at])));
        }
        Ok(Self { shape, codes, zeros, scales })
    }

    /// The shape.
    pub fn shape(&self) -> Int4Shape {
        self.shape
    }

    /// u8 `[out_features, in_features]`, each 0 to 15.
    pub fn codes(&self) -> &[u8] {
        &self.codes
    }

    /// u8 `[out_features, groups]`, each 0 to 15.
    pub fn zeros(&self) -> &[u8] {
        &self.zeros
    }

    /// f32 `[out_features, groups]`.
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// The weights, f32 `[out_features, in_features]`: exact where the scales have at most 20 significant bits, as
    /// all f16 and bf16 scales have; otherwise rounded once.
    pub fn dequantize(&self) -> Vec<f32> {
        let mut weights = vec![0.0; self.codes.len()];
        let rows = weights.par_chunks_mut(self.shape.in_features).enumerate();
        rows.for_each_init(
            || vec![0.0; self.shape.in_features],
            |exact, (n, out)| {
                self.row(n, exact);
                out.iter_mut().zip(exact).for_each(|(out, weight)| *out = *weight as f32);
            },
        );
        weights
    }

    /// Writes the exact weights of output feature `n`: a product of 4 and 24 significant bits is exact in f64.
    pub(crate) fn row(&self, n: usize, out: &mut [f64]) {
        let Int4Shape { in_features, group_size, .. } = self.shape;
        let groups = n * self.shape.groups()..(n + 1) * self.shape.groups();
        let codes = self.codes[n * in_features..][..in_features].chunks_exact(group_size);
        let scales = self.zeros[groups.clone()].iter().zip(&self.scales[groups]);
        for ((out, codes), (&zero, &scale)) in out.chunks_exact_mut(group_size).zip(codes).zip(scales) {
            let (zero, scale) = (i32::from(zero), f64::from(scale));
            for (out, &code) in out.iter_mut().zip(codes) {
                *out = f64::from(i32::from(code) - zero) * scale;
            }
        }
    }

    /// The same weights in narrower groups: `group_size` divides the present one. Scales and zero points are repeated.
    pub fn split_groups(self, group_size: usize) -> Result<Self> {
        let Int4Shape { in_features, out_features, group_size: present } = self.shape;
        let divides = group_size > 0 && present.is_multiple_of(group_size);
        CHECK.that(divides, "group_size", format_args!("a divisor of the present {present}"), group_size)?;
        let copies = present / group_size;
        Ok(Self {
            shape: Int4Shape::new(in_features, out_features, group_size)?,
            codes: self.codes,
            zeros: self.zeros.iter().flat_map(|&zero| std::iter::repeat_n(zero, copies)).collect(),
            scales: self.scales.iter().flat_map(|&scale| std::iter::repeat_n(scale, copies)).collect(),
        })
    }

    /// The same weights in groups that the kernels have ([`Int4Shape::for_kernels`]), exactly.
    pub fn for_kernels(self) -> Result<Self> {
        let group_size = self.shape.for_kernels()?.group_size;
        if group_size == self.shape.group_size { Ok(self) } else { self.split_groups(group_size) }
    }

    /// The rows `rows` in the order given, as loaders need to unravel interleaved projections.
    pub fn select_rows(&self, rows: &[usize]) -> Result<Self> {
        let Int4Shape { in_features, out_features, group_size } = self.shape;
        if let Some(row) = rows.iter().find(|&&row| row >= out_features) {
            return Err(CHECK.error("rows", format_args!("rows below {out_features}"), row));
        }
        let shape = Int4Shape::new(in_features, rows.len(), group_size)?;
        let groups = shape.groups();
        Ok(Self {
            shape,
            codes: rows
                .iter()
                .flat_map(|&row| &self.codes[row * in_features..][..in_features])
                .copied()
                .collect(),
            zeros: rows.iter().flat_map(|&row| &self.zeros[row * groups..][..groups]).copied().collect(),
            scales: rows.iter().flat_map(|&row| &self.scales[row * groups..][..groups]).copied().collect(),
        })
    }

    /// The rows of all `parts`, one part below the other, as loaders need to fuse projections. All parts have the
    /// `in_features` and the `group_size` of the first.
    pub fn concat(parts: &[Self]) -> Result<Self> {
        let Some(first) = parts.first() else { return Err(CHECK.error("parts", "at least 1", 0)) };
        let wanted = (first.shape.in_features, first.shape.group_size);
        let differs = |part: &&Self| (part.shape.in_features, part.shape.group_size) != wanted;
        if let Some(part) = parts.iter().find(differs) {
            let describe = |(k, g): (usize, usize)| format!("{k} in_features in groups of {g}");
            let got = describe((part.shape.in_features, part.shape.group_size));
            return Err(CHECK.error("parts", describe(wanted), got));
        }
        let out_features = parts.iter().map(|part| part.shape.out_features).sum();
        Ok(Self {
            shape: Int4Shape::new(wanted.0, out_features, wanted.1)?,
            codes: parts.iter().flat_map(|part| &part.codes).copied().collect(),
            zeros: parts.iter().flat_map(|part| &part.zeros).copied().collect(),
            scales: parts.iter().flat_map(|part| &part.scales).copied().collect(),
        })
    }
}

fn four_bits(argument: &'static str, values: &[u8]) -> Result<()> {
    match values.iter().position(|&value| value > MAX_CODE) {
        Some(at) => Err(CHECK.error(argument, "0 to 15", format_args!("{} at [{at}]", values[at]))),
        None => Ok(()),
    }
}
