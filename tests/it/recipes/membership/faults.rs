//! What goes wrong with members and those who follow them, one thing at a time.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use etcd_concurrency::fake::{Do, FakeEtcd, Fault, LoseReply, On, Rpc};
use etcd_concurrency::pb::etcdserverpb::{RangeRequest, RangeResponse};
use etcd_concurrency::{Election, ErrorKind, Member, MemberChange, Membership, Op, Outcome, Session, Txn};
use tokio::time::{sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::{S, group, said, short, told};
use crate::support::lies;
use crate::support::queue::session;
use crate::support::requests::{puts, released_unseen};

#[tokio::test(start_paused = true)]
async fn a_lost_reply_joins_and_says_once() {
    let fake = FakeEtcd::start();
    let session = session(&fake.client()).await;
    let group = group(&session, "group");
    for lost in [LoseReply::Error, LoseReply::Hang] {
        let lose = || fake.fault(On::rpc(Rpc::Txn).once(), Do::lose_reply_by(lost.clone()));
        lose();
        let member = group.join("a").await.unwrap();
        assert_eq!(group.list().await.unwrap().len(), 1);
        let before = fake.revision();
        lose();
        member.update("b").await.unwrap();
        assert_eq!(fake.revision(), before + 1);
        member.update("c").await.unwrap();
        lose();
        released_unseen(member.leave().await);
        assert!(fake.snapshot().keys.is_empty());
    }
    assert!(session.is_valid());
}

/// Requests that come long after everybody gave them up: a join leaves no ghost, an update covers no newer one.
#[tokio::test(start_paused = true)]
async fn what_comes_late_does_no_harm() {
    let fake = FakeEtcd::start();
    let session = session(&fake.client()).await;
    let group = group(&session, "group");
    let late = || fake.fault(On::rpc(Rpc::Txn).once(), Do::delay(S(9)));
    late();
    let member = group.join("a").await.unwrap();
    member.leave().await.unwrap();
    let before = fake.revision();
    fake.until(|fake| fake.revision() > before).await;
    timeout(S(20), fake.until(|fake| fake.snapshot().keys.is_empty())).await.expect("the ghost is found");
    let member = group.join("a").await.unwrap();
    late();
    timeout(S(1), member.update("old")).await.expect_err("it takes nine seconds");
    member.update("new").await.unwrap();
    sleep(S(20)).await;
    assert_eq!(said(&group).await, ["new"]);
    // And where nothing is known until the end: an error, and no ghost.
    let lost = fake.fault(On::rpc(Rpc::Txn), Do::lose_reply());
    group.join("b").await.unwrap_err();
    lost.remove();
    timeout(S(20), fake.until(|fake| fake.snapshot().keys.len() == 1)).await.unwrap();
    drop(member);
    fake.until(|fake| fake.snapshot().keys.is_empty()).await;
}

/// The stream breaks, members come, go and change, and all of that is compacted before the follower is back: it is told
/// the difference.
#[test]
fn a_follower_survives_cuts_and_compaction() {
    crate::support::backend::on_fake(module_path!(), async |backend| {
        let fake = backend.fake().unwrap();
        let (session, watching) = (session(&fake.client()).await, session(&fake.client_for("w")).await);
        let (group, mut changes) = (group(&session, "group"), group(&watching, "group").changes());
        assert_eq!(told(&mut changes).await, "=");
        let (stays, goes) = (group.join("stays").await.unwrap(), group.join("goes").await.unwrap());
        assert_eq!((told(&mut changes).await, told(&mut changes).await), ("+stays".into(), "+goes".into()));
        for stall in [false, true] {
            if stall {
                fake.stall_streams("w");
            } else {
                fake.cut_streams("w");
            }
            stays.update(format!("{stall}")).await.unwrap();
            assert_eq!(told(&mut changes).await, format!("~{stall}"));
        }
        assert_eq!(changes.gaps(), 0);
        let away = fake.fault(On::open(Rpc::Watch).client("w"), Do::cut());
        fake.cut_streams("w");
        goes.leave().await.unwrap();
        group.join("unseen").await.unwrap().leave().await.unwrap();
        stays.update("1").await.unwrap();
        stays.update("2").await.unwrap();
        let new = group.join("new").await.unwrap();
        client_noise(fake).await;
        fake.compact(fake.revision()).unwrap();
        away.remove();
        for change in ["-goes", "~2", "+new"] {
            assert_eq!((told(&mut changes).await, changes.gaps()), (change.to_owned(), 1));
        }
        new.leave().await.unwrap();
        assert_eq!((told(&mut changes).await, changes.gaps()), ("-new".to_owned(), 1));
        // An event that an old server lost is missed by count.
        fake.fault(On::response(Rpc::Watch).client("w").once(), Do::vanish());
        stays.leave().await.unwrap();
        let late = timeout(S(130), changes.next()).await.unwrap().unwrap();
        assert!(matches!(late, MemberChange::Left(peer) if peer.metadata == "2"));
        drop(changes);
        fake.until(|fake| fake.watchers() == 0).await;
    });
}

/// A follower's stream broke and could not be opened again, while its reads were answered. A member changed what it says,
/// and the count of members, which the follower looks at now and then, stayed the same: it was told nothing for an hour.
#[tokio::test(start_paused = true)]
async fn a_follower_whose_stream_cannot_be_opened_reads() {
    let fake = FakeEtcd::start();
    let (session, watching) = (session(&fake.client()).await, session(&fake.client_for("w")).await);
    let (group, mut changes) = (group(&session, "group"), group(&watching, "group").changes());
    assert_eq!(told(&mut changes).await, "=");
    let member = group.join("0").await.unwrap();
    assert_eq!(told(&mut changes).await, "+0");
    let away = fake.fault(On::open(Rpc::Watch).client("w"), Do::cut());
    fake.cut_streams("w");
    for n in 1..=3 {
        member.update(format!("{n}")).await.unwrap();
        let change =
            timeout(S(130), changes.next()).await.expect("it looks once in one or two minutes").unwrap();
        assert_eq!((short(change), changes.gaps()), (format!("~{n}"), n));
    }
    away.remove();
    member.update("4").await.unwrap();
    assert_eq!((told(&mut changes).await, changes.gaps()), ("~4".to_owned(), 3));
}

async fn client_noise(fake: &FakeEtcd) {
    fake.client().txn(Txn::new().success(Op::put("noise", "1"))).await.unwrap();
}

/// Cut off, it is gone when its lease is; healed, it is here again.
#[tokio::test(start_paused = true)]
async fn one_that_remains_outlives_an_outage() {
    let fake = FakeEtcd::start();
    let session = Session::builder(&fake.client_for("a")).ttl(S(10)).open().await.unwrap();
    let resident = group(&session, "group").remain("a").await.unwrap();
    fake.partition("a");
    fake.until(|fake| fake.snapshot().keys.is_empty()).await;
    assert!(resident.fence().is_none() && !session.is_valid());
    resident.update("b");
    sleep(S(100)).await;
    fake.heal("a");
    timeout(S(10), fake.until(|fake| fake.snapshot().keys.iter().any(|kv| kv.value == "b"))).await.unwrap();
    // No permission: it ends, and says so.
    let refused = tonic::Status::permission_denied("etcdserver: permission denied");
    let fault = fake.fault(On::rpc(Rpc::Txn), Do::fail(refused));
    resident.update("c");
    assert_eq!(*resident.ended().await.kind(), ErrorKind::PermissionDenied);
    fault.remove();
    drop((resident, session));
    fake.until(|fake| fake.leases() == 0 && fake.snapshot().keys.is_empty()).await;
}

/// A follower whose stream was down while the members were counted: what happened before the count and after it, it is told
/// in one answer.
struct Counted {
    fake: FakeEtcd,
    group: Membership,
    down: Fault,
    /// What it was told, and its gaps.
    told: Arc<Mutex<(Vec<String>, u64)>>,
    _follows: AbortOnDropHandle<()>,
}

impl Counted {
    /// With a and b in the group. Where it is lost, the follower was not told that a left.
    async fn start(lost: bool) -> (Self, Vec<Member>) {
        let fake = FakeEtcd::start();
        let (session, watching) = (session(&fake.client()).await, session(&fake.client_for("w")).await);
        let (group, mut changes) = (group(&session, "group"), group(&watching, "group").changes());
        assert_eq!(told(&mut changes).await, "=");
        let mut members = Vec::new();
        for name in ["a", "b"] {
            members.push(group.join(name).await.unwrap());
            assert_eq!(told(&mut changes).await, format!("+{name}"));
        }
        if lost {
            let lost = fake.fault(On::response(Rpc::Watch).client("w").once(), Do::vanish());
            members.remove(0).leave().await.unwrap();
            fake.until(|_| lost.hits() == 1).await;
            // Told of this, it will not ask for what was before.
            members[0].update("b!").await.unwrap();
            assert_eq!(told(&mut changes).await, "~b!");
        }
        let down = fake.fault(On::open(Rpc::Watch).client("w"), Do::cut());
        fake.cut_streams("w");
        let all = Arc::new(Mutex::new((Vec::new(), 0)));
        let follows = tokio::spawn({
            let all = all.clone();
            async move {
                loop {
                    let change = short(changes.next().await.unwrap());
                    let mut all = all.lock().unwrap();
                    all.0.push(change);
                    all.1 = changes.gaps();
                }
            }
        });
        let follows = AbortOnDropHandle::new(follows);
        (Self { fake, group, down, told: all, _follows: follows }, members)
    }

    /// Waits until it has counted.
    async fn counts(&self) {
        let is_count = |range: &RangeRequest| range.count_only;
        let counted = self.fake.fault(On::rpc(Rpc::Range).client("w").matching(is_count), Do::delay(S(0)));
        self.fake.until(|_| counted.hits() == 1).await;
        sleep(Duration::from_millis(100)).await;
    }

    /// Its stream is back: what it is told until a while after another one joined.
    async fn told(self) -> (Vec<String>, u64) {
        self.down.remove();
        sleep(S(3)).await;
        let _last = self.group.join("last").await.unwrap();
        sleep(S(20)).await;
        self.told.lock().unwrap().clone()
    }
}

/// The members were counted while the follower's stream was down. What came after the count was told in one answer with
/// what came before it, and then compared with the count: a gap was told of where nothing was lost.
#[tokio::test(start_paused = true)]
async fn what_goes_past_a_count_is_not_held_against_it() {
    let (follower, mut members) = Counted::start(false).await;
    members.push(follower.group.join("c").await.unwrap());
    follower.counts().await;
    members.remove(0).leave().await.unwrap();
    let (told, gaps) = follower.told().await;
    assert_eq!((told, gaps), (["+c", "-a", "+last"].map(String::from).to_vec(), 0));
}

/// The departure of one was lost. What came after the count made up for it in number, so that it was taken for told; and
/// so did what was late at the count: it was found at the next count, a minute or two later.
#[tokio::test(start_paused = true)]
async fn what_goes_past_a_count_does_not_hide_what_was_lost() {
    let (follower, mut members) = Counted::start(true).await;
    members.push(follower.group.join("c").await.unwrap());
    members.push(follower.group.join("d").await.unwrap());
    follower.counts().await;
    members.remove(0).leave().await.unwrap();
    let (told, gaps) = follower.told().await;
    assert_eq!((told, gaps), (["+c", "+d", "-a", "-b!", "+last"].map(String::from).to_vec(), 1));

    let (follower, mut members) = Counted::start(true).await;
    members.push(follower.group.join("c").await.unwrap());
    follower.counts().await;
    let (told, gaps) = follower.told().await;
    assert_eq!((told, gaps), (["+c", "-a", "+last"].map(String::from).to_vec(), 1));
}

/// A member that stayed for good gave up the watch of its key and began another at each thing that it said: two requests and
/// an answer on the stream, for each of a thousand members.
#[tokio::test(start_paused = true)]
async fn one_who_stays_watches_its_key_once_whatever_it_says() {
    let fake = FakeEtcd::start();
    let session = session(&fake.client()).await;
    let group = group(&session, "group");
    let created = fake.fault(On::rpc(Rpc::Watch), Do::delay(Duration::ZERO));
    let resident = group.remain("0").await.unwrap();
    for n in 1..=5 {
        sleep(S(1)).await;
        let said = n.to_string();
        resident.update(said.clone());
        fake.until(|fake| fake.snapshot().keys[0].value == said).await;
    }
    assert_eq!(created.hits(), 1);
    resident.leave().await.unwrap();
}

/// One followed a group and did not ask for longer than it goes without counting. Of the one compaction that it met then, two
/// gaps were told: its watch was taken for one that does not begin, and the group read twice.
#[tokio::test(start_paused = true)]
async fn one_compaction_is_one_gap_for_a_slow_reader() {
    let fake = FakeEtcd::start();
    let (mine, other) = (session(&fake.client()).await, session(&fake.client_for("f")).await);
    let mine = group(&mine, "group");
    let mut changes = group(&other, "group").changes();
    assert_eq!(told(&mut changes).await, "=");
    let down = fake.fault(On::open(Rpc::Watch).client("f"), Do::fail(tonic::Status::unavailable("down")));
    fake.cut_streams("f");
    let _a = mine.join("a").await.unwrap();
    for _ in 0..3 {
        fake.client().txn(Txn::new().success(Op::put("other", ""))).await.unwrap();
    }
    fake.compact(fake.revision()).unwrap();
    down.remove();
    sleep(S(150)).await;
    assert_eq!(told(&mut changes).await, "+a");
    let _b = mine.join("b").await.unwrap();
    assert_eq!(told(&mut changes).await, "+b");
    assert_eq!(changes.gaps(), 1);
}

/// As with counters: a list is what a store can have.
#[tokio::test(start_paused = true)]
async fn a_list_believes_in_no_revision_that_a_store_has_not() {
    let fake = FakeEtcd::start();
    let mine = session(&fake.client()).await;
    let _member = group(&mine, "group").join("a").await.unwrap();
    let _leader = Election::new(&mine, "seat").unwrap().campaign("a").await.unwrap();
    let far = |range: &mut RangeResponse| range.kvs.iter_mut().for_each(|kv| kv.create_revision = i64::MAX);
    let other = session(&lies::of_ranges(&fake, far)).await;
    let error = group(&other, "group").list().await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Protocol { .. }), "{error}");
    let error = Election::new(&other, "seat").unwrap().leader().await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Protocol { .. }), "{error}");
}

