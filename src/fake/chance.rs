//! What a run that is to repeat leaves to chance.

use crate::ids;

/// Makes what this crate draws on this thread repeat with the seed: lease ids, keys that are put once, the lengths of
/// pauses. With a paused clock and a runtime of one thread, a whole run repeats then.
///
/// Outside of tests ids come from the operating system, and no seed has a say in them: processes that drew the same ids
/// would take each other's locks for their own.
///
/// ```
/// use etcd_concurrency::{Session, fake::{self, FakeEtcd}};
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> etcd_concurrency::Result<()> {
/// let mut leases = Vec::new();
/// for _ in 0..2 {
///     fake::seed(7);
///     leases.push(Session::open(&FakeEtcd::start().client()).await?.lease());
/// }
/// assert_eq!(leases[0], leases[1]);
/// # Ok(()) }
/// ```
pub fn seed(seed: u64) {
    ids::repeat(seed);
    fastrand::seed(seed);
}
