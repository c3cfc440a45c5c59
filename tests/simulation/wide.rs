//! What else schedules may have in them: all of this, unless `SIM_WIDE` names what is left out, `-Name` with commas
//! between; or what is had alone, by its names.

use std::sync::OnceLock;

/// Something that schedules may have in them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wide {
    /// Requests that are applied minutes later, or when their session has ended.
    Stragglers,
    /// Members that lag.
    Lag,
    /// Watches that are told late while others are not, and in any order.
    Victims,
    /// Errors of writes that were applied.
    Applied,
    /// Several keys that are deleted in one revision.
    Several,
    /// Good tokens that are refused, several times in a row.
    Tokens,
    /// Semaphores that are resized.
    Resize,
    /// Leaders by `lead`, of which a clone is kept.
    Lead,
    /// Sessions that are orphaned under those who use them, and adopted.
    Orphan,
    /// Plain barriers.
    Barrier,
    /// Dead letters.
    Letters,
}

/// Whether schedules may have it in them.
pub(crate) fn on(what: Wide) -> bool {
    static ASKED: OnceLock<Vec<String>> = OnceLock::new();
    let asked = ASKED.get_or_init(|| {
        let names = std::env::var("SIM_WIDE").unwrap_or_default();
        names.split(',').filter(|name| !name.is_empty() && *name != "all").map(str::to_owned).collect()
    });
    let name = format!("{what:?}");
    match asked.iter().any(|asked| !asked.starts_with('-')) {
        true => asked.contains(&name),
        false => !asked.contains(&format!("-{name}")),
    }
}
