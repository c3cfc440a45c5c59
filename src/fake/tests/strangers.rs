//! What a cluster does and a single server does not: members that stand still, lag, serve a watch late, or do not know
//! a token yet.

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// A watch stream with a watcher on each of these keys, by server-chosen ids from 0 on.
async fn watch_each(
    client: &mut Client,
    keys: &[&str],
    start: i64,
) -> Result<(mpsc::Sender<WatchRequest>, Streaming<WatchResponse>)> {
    let (asks, asked) = mpsc::channel(keys.len() + 1);
    for key in keys {
        let key = (*key).to_owned().into();
        let create = WatchCreateRequest { key, start_revision: start, ..Default::default() };
        asks.send(ask(RequestUnion::CreateRequest(create))).await.map_err(|_| Status::internal("closed"))?;
    }
    let mut said = client.watch.watch(ReceiverStream::new(asked)).await?.into_inner();
    for _ in keys {
        assert!(said.message().await?.unwrap_or_default().created);
    }
    Ok((asks, said))
}

/// The watchers and the revisions of the next so many events.
async fn next(said: &mut Streaming<WatchResponse>, events: usize) -> Result<Vec<(i64, i64)>> {
    let mut seen = Vec::new();
    while seen.len() < events {
        let response = said.message().await?.ok_or_else(|| Status::internal("the stream has ended"))?;
        let revision = |event: &crate::pb::mvccpb::Event| event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
        seen.extend(response.events.iter().map(|event| (response.watch_id, revision(event))));
    }
    Ok(seen)
}

