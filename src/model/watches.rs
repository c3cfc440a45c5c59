//! What may happen to the watches of one client that waits.

use super::{Server, Watching};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OfWatches {
    /// One is acknowledged, by a member that is so many revisions behind.
    Begin { target: usize, behind: i64 },
    /// One tells of the next revision, or of all that it has to tell.
    Tell { target: usize, all: bool },
    /// They are made again, by a server that loses a deletion of one.
    Break { loses: Option<usize> },
}

/// There are some, and the server has acknowledged all of them.
pub(crate) fn listens(watches: &[Watching]) -> bool {
    !watches.is_empty() && watches.iter().all(|watch| watch.next != 0)
}

/// All that may happen to them now. `lags`, `breaks`: that may be among it.
pub(crate) fn of_watches(watches: &[Watching], server: &Server, lags: bool, breaks: bool) -> Vec<OfWatches> {
    let mut all = Vec::new();
    let listens = listens(watches);
    for (target, watch) in watches.iter().enumerate() {
        if watch.next == 0 {
            let most = if lags { server.revision() - 1 } else { 0 };
            all.extend((0..=most).map(|behind| OfWatches::Begin { target, behind }));
        } else if listens {
            let news = watch.has_news(server);
            let ways = [(news > 0, false), (news > 1, true)];
            let told = ways.into_iter().filter(|(has, _)| *has);
            all.extend(told.map(|(_, all)| OfWatches::Tell { target, all }));
        }
    }
    if listens && breaks {
        let loses = std::iter::once(None).chain((0..watches.len()).map(Some));
        all.extend(loses.map(|loses| OfWatches::Break { loses }));
    }
    all
}
