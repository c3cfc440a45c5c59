use super::*;

#[tokio::test(start_paused = true)]
async fn a_transaction_is_one_revision_and_its_range_sees_its_put() -> Result {
    let fake = FakeEtcd::start();
    let mut client = Client::of(&fake, "a");
    let get = RangeRequest { key: "k".into(), ..Default::default() };
    let txn = TxnRequest {
        compare: vec![Compare {
            key: "k".into(),
            result: CompareResult::Equal.into(),
            target: CompareTarget::Create.into(),
            target_union: Some(TargetUnion::CreateRevision(0)),
            ..Default::default()
        }],
        success: vec![
            op(Request::RequestRange(get.clone())),
            op(Request::RequestPut(put("k", "1", 0))),
            op(Request::RequestPut(put("l", "2", 0))),
            op(Request::RequestRange(get)),
        ],
        failure: vec![],
    };
    let response = client.kv.txn(txn.clone()).await?.into_inner();
    assert!(response.succeeded);
    let header = response.header.unwrap_or_default();
    assert_eq!((header.revision, header.raft_term), (2, 2));
    let ranges: Vec<_> = response
        .responses
        .iter()
        .filter_map(|op| match &op.response {
            Some(Response::ResponseRange(range)) => Some(range),
            _ => None,
        })
        .map(|range| (range.header.unwrap_or_default().revision, range.kvs.len()))
        .collect();
    assert_eq!(ranges, [(1, 0), (2, 1)], "the header inside tells the revision that the range saw");
    assert!(!client.kv.txn(txn).await?.into_inner().succeeded);
    assert_eq!(fake.revision(), 2, "nothing written, no revision");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn nested_compares_see_the_state_before_the_outer_transaction() -> Result {
    let fake = FakeEtcd::start();
    let mut client = Client::of(&fake, "a");
    let exists = Compare {
        key: "k".into(),
        result: CompareResult::Greater.into(),
        target: CompareTarget::Version.into(),
        target_union: Some(TargetUnion::Version(0)),
        ..Default::default()
    };
    let inner = TxnRequest { compare: vec![exists], ..Default::default() };
    let outer = TxnRequest {
        success: vec![op(Request::RequestPut(put("k", "1", 0))), op(Request::RequestTxn(inner))],
        ..Default::default()
    };
    let response = client.kv.txn(outer).await?.into_inner();
    let Some(Response::ResponseTxn(inner)) = &response.responses[1].response else {
        panic!("the second answer is the nested transaction's")
    };
    assert!(!inner.succeeded);
    assert_eq!(inner.header, Some(ResponseHeader::default()));
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn refusals_have_the_servers_words() -> Result {
    let fake = FakeEtcd::builder().max_request_bytes(1000).start();
    let mut client = Client::of(&fake, "a");
    let mut refused = Vec::new();
    refused.push(client.kv.put(put("", "", 0)).await.map(drop));
    refused.push(client.kv.put(put("k", "", 77)).await.map(drop));
    refused.push(client.kv.put(put("k", &"v".repeat(1000), 0)).await.map(drop));
    let ignore = PutRequest { ignore_lease: true, ..put("missing", "v", 0) };
    refused.push(client.kv.put(ignore).await.map(drop));
    let future = RangeRequest { key: "k".into(), revision: 9, ..Default::default() };
    refused.push(client.kv.range(future).await.map(drop));
    let compaction = CompactionRequest { revision: 9, ..Default::default() };
    refused.push(client.kv.compact(compaction).await.map(drop));
    let said: Vec<_> = refused
        .into_iter()
        .map(|outcome| {
            outcome.map_or_else(|status| (status.code(), status.message().to_owned()), |()| panic!())
        })
        .collect();
    let future = "etcdserver: mvcc: required revision is a future revision";
    let expected = [
        (Code::InvalidArgument, "etcdserver: key is not provided"),
        (Code::NotFound, "etcdserver: requested lease not found"),
        (Code::InvalidArgument, "etcdserver: request is too large"),
        (Code::InvalidArgument, "etcdserver: key not found"),
        (Code::OutOfRange, future),
        (Code::OutOfRange, future),
    ];
    assert_eq!(said, expected.map(|(code, message)| (code, message.to_owned())));
    assert_eq!(fake.revision(), 1);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_reads_well() -> Result {
    let fake = FakeEtcd::start();
    let mut client = Client::of(&fake, "a");
    client.grant(0x2a, 10).await?;
    client.put("a", "1").await?;
    client.kv.put(put("b", "\n", 0x2a)).await?;
    fake.compact(2)?;
    let expected = "revision 3, compacted at 2\n\
        a = 1  (created 2, modified 2, version 1)\n\
        b = \\n  (created 3, modified 3, version 1, lease 2a)\n\
        lease 2a: 10s left of 10s, 1 key\n";
    assert_eq!(fake.snapshot().to_string(), expected);
    Ok(())
}