#[tokio::test(start_paused = true)]
async fn what_is_held_arrives_when_it_is_released_whoever_has_gone() -> Result {
    let fake = FakeEtcd::start();
    let mut client = Client::of(&fake, "a");
    let hold = Hold::new();
    let fault = fake.fault(On::rpc(Rpc::Put), Do::hold(&hold));
    for key in ["1", "2", "3"] {
        assert!(tokio::time::timeout(SECOND, client.put(key, "")).await.is_err());
    }
    tokio::time::sleep(24 * HOUR).await;
    assert_eq!((hold.held(), fault.hits(), fake.revision()), (3, 3, 1));
    assert!(hold.release_next());
    fake.until(|fake| fake.snapshot().get("1").is_some()).await;
    hold.release();
    fake.until(|fake| fake.revision() == 4).await;
    let order: Vec<_> = fake.snapshot().keys.into_iter().map(|kv| kv.create_revision).collect();
    assert_eq!(order, [2, 3, 4], "in the order in which they came");
    client.put("4", "").await?;
    assert_eq!((hold.held(), hold.release_next()), (0, false), "it holds nothing any more");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn calls_with_times_that_are_drawn_overtake_each_other() -> Result {
    let run = async |seed| -> Result<Vec<i64>> {
        let fake = FakeEtcd::builder().seed(seed).start();
        fake.fault(On::rpc(Rpc::Put), Do::delay_up_to(10 * HOUR));
        for key in 0..8 {
            let mut client = Client::of(&fake, "a");
            assert!(tokio::time::timeout(SECOND, client.put(&key.to_string(), "")).await.is_err());
        }
        fake.until(|fake| fake.revision() == 9).await;
        Ok(fake.snapshot().keys.into_iter().map(|kv| kv.create_revision).collect())
    };
    let order = run(7).await?;
    assert!(!order.is_sorted(), "{order:?}");
    assert_eq!((&order, order == run(8).await?), (&run(7).await?, false));
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn messages_on_a_stream_are_held_with_all_after_them() -> Result {
    let fake = FakeEtcd::start();
    let mut client = Client::of(&fake, "a");
    client.grant(7, 60).await?;
    let (asks, mut said) = client.keep_alive(7).await?;
    for on in [On::rpc(Rpc::LeaseKeepAlive), On::response(Rpc::LeaseKeepAlive)] {
        let hold = Hold::new();
        fake.fault(on.once(), Do::hold(&hold));
        for _ in 0..2 {
            asks.send(LeaseKeepAliveRequest { id: 7 }).await.map_err(|_| Status::internal("closed"))?;
        }
        assert!(tokio::time::timeout(30 * SECOND, said.message()).await.is_err());
        assert_eq!(hold.held(), 1);
        hold.release();
        for _ in 0..2 {
            assert_eq!(said.message().await?.unwrap_or_default().id, 7);
        }
    }
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_is_a_victim_is_overtaken_by_the_others_and_keeps_its_order() -> Result {
    let fake = FakeEtcd::start();
    let mut client = Client::of(&fake, "a");
    let (asks, mut said) = watch_each(&mut client, &["slow", "quick"], 0).await?;
    let hold = Hold::new();
    let victim = |response: &WatchResponse| response.watch_id == 0 && !response.events.is_empty();
    fake.fault(On::response(Rpc::Watch).matching(victim).once(), Do::hold(&hold).alone());
    for key in ["slow", "slow", "quick", "slow", "quick"] {
        client.put(key, "").await?;
    }
    assert_eq!(next(&mut said, 2).await?, [(1, 4), (1, 6)]);
    let progress = ask(RequestUnion::ProgressRequest(WatchProgressRequest {}));
    asks.send(progress.clone()).await.map_err(|_| Status::internal("closed"))?;
    let told = tokio::time::timeout(HOUR, said.message()).await.map(drop);
    assert!(told.is_err(), "there is no progress while a watcher is behind");
    hold.release();
    assert_eq!(next(&mut said, 3).await?, [(0, 2), (0, 3), (0, 5)]);
    asks.send(progress).await.map_err(|_| Status::internal("closed"))?;
    assert_eq!(said.message().await?.unwrap_or_default().watch_id, -1);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_victims_delay_is_its_own() -> Result {
    let fake = FakeEtcd::start();
    let mut client = Client::of(&fake, "a");
    let (_asks, mut said) = watch_each(&mut client, &["slow", "quick"], 0).await?;
    let victim = |response: &WatchResponse| response.watch_id == 0;
    fake.fault(On::response(Rpc::Watch).matching(victim), Do::delay(SECOND).alone());
    let began = tokio::time::Instant::now();
    client.put("slow", "").await?;
    client.put("quick", "").await?;
    assert_eq!(next(&mut said, 1).await?, [(1, 3)]);
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert_eq!(next(&mut said, 1).await?, [(0, 2)]);
    assert_eq!(began.elapsed(), SECOND);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn the_order_among_watchers_is_drawn_where_that_is_asked_for() -> Result {
    let orders = async |seed: u64, start| -> Result<Vec<i64>> {
        let fake = FakeEtcd::builder().seed(seed).shuffled_watches().start();
        let mut client = Client::of(&fake, "a");
        let puts = ["0", "1", "2", "3", "4"].map(|key| op(Request::RequestPut(put(key, "", 0)))).into();
        let txn = TxnRequest { success: puts, ..Default::default() };
        if start > 0 {
            client.kv.txn(txn.clone()).await?;
        }
        let (_asks, mut said) = watch_each(&mut client, &["0", "1", "2", "3", "4"], start).await?;
        if start == 0 {
            client.kv.txn(txn).await?;
        }
        Ok(next(&mut said, 5).await?.into_iter().map(|(id, _)| id).collect())
    };
    for start in [0, 1] {
        let order = orders(1, start).await?;
        assert_eq!(order, orders(1, start).await?);
        let mut others = Vec::new();
        for seed in 2..6 {
            others.push(orders(seed, start).await?);
        }
        assert!(others.iter().any(|other| *other != order), "{order:?}");
    }
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_member_that_lags_answers_from_the_past_what_any_member_may_answer() -> Result {
    let fake = FakeEtcd::start();
    let (mut a, mut b) = (Client::of(&fake, "a"), Client::of(&fake, "b"));
    a.put("k", "old").await?;
    fake.lag("a");
    a.put("k", "new").await?;
    let missing = || Compare {
        key: "k".into(),
        target: CompareTarget::Mod.into(),
        result: CompareResult::Equal.into(),
        target_union: Some(TargetUnion::ModRevision(2)),
        ..Default::default()
    };
    let range = |serializable| RangeRequest { key: "k".into(), serializable, ..Default::default() };
    let txn = |serializable: Option<bool>| {
        let success = serializable.map(|serializable| op(Request::RequestRange(range(serializable))));
        TxnRequest { compare: vec![missing()], success: success.into_iter().collect(), ..Default::default() }
    };
    let at = |header: Option<ResponseHeader>| header.unwrap_or_default().revision;
    // By the past: serializable ranges, and transactions of compares alone or with nothing else.
    let read = a.kv.range(range(true)).await?.into_inner();
    assert_eq!((read.kvs[0].value.as_ref(), at(read.header)), ("old".as_bytes(), 2));
    for past in [txn(None), txn(Some(true))] {
        let reply = a.kv.txn(past).await?.into_inner();
        assert_eq!((reply.succeeded, at(reply.header)), (true, 2));
    }
    // By what is: everything else, and everything of another client.
    let read = a.kv.range(range(false)).await?.into_inner();
    assert_eq!((read.kvs[0].value.as_ref(), at(read.header)), ("new".as_bytes(), 3));
    assert!(!a.kv.txn(txn(Some(false))).await?.into_inner().succeeded);
    assert!(!b.kv.txn(txn(None)).await?.into_inner().succeeded);
    fake.catch_up("a");
    assert!(!a.kv.txn(txn(None)).await?.into_inner().succeeded);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_watch_begins_with_what_its_member_has_seen() -> Result {
    let fake = FakeEtcd::start();
    let mut client = Client::of(&fake, "a");
    fake.lag("a");
    client.put("k", "missed by the member").await?;
    let (asks, asked) = mpsc::channel(1);
    let create = WatchCreateRequest { key: "k".into(), ..Default::default() };
    asks.send(ask(RequestUnion::CreateRequest(create))).await.map_err(|_| Status::internal("closed"))?;
    let mut said = client.watch.watch(ReceiverStream::new(asked)).await?.into_inner();
    let created = said.message().await?.unwrap_or_default();
    assert_eq!((created.created, created.header.unwrap_or_default().revision), (true, 1));
    client.put("k", "").await?;
    assert_eq!(next(&mut said, 2).await?, [(0, 2), (0, 3)]);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn an_error_can_come_from_the_application_of_a_write() -> Result {
    let fake = FakeEtcd::start();
    let mut client = Client::of(&fake, "a");
    let no_space = Status::resource_exhausted("etcdserver: mvcc: database space exceeded");
    fake.fault(On::rpc(Rpc::Put).once(), Do::lose_reply_by(LoseReply::Status(no_space)));
    let refused = client.put("k", "v").await.map_err(|status| status.message().to_owned());
    assert_eq!(refused, Err("etcdserver: mvcc: database space exceeded".to_owned()));
    assert_eq!(fake.snapshot().value("k"), Some("v".as_bytes()));
    Ok(())
}
