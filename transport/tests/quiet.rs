//! A peer that is down makes one line in the log, however often it is dialled in vain; its return makes one more.
//!
//! Alone in its file: the lines of the whole process are counted.

mod support;

use std::{
    net::UdpSocket,
    sync::{Arc, Mutex},
    time::Duration,
};

use actorum_core::identity::Identity;
use actorum_transport::message::Close;
use tracing::{Event, Level, Metadata, Subscriber, field::Visit, span};

use support::{Certs, Heard, Questions, identity, node_with, settle};

/// Keeps what is said to people about node 2.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<(Level, String)>>>);

impl Lines {
    fn take(&self) -> Vec<(Level, String)> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("actorum_transport") && *metadata.level() <= Level::INFO
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut message = Message(String::new());
        event.record(&mut message);
        if message.0.contains("node 2") {
            self.0.lock().unwrap().push((*event.metadata().level(), message.0));
        }
    }
}

/// Waits until a dead peer was dialled at least so often: each dial begins with a datagram of a new connection.
fn dialled_in_vain(socket: &UdpSocket, times: usize) {
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let (mut buffer, mut connections) = ([0; 2048], std::collections::BTreeSet::new());
    while connections.len() < times {
        let length = socket.recv(&mut buffer).expect("it goes on dialling");
        // The destination's connection id of a long header (RFC 9000, section 17.2): drawn anew for each dial.
        let id = 6..6 + usize::from(buffer[5]);
        if length > id.end {
            connections.insert(buffer[id].to_vec());
        }
    }
}

#[actix::test]
async fn a_peer_that_is_down_is_said_to_be_down_once() {
    let lines = Lines::default();
    tracing::subscriber::set_global_default(lines.clone()).unwrap();
    let certs = Certs::new();
    let quick = |config: &mut actorum_transport::quic::QuicConfig| {
        config.max_backoff = Duration::from_millis(50);
        config.handshake_timeout = Duration::from_millis(100);
    };
    let mut one = node_with(&certs, identity(1), Questions::Answer, quick);

    // Never reached yet.
    let dead = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = dead.local_addr().unwrap();
    one.list(&[(2, address)]);
    let dead = tokio::task::spawn_blocking(move || {
        dialled_in_vain(&dead, 6);
        dead
    });
    drop(dead.await.unwrap());
    let said = lines.take();
    assert!(matches!(&said[..], [(Level::WARN, line)] if line.contains("cannot be reached")), "{said:?}");

    // It comes, and goes.
    let start =
        |boot| node_with(&certs, Identity { boot, ..identity(2) }, Questions::Answer, |config| config.listen = address);
    let mut two = start(1);
    two.list(&[(1, one.address)]);
    settle(&mut one, &mut two).await;
    let said = lines.take();
    assert!(matches!(&said[..], [(Level::INFO, line)] if line.contains("can be reached again")), "{said:?}");
    two.handle.close.send(Close).await.unwrap();
    drop(two);
    one.until("it went", |heard| matches!(heard, Heard::Unreachable(2)).then_some(())).await;
    support::eventually("the port is free again", async || UdpSocket::bind(address).is_ok()).await;
    let dead = UdpSocket::bind(address).unwrap();
    let dead = tokio::task::spawn_blocking(move || {
        dialled_in_vain(&dead, 6);
        dead
    });
    drop(dead.await.unwrap());
    let said = lines.take();
    // In order, so it is no warning.
    assert!(matches!(&said[..], [(Level::INFO, line)] if line.contains("has closed its connection")), "{said:?}");

    // And comes back.
    let mut two = start(2);
    two.list(&[(1, one.address)]);
    settle(&mut one, &mut two).await;
    let said = lines.take();
    assert!(matches!(&said[..], [(Level::INFO, line)] if line.contains("can be reached again")), "{said:?}");
}
