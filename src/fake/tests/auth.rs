use super::*;
use crate::pb::authpb::{Permission, permission::Type};
use crate::pb::etcdserverpb::auth_client::AuthClient;

type Auth = AuthClient<Service>;

fn user(name: &str) -> AuthUserAddRequest {
    AuthUserAddRequest { name: name.into(), password: format!("{name}'s"), ..Default::default() }
}

/// Users `root` and `app`, who may do what it likes under `app/`.
async fn enable(fake: &FakeEtcd) -> Result<Auth> {
    let mut auth = AuthClient::new(fake.service());
    for name in ["root", "app"] {
        auth.user_add(user(name)).await?;
        auth.role_add(AuthRoleAddRequest { name: name.into() }).await?;
        auth.user_grant_role(AuthUserGrantRoleRequest { user: name.into(), role: name.into() }).await?;
    }
    let perm = Permission { perm_type: Type::Readwrite.into(), key: "app/".into(), range_end: "app0".into() };
    let grant = AuthRoleGrantPermissionRequest { name: "app".into(), perm: Some(perm) };
    auth.role_grant_permission(grant).await?;
    auth.auth_enable(AuthEnableRequest {}).await?;
    Ok(auth)
}

async fn token(auth: &mut Auth, name: &str) -> Result<String> {
    let request = AuthenticateRequest { name: name.into(), password: format!("{name}'s") };
    Ok(auth.authenticate(request).await?.into_inner().token)
}

fn with<M>(token: &str, message: M) -> tonic::Request<M> {
    let mut request = tonic::Request::new(message);
    request.metadata_mut().insert("token", token.parse().expect("letters and digits"));
    request
}

fn refusal<T>(answer: Result<T>) -> Option<String> {
    answer.err().map(|status| status.message().trim_start_matches("etcdserver: ").to_owned())
}

