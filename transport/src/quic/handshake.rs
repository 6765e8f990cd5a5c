//! From a QUIC connection to a peer: finds out which node it is, and whether both sides accept the connection.
//!
//! ```text
//!  dialler ──Hello──▶ acceptor        the first two-way stream; TLS has checked both certificates before
//!          ◀──Hello── or Refused      judged: certificate, protocol, cluster, retired ids, incarnation, boot
//!          ──Welcome▶ or Refused      the dialler judges too
//! ```
//!
//! Nothing else is read from a connection before this is done, and all of it must be done in a bounded time.
//! With TLS 1.3 a dialler may believe in a connection whose certificate the acceptor is about to reject; the
//! answering hello is what proves it.

use std::{cell::RefCell, rc::Rc};

use actix::{WeakAddr, prelude::*};
use actorum_core::{
    identity::{Identity, RefusedBecause},
    lives::LifeKey,
};
use actorum_machine::ids::NodeId;
use quinn::{Connection, Endpoint, Incoming, RecvStream, SendStream, VarInt};
use rustls::pki_types::CertificateDer;
use tokio::time::{Instant, timeout};

use super::{
    Counters, Failed, NoLink, QuicConfig, QuicTransport,
    gate::{Gate, GateDecision},
};
use crate::{
    frame::{self, FrameKind, Hello, Refused, Splitter, Welcome},
    tls::node_of,
};

/// Our own hello for a peer that is accepted, or the reason why it is not; or why that could not be found out.
pub(super) type HelloChecked = Result<Result<Hello, RefusedBecause>, String>;

/// Whether the sender of this hello is accepted; if so, its life is recorded before the answer.
#[derive(Message)]
#[rtype(result = "HelloChecked")]
pub(super) struct CheckHello {
    pub hello: Hello,
}

/// Both sides accept each other. The answer says whether this connection is the one that stays.
#[derive(Message)]
#[rtype(result = "bool")]
pub(super) struct Established {
    pub identity: Identity,
    pub connection: Connection,
    pub dialled: bool,
    /// The dialler's number for it, from its hello.
    pub dial: u64,
    /// Which life of this node the peer has on record, by the last that it said.
    pub recorded: Option<LifeKey>,
}

/// Accepts connections until the endpoint closes or this task is aborted.
pub(super) async fn accept(
    endpoint: Endpoint,
    config: Rc<QuicConfig>,
    transport: WeakAddr<QuicTransport>,
    counters: Rc<Counters>,
    gate: Rc<RefCell<Gate>>,
) {
    while let Some(incoming) = endpoint.accept().await {
        let address = incoming.remote_address().ip();
        let place = match Gate::judge(&gate, Instant::now(), address, incoming.remote_address_validated()) {
            GateDecision::Accept(place) => place,
            GateDecision::Ignore => {
                incoming.ignore();
                continue;
            }
            GateDecision::Refuse => {
                incoming.refuse();
                continue;
            }
            GateDecision::Retry => {
                // This fails only for an address that has been proven already, and such an address is not asked.
                let _ = incoming.retry();
                continue;
            }
        };
        let (within, transport, counters) = (config.handshake_timeout, transport.clone(), counters.clone());
        actix_rt::spawn(async move {
            if let Err(error) = timeout(within, welcome(incoming, &transport, &counters)).await {
                tracing::debug!(%address, %error, "a handshake took too long");
            }
            drop(place);
        });
    }
}

/// The accepting side. A failure before the peer has shown its identity is logged only for debugging.
async fn welcome(incoming: Incoming, transport: &WeakAddr<QuicTransport>, counters: &Counters) {
    let address = incoming.remote_address();
    let connection = match incoming.await {
        Ok(connection) => connection,
        Err(error) => return tracing::debug!(%address, %error, "a handshake failed"),
    };
    if let Err(cause) = welcome_peer(&connection, transport, counters).await {
        tracing::debug!(%address, cause, "a hello failed");
        connection.close(VarInt::from_u32(1), b"the hello failed");
    }
}

async fn welcome_peer(
    connection: &Connection,
    transport: &WeakAddr<QuicTransport>,
    counters: &Counters,
) -> Result<(), String> {
    let (mut send, mut receive) = connection.accept_bi().await.map_err(|e| e.to_string())?;
    let mut splitter = Splitter::new(frame::SMALL);
    let hello: Hello = expect(&mut receive, &mut splitter, FrameKind::Hello, counters).await?;
    let id = hello.node;
    let transport = || transport.upgrade().ok_or("the transport has stopped");
    if let Err(reason) = certificate_names(connection, id) {
        refuse(&mut send, &reason, counters).await;
        // This is not reported: the holder of another certificate must not cause reports about this peer.
        return Err(reason.to_string());
    }
    match transport()?.send(CheckHello { hello: hello.clone() }).await.map_err(|e| e.to_string())?? {
        Ok(own) => write(&mut send, FrameKind::Hello, &own, counters).await?,
        Err(reason) => {
            refuse(&mut send, &reason, counters).await;
            return Err(reason.to_string());
        }
    }
    let (kind, body) = next(&mut receive, &mut splitter, counters).await?;
    let welcome = match kind {
        FrameKind::Welcome => frame::decode::<Welcome>(&body).map_err(|e| e.to_string())?,
        FrameKind::Refused => {
            let refused: Refused = frame::decode(&body).map_err(|e| e.to_string())?;
            let because = refused.because();
            transport()?.do_send(Failed { peer: id, why: NoLink::RefusedByPeer(refused.text, because) });
            return Err("refused by the peer".into());
        }
        other => return Err(format!("a {other:?} frame came where Welcome was expected")),
    };
    let established = Established {
        identity: hello.identity(),
        connection: connection.clone(),
        dialled: false,
        dial: hello.dial,
        recorded: welcome.recorded,
    };
    match transport()?.send(established).await {
        Ok(true) => Ok(()),
        Ok(false) => Err("another connection stays".into()),
        Err(error) => Err(error.to_string()),
    }
}

