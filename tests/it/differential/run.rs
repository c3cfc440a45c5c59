//! The same operations on the fake and on a real server, compared one by one.

use std::fmt;
use std::time::{Duration, Instant};

use bytes::Bytes;
use etcd_concurrency::RawService;
use etcd_concurrency::fake::FakeEtcd;
use etcd_concurrency::pb::etcdserverpb::watch_request::RequestUnion;
use etcd_concurrency::pb::etcdserverpb::{
    DeleteRangeRequest, LeaseGrantRequest, LeaseTimeToLiveRequest, PutRequest, WatchCancelRequest,
    WatchCreateRequest, WatchProgressRequest, WatchResponse,
};
use tower::ServiceExt;

use super::compare::{self, Settled};
use super::cut;
use super::generate::{Profile, View};
use super::op::{CLIENTS, Op, RUNNER, STREAMS};
use super::race::race;
use super::side::{Answer, LIMIT, Side};
use super::stream::{MARKER, reaches};
use super::users::{self, AuthOp};
use crate::support::etcd::Etcd;

/// So long after its grant, a lease of the shortest TTL cannot have ended.
const SURELY_ALIVE: Duration = Duration::from_millis(1500);

/// After so many operations, what the watchers saw is compared in any case.
const COMPARE_EVERY: usize = 20;

/// A fake and a real server with one history.
pub(super) struct Pair {
    fake: Side,
    real: Side,
    handle: FakeEtcd,
    server: Etcd,
    settled: [Settled; STREAMS],
    compacted: i64,
    markers: u64,
    done: usize,
    /// Something took so long that a lease may have ended on one side alone: nothing can be told from here on.
    pub(super) is_late: bool,
}

/// Where the two differ.
#[derive(Debug)]
pub(super) struct Difference {
    pub(super) after: String,
    pub(super) fake: String,
    pub(super) real: String,
}

impl Difference {
    pub(super) fn between(op: &Op, fake: &Answer, real: &Answer) -> Result<(), Difference> {
        if fake.agrees(real) {
            return Ok(());
        }
        Err(Difference { after: format!("{op:?}"), fake: show(fake), real: show(real) })
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (fake, real): (Vec<_>, Vec<_>) =
            (self.fake.lines().map(cut).collect(), self.real.lines().map(cut).collect());
        write!(f, "after {}\nfake: {}\nreal: {}", cut(&self.after), fake.join("\n"), real.join("\n"))
    }
}

impl Pair {
    pub(super) async fn start(profile: Profile) -> Pair {
        let (bytes, ops) = (profile.max_request_bytes.to_string(), profile.max_txn_ops.to_string());
        let args = ["--max-request-bytes", &bytes, "--max-txn-ops", &ops, "--bcrypt-cost", "4"];
        let server = Etcd::start_with(profile.version, &args).await;
        let handle = FakeEtcd::builder()
            .max_request_bytes(profile.max_request_bytes)
            .max_txn_ops(profile.max_txn_ops)
            .history_limit(0)
            .start();
        let fake = Side::new(|token| {
            let service = handle.service().map_request(move |request| token.put_on(request));
            RawService::new(service.map_err(|error| tonic::Status::from_error(error.into())))
        });
        let real = Side::new(|token| {
            let service = server.channel().map_request(move |request| token.put_on(request));
            RawService::new(service.map_err(|error| tonic::Status::from_error(error.into())))
        });
        let mut pair = Pair {
            fake,
            real,
            handle,
            server,
            settled: Default::default(),
            compacted: -1,
            markers: 0,
            done: 0,
            is_late: false,
        };
        if profile.users {
            for op in users::first() {
                pair.both(RUNNER, &Op::Auth(op)).await.expect("the same");
            }
            pair.log_in().await.expect("the same");
        }
        tokio::join!(pair.fake.open(), pair.real.open());
        pair
    }

    pub(super) fn view(&self) -> View {
        View { revision: self.handle.revision(), compacted: self.compacted }
    }

