//! A member stands still for longer than any server keeps a request, and then applies what lies in its socket.
//!
//! Each client asks that member first, repeats its request elsewhere, has what it asked for, and ends that in one of all
//! ways. When the member goes on, none of it may come back for good: after 5 s no key is left without an owner, and
//! nothing was applied twice.
//!
//! `STRAGGLERS=300` does 300 of each kind, `STRAGGLERS_SECONDS=30` lets the member stand still for as long.

mod act;
mod judge;
mod steer;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use etcd_concurrency::pb::etcdserverpb as pb;
use etcd_concurrency::pb::mvccpb::event::EventType;
use etcd_concurrency::{Client, Session, Watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::task::AbortOnDropHandle;

use self::act::{Ending, Kind, act, meddle, prepare};
use self::judge::{Deed, Write, by_name, longest, wrong};
use self::steer::{GivenUp, Steer};
use crate::support::etcd::{Cluster, Version};
use crate::support::{env, poll};

const PREFIX: &str = "stragglers/";
/// How many share a client.
const GROUP: usize = 13;
/// Long enough to outlive the member's standstill, whatever becomes of the keep-alives meanwhile.
const TTL: Duration = Duration::from_secs(120);
/// Past this a server has given up a request that it has seen: what is applied later was thought to be no more.
const SERVERS_LIMIT: Duration = Duration::from_secs(12);
/// Within which nothing must be left.
const LIMIT: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a real etcd: `.ci/run servers` builds it"]
async fn no_straggler_leaves_a_key_or_is_applied_twice_on_etcd_3_7() {
    stragglers(Version::V3_7).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a real etcd: `.ci/run servers` builds it"]
async fn no_straggler_leaves_a_key_or_is_applied_twice_on_etcd_3_5() {
    stragglers(Version::V3_5).await;
}

async fn stragglers(version: Version) {
    let each: usize = env("STRAGGLERS").unwrap_or(18);
    let standstill = Duration::from_secs(env("STRAGGLERS_SECONDS").unwrap_or(16));
    // For a request and its repeats; the first attempt has half of it.
    let patience = standstill / 5;
    let only = std::env::var("STRAGGLERS_KIND").ok();
    let is_wanted = |kind: &Kind| only.as_ref().is_none_or(|only| *only == format!("{kind:?}"));
    let cluster = Cluster::start(version, 3).await;
    let leader = cluster.leader().await;
    let follower = (leader + 1) % 3;
    let well: Vec<_> = (0..3).filter(|member| *member != follower).collect();
    let endpoints = |members: &[usize]| -> Vec<String> {
        members.iter().map(|member| cluster.members[*member].endpoint().to_owned()).collect()
    };
    let third = Client::connect(endpoints(&well)).await.expect("a client");
    let meddler = Session::builder(&third).ttl(TTL).open().await.expect("a session");
    let (writes, watching) = watch(&third).await;

    let mut plans = Vec::new();
    for number in 0..each {
        for kind in Kind::ALL.into_iter().filter(is_wanted) {
            let ending = Ending::ALL[number % Ending::ALL.len()];
            plans.push((kind, ending, number, format!("{PREFIX}{kind:?}/{number}")));
        }
    }
    let mut steers = Vec::new();
    let mut sessions = Vec::new();
    let mut ready = Vec::new();
    for (group, plans) in plans.chunks(GROUP).enumerate() {
        let to = cluster.members[follower].channel();
        let steer = Steer::new(to.clone());
        // Every third has its streams on that member, too, as it comes.
        let members = if group % 3 == 0 { vec![follower, well[0], well[1]] } else { well.clone() };
        let client = Client::builder().endpoints(endpoints(&members)).request_timeout(patience);
        let client = client.layer(steer.clone()).connect().await.expect("a client");
        // Connected before it stands still.
        let none = pb::RangeRequest { key: "none".into(), ..Default::default() };
        pb::kv_client::KvClient::new(to).range(none).await.expect("an answer");
        let shared = open(&client).await;
        for (kind, ending, number, name) in plans {
            prepare(*kind, &meddler, name).await;
            let session = if ending.spares_the_session() { shared.clone() } else { open(&client).await };
            let given_up = if number % 2 == 0 { GivenUp::Cancelled } else { GivenUp::Unheard };
            ready.push((*kind, *ending, name.clone(), session, steer.clone(), given_up));
        }
        steers.push(steer);
        sessions.push(shared);
    }

    cluster.members[follower].pause();
    let begun = Instant::now();
    let mut deeds = JoinSet::new();
    for (kind, ending, name, session, steer, given_up) in ready {
        let meddler = meddler.clone();
        // So early that it is over for that long when the member goes on.
        let pause = standstill.saturating_sub(SERVERS_LIMIT + patience / 2).mul_f64(fastrand::f64() / 2.0);
        let under_way = patience.mul_f64(fastrand::f64());
        deeds.spawn(async move {
            sleep(pause).await;
            steer.arm(&name, given_up);
            let (fate, adopted) = act(kind, ending, session, &name, under_way).await;
            let found = meddle(kind, &meddler, &name).await;
            (Deed { kind, ending, name, fate, found }, adopted)
        });
    }
    let done = deeds.join_all().await;
    println!("etcd {version}: {} deeds done after {:.1?}", done.len(), begun.elapsed());
    tokio::time::sleep_until(begun + standstill).await;
    let resumed = Instant::now();
    writes.lock().unwrap_or_else(PoisonError::into_inner).resumed = Some(resumed);
    cluster.members[follower].resume();
    let ahead = applied(&cluster, leader).await;
    poll::until("the member has caught up", 20 * LIMIT, async || {
        (applied(&cluster, follower).await >= ahead).then_some(())
    })
    .await;
    let caught_up = resumed.elapsed();
    sleep(LIMIT).await;

    let left = keys(&third).await;
    let writes = by_name(writes.lock().unwrap_or_else(PoisonError::into_inner).writes.clone());
    let (deeds, adopted): (Vec<_>, Vec<_>) = done.into_iter().unzip();
    let sent: BTreeMap<_, _> = steers.iter().flat_map(Steer::sent).collect();
    println!(
        "it went on after {standstill:?} and had caught up within {caught_up:.1?}; looked at {LIMIT:?} later"
    );
    let wrong = report(&deeds, &left, &writes, &sent);
    // All owners go; what is left then will stay for ever.
    let adopted: Vec<_> = adopted.into_iter().flatten().collect();
    for session in sessions.iter().chain(&adopted).chain([&meddler]) {
        if let Err(error) = session.close().await {
            println!("a session was not closed: {error}");
        }
    }
    let at_last = keys(&third).await;
    // What was put without a lease is judged above. A round's ready key is taken away by its last participant that
    // leaves, or by the next round; what counts an item's returns stays as long as the item.
    let is_kept = |key: &&String| {
        ["/items/", "/Barrier/", "/limit", "/value", "/ready"].iter().any(|kept| key.contains(kept))
            || key.contains("/returns/") && at_last.contains(&key.replace("/returns/", "/items/"))
    };
    let for_ever: Vec<_> = at_last.iter().filter(|key| !is_kept(key)).collect();
    drop(watching);
    assert_eq!(wrong, 0, "deeds of {} went wrong: see above", deeds.len());
    assert!(for_ever.is_empty(), "left without any session: {for_ever:?}");
}

/// Tells what was done and what went wrong of it; of how many deeds.
fn report(
    deeds: &[Deed],
    left: &[String],
    writes: &BTreeMap<String, Vec<Write>>,
    sent: &BTreeMap<String, Option<bool>>,
) -> usize {
    let mut failures = 0;
    println!("kind: deeds, sent to the member, had; applied late, stood for at most; went wrong");
    for kind in Kind::ALL {
        let deeds: Vec<_> = deeds.iter().filter(|deed| deed.kind == kind).collect();
        if deeds.is_empty() {
            continue;
        }
        let count = |is: &dyn Fn(&Deed) -> bool| deeds.iter().filter(|deed| is(deed)).count();
        let of = |deed: &Deed| writes.get(&deed.name).map_or(&[][..], Vec::as_slice);
        let late =
            |deed: &Deed| of(deed).iter().any(|write| write.kind == EventType::Put && write.after.is_some());
        let stood = deeds.iter().map(|deed| longest(of(deed))).max().unwrap_or_default();
        let had = |deed: &Deed| matches!(deed.fate, act::Fate::Got | act::Fate::Released);
        let mut by_ending: BTreeMap<Ending, Vec<String>> = BTreeMap::new();
        for deed in &deeds {
            let prefix = format!("{}/", deed.name);
            let left: Vec<_> =
                left.iter().filter(|key| **key == deed.name || key.starts_with(&prefix)).cloned().collect();
            let wrong = wrong(deed, &left, of(deed)).join("; ");
            if !wrong.is_empty() {
                let writes: Vec<_> = of(deed).iter().map(Write::to_string).collect();
                let (fate, sent, writes) = (deed.fate, sent.get(&deed.name), writes.join(", "));
                let line = format!("{wrong}; {fate:?}, straggler {sent:?}; {}: {writes}", deed.name);
                by_ending.entry(deed.ending).or_default().push(line);
            }
        }
        let wrong: usize = by_ending.values().map(Vec::len).sum();
        failures += wrong;
        println!(
            "{kind:?}: {}, {}, {}; {}, {stood:.1?}; {wrong}",
            deeds.len(),
            count(&|deed| sent.contains_key(&deed.name)),
            count(&had),
            count(&late),
        );
        for (ending, lines) in by_ending {
            println!("  {ending:?} {}: {}", lines.len(), lines[0]);
        }
    }
    failures
}

async fn open(client: &Client) -> Session {
    Session::builder(client).ttl(TTL).open().await.expect("a session")
}

/// What a member has applied.
async fn applied(cluster: &Cluster, member: usize) -> u64 {
    let status = tokio::time::timeout(Duration::from_secs(1), cluster.members[member].status()).await;
    status.ok().and_then(Result::ok).map_or(0, |status| status.raft_applied_index)
}

async fn keys(client: &Client) -> Vec<String> {
    let mut range_end = PREFIX.as_bytes().to_vec();
    *range_end.last_mut().expect("a prefix") += 1;
    let range = pb::RangeRequest {
        key: PREFIX.into(),
        range_end: range_end.into(),
        keys_only: true,
        ..Default::default()
    };
    let found = client.kv_client().range(range).await.expect("a range").into_inner();
    found.kvs.iter().map(|kv| String::from_utf8_lossy(&kv.key).into_owned()).collect()
}

#[derive(Default)]
struct Writes {
    writes: Vec<Write>,
    resumed: Option<Instant>,
}

/// Notes all writes from here on.
async fn watch(client: &Client) -> (Arc<Mutex<Writes>>, AbortOnDropHandle<()>) {
    let noted: Arc<Mutex<Writes>> = Arc::default();
    let mut watcher = client.watch(Watch::prefix(PREFIX).buffer(1_000_000));
    watcher.created().await.expect("a watch");
    let writes = noted.clone();
    let reading = tokio::spawn(async move {
        while let Ok(events) = watcher.next().await {
            let mut noted = writes.lock().unwrap_or_else(PoisonError::into_inner);
            let after = noted.resumed.map(|resumed| resumed.elapsed());
            for event in events.events {
                let Some(kv) = &event.kv else { continue };
                let key = String::from_utf8_lossy(&kv.key).into_owned();
                noted.writes.push(Write { kind: event.r#type(), key, revision: kv.mod_revision, after });
            }
        }
    });
    (noted, AbortOnDropHandle::new(reading))
}
