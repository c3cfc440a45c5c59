use super::*;

#[tokio::test(start_paused = true)]
async fn an_hour_of_keep_alives_takes_no_time() -> Result {
    let began = Instant::now();
    let fake = FakeEtcd::start();
    let mut client = Client::of(&fake, "a");
    client.grant(7, 3).await?;
    let (asks, mut said) = client.keep_alive(7).await?;
    for _ in 0..3600 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        asks.send(LeaseKeepAliveRequest { id: 7 }).await.map_err(|_| Status::internal("closed"))?;
        assert_eq!(said.message().await?.map(|response| response.ttl), Some(3));
    }
    assert_eq!(fake.leases(), 1);
    // Milliseconds by itself; a minute on the busiest of machines is still no hour.
    println!("an hour of keep-alives took {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(60));
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn expiry_deletes_all_keys_of_a_lease_in_one_revision() -> Result {
    let fake = FakeEtcd::start();
    let mut client = Client::of(&fake, "a");
    let (_asks, mut said) = client.watch_all().await?;
    client.grant(7, 5).await?;
    for key in ["b", "a", "c"] {
        client.kv.put(put(key, "", 7)).await?;
    }
    // Put without a lease takes it off.
    client.put("c", "").await?;
    let began = tokio::time::Instant::now();
    let seen = events_until(&mut said, 6).await?;
    assert_eq!(began.elapsed().as_secs(), 5);
    assert_eq!(seen, [(2, 1), (3, 1), (4, 1), (5, 1), (6, 2)]);
    assert_eq!(fake.leases(), 0);
    assert_eq!(fake.snapshot().keys.len(), 1);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_gone_has_no_ttl() -> Result {
    let fake = FakeEtcd::start();
    let mut client = Client::of(&fake, "a");
    client.grant(7, 5).await?;
    let (asks, mut said) = client.keep_alive(7).await?;
    client.lease.lease_revoke(LeaseRevokeRequest { id: 7 }).await?;
    asks.send(LeaseKeepAliveRequest { id: 7 }).await.map_err(|_| Status::internal("closed"))?;
    assert_eq!(said.message().await?.map(|response| response.ttl), Some(0));
    let ttl =
        client.lease.lease_time_to_live(LeaseTimeToLiveRequest { id: 7, keys: true }).await?.into_inner();
    assert_eq!((ttl.ttl, ttl.granted_ttl), (-1, 0));
    let gone = client.lease.lease_revoke(LeaseRevokeRequest { id: 7 }).await.map(drop);
    assert_eq!(gone.map_err(|status| status.code()), Err(Code::NotFound));
    drop(asks);
    assert!(said.message().await?.is_none(), "the server ends when the client has no more to ask");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn time_to_live_tells_keys_and_time() -> Result {
    let fake = FakeEtcd::start();
    let mut client = Client::of(&fake, "a");
    client.grant(7, 30).await?;
    client.grant(8, 20).await?;
    client.kv.put(put("k", "", 7)).await?;
    tokio::time::advance(Duration::from_millis(1500)).await;
    let ttl =
        client.lease.lease_time_to_live(LeaseTimeToLiveRequest { id: 7, keys: true }).await?.into_inner();
    assert_eq!((ttl.ttl, ttl.granted_ttl, ttl.keys), (28, 30, vec!["k".into()]));
    let leases = client.lease.lease_leases(LeaseLeasesRequest {}).await?.into_inner().leases;
    assert_eq!(leases.iter().map(|lease| lease.id).collect::<Vec<_>>(), [8, 7]);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn leases_end_by_hand_too() -> Result {
    let fake = FakeEtcd::start();
    let mut client = Client::of(&fake, "a");
    client.grant(7, 30).await?;
    client.kv.put(put("k", "", 7)).await?;
    assert!(fake.expire_lease(7) && !fake.expire_lease(7) && !fake.revoke_lease(7));
    assert_eq!((fake.revision(), fake.snapshot().keys.len()), (3, 0));
    Ok(())
}
