use super::*;
use tokio::time::Instant;
use tonic::IntoRequest;

const SECOND: Duration = Duration::from_secs(1);

fn wants_leader<M>(message: M) -> tonic::Request<M> {
    let mut request = message.into_request();
    request.metadata_mut().insert("hasleader", tonic::metadata::MetadataValue::from_static("true"));
    request
}

fn range(key: &str, serializable: bool) -> RangeRequest {
    RangeRequest { key: key.to_owned().into(), serializable, ..Default::default() }
}

fn words<T>(answer: Result<T>) -> (Code, String) {
    answer.map_or_else(|status| (status.code(), status.message().to_owned()), |_| (Code::Ok, String::new()))
}

fn said(code: Code, message: &str) -> (Code, String) {
    (code, message.to_owned())
}

#[tokio::test(start_paused = true)]
async fn without_a_leader_calls_wait_seven_seconds_and_fail_in_their_own_words() -> Result {
    let fake = FakeEtcd::start();
    let mut client = Client::of(&fake, "a");
    client.grant(7, 60).await?;
    let (asks, mut renewed) = client.keep_alive(7).await?;
    fake.leader_loss(60 * SECOND);
    let began = Instant::now();
    asks.send(LeaseKeepAliveRequest { id: 7 }).await.map_err(|_| Status::internal("closed"))?;
    let (mut kv, mut lease, mut other) = (client.kv.clone(), client.lease.clone(), client.kv.clone());
    let (write, read, ttl, renewal) = tokio::join!(
        kv.put(put("k", "", 0)),
        other.range(range("k", false)),
        lease.lease_time_to_live(LeaseTimeToLiveRequest { id: 7, keys: false }),
        renewed.message(),
    );
    assert_eq!(began.elapsed(), 7 * SECOND);
    assert_eq!(words(write), said(Code::DeadlineExceeded, "context deadline exceeded"));
    assert_eq!(words(read), said(Code::Unavailable, "etcdserver: request timed out"));
    assert_eq!(words(ttl), said(Code::Unavailable, "etcdserver: no leader"));
    assert_eq!(words(renewal), said(Code::Unavailable, "etcdserver: no leader"));
    assert_eq!(fake.revision(), 1);
    // Not everything needs a leader.
    client.kv.range(range("k", true)).await?;
    assert_eq!(client.lease.lease_leases(LeaseLeasesRequest {}).await?.into_inner().leases.len(), 1);
    let nameless = client.kv.put(put("", "", 0)).await;
    assert_eq!(words(nameless), said(Code::InvalidArgument, "etcdserver: key is not provided"));
    assert_eq!(began.elapsed(), 7 * SECOND);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn who_asks_for_a_leader_is_told_at_once_and_on_streams_after_three_seconds() -> Result {
    let fake = FakeEtcd::start();
    let mut client = Client::of(&fake, "a");
    let (asks, asked) = mpsc::channel(16);
    let create = WatchCreateRequest { key: "k".into(), ..Default::default() };
    asks.send(ask(RequestUnion::CreateRequest(create))).await.map_err(|_| Status::internal("closed"))?;
    let mut strict = client.watch.watch(wants_leader(ReceiverStream::new(asked))).await?.into_inner();
    strict.message().await?;
    let (_asks, mut patient) = client.watch_all().await?;
    fake.leader_loss(10 * SECOND);
    let began = Instant::now();
    let refused = said(Code::Unavailable, "etcdserver: no leader");
    assert_eq!(words(client.kv.range(wants_leader(range("k", true))).await), refused);
    assert_eq!(words(client.kv.put(wants_leader(put("k", "", 0))).await), refused);
    let opening = client.watch.watch(wants_leader(tokio_stream::pending())).await;
    assert_eq!(words(opening), refused);
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert_eq!(words(strict.message().await), refused);
    assert_eq!(began.elapsed(), 3 * SECOND);
    tokio::time::sleep_until(began + 4 * SECOND).await;
    client.put("k", "").await?;
    assert_eq!(began.elapsed(), 10 * SECOND, "a write waits for the next leader");
    assert_eq!(events_until(&mut patient, 2).await?, [(2, 1)], "a stream that did not ask stays open");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn the_next_leader_sends_waiting_reads_away_and_starts_leases_over() -> Result {
    let fake = FakeEtcd::start();
    let mut client = Client::of(&fake, "a");
    client.grant(7, 10).await?;
    tokio::time::sleep(9 * SECOND).await;
    fake.leader_loss(5 * SECOND);
    let read = client.kv.range(range("k", false)).await;
    assert_eq!(words(read), said(Code::Unavailable, "etcdserver: leader changed"));
    let term = client.put("k", "").await?.header.map(|header| header.raft_term);
    assert_eq!(term, Some(3));
    let began = Instant::now();
    fake.until(|fake| fake.leases() == 0).await;
    assert_eq!(began.elapsed(), 11 * SECOND, "the whole TTL, and an election timeout");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_stopped_server_refuses_and_comes_back_with_its_data() -> Result {
    let fake = FakeEtcd::start();
    let mut client = Client::of(&fake, "a");
    client.grant(7, 10).await?;
    client.kv.put(put("k", "v", 7)).await?;
    let (_asks, mut watch) = client.watch_all().await?;
    fake.fault(On::rpc(Rpc::Put).once(), Do::delay(SECOND));
    let mut kv = client.kv.clone();
    let under_way = tokio::spawn(async move { kv.put(put("lost", "", 0)).await.map(drop) });
    tokio::task::yield_now().await;
    tokio::time::advance(Duration::from_millis(1)).await;
    fake.stop().await;
    assert_eq!(words(watch.message().await).0, Code::Unavailable);
    let refused = client.put("k", "").await.expect_err("nobody listens");
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(std::error::Error::source(&refused).is_some_and(|source| source.is::<tonic::ConnectError>()));
    tokio::time::sleep(60 * SECOND).await;
    assert!(under_way.await.is_ok_and(|outcome| outcome.is_err()));
    assert_eq!((fake.leases(), fake.watchers(), fake.revision()), (1, 0, 2));
    fake.restart().await.map_err(|error| Status::internal(error.to_string()))?;
    let began = Instant::now();
    let kept = client.kv.range(range("k", false)).await?.into_inner();
    assert_eq!(kept.kvs.first().map(|kv| (&*kv.value, kv.lease)), Some((&b"v"[..], 7)));
    fake.until(|fake| fake.leases() == 0).await;
    assert_eq!(began.elapsed(), 11 * SECOND);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_lock_service_of_ours_tells_a_refused_connection_from_a_lost_reply() {
    let fake = FakeEtcd::start();
    let client = fake.client();
    fake.stop().await;
    let error = client.txn(crate::txn::Txn::new()).await.expect_err("nobody listens");
    assert_eq!(error.outcome(), crate::error::Outcome::NotApplied, "{error}");
}