/// A resident whose key another client had deleted was on its way back when it was left: that was Ok at once, and a moment later
/// the others saw it join, and leave once more.
#[tokio::test(start_paused = true)]
async fn a_resident_that_left_while_it_came_back_is_not_seen_again() {
    let fake = FakeEtcd::start();
    let session = session(&fake.client_for("resident")).await;
    let resident = group(&session, "group").remain("a").await.unwrap();
    let comes_back = On::rpc(Rpc::Txn).client("resident").matching(puts);
    let late = fake.fault(comes_back, Do::delay(S(3)));
    let key = resident.fence().expect("it is here").key().clone();
    fake.client().txn(Txn::new().success(Op::delete(key))).await.unwrap();
    sleep(S(1)).await;
    assert_eq!(late.hits(), 1, "it is on its way");
    timeout(S(10), resident.leave()).await.expect("in time").unwrap();
    let left = fake.revision();
    assert!(fake.snapshot().keys.is_empty());
    sleep(S(60)).await;
    assert_eq!((fake.revision(), late.hits()), (left, 1));
}

/// Nor is a server waited for that does not answer: then it is said that the member may be seen once more.
#[tokio::test(start_paused = true)]
async fn a_resident_that_left_while_a_join_got_no_answer_says_so() {
    let fake = FakeEtcd::start();
    let session = session(&fake.client_for("resident")).await;
    let resident = group(&session, "group").remain("a").await.unwrap();
    let comes_back = On::rpc(Rpc::Txn).client("resident").matching(puts);
    let unheard = fake.fault(comes_back, Do::vanish());
    let key = resident.fence().expect("it is here").key().clone();
    fake.client().txn(Txn::new().success(Op::delete(key))).await.unwrap();
    sleep(S(1)).await;
    assert_eq!(unheard.hits(), 1, "it is on its way");
    let error = timeout(S(11), resident.leave()).await.expect("in time").unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (&ErrorKind::Timeout, Outcome::Unknown), "{error}");
}
