//! Whether permissions cover a range.

use crate::pb::authpb::Permission;
use crate::pb::authpb::permission::Type;

/// What somebody wants to do to a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

/// Whether these permissions together cover a range, whose end is empty for one key and `\0` for all above it.
pub(super) fn permits<'p>(
    permissions: impl Iterator<Item = &'p Permission>,
    access: Access,
    key: &[u8],
    range_end: &[u8],
) -> bool {
    let wanted = Span::new(key, range_end);
    let mut given: Vec<Span> = permissions
        .filter(|permission| allows(permission, access))
        .map(|permission| Span::new(&permission.key, &permission.range_end))
        .filter(|span| wanted.meets(span))
        .collect();
    if range_end.is_empty() {
        return !given.is_empty();
    }
    given.sort_by(|a, b| a.start.cmp(&b.start));
    // The server's rule: those that meet the range, in order, without a gap from its start to its end. It does
    // not mind a range that ends before it starts.
    let Some(first) = given.first() else { return false };
    let mut end = &first.end;
    for span in &given {
        if end.is_below(&span.start) {
            return false;
        }
        end = end.max(&span.end);
    }
    first.start <= wanted.start && *end >= wanted.end
}

fn allows(permission: &Permission, access: Access) -> bool {
    match Type::try_from(permission.perm_type) {
        Ok(Type::Readwrite) => true,
        Ok(Type::Read) => access == Access::Read,
        Ok(Type::Write) => access == Access::Write,
        Err(_) => false,
    }
}

/// `[start, end)`.
#[derive(Debug, Clone)]
struct Span {
    start: Vec<u8>,
    end: End,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    At(Vec<u8>),
    Never,
}

impl Span {
    fn new(key: &[u8], range_end: &[u8]) -> Self {
        let end = match range_end {
            // Just after the key.
            [] => End::At([key, &[0]].concat()),
            [0] => End::Never,
            end => End::At(end.to_vec()),
        };
        Self { start: key.to_vec(), end }
    }

    /// Whether they overlap, as the server's interval tree sees it.
    fn meets(&self, other: &Self) -> bool {
        let left = self.start < other.start && !self.end.is_above(&other.start);
        let right = !other.end.is_above(&self.start);
        !(left || right)
    }
}

impl End {
    fn is_above(&self, key: &[u8]) -> bool {
        match self {
            Self::At(end) => end.as_slice() > key,
            Self::Never => true,
        }
    }

    fn is_below(&self, key: &[u8]) -> bool {
        match self {
            Self::At(end) => end.as_slice() < key,
            Self::Never => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permission(access: Type, key: &str, end: &str) -> Permission {
        let (key, range_end) = (key.to_owned().into(), end.to_owned().into());
        Permission { perm_type: access.into(), key, range_end }
    }

    fn reads(given: &[(&str, &str)], key: &str, end: &str) -> bool {
        let given: Vec<_> = given.iter().map(|(key, end)| permission(Type::Read, key, end)).collect();
        permits(given.iter(), Access::Read, key.as_bytes(), end.as_bytes())
    }

    #[test]
    fn one_key_and_a_range() {
        assert!(reads(&[("a", "")], "a", ""));
        assert!(!reads(&[("a", "")], "ab", "") && !reads(&[("a", "")], "a\0", ""));
        assert!(reads(&[("a", "c")], "b", "") && !reads(&[("a", "c")], "c", ""));
        assert!(reads(&[("a", "c")], "a", "c") && !reads(&[("a", "c")], "a", "d"));
        assert!(!reads(&[("b", "c")], "a", "c"));
        assert!(!reads(&[], "a", ""));
    }

    #[test]
    fn a_key_alone_covers_the_range_of_that_key_alone() {
        assert!(reads(&[("a", "")], "a", "a\0"));
        assert!(!reads(&[("a", "")], "a", "b"));
    }

    #[test]
    fn permissions_add_up() {
        assert!(reads(&[("c", "e"), ("a", "c")], "a", "e"));
        assert!(!reads(&[("a", "c"), ("d", "e")], "a", "e"));
        assert!(reads(&[("a", ""), ("a\0", "c")], "a", "c"));
        assert!(reads(&[("a", "z"), ("b", "c")], "a", "y"));
    }

    #[test]
    fn ranges_without_end() {
        assert!(reads(&[("b", "\0")], "c", "\0") && reads(&[("b", "\0")], "zz", ""));
        assert!(!reads(&[("b", "\0")], "a", "\0") && !reads(&[("a", "z")], "b", "\0"));
    }

    #[test]
    fn reading_is_not_writing() {
        let given = [
            permission(Type::Read, "r", ""),
            permission(Type::Write, "w", ""),
            permission(Type::Readwrite, "b", ""),
        ];
        let may = |access, key: &str| permits(given.iter(), access, key.as_bytes(), b"");
        assert!(may(Access::Read, "r") && !may(Access::Write, "r"));
        assert!(!may(Access::Read, "w") && may(Access::Write, "w"));
        assert!(may(Access::Read, "b") && may(Access::Write, "b"));
    }
}
