//! What servers before 3.4.36 and 3.5.18 do to a watch that is made again at the revision of a compaction: what was
//! deleted in that very revision is never told (etcd#18089).

use std::time::Duration;

use etcd_concurrency::fake::{Do, FakeEtcd, Fault, On, Rpc};
use etcd_concurrency::pb::etcdserverpb::TxnRequest;
use etcd_concurrency::{
    CountDownLatch, Election, LostReason, MemberChange, Membership, Mutex, Op, Result, RwLock, Semaphore,
    Session, Txn,
};
use tokio::time::{sleep, timeout};

use crate::support::requests::{deletes, puts};

const S: fn(u64) -> Duration = Duration::from_secs;

/// A server that loses deletions, one client that holds, and one that waits.
struct World {
    fake: FakeEtcd,
    a: Session,
    b: Session,
}

impl World {
    async fn new() -> Self {
        let fake = FakeEtcd::builder().loses_deletions().start();
        let open = |name| {
            let client = fake.client_for(name);
            async move { Session::builder(&client).ttl(S(10)).open().await.unwrap() }
        };
        Self { a: open("a").await, b: open("b").await, fake }
    }

    async fn writes(&self, op: Op) -> i64 {
        let operator = self.fake.client_for("operator");
        operator.txn(Txn::new().success(op)).await.unwrap().header.revision
    }

    /// Cuts the streams of `b`, which opens none until the fault is removed.
    async fn cut(&self) -> Fault {
        let away = self.fake.fault(On::open(Rpc::Watch).client("b"), Do::cut());
        self.fake.cut_streams("b");
        self.fake.until(|fake| fake.watchers() == 0).await;
        away
    }

    /// Deletes a key while `b` hears nothing, in the revision that its watch goes on from, and compacts that.
    async fn lose(&self, key: impl AsRef<[u8]>) -> Fault {
        let away = self.cut().await;
        let deleted = self.writes(Op::delete(key.as_ref().to_vec())).await;
        self.fake.compact(deleted).unwrap();
        away
    }

    fn keys(&self, prefix: &str) -> Vec<etcd_concurrency::pb::mvccpb::KeyValue> {
        let all = self.fake.snapshot().keys;
        let mut own: Vec<_> = all.into_iter().filter(|kv| kv.key.starts_with(prefix.as_bytes())).collect();
        own.sort_by_key(|kv| kv.create_revision);
        own
    }
}

/// Another client deleted the key of one who waited, while its stream was down. The stream came back, and told of the
/// predecessor's release, but not of that deletion: the waiter believed to hold a lock that another had taken.
async fn two_holders<G: Send + 'static>(
    prefix: &'static str,
    lock: impl AsyncFn(&Session) -> Result<G>,
    wait: impl Future<Output = Result<G>> + Send + 'static,
    world: World,
) {
    let held = lock(&world.a).await.unwrap();
    let waiting = tokio::spawn(wait);
    world.fake.until(|fake| fake.watchers() == 1).await;
    sleep(S(1)).await;
    let own = world.keys(prefix).last().unwrap().key.clone();
    let away = world.lose(own).await;
    drop(held);
    let next = timeout(S(5), lock(&world.a)).await.expect("it is free").unwrap();
    away.remove();
    let waited = timeout(S(30), waiting).await.expect("the release is told").unwrap();
    let error = waited.err().expect("its key is gone");
    assert_eq!(error.lost_reason(), Some(LostReason::KeyDeleted), "{error}");
    drop(next);
}

#[tokio::test(start_paused = true)]
async fn a_waiter_whose_own_deletion_was_lost_gets_no_lock() {
    let world = World::new().await;
    let mutex = Mutex::new(&world.b, "lock").unwrap();
    let lock = async |session: &Session| Mutex::new(session, "lock").unwrap().lock().await;
    two_holders("lock/", lock, async move { mutex.lock().await }, world).await;
}

#[tokio::test(start_paused = true)]
async fn a_writer_whose_own_deletion_was_lost_gets_no_lock() {
    let world = World::new().await;
    let rwlock = RwLock::new(&world.b, "lock").unwrap();
    let lock = async |session: &Session| RwLock::new(session, "lock").unwrap().write().await;
    two_holders("lock/", lock, async move { rwlock.write().await }, world).await;
}