#[tokio::test(start_paused = true)]
async fn each_may_do_what_its_roles_allow() -> Result {
    let fake = FakeEtcd::start();
    let mut auth = enable(&fake).await?;
    let app = token(&mut auth, "app").await?;
    let mut client = Client::of(&fake, "a");
    client.kv.put(with(&app, put("app/k", "", 0))).await?;
    assert_eq!(
        refusal(client.kv.put(with(&app, put("other", "", 0))).await),
        Some("permission denied".into())
    );
    assert_eq!(refusal(client.kv.put(put("app/k", "", 0)).await), Some("user name is empty".into()));
    assert_eq!(
        refusal(client.kv.put(with("x.1", put("app/k", "", 0))).await),
        Some("invalid auth token".into())
    );
    let delete = DeleteRangeRequest { key: "other".into(), ..Default::default() };
    let nested = TxnRequest { failure: vec![op(Request::RequestDeleteRange(delete))], ..Default::default() };
    let txn = TxnRequest { failure: vec![op(Request::RequestTxn(nested))], ..Default::default() };
    let refused = client.kv.txn(with(&app, txn)).await;
    assert_eq!(refusal(refused), Some("permission denied".into()), "also in branches that are not taken");
    assert_eq!(
        refusal(auth.user_list(with(&app, AuthUserListRequest {})).await),
        Some("permission denied".into())
    );
    let own = auth.user_get(with(&app, AuthUserGetRequest { name: "app".into() })).await?.into_inner();
    assert_eq!(own.roles, ["app"]);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn leases_are_renewed_by_those_who_may_write_all_their_keys() -> Result {
    let fake = FakeEtcd::start();
    let mut auth = enable(&fake).await?;
    let (app, root) = (token(&mut auth, "app").await?, token(&mut auth, "root").await?);
    let mut client = Client::of(&fake, "a");
    let grant = LeaseGrantRequest { id: 7, ttl: 60 };
    assert_eq!(refusal(client.lease.lease_grant(grant).await), Some("user name is empty".into()));
    client.lease.lease_grant(with(&app, grant)).await?;
    let renew = async |client: &mut Client, token: &str| -> Result<i64> {
        let asks = with(token, tokio_stream::once(LeaseKeepAliveRequest { id: 7 }));
        let mut said = client.lease.lease_keep_alive(asks).await?.into_inner();
        Ok(said.message().await?.unwrap_or_default().ttl)
    };
    assert_eq!(renew(&mut client, &app).await?, 60);
    client.kv.put(with(&root, put("other", "", 7))).await?;
    assert_eq!(refusal(renew(&mut client, &app).await), Some("permission denied".into()));
    // What was asked before is answered before.
    let asks = [8, 7].map(|id| LeaseKeepAliveRequest { id });
    let mut said = client.lease.lease_keep_alive(with(&app, tokio_stream::iter(asks))).await?.into_inner();
    assert_eq!(said.message().await?.map(|answer| (answer.id, answer.ttl)), Some((8, 0)));
    assert_eq!(refusal(said.message().await), Some("permission denied".into()));
    let revoked = client.lease.lease_revoke(with(&app, LeaseRevokeRequest { id: 7 })).await;
    assert_eq!(refusal(revoked), Some("permission denied".into()));
    let attached = client.kv.put(with(&app, put("app/k", "", 7))).await;
    assert_eq!(refusal(attached), Some("permission denied".into()));
    assert_eq!(renew(&mut client, &root).await?, 60);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn watching_needs_permission_when_it_begins() -> Result {
    let fake = FakeEtcd::start();
    let mut auth = enable(&fake).await?;
    let app = token(&mut auth, "app").await?;
    let mut client = Client::of(&fake, "a");
    let create = |key: &str| {
        let key = key.to_owned().into();
        ask(RequestUnion::CreateRequest(WatchCreateRequest { key, ..Default::default() }))
    };
    let asks = with(&app, tokio_stream::iter([create("app/k"), create("other")]));
    let mut said = client.watch.watch(asks).await?.into_inner();
    assert!(said.message().await?.is_some_and(|response| response.created && !response.canceled));
    let refused = said.message().await?.unwrap_or_default();
    let reason = "rpc error: code = PermissionDenied desc = etcdserver: permission denied";
    assert_eq!((refused.watch_id, refused.canceled, refused.cancel_reason.as_str()), (-1, true, reason));
    // Who watches goes on watching without a token.
    fake.expire_tokens();
    assert_eq!(
        refusal(client.kv.put(with(&app, put("app/k", "", 0))).await),
        Some("invalid auth token".into())
    );
    let app = token(&mut auth, "app").await?;
    client.kv.put(with(&app, put("app/k", "", 0))).await?;
    assert_eq!(said.message().await?.unwrap_or_default().events.len(), 1);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn tokens_end_unused_with_the_server_and_by_hand() -> Result {
    let fake = FakeEtcd::builder().token_ttl(Duration::from_secs(10)).start();
    let mut auth = enable(&fake).await?;
    let app = token(&mut auth, "app").await?;
    let mut client = Client::of(&fake, "a");
    let mut read = async |token: &str| {
        let request = RangeRequest { key: "app/k".into(), ..Default::default() };
        client.kv.range(with(token, request)).await.map(drop)
    };
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_secs(9)).await;
        read(&app).await?;
    }
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(refusal(read(&app).await), Some("invalid auth token".into()));
    let app = token(&mut auth, "app").await?;
    fake.stop().await;
    fake.restart().await.map_err(|error| Status::internal(error.to_string()))?;
    assert_eq!(refusal(read(&app).await), Some("invalid auth token".into()));
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn web_tokens_are_old_after_any_change() -> Result {
    let fake = FakeEtcd::builder().jwt_tokens().start();
    let mut auth = enable(&fake).await?;
    let (app, root) = (token(&mut auth, "app").await?, token(&mut auth, "root").await?);
    let mut client = Client::of(&fake, "a");
    client.kv.put(with(&app, put("app/k", "", 0))).await?;
    auth.role_add(with(&root, AuthRoleAddRequest { name: "new".into() })).await?;
    let refused = client.kv.put(with(&app, put("app/k", "", 0))).await;
    assert_eq!(refusal(refused), Some("revision of auth store is old".into()));
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn our_client_renews_its_token() -> Result {
    let fake = FakeEtcd::start();
    enable(&fake).await?;
    let client = crate::client::Client::builder()
        .service(fake.service_for("ours"))
        .user("app", "app's")
        .connect_lazy();
    let client = client.map_err(|error| Status::internal(error.to_string()))?;
    let write = || crate::txn::Txn::new().success(crate::txn::Op::put("app/k", "v"));
    for _ in 0..2 {
        let reply = client.txn(write()).await.map_err(|error| Status::internal(error.to_string()))?;
        assert!(reply.succeeded);
        fake.expire_tokens();
    }
    assert_eq!(fake.history().calls(Rpc::Authenticate).count(), 2);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn good_tokens_are_refused_several_times_in_a_row() -> Result {
    let fake = FakeEtcd::start();
    let mut auth = enable(&fake).await?;
    let mut client = Client::of(&fake, "a");
    let refusals = [
        (FakeEtcd::refuse_tokens as fn(&FakeEtcd, u64), "invalid auth token"),
        (FakeEtcd::outdate_tokens, "revision of auth store is old"),
    ];
    for (refuse, words) in refusals {
        refuse(&fake, 3);
        for _ in 0..3 {
            let app = token(&mut auth, "app").await?;
            let refused = client.kv.put(with(&app, put("app/k", "", 0))).await;
            assert_eq!(refusal(refused), Some(words.into()));
        }
        let app = token(&mut auth, "app").await?;
        client.kv.put(with(&app, put("app/k", "", 0))).await?;
    }
    Ok(())
}
