//! The hash by which members compare what they hold: CRC-32C over all versions, as etcd's database has them.

use bytes::Bytes;
use crc::{CRC_32_ISCSI, Crc, Digest};
use prost::Message;

use crate::pb::mvccpb::KeyValue;

/// A hash, and what it is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KvHash {
    pub(crate) hash: u32,
    pub(crate) compacted: i64,
    pub(crate) revision: i64,
}

/// Takes versions in the order of their revisions.
pub(crate) struct Hasher(Digest<'static, u32>);

impl Hasher {
    /// It begins with the name of the database's bucket.
    pub(crate) fn new() -> Self {
        let mut hash = Self(CRC.digest());
        hash.bytes(b"key");
        hash
    }

    /// A version is known by its revision and its place among the changes of that.
    pub(crate) fn version(&mut self, (revision, sub): (i64, u32), key: &Bytes, kv: Option<&KeyValue>) {
        self.bytes(&revision.to_be_bytes());
        self.bytes(b"_");
        self.bytes(&u64::from(sub).to_be_bytes());
        match kv {
            Some(kv) => self.bytes(&kv.encode_to_vec()),
            None => {
                // A deletion's mark, and the key alone.
                self.bytes(b"t");
                self.bytes(&KeyValue { key: key.clone(), ..Default::default() }.encode_to_vec());
            }
        }
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(crate) fn finish(self) -> u32 {
        self.0.finalize()
    }
}

/// CRC-32C goes by the name of iSCSI here.
static CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_a_fresh_etcd() {
        assert_eq!(Hasher::new().finish(), 1_084_519_789, "what 3.7.3 answers when nothing was ever written");
        let mut hash = Hasher::new();
        let kv = KeyValue {
            key: "rs/00".into(),
            create_revision: 2,
            mod_revision: 2,
            version: 1,
            value: "v".into(),
            lease: 0,
        };
        hash.version((2, 0), &kv.key, Some(&kv));
        assert_eq!(hash.finish(), 3_677_685_935, "and after this one put");
    }
}
