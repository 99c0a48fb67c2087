//! Chance in tests that draw their cases: the same in each run, unless another seed is given.

use fastrand::Rng;

/// The default seed, an arbitrary number: a normal run draws from it.
const DEFAULT: u64 = 427_465_849;

/// A generator from the seed in `ANGARIUM_SEED`, which a failure shows; `cargo xtask fuzz` gives fresh ones.
pub fn rng() -> Rng {
    let seed = std::env::var("ANGARIUM_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(DEFAULT);
    println!("ANGARIUM_SEED={seed}");
    Rng::with_seed(seed)
}