    /// Does it on both, and compares what there is to compare.
    pub(super) async fn step(&mut self, op: &Op) -> Result<(), Difference> {
        let result = match op {
            Op::Watch(stream, request) => self.watch(*stream, request).await,
            Op::Cancel(stream, id) => self.cancel(*stream, *id).await,
            Op::Progress(stream) => self.progress(*stream).await,
            Op::Reopen(stream) => self.reopen(*stream).await,
            Op::Expire(grant, ops) => self.expire(grant, ops).await,
            Op::Race(ops) => race(&self.fake, &self.real, ops).await,
            Op::As(client, op) => self.one(*client, op).await,
            op => self.one(self.done % CLIENTS, op).await,
        };
        result.map_err(|difference| Difference { after: format!("{op:?}"), ..difference })?;
        self.done += 1;
        if self.done.is_multiple_of(COMPARE_EVERY) { self.drain().await } else { Ok(()) }
    }

    pub(super) async fn end(&mut self) -> Result<(), Difference> {
        self.drain().await
    }

    pub(super) fn server_log(&self) -> String {
        self.server.log_tail()
    }

    async fn one(&mut self, client: usize, op: &Op) -> Result<(), Difference> {
        if let Op::Compact(_) = op {
            // An event's previous value is looked up when it is sent: not after the compaction.
            self.drain().await?;
        }
        let answer = self.both(client, op).await?;
        match op {
            Op::Compact(request) if answer.revision != 0 => self.compacted = request.revision,
            // Any token is worth nothing after it.
            Op::Auth(AuthOp::Enable(_)) if answer.revision != 0 => self.log_in().await?,
            _ => {}
        }
        Ok(())
    }

    async fn both(&self, client: usize, op: &Op) -> Result<Answer, Difference> {
        let (fake, real) = tokio::join!(self.fake.answer(client, op), self.real.answer(client, op));
        Difference::between(op, &fake, &real)?;
        Ok(fake)
    }

    /// Every client as the user that it began as, if there still is one with that password.
    async fn log_in(&self) -> Result<(), Difference> {
        for client in 0..CLIENTS {
            if let Some(op) = users::log_in(client) {
                self.both(client, &Op::Auth(op)).await?;
            }
        }
        Ok(())
    }

