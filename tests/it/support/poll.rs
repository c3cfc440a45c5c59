//! Waiting for something by looking at it, with an end.

use std::time::Duration;

use tokio::time::Instant;

/// Looks until `look` gives a value; after `limit` fails with what was waited for.
///
/// The pause between two looks is no guess at how long the thing takes, it only spares the CPU.
/// On a paused clock it passes at once.
pub(crate) async fn until<T>(what: &str, limit: Duration, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(seen) = look().await {
            return seen;
        }
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
