//! A service that has each message between a client and the fake wait at the gate.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{BufMut, Bytes, BytesMut};
use etcd_concurrency::fake::FakeEtcd;
use etcd_concurrency::{Client, RawService};
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Status;
use tonic::body::Body;
use tower::{Service, ServiceExt};

use crate::gate::{Gate, Kind, Lane, Message, Verdict};
use crate::told;

/// A client of the fake, whose messages wait at the gate.
pub(crate) fn client(fake: &FakeEtcd, gate: &Gate, name: &'static str) -> Client {
    let inner = RawService::new(fake.service_for(name).map_err(|error| Status::from_error(error.into())));
    Client::from_service(Gated { inner, gate: gate.clone(), name })
}

#[derive(Clone)]
struct Gated {
    inner: RawService,
    gate: Gate,
    name: &'static str,
}

type Answer = Result<Response<Body>, <RawService as Service<Request<Body>>>::Error>;

impl Service<Request<Body>> for Gated {
    type Response = Response<Body>;
    type Error = <RawService as Service<Request<Body>>>::Error;
    type Future = Pin<Box<dyn Future<Output = Answer> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let ready = self.inner.clone();
        let inner = std::mem::replace(&mut self.inner, ready);
        let (gate, name) = (self.gate.clone(), self.name);
        let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        match &method[..] {
            "LeaseKeepAlive" | "LeaseGrant" => Box::pin(async move { inner.oneshot(request).await }),
            "Watch" => Box::pin(stream(inner, gate, name, request)),
            _ => {
                let (answers, answer) = oneshot::channel();
                // A request that has left goes its way, also where the client drops the call.
                tokio::spawn(unary(inner, gate, name, method, request, answers));
                Box::pin(async move { answer.await.unwrap_or_else(|_| Ok(broken())) })
            }
        }
    }
}

fn broken() -> Response<Body> {
    Status::unavailable("connection broken").into_http()
}

/// A request and its answer.
async fn unary(
    inner: RawService,
    gate: Gate,
    name: &'static str,
    method: String,
    request: Request<Body>,
    answers: oneshot::Sender<Answer>,
) {
    let (parts, body) = request.into_parts();
    let Ok(asked) = body.collect().await else { return };
    let asked = asked.to_bytes();
    let what = format!("{name} {}", told::asked(&method, asked.get(5..).unwrap_or_default()));
    match passes(&gate, Kind::Request, format!("{what} arrives"), || false).await {
        Verdict::Delivered => {}
        Verdict::Broken => return,
        Verdict::PutAside => {
            drop(answers);
            passes(&gate, Kind::Straggler, format!("{what} arrives late"), || false).await;
            let late = Request::from_parts(parts, Body::new(Full::new(asked)));
            // No client waits for its answer.
            if let Ok(answer) = inner.oneshot(late).await {
                drop(answer.into_body().collect().await);
            }
            return;
        }
    }
    let answer = match inner.oneshot(Request::from_parts(parts, Body::new(Full::new(asked)))).await {
        Ok(answer) => answer,
        Err(error) => {
            let _ = answers.send(Err(error));
            return;
        }
    };
    let (parts, body) = answer.into_parts();
    let Ok(body) = body.collect().await else { return };
    let (closed, mut answers) = (std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false)), answers);
    let is_closed = closed.clone();
    let gone = move || is_closed.load(std::sync::atomic::Ordering::Relaxed);
    let verdict = tokio::select! {
        biased;
        () = answers.closed() => {
            closed.store(true, std::sync::atomic::Ordering::Relaxed);
            return;
        }
        verdict = passes(&gate, Kind::Answer, format!("{what} is answered"), gone) => verdict,
    };
    if verdict == Verdict::Delivered {
        let _ = answers.send(Ok(Response::from_parts(parts, Body::new(body))));
    }
}

async fn passes(gate: &Gate, kind: Kind, what: String, gone: impl Fn() -> bool + Send + 'static) -> Verdict {
    let (decides, decided) = oneshot::channel();
    let ends = Box::new(move |verdict| _ = decides.send(verdict));
    gate.take(Message { kind, lane: gate.lane(), what, ends, is_gone: Box::new(gone) });
    decided.await.unwrap_or(Verdict::Broken)
}

type Frames = mpsc::UnboundedSender<Result<Frame<Bytes>, Status>>;

fn body() -> (Frames, Body) {
    let (sends, frames) = mpsc::unbounded_channel();
    (sends, Body::new(StreamBody::new(UnboundedReceiverStream::new(frames))))
}

/// What a client asks of a stream, and what it is told there.
async fn stream(inner: RawService, gate: Gate, name: &'static str, request: Request<Body>) -> Answer {
    let (parts, asks) = request.into_parts();
    let (asked, inward) = body();
    let (lane, gate_in) = (gate.lane(), gate.clone());
    tokio::spawn(async move {
        pump(
            asks,
            &asked,
            |message| Told { lane, what: told::of_watch(name, &message), kind: Kind::Request, message },
            &gate_in,
        )
        .await;
    });
    let answer = inner.oneshot(Request::from_parts(parts, inward)).await?;
    let (parts, tells) = answer.into_parts();
    let (told, outward) = body();
    tokio::spawn(async move {
        let mut lanes = std::collections::BTreeMap::new();
        let event = |message: Bytes| {
            let (watch, what) = told::events(name, &message);
            let lane = *lanes.entry(watch).or_insert_with(|| gate.lane());
            Told { lane, what, kind: Kind::Event, message }
        };
        pump(tells, &told, event, &gate).await;
    });
    Ok(Response::from_parts(parts, outward))
}

struct Told {
    lane: Lane,
    what: String,
    kind: Kind,
    message: Bytes,
}

/// Has each message of a stream wait at the gate, until either side ends it.
async fn pump(mut from: Body, to: &Frames, mut tell: impl FnMut(Bytes) -> Told, gate: &Gate) {
    let mut parts = BytesMut::new();
    loop {
        let frame = tokio::select! {
            biased;
            () = to.closed() => return,
            frame = from.frame() => frame,
        };
        let data = match frame {
            None => return,
            Some(Err(error)) => return drop(to.send(Err(error))),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => data,
                // How the stream ends.
                Err(frame) => {
                    let _ = to.send(Ok(frame));
                    return;
                }
            },
        };
        parts.extend_from_slice(&data);
        // Several messages may come in one piece.
        while let Some(length) = parts.get(1..5) {
            let length = u32::from_be_bytes(length.try_into().expect("four bytes")) as usize;
            if parts.len() < 5 + length {
                break;
            }
            let message = parts.split_to(5 + length).freeze();
            let Told { lane, what, kind, message } = tell(message.slice(5..));
            let (sends, gone) = (to.clone(), to.clone());
            let ends = Box::new(move |verdict| {
                let frame = match verdict {
                    Verdict::Delivered => Ok(Frame::data(framed(&message))),
                    Verdict::Broken | Verdict::PutAside => Err(Status::unavailable("connection broken")),
                };
                let _ = sends.send(frame);
            });
            gate.take(Message { kind, lane, what, ends, is_gone: Box::new(move || gone.is_closed()) });
        }
    }
}

fn framed(message: &[u8]) -> Bytes {
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).expect("short"));
    framed.put_slice(message);
    framed.freeze()
}
