//! The levels by the anomalies that they allow, and no others: on the fake and on every real version, from the same
//! bodies. What others write, they write in the middle of the first attempt.

use std::cell::RefCell;

use etcd_concurrency::Isolation::{ReadCommitted, RepeatableReads, Serializable, SerializableSnapshot};
use etcd_concurrency::{Client, Error, Isolation, Op, Stm, StmTxn, Txn};

use super::{delete, key, ok, put, value};
use crate::support::backend::{Backend, on_every_backend};

const LEVELS: [Isolation; 4] = [SerializableSnapshot, Serializable, RepeatableReads, ReadCommitted];

/// Keys of one level's own: all but `out` and `new` are there, and old.
struct Stage {
    stm: Stm,
    other: Client,
    x: &'static str,
    y: &'static str,
    out: &'static str,
    range: &'static str,
    found: &'static str,
    new: &'static str,
}

async fn stage(backend: &Backend, isolation: Isolation) -> Stage {
    let own = |name: &str| key(backend, &format!("{isolation:?}/{name}"));
    let (x, y, out) = (own("x"), own("y"), own("out"));
    let (range, found, new) = (own("range/"), own("range/found"), own("range/new"));
    let other = backend.client();
    for key in [x, y, found] {
        put(&other, key, "old").await;
    }
    Stage { stm: Stm::new(&backend.client()).isolation(isolation), other, x, y, out, range, found, new }
}

/// Tells a closure whether this is its first attempt.
fn first<F>(mut body: impl FnMut(StmTxn, bool) -> F) -> impl FnMut(StmTxn) -> F {
    let mut first = true;
    move |txn| body(txn, std::mem::take(&mut first))
}

async fn text(txn: &StmTxn, key: &'static str) -> Result<String, Error> {
    Ok(txn.get_parsed(key).await?.unwrap_or_default())
}

