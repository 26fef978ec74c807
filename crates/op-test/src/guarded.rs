//! Buffers that tell when something was not written, or written outside.

use device::Element;

/// Elements of guard zone on either side of the payload.
const GUARD: usize = 64;

/// A host buffer whose payload starts as NaN and whose guard zones must stay as they were.
///
/// ```
/// let mut out = op_test::Guarded::<f32>::new(4);
/// out.payload_mut().copy_from_slice(&[1.0, 2.0, 3.0, 4.0]);
/// assert_eq!(out.checked(), [1.0, 2.0, 3.0, 4.0]);
/// ```
#[derive(Debug, Clone)]
pub struct Guarded<T> {
    whole: Vec<T>,
    len: usize,
}

impl<T: Element> Guarded<T> {
    /// A payload of `len` poisoned elements.
    pub fn new(len: usize) -> Self {
        Self { whole: vec![T::from_f32(f32::NAN); len + 2 * GUARD], len }
    }

    /// The whole buffer, guards included, to be copied to a device or back.
    pub fn whole_mut(&mut self) -> &mut [T] {
        &mut self.whole
    }

    /// Where in [`Self::whole_mut`] the payload lies.
    pub fn range(&self) -> std::ops::Range<usize> {
        GUARD..GUARD + self.len
    }

    /// The payload.
    pub fn payload_mut(&mut self) -> &mut [T] {
        let range = self.range();
        &mut self.whole[range]
    }

    /// The payload, after checking that the guards still hold poison. NaNs may be results.
    #[track_caller]
    pub fn contents(&self) -> Vec<T> {
        let poisoned = |range: std::ops::Range<usize>| self.whole[range].iter().all(|x| x.to_f32().is_nan());
        assert!(poisoned(0..GUARD), "the guard zone before the payload was written");
        assert!(
            poisoned(GUARD + self.len..self.whole.len()),
            "the guard zone behind the payload was written"
        );
        self.whole[self.range()].to_vec()
    }

    /// The same, with every element written and none a NaN.
    #[track_caller]
    pub fn checked(&self) -> Vec<T> {
        let payload = self.contents();
        let holes: Vec<usize> = (0..self.len).filter(|&i| payload[i].to_f32().is_nan()).collect();
        assert!(
            holes.is_empty(),
            "{} of {} elements never written, first {:?}",
            holes.len(),
            self.len,
            holes[0]
        );
        payload
    }
}
