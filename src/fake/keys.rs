//! Which keys a request means.

use std::ops::Bound;

use bytes::Bytes;

/// Where a range starts and ends, as ordered maps want it.
pub(crate) type Bounds<'r> = (Bound<&'r [u8]>, Bound<&'r [u8]>);

/// The keys that a `key` and a `range_end` name together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum KeyRange {
    /// No range end: this key alone.
    One(Bytes),
    /// `[key, end)`.
    Between(Bytes, Bytes),
    /// A range end of one zero byte: this key and all above it.
    From(Bytes),
}

impl KeyRange {
    pub(crate) fn new(key: Bytes, range_end: Bytes) -> Self {
        match range_end.as_ref() {
            [] => Self::One(key),
            [0] => Self::From(key),
            _ => Self::Between(key, range_end),
        }
    }

    pub(crate) fn start(&self) -> &Bytes {
        match self {
            Self::One(key) | Self::Between(key, _) | Self::From(key) => key,
        }
    }

    pub(crate) fn contains(&self, key: &[u8]) -> bool {
        match self {
            Self::One(only) => only == key,
            Self::Between(start, end) => start <= key && key < end.as_ref(),
            Self::From(start) => start <= key,
        }
    }

    /// Nothing can lie in it: the end is not above the start.
    pub(crate) fn is_empty(&self) -> bool {
        matches!(self, Self::Between(start, end) if start >= end)
    }

    /// The same as bounds of an ordered map; `None` when empty (a map would panic on some of these).
    pub(crate) fn bounds(&self) -> Option<Bounds<'_>> {
        if self.is_empty() {
            return None;
        }
        Some(match self {
            Self::One(key) => (Bound::Included(key.as_ref()), Bound::Included(key.as_ref())),
            Self::Between(start, end) => (Bound::Included(start.as_ref()), Bound::Excluded(end.as_ref())),
            Self::From(start) => (Bound::Included(start.as_ref()), Bound::Unbounded),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(key: &'static str, end: &'static str) -> KeyRange {
        KeyRange::new(Bytes::from_static(key.as_bytes()), Bytes::from_static(end.as_bytes()))
    }

    #[test]
    fn range_ends() {
        assert!(range("a", "").contains(b"a") && !range("a", "").contains(b"ab"));
        assert!(range("a", "c").contains(b"b") && !range("a", "c").contains(b"c"));
        assert!(range("a", "\0").contains(b"\xff\xff") && !range("b", "\0").contains(b"a"));
        assert!(range("\0", "\0").contains(b"anything"));
    }

    #[test]
    fn a_range_that_ends_before_it_starts_is_empty() {
        assert!(range("b", "a").is_empty() && range("b", "b").is_empty());
        assert_eq!(range("b", "a").bounds(), None);
        assert!(!range("b", "a").contains(b"a") && !range("b", "a").contains(b"b"));
    }
}
