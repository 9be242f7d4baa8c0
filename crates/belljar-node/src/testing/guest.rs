//! The guest's agent: the system API over the link, and a port that echoes. It computes only while its machine does.

use std::{
    convert::Infallible,
    future::Future,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
};

use axum::{
    Json, Router,
    body::Body,
    extract::Query,
    routing::{get, post},
};
use belljar_api::{
    guest::{Configure, Configured, LogEvent, PROTOCOL, SYSTEM_PORT},
    process::OutputStream,
};
use belljar_link::{Incoming, RefuseCode};
use belljar_vmm::VmExit;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream::FuturesUnordered};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};
use tokio_stream::wrappers::WatchStream;

use super::{driver::Guest, machine::Machine};

/// Port on which everything is sent back.
pub(super) const ECHO: u16 = 8000;
/// Reads to the end, and then neither says anything nor ends.
pub(super) const SILENT: u16 = 8001;
/// Says half of something and breaks off when it gets a byte.
pub(super) const BROKEN: u16 = 8002;

/// Serves one connection of the host, when those before it have ended.
pub(super) async fn serve(machine: Arc<Machine>, io: UnixStream) {
    let mut exit = machine.exit.subscribe();
    let goes = WatchStream::new(machine.goes.subscribe());
    let _turn = machine.port.lock().await;
    let work = Gate { goes, open: false, work: Box::pin(behave(machine.clone(), io)) };
    tokio::select! {
        _ = exit.wait_for(Option::is_some) => {}
        () = work => {}
    }
}

/// A processor: what runs on it stands still while it is stopped.
struct Gate<F> {
    goes: WatchStream<bool>,
    open: bool,
    work: Pin<Box<F>>,
}

impl<F: Future<Output = ()>> Future for Gate<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        while let Poll::Ready(goes) = Pin::new(&mut self.goes).poll_next(cx) {
            match goes {
                Some(goes) => self.open = goes,
                None => return Poll::Ready(()),
            }
        }
        if self.open { self.work.as_mut().poll(cx) } else { Poll::Pending }
    }
}

async fn behave(machine: Arc<Machine>, mut io: UnixStream) {
    let guest = *machine.world().guest.lock().expect("guest");
    match guest {
        Guest::HangsUp => drop(io),
        Guest::SendsGarbage => {
            let (mut reader, mut writer) = io.split();
            let noise: Vec<u8> = (0..64 * 1024_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
            let talk = async { while writer.write_all(&noise).await.is_ok() {} };
            let listen = async { tokio::io::copy(&mut reader, &mut tokio::io::sink()).await };
            tokio::select! { () = talk => {}, _ = listen => {} }
        }
        Guest::PowersOff => {
            machine.end(VmExit::GuestShutdown);
            let _ = io.read(&mut [0]).await;
        }
        Guest::Answers | Guest::RefusesConfiguration | Guest::SpeaksAnotherProtocol | Guest::Hangs => {
            agent(machine, io).await;
        }
    }
}

async fn agent(machine: Arc<Machine>, io: UnixStream) {
    let (mut acceptor, session) = belljar_link::serve(io);
    let mut session = pin!(session);
    let mut connections = FuturesUnordered::new();
    loop {
        tokio::select! {
            _ = &mut session => return,
            incoming = acceptor.accept() => match incoming {
                Some(incoming) => connections.push(connection(machine.clone(), incoming)),
                None => return,
            },
            Some(()) = connections.next() => {}
        }
    }
}

async fn connection(machine: Arc<Machine>, incoming: Incoming) {
    match incoming.port {
        SYSTEM_PORT => {
            let service = hyper_util::service::TowerToHyperService::new(system(machine));
            let io = TokioIo::new(incoming.accept());
            // The host's side sees a failure by itself.
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
        }
        ECHO => {
            let (mut reader, mut writer) = tokio::io::split(incoming.accept());
            let _ = tokio::io::copy(&mut reader, &mut writer).await;
            let _ = writer.shutdown().await;
        }
        SILENT => {
            let mut stream = incoming.accept();
            let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
            std::future::pending().await
        }
        BROKEN => {
            let mut stream = incoming.accept();
            let _ = stream.write_all(b"half").await;
            let _ = stream.read_u8().await;
        }
        _ => incoming.refuse(RefuseCode::Refused),
    }
}

type Answer = Result<Json<serde_json::Value>, http::StatusCode>;

fn system(machine: Arc<Machine>) -> Router {
    let (configures, freezes, settles) = (machine.clone(), machine.clone(), machine.clone());
    Router::new()
        .route("/v1/configure", post(move |Json(body): Json<Configure>| configure(configures.clone(), body)))
        .route("/v1/freeze", post(move || freeze(freezes.clone())))
        .route("/v1/settle", post(move || settle(settles.clone())))
        .route("/v1/logs", get(move |Query(query): Query<After>| logs(machine.clone(), query.after)))
}

async fn configure(machine: Arc<Machine>, body: Configure) -> Answer {
    step(&machine, "guest: configure").await?;
    let guest = *machine.world().guest.lock().expect("guest");
    if guest == Guest::RefusesConfiguration {
        return Err(http::StatusCode::INTERNAL_SERVER_ERROR);
    }
    let protocol = if guest == Guest::SpeaksAnotherProtocol { PROTOCOL + 1 } else { PROTOCOL };
    machine.configure(body);
    let answer = Configured { protocol, version: "1".into(), boot_id: "b".into() };
    Ok(Json(serde_json::to_value(answer).expect("json")))
}

async fn freeze(machine: Arc<Machine>) -> Answer {
    step(&machine, "guest: freeze").await?;
    machine.state().guest.frozen = true;
    Ok(Json(serde_json::json!({})))
}

async fn settle(machine: Arc<Machine>) -> Answer {
    step(&machine, "guest: settle").await?;
    machine.state().guest.settled = true;
    Ok(Json(serde_json::json!({})))
}

async fn step(machine: &Machine, name: &'static str) -> Result<(), http::StatusCode> {
    if *machine.world().guest.lock().expect("guest") == Guest::Hangs {
        std::future::pending::<()>().await;
    }
    machine.world().step(name).map_err(|_| http::StatusCode::INTERNAL_SERVER_ERROR)
}

#[derive(serde::Deserialize)]
struct After {
    after: usize,
}

async fn logs(machine: Arc<Machine>, after: usize) -> Body {
    let said = machine.said.subscribe();
    let lines = futures_util::stream::unfold((said, after), |(mut said, seen)| async move {
        let lines: String = {
            let all = said.wait_for(|all| all.len() > seen).await.ok()?;
            (seen + 1..).zip(&all[seen..]).map(|(seq, line)| event(seq, line)).collect()
        };
        let seen = said.borrow().len();
        Some((Ok::<_, Infallible>(Bytes::from(lines)), (said, seen)))
    });
    Body::from_stream(lines)
}

fn event(seq: usize, line: &str) -> String {
    let event = LogEvent {
        seq: seq as u64,
        timestamp_ns: 1,
        handle: 1,
        pid: 1,
        command: "c".into(),
        managed_id: String::new(),
        managed_name: String::new(),
        stream: OutputStream::Stdout,
        line: line.to_owned(),
    };
    serde_json::to_string(&event).expect("json") + "\n"
}
