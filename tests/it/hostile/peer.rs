//! A server that is not what it should be: a fake whose answers are spoilt on their way. The fuzz target `answers` in
//! `fuzz/` is made of this file, too.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use etcd_concurrency::fake::Service as Fake;
use etcd_concurrency::pb::etcdserverpb as pb;
use http::{Request, Response};
use http_body::Frame;
use pb::response_op::Response as Answer;
use prost::Message;
use tonic::body::Body;
use tower::{BoxError, Service};

/// The fake behind it, spoilt.
#[derive(Clone)]
pub(crate) struct Spoilt {
    fake: Fake,
    script: Script,
    requests: Arc<AtomicUsize>,
}

/// What is done to the answers, one after the other. When it is at its end, they are left alone.
#[derive(Clone)]
pub(crate) struct Script(Arc<Mutex<VecDeque<u8>>>);

impl Script {
    pub(crate) fn new(bytes: &[u8]) -> Self {
        Self(Arc::new(Mutex::new(bytes.iter().copied().collect())))
    }

    pub(crate) fn end(&self) {
        self.0.lock().expect("sound").clear();
    }

    fn next(&self) -> u8 {
        self.0.lock().expect("sound").pop_front().unwrap_or(0)
    }

    fn number(&self) -> i64 {
        match self.next() {
            0 => 0,
            1 => -1,
            2 => i64::MAX,
            3 => i64::MIN,
            4 => 1 << 32,
            byte => i64::from(byte) - 4,
        }
    }
}

impl Spoilt {
    pub(crate) fn new(fake: Fake, script: Script) -> Self {
        Self { fake, script, requests: Arc::default() }
    }

    /// How many requests there were.
    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }
}

impl Service<Request<Body>> for Spoilt {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.fake.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let (path, script) = (request.uri().path().to_owned(), self.script.clone());
        let answering = self.fake.call(request);
        Box::pin(async move {
            let answer = answering.await?;
            Ok(answer.map(|body| Body::new(Spoiling { body, path, script, read: BytesMut::new() })))
        })
    }
}

/// An answer's body: each of its messages may be spoilt.
struct Spoiling {
    body: Body,
    path: String,
    script: Script,
    read: BytesMut,
}

impl http_body::Body for Spoiling {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        loop {
            if let Some(spoilt) = self.whole() {
                return Poll::Ready(Some(Ok(Frame::data(spoilt))));
            }
            let frame = match std::task::ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => frame,
                end => return Poll::Ready(end),
            };
            match frame.into_data() {
                Ok(data) => self.read.extend_from_slice(&data),
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            }
        }
    }
}

impl Spoiling {
    /// The next whole message that has arrived, as it is passed on; None where more must be read first.
    fn whole(&mut self) -> Option<Bytes> {
        const HEAD: usize = 5;
        let mut head = self.read.get(1..HEAD)?;
        let length = usize::try_from(head.get_u32()).expect("32 bits");
        if self.read.len() < HEAD + length {
            return None;
        }
        let frame = self.read.split_to(HEAD + length);
        Some(spoil(&self.path, &frame[HEAD..], &self.script))
    }
}

/// The frames that are passed on in place of this message: mostly one.
fn spoil(path: &str, message: &[u8], script: &Script) -> Bytes {
    let mut spoilt = message.to_vec();
    let mut frames = BytesMut::new();
    match script.next() {
        0..=127 => {}
        128..=191 => spoilt = lie(path, message, script).unwrap_or(spoilt),
        192..=207 => damage(&mut spoilt, script),
        208..=215 => return Bytes::new(),
        216..=223 => frame(&mut frames, message),
        224..=231 => spoilt.clear(),
        232..=239 => {
            // A length that no message has, and nothing behind it.
            frames.put_u8(0);
            frames.put_u32(u32::MAX - u32::from(script.next()));
            return frames.freeze();
        }
        _ => spoilt.truncate(usize::from(script.next()) % (message.len() + 1)),
    }
    frame(&mut frames, &spoilt);
    frames.freeze()
}

fn frame(frames: &mut BytesMut, message: &[u8]) {
    frames.put_u8(0);
    frames.put_u32(u32::try_from(message.len()).expect("small"));
    frames.extend_from_slice(message);
}

