//! Memberships.

mod faults;
mod leaving;
mod schedules;

use std::time::Duration;

use bytes::Bytes;
use etcd_concurrency::{ErrorKind, LostReason, MemberChange, MemberChanges, Membership, Op, Session, Txn};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_stream::StreamExt;

use super::world::{keys, nothing_left};
use crate::drops::{MANY, at_most, take_time, tasks};
use crate::support::backend::on_every_backend;
use crate::support::count::RpcCounter;
use crate::support::poll::until;
use crate::support::queue::{LONG, quiet, revoke, session};

const S: fn(u64) -> Duration = Duration::from_secs;

fn group(session: &Session, name: &str) -> Membership {
    Membership::new(session, name).expect("a good name")
}

async fn next(changes: &mut MemberChanges) -> MemberChange {
    timeout(S(60), changes.next()).await.expect("something happened").expect("no error")
}

async fn told(changes: &mut MemberChanges) -> String {
    short(next(changes).await)
}

/// What happened, in short.
fn short(change: MemberChange) -> String {
    let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
    match change {
        MemberChange::Present(all) => {
            let all: Vec<_> = all.iter().map(|peer| text(&peer.metadata)).collect();
            format!("={}", all.join(","))
        }
        MemberChange::Joined(peer) => format!("+{}", text(&peer.metadata)),
        MemberChange::Updated(peer) => format!("~{}", text(&peer.metadata)),
        MemberChange::Left(peer) => format!("-{}", text(&peer.metadata)),
        other => panic!("{other:?}"),
    }
}

async fn said(group: &Membership) -> Vec<String> {
    let all = group.list().await.unwrap();
    all.iter().map(|peer| String::from_utf8(peer.metadata.to_vec()).unwrap()).collect()
}

