//! The Maintenance service's requests.

use prost::Message;
use sha2::{Digest, Sha256};
use tonic::Code;

use super::{Caller, Core, MEMBER_ID};
use crate::fake::hash::Hasher;
use crate::fake::keys::KeyRange;
use crate::fake::refusal::Refusal;
use crate::pb::etcdserverpb::alarm_request::AlarmAction;
use crate::pb::etcdserverpb::downgrade_request::DowngradeAction;
use crate::pb::etcdserverpb::*;

type Result<T = ()> = std::result::Result<T, Refusal>;

impl Core {
    pub(crate) fn status(&mut self, _: &StatusRequest, caller: &Caller<'_>) -> Result<StatusResponse> {
        self.auth.require(caller)?;
        let mut errors = Vec::new();
        if !self.has_leader {
            errors.push(Refusal::NoLeader.words().1.to_owned());
        }
        errors.extend(self.alarms.iter().map(|alarm| {
            let AlarmMember { member_id, alarm } = member_of(alarm);
            let name = AlarmType::try_from(alarm).map_or("?", |alarm| alarm.as_str_name());
            format!("memberID:{member_id} alarm:{name}")
        }));
        Ok(StatusResponse {
            header: self.header(),
            version: self.config.version.clone(),
            leader: if self.has_leader { MEMBER_ID } else { 0 },
            raft_index: self.index,
            raft_applied_index: self.index,
            raft_term: self.term,
            storage_version: format!("{}.0", self.cluster_version()),
            // A real database grows by pages and has a quota of 2 GiB.
            db_size: DB_PAGES_BYTES,
            db_size_in_use: DB_PAGES_BYTES,
            db_size_quota: 2 << 30,
            downgrade_info: Some(DowngradeInfo {
                enabled: self.downgrade.is_some(),
                target_version: self.downgrade.clone().unwrap_or_default(),
            }),
            errors,
            is_learner: false,
        })
    }

    /// Alarms are raised by hand here: nothing fills up or rots.
    pub(crate) fn alarm(&mut self, request: &AlarmRequest, caller: &Caller<'_>) -> Result<AlarmResponse> {
        if request.action() == AlarmAction::Get {
            self.auth.require(caller)?;
        } else {
            self.require_admin(caller)?;
        }
        self.propose(request)?;
        let named = (request.member_id, request.alarm);
        let alarms = match AlarmAction::try_from(request.action) {
            Ok(AlarmAction::Get) => {
                let asked = |kind| request.alarm == AlarmType::None as i32 || request.alarm == kind;
                self.alarms.iter().filter(|(_, kind)| asked(*kind)).map(member_of).collect()
            }
            Ok(AlarmAction::Activate) if request.alarm != AlarmType::None as i32 => {
                self.alarms.insert(named);
                vec![member_of(&named)]
            }
            Ok(AlarmAction::Deactivate) if self.alarms.remove(&named) => vec![member_of(&named)],
            _ => Vec::new(),
        };
        Ok(AlarmResponse { header: self.header(), alarms })
    }

    /// What a raised alarm forbids: puts and new leases where space is out, all writes where data are corrupt.
    pub(super) fn check_alarms(&self, takes_space: bool) -> Result {
        let raised = |alarm: AlarmType| self.alarms.iter().any(|(_, kind)| *kind == alarm as i32);
        if raised(AlarmType::Corrupt) {
            return Err(Refusal::Corrupt);
        }
        if takes_space && raised(AlarmType::Nospace) { Err(Refusal::NoSpace) } else { Ok(()) }
    }

    pub(crate) fn defragment(
        &mut self,
        _: &DefragmentRequest,
        caller: &Caller<'_>,
    ) -> Result<DefragmentResponse> {
        self.require_admin(caller)?;
        Ok(DefragmentResponse { header: None })
    }

    /// Of what a real server hashes beside the keys, there is nothing here: no real server has this hash.
    pub(crate) fn hash(&mut self, _: &HashRequest, caller: &Caller<'_>) -> Result<HashResponse> {
        self.require_admin(caller)?;
        let mut hash = Hasher::new();
        hash.bytes(&self.store.hash(0)?.hash.to_be_bytes());
        self.lessor.by_deadline().for_each(|(id, _)| hash.bytes(&id.to_be_bytes()));
        Ok(HashResponse { header: self.header(), hash: hash.finish() })
    }

    pub(crate) fn hash_kv(&mut self, request: &HashKvRequest, caller: &Caller<'_>) -> Result<HashKvResponse> {
        self.require_admin(caller)?;
        let hash = self.store.hash(request.revision)?;
        Ok(HashKvResponse {
            header: self.header(),
            hash: hash.hash,
            compact_revision: hash.compacted,
            hash_revision: hash.revision,
        })
    }

