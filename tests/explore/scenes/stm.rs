//! Two clients that each add one to a value that both read, exactly once; a third party deletes the value.

use std::cell::Cell;
use std::rc::Rc;

use etcd_concurrency::{Op, Outcome, Session, Stm, StmTxn, Txn};
use tokio::task::spawn_local;

use crate::play::{Scene, World};

pub(crate) const SCENE: Scene = Scene {
    name: "stm",
    play: |world| Box::pin(play(world)),
    strikes: &[("a third party deletes the value", |world| world.delete_prefix("n"))],
};

async fn play(world: Rc<World>) {
    let sessions = [("a", world.session("a").await), ("b", world.session("b").await)];
    world.gate.close();
    let (done, unknown) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    let acts = sessions.each_ref().map(|(name, session)| {
        let (done, unknown) = (done.clone(), unknown.clone());
        spawn_local(adds(world.clone(), session.clone(), name, done, unknown))
    });
    world.acts(acts).await;
    world.settle().await;
    let snapshot = world.fake.snapshot();
    let mut applied = 0;
    for name in ["a", "b"] {
        // It is written by each run, and read by none.
        let version = snapshot.get(format!("log/{name}")).map_or(0, |kv| kv.version);
        assert!(version <= 1, "a run was applied {version} times");
        applied += version;
    }
    let (done, unknown) = (done.get(), unknown.get());
    assert!((done..=done + unknown).contains(&applied), "{applied} of {done} and {unknown} unknown");
    if !world.is_struck() {
        let value = snapshot.value("n").map_or_else(String::new, |n| String::from_utf8_lossy(n).into_owned());
        assert_eq!(value.parse().unwrap_or(0), applied, "an update was lost");
    }
}

/// One run, after which another client deletes the value: what the run had found missing is missing again.
pub(crate) const TWICE: Scene =
    Scene { name: "stm-twice", play: |world| Box::pin(twice(world)), strikes: &[] };

async fn twice(world: Rc<World>) {
    let session = world.session("a").await;
    let third = world.client("third");
    world.gate.close();
    let (done, unknown) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    let (acting, told) = (world.clone(), (done.clone(), unknown.clone()));
    let act = spawn_local(async move {
        adds(acting.clone(), session, "a", told.0, told.1).await;
        if let Err(error) = third.txn(Txn::new().success(Op::delete("n"))).await {
            acting.failed(&error);
        }
    });
    world.acts([act]).await;
    world.settle().await;
    let applied = world.fake.snapshot().get("log/a").map_or(0, |kv| kv.version);
    let (done, unknown) = (done.get(), unknown.get());
    assert!((done..=done + unknown).contains(&applied), "a run was applied {applied} times, and {done} told");
}

async fn adds(
    world: Rc<World>,
    session: Session,
    name: &'static str,
    done: Rc<Cell<i64>>,
    unknown: Rc<Cell<i64>>,
) {
    let stm = Stm::new(session.client()).exactly_once(&session);
    let body = |txn: StmTxn| async move {
        let before = txn.get("n").await?;
        let before: i64 = before.map_or(0, |n| String::from_utf8_lossy(&n).parse().expect("a number"));
        txn.put("n", (before + 1).to_string())?;
        txn.put(format!("log/{name}"), "applied")?;
        Ok::<_, etcd_concurrency::Error>(())
    };
    match stm.run(body).await {
        Ok(_) => done.set(done.get() + 1),
        Err(error) => {
            world.failed(&error);
            if error.outcome() != Outcome::NotApplied {
                unknown.set(unknown.get() + 1);
            }
        }
    }
}