on_every_backend! {
    /// join 1, update 1, list 1, leave 1; to follow 1 at the start and none per change.
    async fn what_each_step_costs(backend: Backend) {
        let (name, counter, watching) = (backend.key("group"), RpcCounter::new(), RpcCounter::new());
        let mine = session(&backend.client_with(counter.clone())).await;
        let other = session(&backend.client_with(watching.clone())).await;
        let (mine, other) = (group(&mine, &name), group(&other, &name));
        let mut changes = other.changes();
        watching.reset();
        assert_eq!(told(&mut changes).await, "=");
        assert_eq!((watching.unary_total(), watching.streams()), (1, 1), "{watching}");
        counter.reset();
        let member = mine.join("a").await.unwrap();
        assert_eq!(counter.unary_total(), 1, "{counter}");
        member.update("b").await.unwrap();
        assert_eq!(counter.unary_total(), 2, "{counter}");
        let seen = mine.list().await.unwrap().remove(0);
        assert_eq!(counter.unary_total(), 3, "{counter}");
        assert_eq!((&seen.key, seen.token, seen.lease), (member.key(), member.token(), mine.session().lease()));
        assert!(seen.metadata == "b" && seen.mod_revision > seen.token);
        member.leave().await.unwrap();
        assert_eq!(counter.unary_total(), 4, "{counter}");
        for change in ["+a", "~b", "-b"] {
            assert_eq!(told(&mut changes).await, change);
        }
        quiet(&watching).await;
        assert_eq!((watching.unary_total(), watching.streams()), (1, 1), "{watching}");
    }

    /// Two of one session are two; the oldest is the first; a name that begins the same is another group.
    async fn a_session_joins_as_often_as_it_likes(backend: Backend) {
        let (name, client) = (backend.key("group"), backend.client());
        let session = session(&client).await;
        let (one, two) = (group(&session, &name), group(&session, &format!("{name}2")));
        let first = one.join("1").await.unwrap();
        let second = one.join("2").await.unwrap();
        let other = two.join("3").await.unwrap();
        assert_eq!(said(&one).await, ["1", "2"]);
        assert_eq!(said(&two).await, ["3"]);
        assert_ne!(first.key(), second.key());
        let mut changes = one.changes();
        assert_eq!(told(&mut changes).await, "=1,2");
        first.leave().await.unwrap();
        assert_eq!(told(&mut changes).await, "-1");
        drop((second, other));
        assert_eq!(told(&mut changes).await, "-2");
        until("all to leave", LONG, async || (keys(&client, &name).await == 0).then_some(())).await;
        assert!(Membership::new(&session, "").is_err());
    }

    /// However a session ends, its members are gone, and know why.
    async fn a_lost_session_leaves_no_ghost(backend: Backend) {
        let (name, client) = (backend.key("group"), backend.client());
        let (a, b, watching) = (session(&client).await, session(&client).await, session(&client).await);
        let (one, two) = (group(&a, &name).join("a").await.unwrap(), group(&b, &name).join("b").await.unwrap());
        let mut changes = group(&watching, &name).changes();
        assert_eq!(told(&mut changes).await, "=a,b");
        a.close().await.unwrap();
        assert_eq!(told(&mut changes).await, "-a");
        assert_eq!(one.lost().await, LostReason::Closed);
        assert_eq!(one.leave().await.unwrap_err().lost_reason(), Some(LostReason::Closed));
        revoke(&client, b.lease()).await;
        assert_eq!(told(&mut changes).await, "-b");
        assert_eq!(two.lost().await, LostReason::Revoked);
        assert_eq!(two.update("x").await.unwrap_err().lost_reason(), Some(LostReason::Revoked));
        // One that somebody threw out, with a session that is as good as ever.
        let out = group(&watching, &name).join("c").await.unwrap();
        assert_eq!(told(&mut changes).await, "+c");
        client.txn(Txn::new().success(Op::delete(out.key().clone()))).await.unwrap();
        assert_eq!(told(&mut changes).await, "-c");
        let error = out.update("d").await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Fenced | ErrorKind::Lost(LostReason::KeyDeleted)), "{error}");
        assert_eq!(keys(&client, &name).await, 0, "an update puts no ghost");
        // Who follows is told of the session's end, and then the stream is over.
        watching.close().await.unwrap();
        let error = StreamExt::next(&mut changes).await.unwrap().unwrap_err();
        assert_eq!(error.lost_reason(), Some(LostReason::Closed));
        assert!(StreamExt::next(&mut changes).await.is_none());
    }

    /// A key that an application keeps below the group's name is no member.
    async fn keys_of_other_shapes_are_no_members(backend: Backend) {
        let (name, client) = (backend.key("group"), backend.client());
        let session = session(&client).await;
        let group = group(&session, &name);
        let op = |op: fn(String) -> Op, key| client.txn(Txn::new().success(op(format!("{name}/{key}"))));
        let put = |key| Op::put_with_lease(key, "x", 0);
        op(put, "config").await.unwrap();
        op(put, "1f").await.unwrap();
        let mut changes = group.changes();
        assert_eq!((told(&mut changes).await, group.list().await.unwrap().len()), ("=".to_owned(), 0));
        op(put, "config").await.unwrap();
        op(Op::delete, "1f").await.unwrap();
        let member = group.join("a").await.unwrap();
        assert_eq!((told(&mut changes).await, group.list().await.unwrap().len()), ("+a".to_owned(), 1));
        member.leave().await.unwrap();
        assert_eq!(told(&mut changes).await, "-a");
        op(Op::delete, "config").await.unwrap();
    }

    async fn sixty_four_join_and_all_see_the_same(backend: Backend) {
        let name = backend.key("group");
        let mut followers = JoinSet::new();
        let mut members = JoinSet::new();
        let mut sessions = Vec::new();
        for _ in 0..8 {
            let session = session(&backend.client()).await;
            let mut changes = group(&session, &name).changes();
            assert_eq!(told(&mut changes).await, "=");
            followers.spawn(async move {
                let mut all = Vec::new();
                for _ in 0..64 * 3 {
                    all.push(told(&mut changes).await);
                }
                all
            });
            sessions.push(session);
        }
        for (n, session) in sessions.iter().enumerate() {
            for m in 0..8 {
                let group = group(session, &name);
                members.spawn(async move {
                    let member = group.join(format!("{n}.{m}")).await.unwrap();
                    member.update(format!("{n}.{m}!")).await.unwrap();
                    member.leave().await.unwrap();
                });
            }
        }
        while let Some(done) = members.join_next().await {
            done.unwrap();
        }
        let all = followers.join_all().await;
        assert!(all.iter().all(|told| *told == all[0]));
        assert_eq!(keys(&backend.client(), &name).await, 0);
    }

    /// A member that stays: it is back after its key, or its session, is lost, and says what it was told to say.
    async fn one_that_remains_comes_back_by_itself(backend: Backend) {
        let (name, client) = (backend.key("group"), backend.client());
        let (first, watching) = (session(&client).await, session(&client).await);
        let mut changes = group(&watching, &name).changes();
        assert_eq!(told(&mut changes).await, "=");
        let resident = group(&first, &name).remain("1").await.unwrap();
        assert_eq!(told(&mut changes).await, "+1");
        resident.update("2");
        assert_eq!(told(&mut changes).await, "~2");
        let key = resident.fence().unwrap().key().clone();
        client.txn(Txn::new().success(Op::delete(key))).await.unwrap();
        assert_eq!(told(&mut changes).await, "-2");
        assert_eq!(told(&mut changes).await, "+2");
        let mut lease = first.lease();
        for round in 3..5 {
            revoke(&client, lease).await;
            resident.update(format!("{round}"));
            assert!(told(&mut changes).await.starts_with('-'));
            let MemberChange::Joined(peer) = next(&mut changes).await else { panic!("it is not back") };
            assert_ne!(peer.lease, lease);
            lease = peer.lease;
            if peer.metadata != format!("{round}") {
                assert_eq!(told(&mut changes).await, format!("~{round}"));
            }
        }
        until("the fence of now", LONG, async || {
            resident.fence().is_some_and(|fence| fence.key().starts_with(format!("{name}/m-{lease:x}-").as_bytes())).then_some(())
        }).await;
        resident.leave().await.unwrap();
        assert_eq!(told(&mut changes).await, "-4");
        assert_eq!(keys(&client, &name).await, 0);
    }

    async fn one_that_remains_ends_with_its_session_or_when_dropped(backend: Backend) {
        let (name, client) = (backend.key("group"), backend.client());
        let a = session(&client).await;
        let resident = group(&a, &name).remain("a").await.unwrap();
        a.close().await.unwrap();
        assert_eq!(resident.ended().await.lost_reason(), Some(LostReason::Closed));
        assert_eq!(resident.leave().await.unwrap_err().lost_reason(), Some(LostReason::Closed));
        let b = session(&client).await;
        drop(group(&b, &name).remain("b").await.unwrap());
        until("it to leave", LONG, async || (keys(&client, &name).await == 0).then_some(())).await;
        assert!(b.is_valid());
    }

    async fn dropped_at_every_point(backend: Backend) {
        take_time(&backend);
        let (name, observer) = (backend.key("group"), backend.client());
        let session = session(&backend.client()).await;
        let group = group(&session, &name);
        let _ = group.changes().next().await.unwrap();
        let mut usual = 0;
        let mut done = [false; 5];
        for polls in 0..MANY {
            if let Some(joined) = at_most(polls, group.join("a")).await {
                done[0] = true;
                let member = joined.unwrap();
                done[1] |= at_most(polls, member.update("b")).await.is_some();
                member.update("c").await.unwrap();
                assert_eq!(said(&group).await.last().unwrap(), "c", "the last update is the last");
                done[2] |= at_most(polls, member.leave()).await.is_some();
            }
            if let Some(resident) = at_most(polls, group.remain("a")).await {
                done[3] |= at_most(polls, resident.unwrap().leave()).await.is_some();
            }
            let mut changes = group.changes();
            done[4] |= at_most(polls, changes.next()).await.is_some();
            drop(changes);
            if backend.is_fake() && usual == 0 {
                until("quiet", LONG, async || (backend.watchers() == Some(0)).then_some(())).await;
                usual = tasks();
            }
            nothing_left(&backend, &observer, &name, usual).await;
            if done == [true; 5] {
                return session.close().await.unwrap();
            }
        }
        panic!("never done: {done:?}");
    }
}
