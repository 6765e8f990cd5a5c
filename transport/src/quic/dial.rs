//! Keeps a connection to one listed peer: dials while there is none, with growing pauses.

use std::sync::Arc;
use std::{cell::RefCell, net::SocketAddr, rc::Rc, time::Duration};

use actix::WeakAddr;
use actorum_core::identity::RefusedBecause;
use actorum_machine::ids::NodeId;
use quinn::{ClientConfig, Endpoint, VarInt};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

use super::{Counters, DialHello, Failed, NoLink, QuicConfig, QuicTransport, gate::Gate, handshake, link::Link};
use crate::tls::node_name;

/// Dials whenever there is no link, until the transport is gone or this task is aborted.
pub(super) async fn keep_up(
    peer: NodeId,
    endpoint: Endpoint,
    config: Rc<QuicConfig>,
    transport: WeakAddr<QuicTransport>,
    mut up: watch::Receiver<Option<Link>>,
    counters: Rc<Counters>,
    gate: Rc<RefCell<Gate>>,
) {
    let mut backoff = config.min_backoff;
    let mut rng = config.seed ^ (config.identity.id << 32) ^ peer;
    loop {
        // Whichever side dialled, one link is enough.
        if up.wait_for(Option::is_none).await.is_err() {
            return;
        }
        let begun = Instant::now();
        let within = config.handshake_timeout;
        let dialled = match timeout(within, dial(peer, &endpoint, &config, &transport, &counters, &gate)).await {
            Ok(dialled) => dialled,
            Err(_) => Err(NoLink::Unreached("no answer in time".into())),
        };
        let most = match &dialled {
            Err(why) if is_final(why) => config.max_backoff * FINAL,
            _ => config.max_backoff,
        };
        match dialled {
            Ok(()) | Err(NoLink::NotNeeded) => {
                if up.wait_for(Option::is_none).await.is_err() {
                    return;
                }
                // A link that lasted. A link that ends at once, because the peer keeps another one, counts as a failed
                // dial.
                if begun.elapsed() > config.max_backoff {
                    backoff = config.min_backoff;
                    continue;
                }
            }
            Err(why) => {
                let Some(transport) = transport.upgrade() else { return };
                transport.do_send(Failed { peer, why });
            }
        }
        rng = rng.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // Between half and the whole of it, so that two nodes that lost each other do not dial at the same moments.
        let jitter = backoff.mul_f64(0.5 + (rng >> 33) as f64 / f64::from(u32::MAX));
        tokio::time::sleep(jitter.min(most)).await;
        backoff = (backoff * 2).min(most).max(Duration::from_millis(1));
    }
}

/// How many times longer the pause may become after a refusal that only a person can end.
const FINAL: u32 = 10;

/// Whether the same two processes will never have a link: one of them is a copy of the other's peer, or an earlier
/// process of it.
fn is_final(why: &NoLink) -> bool {
    let (NoLink::RefusedByPeer(_, Some(reason)) | NoLink::RefusedHere(reason)) = why else { return false };
    matches!(reason, RefusedBecause::OlderDirectory { .. } | RefusedBecause::Boot { .. })
}

async fn dial(
    peer: NodeId,
    endpoint: &Endpoint,
    config: &QuicConfig,
    transport: &WeakAddr<QuicTransport>,
    counters: &Counters,
    gate: &RefCell<Gate>,
) -> Result<(), NoLink> {
    let failed = |cause: String| NoLink::Unreached(cause);
    let asked = transport.upgrade().ok_or_else(|| failed("the transport has stopped".into()))?.send(DialHello(peer));
    let asked = asked.await.map_err(|e| failed(e.to_string()))?;
    let (hello, address) = asked.ok_or_else(|| failed("it is no longer listed".into()))?;
    // The address of a name may change, so it is looked up at each dial.
    let found = tokio::net::lookup_host(&address.0).await.map_err(|e| failed(format!("{address}: {e}")))?;
    // An IPv4 socket reaches no IPv6 address, and `localhost` often has both. Several addresses are tried in turn.
    let narrow = endpoint.local_addr().is_ok_and(|own| own.is_ipv4());
    let fit: Vec<_> = found.filter(|found| found.is_ipv4() || !narrow).collect();
    // The addresses from which the peer may dial this node, so that it does not share the tokens of strangers.
    gate.borrow_mut().resolved(peer, fit.iter().map(SocketAddr::ip));
    let turn = hello.dial as usize % fit.len().max(1);
    let target = *fit.get(turn).ok_or_else(|| failed(format!("{address}: no address that this socket can reach")))?;

    let (crypto, stranger) = config.tls.client_config(peer).map_err(|e| failed(e.to_string()))?;
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(crypto).map_err(|e| failed(e.to_string()))?;
    let mut client = ClientConfig::new(Arc::new(crypto));
    client.transport_config(config.transport());
    let connecting = endpoint.connect_with(client, target, &node_name(peer)).map_err(|e| failed(e.to_string()))?;
    let connection = match connecting.await {
        Ok(connection) => connection,
        Err(error) => {
            return Err(match stranger.take() {
                Some(certificate) => NoLink::RefusedHere(RefusedBecause::Certificate { certificate, id: peer }),
                None => failed(format!("{target}: {error}")),
            });
        }
    };
    let greeted = handshake::greet(&connection, peer, hello, transport, counters).await;
    if greeted.is_err() {
        connection.close(VarInt::from_u32(1), b"the hello failed");
    }
    greeted.map_err(|why| match why {
        NoLink::Unreached(cause) => NoLink::Unreached(format!("{target}: {cause}")),
        other => other,
    })
}