#[tokio::test(start_paused = true)]
async fn one_who_asks_for_a_permit_and_whose_own_deletion_was_lost_gets_none() {
    let world = World::new().await;
    let semaphore = Semaphore::new(&world.b, "permits", 1).unwrap();
    let acquire = async |session: &Session| Semaphore::new(session, "permits", 1).unwrap().acquire().await;
    two_holders("permits/queue/", acquire, async move { semaphore.acquire().await }, world).await;
}

/// A guard's key was deleted while the stream of its watch was down. The stream came back, told nothing, and the guard
/// believed in its key until the session's end.
#[tokio::test(start_paused = true)]
async fn a_guard_whose_keys_deletion_was_lost_is_told() {
    let world = World::new().await;
    let guard = Mutex::new(&world.b, "lock").unwrap().lock().await.unwrap();
    let (fence, told) = (guard.fence().clone(), guard.fence().clone());
    let lost = tokio::spawn(async move { told.lost().await });
    world.fake.until(|fake| fake.watchers() == 1).await;
    sleep(S(1)).await;
    let reads = world.fake.fault(On::rpc(Rpc::Range).client("b"), Do::delay(Duration::ZERO));
    // A stream that is opened again, and has lost nothing, costs one read.
    let away = world.cut().await;
    away.remove();
    sleep(S(600)).await;
    assert_eq!((reads.hits(), fence.is_valid()), (1, true));
    let away = world.lose(guard.key()).await;
    away.remove();
    assert_eq!(timeout(S(150), lost).await.expect("told").unwrap(), LostReason::KeyDeleted);
    assert!(!fence.is_valid());
}

/// A guard's key was deleted before its fence was watched, and after it was last known to stand. The watch began in that
/// past, at the revision of a compaction, and told nothing.
#[tokio::test(start_paused = true)]
async fn a_guard_whose_keys_deletion_was_lost_before_the_watch_is_told() {
    let world = World::new().await;
    let guard = Mutex::new(&world.b, "lock").unwrap().lock().await.unwrap();
    let deleted = world.writes(Op::delete(guard.key().clone())).await;
    world.fake.compact(deleted).unwrap();
    assert_eq!(timeout(S(150), guard.lost()).await.expect("told"), LostReason::KeyDeleted);
}

/// No watch could be opened for the first two minutes: the key was read, and stood, and that was taken for the read that a
/// watch needs which begins in the past. The key was deleted, its watch began behind that, and the guard believed in its key
/// until the session's end.
#[tokio::test(start_paused = true)]
async fn a_guard_whose_watch_began_late_is_told_of_a_lost_deletion() {
    let world = World::new().await;
    let guard = Mutex::new(&world.b, "lock").unwrap().lock().await.unwrap();
    let away = world.fake.fault(On::open(Rpc::Watch).client("b"), Do::cut());
    let reads = world.fake.fault(On::rpc(Rpc::Range).client("b"), Do::delay(Duration::ZERO));
    let (fence, told) = (guard.fence().clone(), guard.fence().clone());
    let lost = tokio::spawn(async move { told.lost().await });
    sleep(S(125)).await;
    assert!((1..=2).contains(&reads.hits()) && fence.is_valid(), "{} reads", reads.hits());
    let deleted = world.writes(Op::delete(guard.key().clone())).await;
    assert_eq!(deleted, guard.token() + 1);
    world.fake.compact(deleted).unwrap();
    away.remove();
    assert_eq!(timeout(S(150), lost).await.expect("told").unwrap(), LostReason::KeyDeleted);
    assert!(!fence.is_valid());
}

