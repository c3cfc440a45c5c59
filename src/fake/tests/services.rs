//! Streamed ranges, maintenance, membership, and the server's own locks and elections.

use super::*;
use crate::pb::etcdserverpb::alarm_request::AlarmAction;
use crate::pb::etcdserverpb::cluster_client::ClusterClient;
use crate::pb::etcdserverpb::maintenance_client::MaintenanceClient;
use crate::pb::v3electionpb::election_client::ElectionClient;
use crate::pb::v3electionpb::{CampaignRequest, LeaderRequest, ProclaimRequest, ResignRequest};
use crate::pb::v3lockpb::lock_client::LockClient;
use crate::pb::v3lockpb::{LockRequest, UnlockRequest};

fn lock(name: &str, lease: i64) -> LockRequest {
    LockRequest { name: name.to_owned().into(), lease }
}

fn campaign(name: &str, lease: i64, value: &str) -> CampaignRequest {
    CampaignRequest { name: name.to_owned().into(), lease, value: value.to_owned().into() }
}

fn said<T>(answer: Result<T>) -> Option<(Code, String)> {
    answer.err().map(|status| (status.code(), status.message().to_owned()))
}

#[tokio::test(start_paused = true)]
async fn a_range_is_streamed_in_pieces_that_grow() -> Result {
    let fake = FakeEtcd::start();
    let mut client = Client::of(&fake, "a");
    for index in 0..45 {
        client.put(&format!("rs/{index:02}"), "v").await?;
    }
    let all = RangeRequest { key: "rs/".into(), range_end: "rs0".into(), ..Default::default() };
    let mut pieces = async |request: RangeRequest| -> Result<Vec<(usize, i64, bool, i64)>> {
        let mut stream = client.kv.range_stream(request).await?.into_inner();
        let mut pieces = Vec::new();
        while let Some(message) = stream.message().await? {
            let piece = message.range_response.unwrap_or_default();
            let revision = piece.header.map_or(0, |header| header.revision);
            pieces.push((piece.kvs.len(), piece.count, piece.more, revision));
        }
        Ok(pieces)
    };
    let whole = pieces(all.clone()).await?;
    assert_eq!(whole, [(10, 0, false, 0), (20, 0, false, 0), (15, 45, false, 46)]);
    let limited = pieces(RangeRequest { limit: 25, ..all.clone() }).await?;
    assert_eq!(limited, [(10, 0, false, 0), (15, 45, true, 46)]);
    assert_eq!(pieces(RangeRequest { count_only: true, ..all.clone() }).await?, [(0, 45, false, 46)]);
    let sorted = RangeRequest { sort_order: 2, ..all };
    let words = "RangeStream does not support custom sort orders".to_owned();
    assert_eq!(said(pieces(sorted).await), Some((Code::Unimplemented, words)));
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn keys_are_hashed_as_by_a_real_server() -> Result {
    let fake = FakeEtcd::start();
    let mut client = Client::of(&fake, "a");
    let mut maintenance = MaintenanceClient::new(fake.service());
    for index in 0..45 {
        client.put(&format!("rs/{index:02}"), "v").await?;
    }
    for index in 0..30 {
        let value = vec![0; 100_000].into();
        let put = PutRequest { key: format!("big/{index:02}").into(), value, ..Default::default() };
        client.kv.put(put).await?;
    }
    let delete = |key: &str, end: &str| DeleteRangeRequest {
        key: key.to_owned().into(),
        range_end: end.to_owned().into(),
        prev_kv: false,
    };
    let compact = |revision| CompactionRequest { revision, physical: true };
    let mut hash = async |revision| -> Result<(u32, i64, i64)> {
        let answer = maintenance.hash_kv(HashKvRequest { revision }).await?.into_inner();
        Ok((answer.hash, answer.compact_revision, answer.hash_revision))
    };
    // What 3.7.3 answers to the same.
    assert_eq!(hash(0).await?, (2_698_142_409, -1, 76));
    assert_eq!(hash(40).await?, (680_255_695, -1, 40));
    client.kv.delete_range(delete("rs/1", "rs/2")).await?;
    client.put("rs/11", "again").await?;
    client.kv.delete_range(delete("rs/11", "")).await?;
    assert_eq!(hash(0).await?, (2_825_017_675, -1, 79));
    client.kv.compact(compact(77)).await?;
    assert_eq!(hash(0).await?, (1_306_455_053, 77, 79));
    assert_eq!(hash(77).await?, (3_873_656_231, -1, 77));
    assert_eq!(hash(78).await?, (736_175_741, 77, 78));
    assert_eq!(said(hash(76).await).map(|(code, _)| code), Some(Code::OutOfRange));
    client.kv.compact(compact(79)).await?;
    assert_eq!(hash(0).await?, (1_119_953_426, 79, 79));
    assert_eq!(hash(79).await?, (1_306_455_053, 77, 79), "as it was at the compaction");
    client.kv.delete_range(delete("\0", "\0")).await?;
    assert_eq!(hash(0).await?, (3_288_778_117, 79, 80));
    client.kv.compact(compact(80)).await?;
    assert_eq!(hash(80).await?, (230_979_186, 79, 80));
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn an_alarm_forbids_what_takes_space() -> Result {
    let fake = FakeEtcd::start();
    let mut client = Client::of(&fake, "a");
    let mut maintenance = MaintenanceClient::new(fake.service());
    let alarm = |action: AlarmAction| AlarmRequest {
        action: action.into(),
        member_id: 1,
        alarm: AlarmType::Nospace.into(),
    };
    client.put("k", "").await?;
    maintenance.alarm(alarm(AlarmAction::Activate)).await?;
    let full = Some((Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded".to_owned()));
    assert_eq!(said(client.put("k", "").await), full);
    assert_eq!(said(client.grant(1, 5).await), full);
    client.kv.delete_range(DeleteRangeRequest { key: "k".into(), ..Default::default() }).await?;
    let status = maintenance.status(StatusRequest {}).await?.into_inner();
    assert_eq!(status.errors, ["memberID:1 alarm:NOSPACE"]);
    maintenance.alarm(alarm(AlarmAction::Deactivate)).await?;
    client.put("k", "").await?;
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_ends_with_its_digest() -> Result {
    let fake = FakeEtcd::start();
    Client::of(&fake, "a").put("k", "v").await?;
    let mut stream = MaintenanceClient::new(fake.service()).snapshot(SnapshotRequest {}).await?.into_inner();
    let mut blobs = Vec::new();
    while let Some(message) = stream.message().await? {
        blobs.push(message.blob);
    }
    let digest = blobs.pop().unwrap_or_default();
    let data = blobs.concat();
    assert_eq!((data.len() % 512, digest.len()), (0, 32));
    assert_eq!(digest.as_ref(), &<sha2::Sha256 as sha2::Digest>::digest(&data)[..]);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn members_come_and_go_but_the_one() -> Result {
    let fake = FakeEtcd::start();
    let mut cluster = ClusterClient::new(fake.service());
    let learner = MemberAddRequest { peer_ur_ls: vec!["http://127.0.0.1:9".into()], is_learner: true };
    let added = cluster.member_add(learner).await?.into_inner();
    let id = added.member.unwrap_or_default().id;
    assert_eq!(added.members.len(), 2);
    let promoted = cluster.member_promote(MemberPromoteRequest { id }).await;
    assert_eq!(said(promoted).map(|(code, _)| code), Some(Code::FailedPrecondition));
    let left = cluster.member_remove(MemberRemoveRequest { id }).await?.into_inner().members;
    let own = left.first().map_or(0, |member| member.id);
    let refused = said(cluster.member_remove(MemberRemoveRequest { id: own }).await);
    let words = "etcdserver: re-configuration failed due to not enough started members".to_owned();
    assert_eq!(refused, Some((Code::Unknown, words)));
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn the_servers_own_lock_goes_from_one_to_the_next() -> Result {
    let fake = FakeEtcd::start();
    let mut client = Client::of(&fake, "a");
    for lease in [0x11, 0x12, 0x13] {
        client.grant(lease, 600).await?;
    }
    let mut locks = LockClient::new(fake.service());
    let held = locks.lock(lock("l", 0x11)).await?.into_inner();
    assert_eq!((held.key.as_ref(), held.header.map(|header| header.revision)), (&b"l/11"[..], Some(2)));
    let wait = |lease| {
        let mut locks = locks.clone();
        tokio::spawn(async move { locks.lock(lock("l", lease)).await })
    };
    let second = wait(0x12);
    fake.until(|fake| fake.revision() == 3).await;
    let third = wait(0x13);
    fake.until(|fake| fake.revision() == 4).await;
    // Who no longer waits leaves nothing behind.
    third.abort();
    fake.until(|fake| fake.revision() == 5).await;
    assert_eq!(fake.snapshot().get("l/13"), None);
    let third = wait(0x13);
    fake.until(|fake| fake.revision() == 6).await;
    locks.unlock(UnlockRequest { key: held.key }).await?;
    let second = second.await.map_err(|_| Status::internal("panicked"))??.into_inner();
    assert_eq!(second.key, "l/12");
    // A waiter whose lease ends is told when its turn would have come.
    client.lease.lease_revoke(LeaseRevokeRequest { id: 0x13 }).await?;
    assert!(!third.is_finished());
    locks.unlock(UnlockRequest { key: second.key }).await?;
    let third = third.await.map_err(|_| Status::internal("panicked"))?;
    assert_eq!(said(third), Some((Code::Unknown, "mutex: session is expired".into())));
    let unknown = locks.lock(lock("l", 0x99)).await;
    assert_eq!(said(unknown), Some((Code::Unknown, "etcdserver: requested lease not found".into())));
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn the_servers_own_election_is_observed() -> Result {
    let fake = FakeEtcd::start();
    let mut client = Client::of(&fake, "a");
    client.grant(0x21, 600).await?;
    client.grant(0x22, 600).await?;
    let mut elections = ElectionClient::new(fake.service());
    let name = || LeaderRequest { name: "e".into() };
    let nobody = elections.leader(name()).await;
    assert_eq!(said(nobody), Some((Code::Unknown, "election: no leader".into())));
    let first = elections.campaign(campaign("e", 0x21, "one")).await?.into_inner().leader;
    let mut observed = elections.observe(name()).await?.into_inner();
    let mut next = async || -> Result<String> {
        let kv = observed.message().await?.and_then(|message| message.kv).unwrap_or_default();
        Ok(String::from_utf8_lossy(&kv.value).into_owned())
    };
    assert_eq!(next().await?, "one");
    elections.proclaim(ProclaimRequest { leader: first.clone(), value: "uno".into() }).await?;
    assert_eq!(next().await?, "uno");
    let mut others = elections.clone();
    let second = tokio::spawn(async move { others.campaign(campaign("e", 0x22, "two")).await });
    fake.until(|fake| fake.snapshot().get("e/22").is_some()).await;
    elections.resign(ResignRequest { leader: first.clone() }).await?;
    assert_eq!(next().await?, "two");
    assert!(second.await.is_ok_and(|outcome| outcome.is_ok()));
    let stale = elections.proclaim(ProclaimRequest { leader: first, value: "".into() }).await;
    assert_eq!(said(stale), Some((Code::Unknown, "election: not leader".into())));
    Ok(())
}
