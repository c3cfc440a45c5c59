//! Key arithmetic: prefix ends and owner keys.

use bytes::Bytes;

use crate::ids;

/// The end of the range of all keys that start with `prefix`.
///
/// etcd's own rule: the prefix with its last byte below 0xff raised by one and the rest cut off; `\0` (to the end of
/// the key space) for an empty prefix or one of 0xff alone.
pub(crate) fn prefix_end(prefix: &[u8]) -> Bytes {
    match prefix.iter().rposition(|&byte| byte < 0xff) {
        Some(last) => {
            let mut end = prefix[..=last].to_vec();
            end[last] += 1;
            end.into()
        }
        None => Bytes::from_static(b"\0"),
    }
}

/// The range of all keys that start with `prefix`: where it begins, and its end. A server takes no empty key for a beginning.
pub(crate) fn prefix_range(prefix: Bytes) -> (Bytes, Bytes) {
    let end = prefix_end(&prefix);
    (if prefix.is_empty() { Bytes::from_static(b"\0") } else { prefix }, end)
}

/// The ranges of all keys that start with `prefix`, but for one of them: before it and after it.
pub(crate) fn others(prefix: &Bytes, own: &Bytes) -> [(Bytes, Bytes); 2] {
    let after = [own, &b"\0"[..]].concat();
    [(prefix.clone(), own.clone()), (after.into(), prefix_end(prefix))]
}

/// The key of a session on a name, in Go's layout: `{name}/{lease in lower-case hex}`.
pub(crate) fn owner_key(prefix: &[u8], lease: i64) -> Bytes {
    let mut key = prefix.to_vec();
    key.extend_from_slice(format!("{lease:x}").as_bytes());
    key.into()
}

/// A key that a session puts once and never again: that of its [owner](owner_key), and 64 random bits.
pub(crate) fn unique_key(prefix: &[u8], lease: i64) -> Bytes {
    let mut key = owner_key(prefix, lease).to_vec();
    key.push(b'-');
    key.extend_from_slice(drawn().as_bytes());
    key.into()
}

/// What the shape of a key says of whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Claim {
    /// No contender's.
    None,
    /// A contender's.
    Any,
    /// A contender's, if it is attached to this lease: a user's key may be called so as well.
    Of(i64),
}

impl Claim {
    /// Whether a key that is attached to this lease, or to none, is a contender's.
    pub(crate) fn holds(self, lease: i64) -> bool {
        match self {
            Self::None => false,
            Self::Any => true,
            Self::Of(named) => named == lease,
        }
    }
}

/// Whether a key may be that of a contender on a name, by its shape: Go's and ours have an [owner's key](owner_key), locks
/// on several names a [drawn one](unique_key). Keys that users put below a name have other shapes or another lease, and do
/// not count.
pub(crate) fn contender(prefix: &[u8], key: &[u8]) -> Claim {
    let Some(own) = key.strip_prefix(prefix) else { return Claim::None };
    lease(own).or_else(|| drawn_by(own)).map_or(Claim::None, Claim::Of)
}

/// Whether a key has the shape of a contender's.
pub(crate) fn is_contender(prefix: &[u8], key: &[u8]) -> bool {
    contender(prefix, key) != Claim::None
}

/// Whether this is what [`unique_key`] puts behind its prefix.
pub(crate) fn is_drawn(own: &[u8]) -> bool {
    drawn_by(own).is_some()
}

/// The lease in what [`unique_key`] puts behind its prefix.
pub(crate) fn drawn_by(own: &[u8]) -> Option<i64> {
    let dash = own.iter().position(|&byte| byte == b'-')?;
    let random = &own[dash + 1..];
    lease(&own[..dash]).filter(|_| is_random(random))
}

/// Whether this has the shape of what is [`drawn`].
pub(crate) fn is_random(own: &[u8]) -> bool {
    own.len() == 16 && own.iter().all(is_hex)
}

/// A lease's id as Go prints it: in lower-case hex, without leading zeros.
fn lease(own: &[u8]) -> Option<i64> {
    let is_printed = matches!(own, [first, ..] if *first != b'0') && own.iter().all(is_hex);
    let text = std::str::from_utf8(own).ok().filter(|_| is_printed)?;
    i64::from_str_radix(text, 16).ok()
}

fn is_hex(byte: &u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

/// What no other process draws: 64 random bits in hex.
pub(crate) fn drawn() -> String {
    format!("{:016x}", ids::draw())
}

/// The prefix of a name: the name and a slash, so that `job` does not reach into `job2`.
pub(crate) fn name_prefix(name: &[u8]) -> Bytes {
    let mut prefix = Vec::with_capacity(name.len() + 1);
    prefix.extend_from_slice(name);
    prefix.push(b'/');
    prefix.into()
}

/// The same bytes in memory of their own. Those of a reply keep all of it in memory, however little of it they are.
pub(crate) fn unshared(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix_is_the_first_key_after_it() {
        assert_eq!(prefix_end(b"a/"), "a0");
        assert_eq!(prefix_end(b"a\xff"), "b");
        assert_eq!(prefix_end(b"\xff\xff"), Bytes::from_static(b"\0"));
        assert_eq!(prefix_end(b""), Bytes::from_static(b"\0"));
    }

    #[test]
    fn an_owner_key_is_gos() {
        assert_eq!(owner_key(&name_prefix(b"jobs"), 0x7587_0a1b), "jobs/75870a1b");
        // Go prints a negative lease with a sign; ours are never negative.
        assert_eq!(owner_key(&name_prefix(b""), 1), "/1");
    }

    #[test]
    fn contenders_are_told_by_their_shape() {
        let prefix = name_prefix(b"jobs");
        for lease in [1, 0xa, 0x7587_0a1b, i64::MAX] {
            for key in [owner_key(&prefix, lease), unique_key(&prefix, lease)] {
                let claim = contender(&prefix, &key);
                assert_eq!(claim, Claim::Of(lease));
                assert!(claim.holds(lease) && !claim.holds(0) && !claim.holds(lease - 1), "{lease:x}");
            }
        }
        for other in [
            "owner",
            "",
            "a/75870a1b",
            "/75870a1b",
            "75870A1B",
            "075870a1b",
            "0",
            "12345678901234567",
            "8000000000000000",
            "-1",
            "1-",
            "75870a1b-",
            "75870a1b-x",
            "75870a1b-0123456789abcdef.1",
            "75870a1b-0123456789abcdeg",
            "-0123456789abcdef",
        ] {
            assert!(!is_contender(&prefix, &[&prefix[..], other.as_bytes()].concat()), "{other}");
        }
        assert!(!is_contender(&prefix, b"job/75870a1b") && !is_contender(&prefix, b"jobs"));
    }
}
