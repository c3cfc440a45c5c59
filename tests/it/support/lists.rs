//! Lists to which transactions append, as the values of keys, and transactions on them that are drawn: what [`append`](super::append)
//! judges.

use std::collections::BTreeMap;
use std::time::Duration;

use etcd_concurrency::{Client, Compare, Error, Isolation, Op, Outcome, Session, Stm, StmTxn, Txn};
use tokio::time::timeout;

use super::append::{Fate, Order, Step};

pub(crate) const LEVELS: [Isolation; 4] = [
    Isolation::SerializableSnapshot,
    Isolation::Serializable,
    Isolation::RepeatableReads,
    Isolation::ReadCommitted,
];

/// How many lists there are under a name.
const LISTS: usize = 4;

/// Some lists under one name, and the level at which they are read and written.
#[derive(Debug, Clone)]
pub(crate) struct Lists {
    prefix: String,
    isolation: Isolation,
}

/// What one transaction is to do: read a list, read all of them, or append to one.
#[derive(Debug, Clone)]
pub(crate) enum Wanted {
    Read(String),
    ReadAll,
    Append(String, u64),
}

impl Lists {
    pub(crate) fn new(name: &str, isolation: Isolation) -> Self {
        Self { prefix: format!("{name}/"), isolation }
    }

    pub(crate) fn list(&self, n: usize) -> String {
        format!("{}{n}", self.prefix)
    }

    /// Which of the lists has this name.
    pub(crate) fn number<'l>(&self, list: &'l str) -> &'l str {
        list.strip_prefix(&self.prefix).expect("one of these lists")
    }

    /// Makes the lists, where they are not there, all at once: none is new to a range that was read after this. They are
    /// empty, so that this is no transaction to be judged.
    pub(crate) async fn make(&self, client: &Client) -> Result<(), Error> {
        let are_missing = Txn::new().compare(Compare::missing(self.list(0)));
        let put = |txn: Txn, n| txn.success(Op::put(self.list(n), ""));
        client.txn((0..LISTS).fold(are_missing, put)).await.map(drop)
    }

    pub(crate) fn wanted(
        &self,
        random: &mut fastrand::Rng,
        values: &mut impl Iterator<Item = u64>,
    ) -> Vec<Wanted> {
        let steps = random.usize(1..5);
        let one = |_| {
            let list = self.list(random.usize(..LISTS));
            match random.u8(..8) {
                0 => Wanted::ReadAll,
                1..=3 => Wanted::Read(list),
                _ => Wanted::Append(list, values.next().expect("there is no end of it")),
            }
        };
        (0..steps).map(one).collect()
    }

    /// One transaction that does what is wanted, in a way that is drawn: what became of it, and its steps. Of one that was
    /// not committed, or may not be, these are its appends.
    pub(crate) async fn transact(
        &self,
        client: &Client,
        session: &Session,
        random: &mut fastrand::Rng,
        wanted: &[Wanted],
    ) -> (Fate, Vec<Step>) {
        let mut stm = Stm::new(client).isolation(self.isolation);
        if random.bool() {
            stm = stm.exactly_once(session);
        }
        if random.bool() {
            stm = stm.prefetch([self.list(0), self.list(1)]);
        }
        let run = stm.run(|txn| self.clone().play(txn, wanted.to_vec()));
        let patience = if random.u8(..50) == 0 {
            Duration::from_millis(random.u64(..40))
        } else {
            Duration::from_secs(3600)
        };
        match timeout(patience, run).await {
            Ok(Ok(committed)) => (Fate::Committed, committed.value),
            Ok(Err(error)) if error.outcome() == Outcome::NotApplied => (Fate::Refused, appends(wanted)),
            Ok(Err(_)) | Err(_) => (Fate::Unknown, appends(wanted)),
        }
    }

    /// Does what is wanted, and tells what was seen.
    async fn play(self, txn: StmTxn, wanted: Vec<Wanted>) -> Result<Vec<Step>, Error> {
        let mut steps = Vec::new();
        for wanted in wanted {
            match wanted {
                Wanted::Read(list) => {
                    let seen = parsed(txn.get(list.clone()).await?.as_deref());
                    steps.push(Step::Read(list, seen));
                }
                Wanted::ReadAll => {
                    for (list, seen) in txn.get_prefix(self.prefix.clone()).await? {
                        steps.push(Step::Read(text(&list), parsed(Some(&seen))));
                    }
                }
                Wanted::Append(list, value) => {
                    let seen =
                        txn.get(list.clone()).await?.map_or_else(String::new, |seen| text(&seen) + " ");
                    txn.put(list.clone(), format!("{seen}{value}"))?;
                    steps.push(Step::Append(list, value));
                }
            }
        }
        Ok(steps)
    }

    /// All lists as they are now.
    pub(crate) async fn read(&self, client: &Client) -> BTreeMap<String, Vec<u64>> {
        let all = client.txn(Txn::new().success(Op::get_prefix(self.prefix.clone()))).await.expect("a read");
        let lists = all.kvs(0).expect("a range").iter();
        lists.map(|kv| (text(&kv.key), parsed(Some(&kv.value)))).collect()
    }
}

/// What is to hold at a level. That of repeatable reads allows no more here than those above it: the lists are all made
/// before one is read, so no range has new keys, and each is read before it is written.
pub(crate) fn order(isolation: Isolation) -> Order {
    match isolation {
        Isolation::ReadCommitted => Order::Committed,
        _ => Order::Strict,
    }
}

/// The steps of one who has read these lists.
pub(crate) fn reads(lists: &BTreeMap<String, Vec<u64>>) -> Vec<Step> {
    lists.iter().map(|(list, seen)| Step::Read(list.clone(), seen.clone())).collect()
}

pub(crate) fn appends(wanted: &[Wanted]) -> Vec<Step> {
    let append = |wanted: &Wanted| match wanted {
        Wanted::Append(list, value) => Some(Step::Append(list.clone(), *value)),
        Wanted::Read(_) | Wanted::ReadAll => None,
    };
    wanted.iter().filter_map(append).collect()
}

fn text(bytes: &[u8]) -> String {
    std::str::from_utf8(bytes).expect("text").to_owned()
}

fn parsed(list: Option<&[u8]>) -> Vec<u64> {
    let list = text(list.unwrap_or_default());
    list.split_whitespace().map(|value| value.parse().expect("a number")).collect()
}