/// The same of a guard that is asked again and again, with a tick in between: each time another watch began in that past, and the
/// read that was to come after a minute or two of one of them never came.
#[tokio::test(start_paused = true)]
async fn a_guard_that_is_asked_again_and_again_is_told_of_a_lost_deletion() {
    for tick in [S(1), S(20), S(59)] {
        let world = World::new().await;
        let guard = Mutex::new(&world.b, "lock").unwrap().lock().await.unwrap();
        let asked = async |time| {
            let asking = async {
                loop {
                    if let Ok(reason) = timeout(tick, guard.lost()).await {
                        break reason;
                    }
                }
            };
            timeout(time, asking).await
        };
        let reads = world.fake.fault(On::rpc(Rpc::Range).client("b"), Do::delay(Duration::ZERO));
        assert!(asked(S(600)).await.is_err() && guard.is_valid());
        // As long as nothing is written, a watch that begins anew has lost nothing.
        assert!(reads.hits() <= 11, "{} reads", reads.hits());
        let deleted = world.writes(Op::delete(guard.key().clone())).await;
        world.fake.compact(deleted).unwrap();
        assert_eq!(asked(S(181)).await.expect("told"), LostReason::KeyDeleted);
    }
}

/// A guard was asked again and again for less than an answer takes. Once it was time to read its key each of those waits sent a read,
/// and was gone before the answer.
#[tokio::test(start_paused = true)]
async fn a_guard_that_is_asked_for_moments_is_read_once_a_minute() {
    let world = World::new().await;
    let guard = Mutex::new(&world.b, "lock").unwrap().lock().await.unwrap();
    let slow = Do::delay(Duration::from_millis(50));
    let reads = world.fake.fault(On::rpc(Rpc::Range).client("b"), slow);
    for _ in 0..30_000 {
        timeout(Duration::from_millis(20), guard.lost()).await.expect_err("it stands");
    }
    assert!(reads.hits() <= 11, "{} reads", reads.hits());
}

/// A leader resigned while an observer's stream was down, and led again, by the same key, before the observer had counted:
/// that the seat had been empty was left out without a word.
#[tokio::test(start_paused = true)]
async fn a_seat_that_came_back_over_a_lost_deletion_is_a_gap() {
    let world = World::new().await;
    let (stands, watches) =
        (Election::new(&world.a, "seat").unwrap(), Election::new(&world.b, "seat").unwrap());
    let first = stands.campaign("a").await.unwrap();
    let mut observer = watches.observe();
    assert_eq!(observer.next().await.unwrap().expect("a leader").token, first.token());
    sleep(S(1)).await;
    let reads = world.fake.fault(On::rpc(Rpc::Range).client("b"), Do::delay(Duration::ZERO));
    let away = world.cut().await;
    first.resign().await.unwrap();
    world.fake.compact(world.fake.revision()).unwrap();
    away.remove();
    world.fake.until(|fake| fake.watchers() == 1).await;
    let second = stands.campaign("a").await.unwrap();
    let seen = timeout(S(5), observer.next()).await.expect("told").unwrap();
    assert_eq!((seen.expect("a leader").token, observer.gaps()), (second.token(), 1));
    second.resign().await.unwrap();
    assert_eq!((observer.next().await.unwrap(), observer.gaps()), (None, 1));
    assert_eq!(reads.hits(), 1, "others may have gone with it");
}

/// The candidates' keys were deleted together while an observer's stream was down, and one of them was put again: the observer,
/// which had been told of neither deletion, took the other for the leader, who was gone, for up to two minutes.
#[tokio::test(start_paused = true)]
async fn a_seat_that_came_back_is_not_given_to_one_who_went_with_it() {
    let world = World::new().await;
    let other = Session::builder(&world.fake.client_for("c")).ttl(S(10)).open().await.unwrap();
    let seat = |session: &Session| format!("seat/{:x}", session.lease());
    let stands =
        async |session: &Session| world.writes(Op::put_with_lease(seat(session), "", session.lease())).await;
    let first = stands(&world.a).await;
    stands(&other).await;
    let mut observer = Election::new(&world.b, "seat").unwrap().observe();
    assert_eq!(observer.next().await.unwrap().expect("a leader").token, first);
    sleep(S(1)).await;
    let away = world.cut().await;
    let gone = world.writes(Op::delete_prefix("seat/")).await;
    world.fake.compact(gone).unwrap();
    let again = stands(&world.a).await;
    away.remove();
    let seen = timeout(S(5), observer.next()).await.expect("told").unwrap();
    assert_eq!((seen.expect("a leader").token, observer.gaps()), (again, 1));
    // And what is told after that is told by the watch.
    world.writes(Op::delete(seat(&world.a))).await;
    assert_eq!((observer.next().await.unwrap(), observer.gaps()), (None, 1));
}

