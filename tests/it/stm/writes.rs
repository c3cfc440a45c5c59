//! Writes of one key that meet in one attempt: they leave what as many transactions in a row would.

use etcd_concurrency::{Client, Error, ErrorKind, Session, Stm, StmTxn};

use super::{delete, key, ok, put, read};
use crate::support::backend::on_every_backend;
use crate::support::queue::session;

#[derive(Debug, Clone, Copy)]
enum Write {
    Put,
    WithLease,
    KeepLease,
    Delete,
}

const WRITES: [Write; 4] = [Write::Put, Write::WithLease, Write::KeepLease, Write::Delete];

/// What is there before: nothing, a key, or a key with a lease.
const BEFORE: [Option<bool>; 3] = [None, Some(false), Some(true)];

impl Write {
    fn apply(self, txn: &StmTxn, key: &'static str, value: usize, lease: i64) -> Result<(), Error> {
        let value = value.to_string();
        match self {
            Write::Put => txn.put(key, value),
            Write::WithLease => txn.put_with_lease(key, value, lease),
            Write::KeepLease => txn.put_keep_lease(key, value),
            Write::Delete => txn.del(key),
        }
    }
}

/// The key's value and lease, after writes in as many runs as there are slices; or which run was refused.
async fn after(
    stm: &Stm,
    client: &Client,
    key: &'static str,
    before: Option<bool>,
    leases: (&Session, &Session),
    runs: &[&[(usize, Write)]],
) -> Result<Option<(String, i64)>, usize> {
    delete(client, key).await;
    let (old, new) = (leases.0.lease(), leases.1.lease());
    match before {
        None => {}
        Some(false) => drop(put(client, key, "before").await),
        Some(true) => {
            stm.run(|txn| async move { txn.put_with_lease(key, "before", old) }).await.map(drop).unwrap();
        }
    }
    for (n, run) in runs.iter().enumerate() {
        let done = stm
            .run(|txn| async move {
                for (n, write) in *run {
                    write.apply(&txn, key, *n, new)?;
                }
                ok(())
            })
            .await;
        match done {
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::Refused { .. }) => return Err(n),
            Err(error) => panic!("{error}"),
        }
    }
    let left = read(client, key).await;
    Ok(left.map(|kv| (String::from_utf8(kv.value.to_vec()).unwrap(), kv.lease)))
}

on_every_backend! {
    /// A key was put with a lease and then once more, "keeping the lease": it had none, and outlived its owner. Another
    /// was deleted and put again by the same words, and came back with the lease of the one before.
    async fn several_writes_of_a_key_are_as_transactions_in_a_row(backend: Backend) {
        let (client, k) = (backend.client(), key(&backend, "k"));
        let (old, new) = (session(&client).await, session(&client).await);
        let stm = Stm::new(&client);
        let mut sequences: Vec<Vec<Write>> = Vec::new();
        for a in WRITES {
            for b in WRITES {
                sequences.push(vec![a, b]);
                sequences.extend(WRITES.map(|c| vec![a, b, c]));
            }
        }
        let mut compared = 0;
        for before in BEFORE {
            for sequence in &sequences {
                let writes: Vec<_> = sequence.iter().copied().enumerate().collect();
                let in_a_row: Vec<_> = writes.chunks(1).collect();
                let expected = after(&stm, &client, k, before, (&old, &new), &in_a_row).await;
                let at_once = after(&stm, &client, k, before, (&old, &new), &[&writes]).await;
                match expected {
                    Ok(expected) => {
                        assert_eq!(at_once, Ok(expected), "{sequence:?} on {before:?}");
                        compared += 1;
                    }
                    // At once it is refused as well, unless another write took its place.
                    Err(refused) if at_once.is_ok() => {
                        assert!(refused + 1 < sequence.len(), "{sequence:?} on {before:?}");
                    }
                    Err(_) => {}
                }
            }
        }
        assert!(compared > 150, "{compared}");
    }

    /// It is told at once, and the attempt goes on with what it had written before.
    async fn no_lease_is_kept_of_a_key_that_the_attempt_deleted(backend: Backend) {
        let (client, k) = (backend.client(), key(&backend, "k"));
        put(&client, k, "before").await;
        let body = |txn: StmTxn| async move {
            txn.del(k)?;
            let error = txn.put_keep_lease(k, "after").unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::Refused { .. }), "{error}");
            assert_eq!(txn.get(k).await?, None);
            ok(())
        };
        Stm::new(&client).run(body).await.unwrap();
        assert_eq!(read(&client, k).await, None);
    }
}
