//! No message exceeds its bound: an append has no more bytes of entries than one message may carry, but for a single
//! entry; what a leader sent to a peer since that peer's last answer stays near the window; and nothing is to be sent
//! that fits no frame.

use actorum::Config;
use actorum_core::wire::{Entry, MessageKind};

use super::{Event, Facts, Invariant};

pub(crate) struct MessagesAreBounded {
    pub bounds: Config,
}

impl Invariant for MessagesAreBounded {
    fn name(&self) -> &'static str {
        "no message exceeds its bound"
    }

    fn check(&mut self, event: &Event<'_>, _: &Facts) -> Result<(), String> {
        let (message_bound, entry_bound) = (self.bounds.append_bytes(), self.bounds.max_entry_bytes);
        match event {
            Event::Drained { node, drained } => {
                for (to, message) in drained.transmit.iter().filter(|(_, m)| m.kind == MessageKind::Append) {
                    let bytes: usize = message.entries.iter().map(Entry::size).sum();
                    if message.entries.len() > 1 && bytes > message_bound {
                        return Err(format!(
                            "n{node} -> n{to} {message}: {bytes} bytes of entries, more than {message_bound}"
                        ));
                    }
                }
                Ok(())
            }
            Event::FitsNoFrame { from, to, parcel, bytes } => {
                Err(format!("n{from} -> n{to} {parcel:?}: it takes up to {bytes} bytes, and fits no frame"))
            }
            Event::Looked { node, status } => {
                // A message is sent while less than the window is on its way. A change carries its own record beside
                // the entry.
                let window = self.bounds.peer_window_bytes + message_bound.max(2 * entry_bound);
                match status.peers.iter().find(|(_, peer)| peer.inflight_bytes > window) {
                    Some((id, peer)) => Err(format!(
                        "n{node} has {} bytes on their way to n{id}, more than {window}",
                        peer.inflight_bytes
                    )),
                    None => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }
}
