use super::*;
use crate::fake::fault::broken;

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn a_lost_reply_was_applied() -> Result {
    let fake = FakeEtcd::start();
    let (mut a, mut b) = (Client::of(&fake, "a"), Client::of(&fake, "b"));
    let fault = fake.fault(On::rpc(Rpc::Put).client("a").nth(2), Do::lose_reply());
    a.put("1", "").await?;
    b.put("2", "").await?;
    let lost = a.put("3", "").await.map(drop).map_err(|status| status.code());
    assert_eq!(lost, Err(Code::Unavailable));
    assert_eq!((fault.hits(), fake.revision()), (1, 4));
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_failed_or_vanished_call_was_not() -> Result {
    let fake = FakeEtcd::start();
    let mut client = Client::of(&fake, "a");
    fake.fault(On::rpc(Rpc::Put).once(), Do::fail(Status::unavailable("etcdserver: leader changed")));
    let failed = client.put("k", "").await.map(drop).map_err(|status| status.message().to_owned());
    assert_eq!(failed, Err("etcdserver: leader changed".to_owned()));
    fake.fault(On::rpc(Rpc::Put).once(), Do::vanish());
    assert!(tokio::time::timeout(60 * SECOND, client.put("k", "")).await.is_err());
    assert_eq!(fake.revision(), 1);
    client.put("k", "").await?;
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_hanging_reply_ends_with_the_connection() -> Result {
    let fake = FakeEtcd::start();
    let mut client = Client::of(&fake, "a");
    fake.fault(On::rpc(Rpc::Put), Do::lose_reply_by(LoseReply::Hang));
    let call = tokio::spawn(async move { client.put("k", "").await.map(drop) });
    fake.until(|fake| fake.revision() == 2).await;
    tokio::time::sleep(3600 * SECOND).await;
    assert!(!call.is_finished());
    fake.cut("a");
    let outcome = call.await.map_err(|_| Status::internal("panicked"))?;
    assert_eq!(outcome.map_err(|status| status.code()), Err(broken().code()));
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_delayed_call_arrives_even_if_its_caller_has_gone() -> Result {
    let fake = FakeEtcd::start();
    let mut client = Client::of(&fake, "a");
    fake.fault(On::rpc(Rpc::Put).once(), Do::delay(10 * SECOND));
    assert!(tokio::time::timeout(SECOND, client.put("k", "")).await.is_err());
    assert_eq!(fake.revision(), 1);
    fake.until(|fake| fake.revision() == 2).await;
    fake.fault(On::rpc(Rpc::Put).once(), Do::delay_reply(10 * SECOND));
    let began = tokio::time::Instant::now();
    client.put("k", "").await?;
    assert_eq!(began.elapsed(), 10 * SECOND);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn cut_streams_end_with_an_error_and_can_be_opened_again() -> Result {
    let fake = FakeEtcd::start();
    let (mut a, mut b) = (Client::of(&fake, "a"), Client::of(&fake, "b"));
    let (_asks, mut said) = a.watch_all().await?;
    let (_others_asks, mut others) = b.watch_all().await?;
    fake.cut_streams("a");
    assert_eq!(said.message().await.map_err(|status| status.code()), Err(Code::Unavailable));
    a.put("k", "").await?;
    assert_eq!(events_until(&mut others, 2).await?, [(2, 1)]);
    drop(said);
    a.watch_all().await?;
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn stalled_streams_say_and_hear_nothing() -> Result {
    let fake = FakeEtcd::start();
    let mut client = Client::of(&fake, "a");
    client.grant(7, 5).await?;
    let (asks, mut said) = client.keep_alive(7).await?;
    fake.stall_streams("a");
    let keep = async {
        loop {
            tokio::time::sleep(SECOND).await;
            if asks.send(LeaseKeepAliveRequest { id: 7 }).await.is_err() {
                return;
            }
        }
    };
    let began = tokio::time::Instant::now();
    tokio::select! {
        () = keep => panic!("half-open streams take what is said"),
        answer = said.message() => panic!("half-open streams are silent: {answer:?}"),
        () = fake.until(|fake| fake.leases() == 0) => {}
    }
    assert_eq!(began.elapsed(), 5 * SECOND);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn what_happens_in_a_partition_arrives_when_it_heals() -> Result {
    let fake = FakeEtcd::start();
    let (mut a, mut b) = (Client::of(&fake, "a"), Client::of(&fake, "b"));
    let (_asks, mut said) = a.watch_all().await?;
    fake.partition("a");
    let call = tokio::spawn(async move { a.put("a", "").await.map(drop) });
    b.put("b", "").await?;
    assert!(tokio::time::timeout(60 * SECOND, said.message()).await.is_err());
    assert!(!call.is_finished());
    fake.heal("a");
    assert_eq!(events_until(&mut said, 3).await?, [(2, 1), (3, 1)]);
    call.await.map_err(|_| Status::internal("panicked"))?
}

#[tokio::test(start_paused = true)]
async fn a_cut_ends_what_waits_in_a_partition() -> Result {
    let fake = FakeEtcd::start();
    let mut client = Client::of(&fake, "a");
    fake.partition("a");
    let call = tokio::spawn(async move { client.put("a", "").await.map(drop) });
    tokio::task::yield_now().await;
    fake.cut("a");
    let outcome = call.await.map_err(|_| Status::internal("panicked"))?;
    assert_eq!(outcome.map_err(|status| status.code()), Err(Code::Unavailable));
    assert_eq!(fake.revision(), 1);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn messages_on_streams_are_late_lost_or_the_last() -> Result {
    let fake = FakeEtcd::start();
    let mut client = Client::of(&fake, "a");
    client.grant(7, 60).await?;
    let (asks, mut said) = client.keep_alive(7).await?;
    let mut renew = async || -> Result<Duration> {
        let began = tokio::time::Instant::now();
        asks.send(LeaseKeepAliveRequest { id: 7 }).await.map_err(|_| Status::internal("closed"))?;
        let answer = tokio::time::timeout(30 * SECOND, said.message()).await;
        answer.map_err(|_| Status::deadline_exceeded("silence"))??;
        Ok(began.elapsed())
    };
    fake.fault(On::rpc(Rpc::LeaseKeepAlive).once(), Do::delay(2 * SECOND));
    fake.fault(On::response(Rpc::LeaseKeepAlive).once(), Do::delay(3 * SECOND));
    assert_eq!(renew().await?, 5 * SECOND);
    for on in [On::rpc(Rpc::LeaseKeepAlive), On::response(Rpc::LeaseKeepAlive)] {
        fake.fault(on.once(), Do::vanish());
        assert_eq!(renew().await.map_err(|status| status.code()), Err(Code::DeadlineExceeded));
        assert_eq!(renew().await?, Duration::ZERO);
    }
    let fault = fake.fault(On::rpc(Rpc::LeaseKeepAlive), Do::lose_reply());
    assert_eq!(renew().await.map_err(|status| status.code()), Err(Code::Unavailable));
    assert_eq!(fault.hits(), 1);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn late_watch_responses_keep_their_order_and_their_pace() -> Result {
    let fake = FakeEtcd::start();
    let mut client = Client::of(&fake, "a");
    let (_asks, mut said) = client.watch_all().await?;
    fake.fault(On::response(Rpc::Watch), Do::delay(SECOND));
    let began = tokio::time::Instant::now();
    let writes = async {
        for _ in 0..3 {
            client.put("k", "").await?;
        }
        Ok::<_, Status>(())
    };
    let (wrote, seen) = tokio::join!(writes, events_until(&mut said, 4));
    wrote?;
    assert_eq!(seen?, [(2, 1), (3, 1), (4, 1)]);
    assert_eq!(began.elapsed(), SECOND, "all three are under way at once");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn opening_a_stream_can_fail() -> Result {
    let fake = FakeEtcd::start();
    let mut client = Client::of(&fake, "a");
    fake.fault(On::open(Rpc::Watch).once(), Do::fail(Status::unavailable("etcdserver: no leader")));
    let refused = client.watch_all().await.map(drop).map_err(|status| status.message().to_owned());
    assert_eq!(refused, Err("etcdserver: no leader".to_owned()));
    client.watch_all().await?;
    Ok(())
}
