//! What no other process draws: the bits of lease ids, of keys that are put once, of marks.
//!
//! They come from the operating system each time. A generator in this process is repeated by a fork, by a machine that
//! is restored from a snapshot, and by whoever seeds it: two processes then draw the same, and take each other's leases
//! and keys for their own.

use std::cell::RefCell;

use fastrand::Rng;

// Set by the fake alone. Not fastrand's own of the thread: who seeds that does not ask for ids that repeat.
thread_local!(static SEEDED: RefCell<Option<Rng>> = const { RefCell::new(None) });

/// 64 random bits.
///
/// # Panics
/// Where the operating system has none, which no supported one says once it has started.
pub(crate) fn draw() -> u64 {
    if let Some(bits) = SEEDED.with_borrow_mut(|seeded| seeded.as_mut().map(|random| random.u64(..))) {
        return bits;
    }
    match getrandom::u64() {
        Ok(bits) => bits,
        Err(error) => panic!("the operating system gives no random bits: {error}"),
    }
}

/// An id for a lease: 63 random bits, and never 0, for which the server would choose one.
pub(crate) fn lease() -> i64 {
    loop {
        let id = i64::try_from(draw() >> 1).unwrap_or_default();
        if id != 0 {
            return id;
        }
    }
}

/// For simulations, which run again as they did: what this thread draws from here on repeats with the seed.
#[allow(dead_code, reason = "for the fake alone, without which nothing can ask for it")]
pub(crate) fn repeat(seed: u64) {
    SEEDED.set(Some(Rng::with_seed(seed)));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two workers that had seeded `fastrand` alike drew one lease id, and both held the lock.
    #[test]
    fn who_seeds_a_generator_of_the_process_draws_nothing_twice() {
        let drawn = |_| {
            fastrand::seed(7);
            draw()
        };
        let [one, other] = [0, 1].map(drawn);
        assert_ne!(one, other);
    }

    #[test]
    fn a_simulation_draws_the_same_again() {
        std::thread::spawn(|| {
            let drawn = |_| {
                repeat(7);
                [draw(), draw()]
            };
            let [one, other] = [0, 1].map(drawn);
            assert_eq!(one, other);
            assert_ne!(one[0], one[1]);
        })
        .join()
        .unwrap();
    }
}
