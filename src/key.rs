//! Key arithmetic: prefix ends and owner keys.

use bytes::Bytes;

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

/// What nobody else draws: 64 random bits in hex.
pub(crate) fn drawn() -> String {
    format!("{:016x}", fastrand::u64(..))
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
}