on_every_backend! {
    /// What is not committed is seen by nobody, at no level.
    async fn no_dirty_reads(backend: Backend) {
        for isolation in LEVELS {
            let stage = stage(&backend, isolation).await;
            let (s, reader) = (&stage, &stage.stm.clone());
            let body = |txn: StmTxn| async move {
                txn.put(s.x, "dirty")?;
                let seen = reader.run(|txn| async move { text(&txn, s.x).await }).await?.value;
                assert_eq!(seen, "old", "{isolation:?}");
                assert_eq!(text(&txn, s.x).await?, "dirty");
                Err::<(), _>(Box::<dyn std::error::Error>::from("abort"))
            };
            assert_eq!(stage.stm.run(body).await.unwrap_err().to_string(), "abort");
            assert_eq!(value(&stage.other, s.x).await.unwrap(), "old");
        }
    }

    /// One key has one value within an attempt, at every level.
    async fn no_key_changes_within_an_attempt(backend: Backend) {
        for isolation in LEVELS {
            let stage = stage(&backend, isolation).await;
            let s = &stage;
            let body = first(|txn, first| async move {
                let (one, range) = (txn.get(s.x).await?, txn.get_prefix(s.range).await?);
                if first {
                    for key in [s.x, s.found, s.new] {
                        put(&s.other, key, "new").await;
                    }
                }
                let again = txn.get_prefix(s.range).await?;
                ok((one == txn.get_many([s.x]).await?[0], range == again, txn.get(s.new).await?.is_none() == first))
            });
            let done = stage.stm.run(body).await.unwrap();
            let attempts = if isolation == RepeatableReads { 2 } else { 1 };
            assert_eq!((done.value, done.attempts), ((true, true, true), attempts), "{isolation:?}");
        }
    }

    /// Two keys that are always written together, as they are at no one revision.
    async fn read_skew(backend: Backend) {
        for isolation in LEVELS {
            let stage = stage(&backend, isolation).await;
            let (s, seen) = (&stage, &RefCell::new(Vec::new()));
            let body = |writes: bool| first(move |txn, first| async move {
                let x = text(&txn, s.x).await?;
                if first {
                    let both = Txn::new().success(Op::put(s.x, "new")).success(Op::put(s.y, "new"));
                    s.other.txn(both).await?;
                }
                let y = text(&txn, s.y).await?;
                seen.borrow_mut().push(x != y);
                if writes {
                    txn.put(s.out, "1")?;
                }
                ok(x != y)
            });
            for writes in [true, false] {
                put(&s.other, s.x, "old").await;
                put(&s.other, s.y, "old").await;
                let done = stage.stm.run(body(writes)).await.unwrap();
                let (skewed, attempts): (&[bool], u32) = match isolation {
                    SerializableSnapshot | Serializable if writes => (&[false, false], 2),
                    // A snapshot is the state of one revision: nothing is wrong with having read it.
                    SerializableSnapshot | Serializable => (&[false], 1),
                    RepeatableReads => (&[true, false], 2),
                    ReadCommitted => (&[true], 1),
                };
                let last = skewed[skewed.len() - 1];
                assert_eq!((done.value, done.attempts), (last, attempts), "{isolation:?}, {writes}");
                assert_eq!(seen.take(), skewed, "{isolation:?}, {writes}");
            }
        }
    }

    async fn lost_update(backend: Backend) {
        for isolation in LEVELS {
            let stage = stage(&backend, isolation).await;
            let s = &stage;
            let body = first(|txn, first| async move {
                let seen = text(&txn, s.x).await?;
                if first {
                    put(&s.other, s.x, "theirs").await;
                }
                ok(txn.put(s.x, format!("{seen} and ours"))?)
            });
            let done = stage.stm.run(body).await.unwrap();
            let (attempts, left) = match isolation {
                ReadCommitted => (1, "old and ours"),
                _ => (2, "theirs and ours"),
            };
            assert_eq!(done.attempts, attempts, "{isolation:?}");
            assert_eq!(value(&stage.other, s.x).await.unwrap(), left, "{isolation:?}");
        }
    }

    /// Of two keys one may be new; each writes the one, seeing the other old.
    async fn write_skew(backend: Backend) {
        for isolation in LEVELS {
            let stage = stage(&backend, isolation).await;
            let s = &stage;
            let body = first(|txn, first| async move {
                let both_old = text(&txn, s.x).await? == "old" && text(&txn, s.y).await? == "old";
                if first {
                    put(&s.other, s.y, "new").await;
                }
                if both_old {
                    txn.put(s.x, "new")?;
                }
                ok(())
            });
            let done = stage.stm.run(body).await.unwrap();
            let (attempts, left) = if isolation == ReadCommitted { (1, "new") } else { (2, "old") };
            assert_eq!(done.attempts, attempts, "{isolation:?}");
            assert_eq!(value(&stage.other, s.x).await.unwrap(), left, "{isolation:?}");
        }
    }

    /// A range that another puts a key into, takes one out of, changes one of, or takes one out of and puts it back.
    async fn phantoms(backend: Backend) {
        for isolation in LEVELS {
            for what in ["insert", "delete", "update", "replace"] {
                let stage = stage(&backend, isolation).await;
                let s = &stage;
                delete(&s.other, s.new).await;
                let body = first(|txn, first| async move {
                    let seen = txn.get_prefix(s.range).await?.len();
                    if first {
                        match what {
                            "insert" => drop(put(&s.other, s.new, "new").await),
                            "update" => drop(put(&s.other, s.found, "new").await),
                            _ => delete(&s.other, s.found).await,
                        }
                        if what == "replace" {
                            put(&s.other, s.found, "old").await;
                        }
                    }
                    txn.put(s.out, seen.to_string())?;
                    ok(seen)
                });
                let done = stage.stm.run(body).await.unwrap();
                let attempts = match isolation {
                    SerializableSnapshot | Serializable => 2,
                    RepeatableReads if what != "insert" => 2,
                    RepeatableReads | ReadCommitted => 1,
                };
                let seen = match (attempts, what) {
                    (2, "insert") => 2,
                    (2, "delete") => 0,
                    _ => 1,
                };
                assert_eq!((done.value, done.attempts), (seen, attempts), "{isolation:?}: {what}");
            }
        }
    }

    /// The same with a range of no keys.
    async fn a_phantom_in_an_empty_range(backend: Backend) {
        for isolation in LEVELS {
            let stage = stage(&backend, isolation).await;
            let s = &stage;
            let body = first(|txn, first| async move {
                let seen = txn.get_range(s.new, format!("{}z", s.new)).await?.len();
                if first {
                    put(&s.other, s.new, "new").await;
                }
                txn.put(s.out, seen.to_string())?;
                ok(seen)
            });
            let done = stage.stm.run(body).await.unwrap();
            let expected = match isolation {
                SerializableSnapshot | Serializable => (1, 2),
                RepeatableReads | ReadCommitted => (0, 1),
            };
            assert_eq!((done.value, done.attempts), expected, "{isolation:?}");
            // Untouched, it is no conflict.
            let body = |txn: StmTxn| async move {
                txn.get_range(s.out, s.range).await?;
                ok(txn.put(s.y, "1")?)
            };
            assert_eq!(stage.stm.run(body).await.unwrap().attempts, 1, "{isolation:?}");
        }
    }

    /// A key that is written without having been read: only the default level minds that others wrote it.
    async fn overwriting_what_was_not_read(backend: Backend) {
        for isolation in LEVELS {
            for reads in [true, false] {
                let stage = stage(&backend, isolation).await;
                let s = &stage;
                let body = first(|txn, first| async move {
                    if reads {
                        txn.get(s.x).await?;
                    }
                    txn.put(s.y, "ours")?;
                    txn.put(s.out, "ours")?;
                    if first {
                        put(&s.other, s.y, "theirs").await;
                    }
                    ok(())
                });
                let done = stage.stm.run(body).await.unwrap();
                // Without a read there is no snapshot that it could have been written after.
                let attempts = if isolation == SerializableSnapshot && reads { 2 } else { 1 };
                assert_eq!(done.attempts, attempts, "{isolation:?}, {reads}");
                assert_eq!(value(&stage.other, s.y).await.unwrap(), "ours");
            }
        }
    }
}
