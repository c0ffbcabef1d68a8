//! Suspicion as a number: how unlikely it is that a peer that lives was silent for so long.

use std::collections::VecDeque;

/// Of changes, whose mean is 0 in the long run.
pub(super) fn deviation(changes: &VecDeque<f64>) -> f64 {
    let squares: f64 = changes.iter().map(|change| change * change).sum();
    (squares / changes.len() as f64).sqrt()
}

/// How many deviations beyond the mean phi reaches `threshold`: the same for every mean and
/// deviation, so this is worked out once and not for every peer at every input.
pub(super) fn sigmas(threshold: f64) -> f64 {
    // phi rises with time; before 20 sigma it passes any sensible threshold.
    let (mut low, mut high) = (-20.0, 20.0);
    for _ in 0..40 {
        let middle = f64::midpoint(low, high);
        if phi(middle, 0.0, 1.0) < threshold { low = middle } else { high = middle }
    }
    high
}

/// Suspicion level after `t` seconds of silence, for beats of this mean and deviation.
///
/// With y = (t − m)/σ and e = exp(−y(1.5976 + 0.070566 y²)): −log10(e/(1+e)) for t > m, else
/// −log10(1 − 1/(1+e)).
pub fn phi(t: f64, mean: f64, sigma: f64) -> f64 {
    let y = (t - mean) / sigma;
    let e = (-y * (1.5976 + 0.070_566 * y * y)).exp();
    let tail = if t > mean { e / (1.0 + e) } else { 1.0 - 1.0 / (1.0 + e) };
    // Beyond what a double can tell from zero, phi is as good as endless; 300 keeps it a number.
    if tail <= 1e-300 { 300.0 } else { 0.0 - tail.log10() }
}
