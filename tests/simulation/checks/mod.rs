//! What must hold, judged from outside of the crate.

pub(crate) mod held;
pub(crate) mod left;
pub(crate) mod log;
pub(crate) mod orphans;
pub(crate) mod record;
pub(crate) mod spans;
pub(crate) mod told;
