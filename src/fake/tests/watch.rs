use super::*;

#[tokio::test(start_paused = true)]
async fn watchers_are_gone_when_their_stream_is_dropped() -> Result {
    let fake = FakeEtcd::start();
    let mut client = Client::of(&fake, "a");
    let (asks, said) = client.watch_all().await?;
    let create = WatchCreateRequest { key: "k".into(), ..Default::default() };
    asks.send(ask(RequestUnion::CreateRequest(create))).await.map_err(|_| Status::internal("closed"))?;
    fake.until(|fake| fake.watchers() == 2).await;
    assert_eq!(fake.streams(), 1);
    drop(said);
    assert_eq!((fake.watchers(), fake.streams()), (0, 0));
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_client_with_no_more_to_ask_still_gets_its_events() -> Result {
    let fake = FakeEtcd::start();
    let mut client = Client::of(&fake, "a");
    let (asks, mut said) = client.watch_all().await?;
    drop(asks);
    client.put("k", "v").await?;
    assert_eq!(events_until(&mut said, 2).await?, [(2, 1)]);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn headers_come_with_the_first_message_only() -> Result {
    let fake = FakeEtcd::start();
    let mut client = Client::of(&fake, "a");
    let (asks, asked) = mpsc::channel::<WatchRequest>(1);
    let opening = client.watch.watch(ReceiverStream::new(asked));
    let outcome = tokio::time::timeout(Duration::from_secs(60), opening).await.map(drop);
    assert!(outcome.is_err(), "nothing was asked, so nothing is answered");
    drop(asks);
    assert_eq!(fake.streams(), 0);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn progress_comes_by_the_clock() -> Result {
    let fake = FakeEtcd::builder().progress_interval(Duration::from_secs(60)).start();
    let mut client = Client::of(&fake, "a");
    let (asks, mut said) = client.watch_all().await?;
    let create = WatchCreateRequest { key: "k".into(), progress_notify: true, ..Default::default() };
    asks.send(ask(RequestUnion::CreateRequest(create))).await.map_err(|_| Status::internal("closed"))?;
    assert!(said.message().await?.is_some_and(|response| response.created));
    let began = tokio::time::Instant::now();
    for minute in 1..=3 {
        let response = said.message().await?.unwrap_or_default();
        assert_eq!((response.watch_id, response.events.len()), (1, 0));
        assert_eq!(began.elapsed().as_secs(), minute * 60);
    }
    Ok(())
}