    /// Waits until the lease has ended on both sides, and sees that it ended with the same.
    async fn expire(&mut self, grant: &LeaseGrantRequest, ops: &[Op]) -> Result<(), Difference> {
        let granted = Instant::now();
        self.both(RUNNER, &Op::Grant(*grant)).await?;
        for op in ops {
            self.both(RUNNER, op).await?;
        }
        let id = grant.id;
        self.both(RUNNER, &Op::TimeToLive(LeaseTimeToLiveRequest { id, keys: true })).await?;
        self.is_late = granted.elapsed() > SURELY_ALIVE;
        if self.is_late {
            return Ok(());
        }
        let listed = format!("id: {id} ");
        let deadline = Instant::now() + LIMIT;
        loop {
            let (fake, real) = (self.fake.answer(RUNNER, &Op::Leases), self.real.answer(RUNNER, &Op::Leases));
            let (fake, real) = tokio::join!(fake, real);
            if !fake.text.contains(&listed) && !real.text.contains(&listed) {
                break;
            }
            if Instant::now() > deadline {
                return differ("a lease did not end", fake.text, real.text);
            }
            // Only to spare the CPU.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.drain().await
    }

    async fn put(&mut self, key: Bytes) -> Result<i64, Difference> {
        self.markers += 1;
        let value = self.markers.to_string().into();
        let answer = self.both(RUNNER, &Op::Put(PutRequest { key, value, ..Default::default() })).await?;
        assert_ne!(answer.revision, 0, "the runner may do everything: {}", answer.text);
        Ok(answer.revision)
    }

    /// Waits until every stream has said all that it has to say so far, and compares it.
    async fn drain(&mut self) -> Result<(), Difference> {
        let revision = self.put(MARKER).await?;
        for stream in 0..STREAMS {
            let (fake, real) = (&mut self.fake.streams[stream], &mut self.real.streams[stream]);
            let (fake, real) = tokio::join!(fake.drain(revision), real.drain(revision));
            self.compare(stream)?;
            differ("the marker", fake.err(), real.err())?;
        }
        Ok(())
    }

    fn compare(&mut self, stream: usize) -> Result<(), Difference> {
        let fake = std::mem::take(&mut self.fake.streams[stream].log);
        let real = std::mem::take(&mut self.real.streams[stream].log);
        compare::streams(&self.settled[stream], &fake, &real).map_err(|(fake, real)| Difference {
            after: format!("what stream {stream} said"),
            fake,
            real,
        })
    }

    fn ask(&self, stream: usize, union: RequestUnion) {
        self.fake.streams[stream].ask(union.clone());
        self.real.streams[stream].ask(union);
    }

    async fn until(
        &mut self,
        stream: usize,
        what: &str,
        is: impl Fn(&WatchResponse) -> bool,
    ) -> Result<(Option<WatchResponse>, Option<WatchResponse>), Difference> {
        let (fake, real) = (&mut self.fake.streams[stream], &mut self.real.streams[stream]);
        let (fake, real) = tokio::join!(fake.until(what, &is), real.until(what, &is));
        if fake.is_err() || real.is_err() {
            self.compare(stream)?;
            differ(what, fake.as_ref().err(), real.as_ref().err())?;
        }
        Ok((fake.ok(), real.ok()))
    }

    async fn watch(&mut self, stream: usize, request: &WatchCreateRequest) -> Result<(), Difference> {
        let revision = self.handle.revision();
        self.ask(stream, RequestUnion::CreateRequest(request.clone()));
        let (fake, real) = self.until(stream, "a watcher", |answer| answer.created).await?;
        differ("a watcher", fake.as_ref(), real.as_ref())?;
        let Some(created) = fake.filter(|created| !created.canceled) else { return Ok(()) };
        let id = created.watch_id;
        self.settled[stream].remove(&id);
        if request.start_revision > 0 && request.start_revision <= revision {
            self.settle(stream, id, request).await?;
        }
        Ok(())
    }

    /// A watcher that starts in the past is caught up some time within 100 ms on a real server, and meanwhile
    /// may be overtaken by a compaction. So everything waits here until it has seen one more write.
    async fn settle(
        &mut self,
        stream: usize,
        id: i64,
        request: &WatchCreateRequest,
    ) -> Result<(), Difference> {
        let key = if request.key.is_empty() { Bytes::from_static(b"\0") } else { request.key.clone() };
        let mut revision = self.put(key.clone()).await?;
        if request.filters.contains(&0) {
            let delete = DeleteRangeRequest { key, ..Default::default() };
            revision = self.both(RUNNER, &Op::Delete(delete)).await?.revision;
        }
        self.settled[stream].insert(id, revision);
        let caught_up = |answer: &WatchResponse| {
            // Of a response in pieces, the last.
            let whole = !answer.fragment && reaches(answer, revision);
            answer.watch_id == id && (whole || answer.compact_revision != 0)
        };
        self.until(stream, "the last event of the past", caught_up).await.map(drop)
    }

    async fn cancel(&mut self, stream: usize, id: i64) -> Result<(), Difference> {
        // A watcher's last events may overtake the answer to its end, or be lost to it.
        self.drain().await?;
        self.ask(stream, RequestUnion::CancelRequest(WatchCancelRequest { watch_id: id }));
        self.refused_watcher(stream).await?;
        self.compare(stream)
    }

    async fn progress(&mut self, stream: usize) -> Result<(), Difference> {
        self.drain().await?;
        self.ask(stream, RequestUnion::ProgressRequest(WatchProgressRequest {}));
        self.refused_watcher(stream).await?;
        // Progress is told among the events, not among the answers.
        self.drain().await
    }

    /// What is asked of a stream is done in turn: when this is refused, all before it is done.
    async fn refused_watcher(&mut self, stream: usize) -> Result<(), Difference> {
        let refused = WatchCreateRequest { key: "b".into(), range_end: "a".into(), ..Default::default() };
        self.ask(stream, RequestUnion::CreateRequest(refused));
        self.until(stream, "a refusal", |answer| answer.created && answer.canceled).await.map(drop)
    }

    async fn reopen(&mut self, stream: usize) -> Result<(), Difference> {
        self.drain().await?;
        self.settled[stream].clear();
        tokio::join!(self.fake.reopen(stream), self.real.reopen(stream));
        Ok(())
    }
}

fn differ<T: PartialEq + fmt::Debug>(after: &str, fake: T, real: T) -> Result<(), Difference> {
    if fake == real {
        return Ok(());
    }
    Err(Difference { after: after.to_owned(), fake: format!("{fake:?}"), real: format!("{real:?}") })
}

fn show(answer: &Answer) -> String {
    match answer.ttl {
        Some(ttl) => format!("{} with {ttl} s left", answer.text),
        None => answer.text.clone(),
    }
}