fn damage(message: &mut [u8], script: &Script) {
    for _ in 0..=script.next() % 4 {
        let (at, byte) = (usize::from(script.next()), script.next());
        if let Some(damaged) = message.get_mut(at) {
            *damaged = byte;
        }
    }
}

/// Another answer of the same kind, which is not true.
fn lie(path: &str, message: &[u8], script: &Script) -> Option<Vec<u8>> {
    match path.rsplit('/').next()? {
        "Watch" => watch(pb::WatchResponse::decode(message).ok()?, script),
        "LeaseKeepAlive" => keep_alive(pb::LeaseKeepAliveResponse::decode(message).ok()?, script),
        "LeaseGrant" => grant(pb::LeaseGrantResponse::decode(message).ok()?, script),
        "Txn" => txn(pb::TxnResponse::decode(message).ok()?, script),
        "Range" => range(pb::RangeResponse::decode(message).ok()?, script),
        _ => None,
    }
}

fn header(header: &mut Option<pb::ResponseHeader>, script: &Script) {
    match (header.as_mut(), script.next() % 4) {
        (Some(header), 0) => header.revision = script.number(),
        (Some(header), 1) => header.revision -= 1,
        (Some(header), 2) => header.raft_term = 0,
        _ => *header = None,
    }
}

fn watch(mut answer: pb::WatchResponse, script: &Script) -> Option<Vec<u8>> {
    match script.next() % 9 {
        0 => answer.watch_id = script.number(),
        1 => answer.created = !answer.created,
        2 => answer.canceled = !answer.canceled,
        3 => answer.compact_revision = script.number(),
        4 => answer.events.clear(),
        5 => answer.events.iter_mut().for_each(|event| event.kv = None),
        6 => answer.events.iter_mut().for_each(|event| event.r#type = script.number() as i32),
        7 => answer.fragment = !answer.fragment,
        _ => {
            let number = script.number();
            for kv in answer.events.iter_mut().filter_map(|event| event.kv.as_mut()) {
                kv.mod_revision = number;
            }
        }
    }
    if script.next() > 200 {
        header(&mut answer.header, script);
    }
    Some(answer.encode_to_vec())
}

fn keep_alive(mut answer: pb::LeaseKeepAliveResponse, script: &Script) -> Option<Vec<u8>> {
    match script.next() % 3 {
        0 => answer.id = script.number(),
        1 => answer.ttl = script.number(),
        _ => header(&mut answer.header, script),
    }
    Some(answer.encode_to_vec())
}

fn grant(mut answer: pb::LeaseGrantResponse, script: &Script) -> Option<Vec<u8>> {
    match script.next() % 4 {
        0 => answer.id = script.number(),
        1 => answer.ttl = script.number(),
        2 => answer.error = "no".into(),
        _ => header(&mut answer.header, script),
    }
    Some(answer.encode_to_vec())
}

fn txn(mut answer: pb::TxnResponse, script: &Script) -> Option<Vec<u8>> {
    let place = usize::from(script.next());
    match script.next() % 7 {
        0 => answer.succeeded = !answer.succeeded,
        1 => drop(answer.responses.pop()),
        2 => answer.responses.clear(),
        3 if !answer.responses.is_empty() => {
            let count = answer.responses.len();
            answer.responses.swap(place % count, 0);
        }
        4 => header(&mut answer.header, script),
        _ => {
            let ranges = answer.responses.iter_mut().filter_map(|response| match &mut response.response {
                Some(Answer::ResponseRange(range)) => Some(range),
                _ => None,
            });
            ranges.for_each(|range| falsify(range, script));
        }
    }
    Some(answer.encode_to_vec())
}

fn range(mut answer: pb::RangeResponse, script: &Script) -> Option<Vec<u8>> {
    match script.next() % 3 {
        0 => header(&mut answer.header, script),
        _ => falsify(&mut answer, script),
    }
    Some(answer.encode_to_vec())
}

fn falsify(range: &mut pb::RangeResponse, script: &Script) {
    match script.next() % 6 {
        0 => range.kvs.clear(),
        1 => range.count = script.number(),
        2 => range.more = !range.more,
        3 => range.kvs.iter_mut().for_each(|kv| kv.create_revision = script.number()),
        4 => range.kvs.iter_mut().for_each(|kv| kv.key = Bytes::from_static(b"another")),
        _ => range.kvs.reverse(),
    }
}