/// A member's key was deleted and put again by others: it was another, of a new token, that was told of as an update.
#[tokio::test(start_paused = true)]
async fn a_member_that_came_back_over_a_lost_deletion_is_a_gap() {
    let world = World::new().await;
    let member = Membership::new(&world.a, "group").unwrap().join("a").await.unwrap();
    let mut changes = Membership::new(&world.b, "group").unwrap().changes();
    assert!(matches!(changes.next().await.unwrap(), MemberChange::Present(all) if all.len() == 1));
    sleep(S(1)).await;
    let away = world.lose(member.key()).await;
    let again = world.writes(Op::put(member.key().clone(), "again")).await;
    away.remove();
    let left = timeout(S(5), changes.next()).await.expect("told").unwrap();
    assert!(matches!(&left, MemberChange::Left(peer) if peer.token == member.token()), "{left:?}");
    assert_eq!(changes.gaps(), 1);
    let joined = changes.next().await.unwrap();
    assert!(matches!(&joined, MemberChange::Joined(peer) if peer.token == again), "{joined:?}");
    world.writes(Op::put(member.key().clone(), "updated")).await;
    let updated = changes.next().await.unwrap();
    assert!(matches!(&updated, MemberChange::Updated(peer) if peer.token == again), "{updated:?}");
    assert_eq!(changes.gaps(), 1);
}

/// A latch was reset while the stream of one who waited was down. Of the reset the waiter was told the new count alone, and
/// not that the old count-downs were gone: with those it took the latch for open.
#[tokio::test(start_paused = true)]
async fn count_downs_of_the_round_before_open_no_latch() {
    let world = World::new().await;
    let (counts, waits) = (
        CountDownLatch::new(&world.a, "latch", 2).unwrap(),
        CountDownLatch::new(&world.b, "latch", 2).unwrap(),
    );
    assert_eq!(counts.count_down().await.unwrap(), 1);
    let waiting = tokio::spawn(async move { waits.wait().await });
    world.fake.until(|fake| fake.watchers() == 1).await;
    sleep(S(1)).await;
    let away = world.cut().await;
    counts.reset().await.unwrap();
    world.fake.compact(world.fake.revision()).unwrap();
    assert_eq!(counts.count_down().await.unwrap(), 1);
    away.remove();
    sleep(S(30)).await;
    assert!(!waiting.is_finished(), "one is missing");
    assert_eq!(counts.count_down().await.unwrap(), 0);
    timeout(S(30), waiting).await.expect("in time").unwrap().unwrap();
}

/// What the looks cost while all is well: nothing. A waiter whose stream was not broken takes its turn without a read.
#[tokio::test(start_paused = true)]
async fn only_a_stream_that_was_opened_again_costs_a_read() {
    for cut in [false, true] {
        let world = World::new().await;
        let held = Mutex::new(&world.a, "lock").unwrap().lock().await.unwrap();
        let mutex = Mutex::new(&world.b, "lock").unwrap();
        let waiting = tokio::spawn(async move { mutex.lock().await });
        world.fake.until(|fake| fake.watchers() == 1).await;
        sleep(S(1)).await;
        let reads = |txn: &TxnRequest| !puts(txn) && !deletes(txn);
        let reads =
            world.fake.fault(On::rpc(Rpc::Txn).client("b").matching(reads), Do::delay(Duration::ZERO));
        if cut {
            world.cut().await.remove();
            world.fake.until(|fake| fake.watchers() == 1).await;
        }
        held.unlock().await.unwrap();
        let guard = timeout(S(5), waiting).await.expect("its turn").unwrap().unwrap();
        assert_eq!((reads.hits(), guard.is_valid()), (u64::from(cut), true));
    }
}