    /// The keys as they are now, one after the other as `KeyValue`s with their lengths before them, filled up
    /// with zeros to whole pages; then their SHA-256, as clients check it. It is no database: no etcd can be
    /// restored from it.
    pub(crate) fn snapshot(
        &mut self,
        _: &SnapshotRequest,
        caller: &Caller<'_>,
    ) -> Result<Vec<SnapshotResponse>> {
        self.require_admin(caller)?;
        let all = KeyRange::From(bytes::Bytes::from_static(&[0]));
        let mut data: Vec<u8> =
            self.store.range(&all, 0)?.flat_map(Message::encode_length_delimited_to_vec).collect();
        data.resize(data.len().next_multiple_of(PAGE_BYTES).max(PAGE_BYTES), 0);
        let version = format!("{}.0", self.cluster_version());
        let mut left = data.len();
        let mut messages: Vec<_> = data
            .chunks(SNAPSHOT_CHUNK_BYTES)
            .map(|chunk| {
                left -= chunk.len();
                SnapshotResponse {
                    header: None,
                    remaining_bytes: left as u64,
                    blob: chunk.to_vec().into(),
                    version: version.clone(),
                }
            })
            .collect();
        let digest = Sha256::digest(&data).to_vec().into();
        messages.push(SnapshotResponse { header: None, remaining_bytes: 0, blob: digest, version });
        Ok(messages)
    }

    pub(crate) fn move_leader(
        &mut self,
        request: &MoveLeaderRequest,
        caller: &Caller<'_>,
    ) -> Result<MoveLeaderResponse> {
        self.require_admin(caller)?;
        if !self.has_leader {
            return Err(Refusal::Other(Code::FailedPrecondition, "etcdserver: not leader"));
        }
        if request.target_id != MEMBER_ID {
            return Err(Refusal::Other(Code::FailedPrecondition, "etcdserver: bad leader transferee"));
        }
        Ok(MoveLeaderResponse { header: None })
    }

    /// A downgrade that was begun goes on for ever: the server keeps its version.
    pub(crate) fn downgrade(
        &mut self,
        request: &DowngradeRequest,
        caller: &Caller<'_>,
    ) -> Result<DowngradeResponse> {
        self.require_admin(caller)?;
        let action = DowngradeAction::try_from(request.action);
        let action = action.map_err(|_| Refusal::Other(Code::Unknown, "etcdserver: unknown method"))?;
        if action == DowngradeAction::Cancel {
            self.downgrade = None;
        } else {
            let (major, minor) = parse_version(&request.version).ok_or(WRONG_VERSION_FORMAT)?;
            let (own_major, own_minor) = parse_version(&self.config.version).ok_or(WRONG_VERSION_FORMAT)?;
            if (major, Some(minor)) != (own_major, own_minor.checked_sub(1)) {
                return Err(INVALID_TARGET_VERSION);
            }
            if self.downgrade.is_some() {
                return Err(DOWNGRADE_IN_PROCESS);
            }
            if action == DowngradeAction::Enable {
                self.downgrade = Some(format!("{major}.{minor}.0"));
            }
        }
        Ok(DowngradeResponse { header: self.header(), version: self.cluster_version() })
    }

    /// `3.7` of `3.7.3`.
    fn cluster_version(&self) -> String {
        match parse_version(&self.config.version) {
            Some((major, minor)) => format!("{major}.{minor}"),
            None => self.config.version.clone(),
        }
    }

    fn require_admin(&mut self, caller: &Caller<'_>) -> Result {
        let identity = self.auth.identify(caller)?;
        self.auth.check_admin(identity.as_ref())
    }
}

fn member_of((member_id, alarm): &(u64, i32)) -> AlarmMember {
    AlarmMember { member_id: *member_id, alarm: *alarm }
}

/// `3.6` or `3.6.2`.
fn parse_version(version: &str) -> Option<(u64, u64)> {
    let numbers: Option<Vec<u64>> = version.split('.').map(|number| number.parse().ok()).collect();
    match numbers?[..] {
        [major, minor] | [major, minor, _] => Some((major, minor)),
        _ => None,
    }
}

const WRONG_VERSION_FORMAT: Refusal =
    Refusal::Other(Code::InvalidArgument, "etcdserver: wrong downgrade target version format");
const INVALID_TARGET_VERSION: Refusal =
    Refusal::Other(Code::InvalidArgument, "etcdserver: invalid downgrade target version");
const DOWNGRADE_IN_PROCESS: Refusal =
    Refusal::Other(Code::FailedPrecondition, "etcdserver: cluster has a downgrade job in progress");

const PAGE_BYTES: usize = 4096;
const SNAPSHOT_CHUNK_BYTES: usize = 32 * 1024;
const DB_PAGES_BYTES: i64 = 20 * 1024;
