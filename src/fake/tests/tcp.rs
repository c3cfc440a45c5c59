use super::*;

#[tokio::test]
async fn serves_over_tcp_until_dropped() -> Result {
    let fake = FakeEtcd::start();
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let serving = fake.serve_as("tcp", any).await.map_err(|error| Status::internal(error.to_string()))?;
    let channel = tonic::transport::Endpoint::from_shared(serving.endpoint())
        .map_err(|error| Status::internal(error.to_string()))?
        .connect_lazy();
    let mut kv = KvClient::new(channel.clone());
    kv.put(put("k", "v", 0)).await?;
    assert_eq!(fake.snapshot().value("k"), Some("v".as_bytes()));

    let (asks, asked) = mpsc::channel(1);
    let create = WatchCreateRequest { key: "k".into(), ..Default::default() };
    asks.send(ask(RequestUnion::CreateRequest(create))).await.map_err(|_| Status::internal("closed"))?;
    let mut said = WatchClient::new(channel.clone()).watch(ReceiverStream::new(asked)).await?.into_inner();
    assert!(said.message().await?.is_some_and(|response| response.created));

    serving.cut_connections();
    assert!(said.message().await.is_err());
    fake.until(|fake| fake.streams() == 0).await;
    let addr = serving.addr();
    drop(serving);
    // The port is free again as soon as the listener's task is gone.
    while tokio::net::TcpStream::connect(addr).await.is_ok() {
        tokio::task::yield_now().await;
    }
    assert!(kv.put(put("k", "v", 0)).await.is_err());
    Ok(())
}

#[tokio::test]
async fn a_stopped_server_closes_its_ports_and_opens_them_again() -> Result {
    let fake = FakeEtcd::start();
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let serving = fake.serve(any).await.map_err(|error| Status::internal(error.to_string()))?;
    let channel = tonic::transport::Endpoint::from_shared(serving.endpoint())
        .map_err(|error| Status::internal(error.to_string()))?
        .connect_lazy();
    let mut kv = KvClient::new(channel);
    kv.put(put("k", "v", 0)).await?;
    fake.stop().await;
    assert!(tokio::net::TcpStream::connect(serving.addr()).await.is_err());
    assert!(kv.put(put("k", "w", 0)).await.is_err());
    fake.restart().await.map_err(|error| Status::internal(error.to_string()))?;
    kv.put(put("k", "x", 0)).await?;
    assert_eq!(fake.snapshot().value("k"), Some("x".as_bytes()));
    Ok(())
}
