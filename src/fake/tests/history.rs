use super::*;
use crate::fake::Outcome;

/// A bit of everything, with faults by chance.
async fn scene(seed: u64) -> Result<History> {
    let fake = FakeEtcd::builder().seed(seed).start();
    fake.fault(On::rpc(Rpc::Put).probability(0.5), Do::lose_reply());
    let (mut a, mut b) = (Client::of(&fake, "a"), Client::of(&fake, "b"));
    let (_asks, _said) = b.watch_all().await?;
    a.grant(7, 5).await?;
    for index in 0..8 {
        let value = index.to_string();
        let (of_a, of_b) = tokio::join!(a.put("k", &value), b.kv.put(put("l", "", 7)));
        assert!([of_a.err(), of_b.err()].iter().flatten().all(|status| status.code() == Code::Unavailable));
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    fake.leader_loss(Duration::from_secs(1));
    fake.until(|fake| fake.leases() == 0).await;
    Ok(fake.history())
}

#[tokio::test(start_paused = true)]
async fn a_run_repeats_with_its_seed() -> Result {
    let (first, again, other) = (scene(1).await?, scene(1).await?, scene(2).await?);
    assert_eq!(first, again);
    assert_eq!(first.to_string(), again.to_string());
    assert_ne!(first, other);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn tells_who_did_what_when_and_what_came_of_it() -> Result {
    let fake = FakeEtcd::start();
    let mut client = Client::of(&fake, "a");
    client.grant(0x2a, 5).await?;
    client.kv.put(put("k", "v", 0x2a)).await?;
    assert!(client.kv.put(put("k", "v", 1)).await.is_err());
    fake.fault(On::rpc(Rpc::Range), Do::lose_reply());
    let all = RangeRequest { key: "k".into(), range_end: "l".into(), limit: 3, ..Default::default() };
    assert!(client.kv.range(all).await.is_err());
    let target = TargetUnion::CreateRevision(0);
    let compare = Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Create.into(),
        key: "k".into(),
        target_union: Some(target),
        ..Default::default()
    };
    let txn = TxnRequest {
        compare: vec![compare],
        success: vec![op(Request::RequestPut(put("k", "w", 0)))],
        failure: vec![op(Request::RequestDeleteRange(DeleteRangeRequest {
            key: "k".into(),
            ..Default::default()
        }))],
    };
    client.kv.txn(txn).await?;
    fake.until(|fake| fake.leases() == 0).await;
    let history = fake.history();
    let lines: Vec<_> = history.to_string().lines().map(str::to_owned).collect();
    assert_eq!(
        lines,
        [
            "    0.000000 @1    a        LeaseGrant      2a for 5 s -> 2a for 5 s",
            "    0.000000 @2    a        Put             k = \"v\" lease 2a",
            "    0.000000 @2    a        Put             k = \"v\" lease 1 -> NotFound: etcdserver: requested lease not found",
            "    0.000000 @2    a        Range           k* limit 3 -> 1 key (the answer was lost)",
            "    0.000000 @3    a        Txn             if create(k) = 0 then put k = \"w\" else delete k -> failed",
            "    5.000000 @3    -- lease 2a has expired --",
        ]
    );
    assert_eq!(history.calls(Rpc::Put).count(), 2);
    assert_eq!(history.of("a").filter(|operation| operation.is_done()).count(), 4);
    assert!(matches!(&history[2].outcome, Outcome::Refused { code: Code::NotFound, .. }));
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn forgets_what_is_too_old() -> Result {
    let fake = FakeEtcd::builder().history_limit(2).start();
    let mut client = Client::of(&fake, "a");
    for key in ["1", "2", "3"] {
        client.put(key, "").await?;
    }
    let history = fake.history();
    assert_eq!((history.len(), history.forgotten(), history[0].revision), (2, 1, 3));
    Ok(())
}
