//! The token: fetched once for all callers, dropped when the server refuses it.

/// The token of a client, shared by all of its calls.
#[derive(Clone)]
pub(crate) struct Tokens;

impl Tokens {
    /// Drops the current token, so that the next request fetches another. False where it was supplied by the user.
    pub(crate) fn drop_current(&self) -> bool {
        false
    }
}