/// The dialling side.
pub(super) async fn greet(
    connection: &Connection,
    peer: NodeId,
    own: Hello,
    transport: &WeakAddr<QuicTransport>,
    counters: &Counters,
) -> Result<(), NoLink> {
    let broken = |cause: String| NoLink::Unreached(cause);
    // The address is weak while this waits for the peer: a dial that hangs must not prevent the stop of the transport.
    let transport = || transport.upgrade().ok_or_else(|| broken("the transport has stopped".to_owned()));
    let (mut send, mut receive) = connection.open_bi().await.map_err(|e| broken(e.to_string()))?;
    write(&mut send, FrameKind::Hello, &own, counters).await.map_err(broken)?;
    let mut splitter = Splitter::new(frame::SMALL);
    let (kind, body) = next(&mut receive, &mut splitter, counters).await.map_err(broken)?;
    let theirs: Hello = match kind {
        FrameKind::Hello => frame::decode(&body).map_err(|e| broken(e.to_string()))?,
        FrameKind::Refused => {
            let refused: Refused = frame::decode(&body).map_err(|e| broken(e.to_string()))?;
            let because = refused.because();
            return Err(NoLink::RefusedByPeer(refused.text, because));
        }
        other => return Err(broken(format!("a {other:?} frame came where Hello was expected"))),
    };
    // TLS accepted only `peer`; its hello must say the same.
    if theirs.node != peer {
        let reason = RefusedBecause::Certificate { certificate: crate::tls::node_name(peer), id: theirs.node };
        refuse(&mut send, &reason, counters).await;
        return Err(NoLink::RefusedHere(reason));
    }
    let judged = transport()?.send(CheckHello { hello: theirs.clone() }).await.map_err(|e| broken(e.to_string()))?;
    let ours = match judged.map_err(broken)? {
        Ok(ours) => ours,
        Err(reason) => {
            refuse(&mut send, &reason, counters).await;
            return Err(NoLink::RefusedHere(reason));
        }
    };
    write(&mut send, FrameKind::Welcome, &Welcome { recorded: ours.recorded }, counters).await.map_err(broken)?;
    let established = Established {
        identity: theirs.identity(),
        connection: connection.clone(),
        dialled: true,
        dial: own.dial,
        recorded: None,
    };
    match transport()?.send(established).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(NoLink::NotNeeded),
        Err(error) => Err(broken(error.to_string())),
    }
}

/// The certificate that TLS has verified must name exactly the node that the hello names.
fn certificate_names(connection: &Connection, id: NodeId) -> Result<(), RefusedBecause> {
    let shown = connection.peer_identity().and_then(|shown| shown.downcast::<Vec<CertificateDer<'static>>>().ok());
    let named = match shown.as_deref().and_then(|chain| chain.first()) {
        Some(certificate) => node_of(certificate),
        None => Err("nobody (no certificate)".to_owned()),
    };
    match named {
        Ok(named) if named == id => Ok(()),
        Ok(other) => Err(RefusedBecause::Certificate { certificate: crate::tls::node_name(other), id }),
        Err(names) => Err(RefusedBecause::Certificate { certificate: names, id }),
    }
}

async fn refuse(send: &mut SendStream, reason: &RefusedBecause, counters: &Counters) {
    if write(send, FrameKind::Refused, &Refused::new(reason), counters).await.is_ok() {
        let _ = send.finish();
        // Closing discards what the other side has not read: wait until it has, or closes the connection itself.
        let _ = send.stopped().await;
    }
}

async fn write<T: serde::Serialize>(
    send: &mut SendStream,
    kind: FrameKind,
    body: &T,
    counters: &Counters,
) -> Result<(), String> {
    let mut bytes = Vec::new();
    frame::encode(kind, body, frame::SMALL, &mut bytes).map_err(|e| e.to_string())?;
    counters.add_sent(bytes.len());
    send.write_all(&bytes).await.map_err(|e| e.to_string())
}

async fn next(
    receive: &mut RecvStream,
    splitter: &mut Splitter,
    counters: &Counters,
) -> Result<(FrameKind, bytes::BytesMut), String> {
    loop {
        if let Some(frame) = splitter.next_frame().map_err(|e| e.to_string())? {
            return Ok(frame);
        }
        let chunk = receive.read_chunk(frame::SMALL, true).await.map_err(|e| e.to_string())?;
        let chunk = chunk.ok_or("the stream ended before the hello did")?;
        counters.add_received(chunk.bytes.len());
        splitter.push(&chunk.bytes);
    }
}

async fn expect<T: serde::de::DeserializeOwned>(
    receive: &mut RecvStream,
    splitter: &mut Splitter,
    expected: FrameKind,
    counters: &Counters,
) -> Result<T, String> {
    let (kind, body) = next(receive, splitter, counters).await?;
    if kind != expected {
        return Err(format!("a {kind:?} frame came where {expected:?} was expected"));
    }
    frame::decode(&body).map_err(|e| e.to_string())
}
