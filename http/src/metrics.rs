//! `GET /metrics`: the status and the HTTP counters in the text format of Prometheus (version 0.0.4).
//!
//! Made anew at each scrape from one status, so that its numbers belong together; nothing is counted twice.

use std::{
    fmt::{Display, Write},
    sync::atomic::Ordering,
};

use actix_web::{HttpResponse, web::Data};
use actorum::{DiskState, Reason, Role, Severity, Snapshots, StateMachine, Status, Transfer};

use crate::{Node, Refused, node::Counter};

/// Answers a scrape.
pub(crate) async fn get<S: StateMachine>(node: Data<Node<S>>) -> Result<HttpResponse, Refused> {
    let mut page = Page::default();
    page.status(&node.raft().status());
    page.http(&node);
    Ok(HttpResponse::Ok().content_type("text/plain; version=0.0.4; charset=utf-8").body(page.0))
}

/// The page so far.
#[derive(Default)]
struct Page(String);

impl Page {
    fn status(&mut self, status: &Status) {
        let Status { totals, queues, .. } = status;
        self.gauge("has_leader", "Whether a leader is known.", u8::from(status.leader.is_some()));
        self.gauge("is_leader", "Whether this node leads.", u8::from(status.role == Role::Leader));
        self.conditions(status);
        self.gauge("stopped", "Whether the system has stopped.", u8::from(status.stopped.is_some()));
        self.gauge("term", "The current term.", status.term);
        self.counter("leader_changes_total", "How often the known leader changed.", totals.leader_changes);

        self.gauge("proposals_pending", "Requests of clients that are in flight.", queues.in_flight);
        self.counter("proposals_applied_total", "Proposals answered with a response.", totals.proposals_applied);
        self.counter("proposals_failed_total", "Proposals answered with an error.", totals.proposals_failed);
        self.counter("commands_applied_total", "Commands applied by the state machine.", totals.commands_applied);

        self.gauge("first_index", "The first index that the log holds.", status.first_index);
        self.gauge("last_index", "The last index of the log.", status.last_index);
        self.gauge("persisted_index", "The highest index that is durable here.", status.persisted_index);
        self.gauge("commit_index", "The highest index known to be committed.", status.commit_index);
        self.gauge("applied_index", "The highest index applied here.", status.applied_index);
        self.gauge("snapshot_index", "The last index that a snapshot covers.", status.snapshot_index);
        self.gauge("log_bytes", "Bytes that the files of the log take on disk.", status.disk_bytes);
        self.gauge("log_entry_bytes", "Bytes of entries that the log holds.", status.log_bytes);
        self.snapshots(&status.snapshots);

        self.gauge(
            "commit_conflicts",
            "Members that say they committed an entry that contradicts this node's log.",
            status.commit_conflicts.len(),
        );
        let mark = status.state_hash.as_ref().map_or(0, |hash| hash.index);
        self.gauge(
            "hash_check_index",
            "The last index at which this node compared its hash; zero before the first.",
            mark,
        );

        let versions = &status.versions;
        self.gauge("machine_version", "The version of the state machine in force.", versions.machine);
        self.gauge(
            "not_in_use",
            "What this node's program understands and the cluster cannot use, because a member lacks it.",
            versions.not_in_use.iter().filter(|waiting| !waiting.lacking.is_empty()).count(),
        );

        let disk = &status.disk;
        self.family("disk_state", "gauge", "How the node judges its disk: one of these is 1.");
        for state in [DiskState::Ok, DiskState::Slow, DiskState::Low, DiskState::Suspect, DiskState::Dead] {
            self.sample("disk_state", &format!("{{state=\"{state}\"}}"), u8::from(disk.state == state));
        }
        self.gauge(
            "disk_oldest_write_seconds",
            "How long the oldest write that is not durable has been waiting.",
            disk.waiting_ms as f64 / 1e3,
        );
        self.gauge("disk_unpersisted_bytes", "Bytes handed to the disk that are not durable.", disk.unpersisted_bytes);
        if let Some(free) = disk.free_bytes {
            self.gauge("disk_free_bytes", "Free bytes on the disk.", free);
        }
        self.gauge(
            "disk_reserve_bytes",
            "Bytes of the reserve that is kept for making room; not counted as free.",
            disk.reserve_bytes,
        );
        self.gauge("disk_needed_bytes", "Bytes that must be free for the node to take writes.", disk.needed_bytes);
        self.counter("disk_deferred_dropped_total", "Answers dropped that waited for the disk.", disk.deferred_dropped);

        self.summary("fsync_seconds", "Making batches durable, the sync alone.", totals.sync_us, totals.syncs);
        self.summary("append_seconds", "Writing batches, the sync included.", totals.append_us, totals.syncs);
        self.counter("entries_persisted_total", "Entries made durable.", totals.entries_persisted);

        self.family("peer_round_trip_seconds", "gauge", "Smoothed round trip to a peer; zero without a connection.");
        for (id, peer) in &status.peers {
            self.sample("peer_round_trip_seconds", &format!("{{peer=\"{id}\"}}"), seconds(peer.rtt_us));
        }
        self.family("peer_connected", "gauge", "Whether a connection to the peer is up.");
        for (id, peer) in &status.peers {
            self.sample("peer_connected", &format!("{{peer=\"{id}\"}}"), u8::from(peer.connected));
        }
        self.family(
            "peer_match_index",
            "gauge",
            "The highest index known to be on a peer's disk; zero unless leading.",
        );
        for (id, peer) in &status.peers {
            self.sample("peer_match_index", &format!("{{peer=\"{id}\"}}"), peer.match_index);
        }
        self.family(
            "peer_inflight_bytes",
            "gauge",
            "Bytes of entries sent to a peer and not acknowledged; zero unless leading.",
        );
        for (id, peer) in &status.peers {
            self.sample("peer_inflight_bytes", &format!("{{peer=\"{id}\"}}"), peer.inflight_bytes);
        }
        self.counter("peer_dropped_messages_total", "Messages to peers dropped at a bound.", totals.messages_dropped);
        self.counter(
            "peer_misdirected_total",
            "Messages and questions of peers refused because their group is not on this node.",
            totals.misdirected,
        );
        if let Some(offset) = status.clock.offset_ms {
            let help =
                "How far this node's clock is ahead of the median of the voters' clocks; absent while it is not known.";
            self.gauge("clock_offset_seconds", help, offset as f64 / 1e3);
        }
        self.family(
            "peer_clock_offset_seconds",
            "gauge",
            "How far a peer's clock is ahead of this node's; absent while it is not known.",
        );
        for (id, peer) in &status.peers {
            if let Some(offset) = peer.clock_offset_ms {
                self.sample("peer_clock_offset_seconds", &format!("{{peer=\"{id}\"}}"), offset as f64 / 1e3);
            }
        }
        self.counter("peer_sent_bytes_total", "Bytes sent to peers.", totals.bytes_sent);
        self.counter("peer_received_bytes_total", "Bytes received from peers.", totals.bytes_received);

        self.family("queue_depth", "gauge", "What waits, and where.");
        let depths = [
            ("in_flight", queues.in_flight as u64),
            ("queued", queues.queued as u64),
            ("unpersisted", queues.unpersisted as u64),
            ("unapplied", queues.unapplied),
        ];
        for (queue, depth) in depths {
            self.sample("queue_depth", &format!("{{queue=\"{queue}\"}}"), depth);
        }
        self.family("queue_bytes", "gauge", "Bytes that wait, for each place where they wait.");
        for (queue, bytes) in [("in_flight", queues.in_flight_bytes), ("log_tail", queues.log_tail_bytes)] {
            self.sample("queue_bytes", &format!("{{queue=\"{queue}\"}}"), bytes);
        }
    }

    fn conditions(&mut self, status: &Status) {
        let conditions = status.conditions();
        let ready = conditions.iter().all(|condition| condition.severity != Severity::Unready);
        self.gauge("ready", "Whether a write sent to this node could succeed, as far as it knows.", u8::from(ready));
        self.family("condition", "gauge", "1 while the node has this condition; /status has its message.");
        for reason in Reason::ALL {
            let holds = conditions.iter().any(|condition| condition.reason == *reason);
            self.sample("condition", &format!("{{condition=\"{reason}\"}}"), u8::from(holds));
        }
        self.family(
            "certificate_expiry_timestamp_seconds",
            "gauge",
            "When a certificate expires, in seconds since 1970.",
        );
        for certificate in &status.certificates {
            let labels = format!("{{file=\"{}\"}}", certificate.file);
            self.sample("certificate_expiry_timestamp_seconds", &labels, certificate.not_after);
        }
    }

    fn snapshots(&mut self, snapshots: &Snapshots) {
        let newest = snapshots.newest.map_or(0, |newest| newest.bytes);
        self.gauge("snapshot_bytes", "Bytes of the newest snapshot's file; zero without one.", newest);
        self.counter("snapshots_built_total", "Snapshots built here.", snapshots.built);
        self.counter("snapshots_received_total", "Snapshots received from peers.", snapshots.received);
        self.counter("snapshot_sent_bytes_total", "Bytes of snapshots sent to peers.", snapshots.bytes_sent);
        self.counter(
            "snapshot_received_bytes_total",
            "Bytes of snapshots received from peers.",
            snapshots.bytes_received,
        );
        let building = snapshots.building.iter().map(|transfer| ("building", 0, transfer));
        let receiving = snapshots.receiving.iter().map(|(peer, transfer)| ("receiving", *peer, transfer));
        let sending = snapshots.sending.iter().map(|(peer, transfer)| ("sending", *peer, transfer));
        let transfers: Vec<(String, &Transfer)> = building
            .chain(receiving)
            .chain(sending)
            .map(|(doing, peer, transfer)| (format!("{{doing=\"{doing}\",peer=\"{peer}\"}}"), transfer))
            .collect();
        let mut column = |name: &str, help: &str, value: fn(&Transfer) -> u64| {
            self.family(name, "gauge", help);
            for (labels, transfer) in &transfers {
                self.sample(name, labels, value(transfer));
            }
        };
        column("snapshot_transfer_bytes", "Bytes done of a snapshot that is under way.", |t| t.bytes);
        column("snapshot_transfer_size_bytes", "Bytes of the whole snapshot; zero while not known.", |t| t.total);
        column("snapshot_transfer_bytes_per_second", "Bytes per second of a snapshot that is under way.", |t| t.rate);
    }

    fn http<S: StateMachine>(&mut self, node: &Node<S>) {
        self.family("http_responses_total", "counter", "Responses of the HTTP API by class of status.");
        for (class, count) in node.responses.iter().enumerate().skip(2) {
            self.sample("http_responses_total", &format!("{{class=\"{class}xx\"}}"), count.load(Ordering::Relaxed));
        }
        self.gauge("backups", "Backups that are being sent.", node.backups.load(Ordering::Relaxed));
        for Counter { name, help, read } in &node.counters {
            self.line(format_args!("# HELP {name} {help}"));
            self.line(format_args!("# TYPE {name} counter"));
            self.line(format_args!("{name} {}", read()));
        }
        self.gauge("event_streams", "Event streams that are open.", node.streams.load(Ordering::Relaxed));
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, "gauge", help);
        self.sample(name, "", value);
    }

    fn counter(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, "counter", help);
        self.sample(name, "", value);
    }

    /// A summary without quantiles: the sum in seconds and how many there were.
    fn summary(&mut self, name: &str, help: &str, micros: u64, count: u64) {
        self.family(name, "summary", help);
        self.sample(&format!("{name}_sum"), "", seconds(micros));
        self.sample(&format!("{name}_count"), "", count);
    }

    fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP actorum_{name} {help}"));
        self.line(format_args!("# TYPE actorum_{name} {kind}"));
    }

    fn sample(&mut self, name: &str, labels: &str, value: impl Display) {
        self.line(format_args!("actorum_{name}{labels} {value}"));
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        writeln!(self.0, "{line}").expect("writing to a string cannot fail");
    }
}

fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every family is introduced once, before its samples, and every sample has a family.
    #[test]
    fn exposition() {
        let mut status = Status::default();
        status.peers.insert(2, Default::default());
        status.totals.sync_us = 1_500_000;
        let transfer = Transfer { index: 9, bytes: 10, total: 40, rate: 5 };
        status.snapshots.sending.insert(2, transfer);
        status.snapshots.building = Some(Transfer { total: 0, ..transfer });
        let mut page = Page::default();
        page.status(&status);

        let mut families = Vec::new();
        for line in page.0.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let name = rest.split(' ').next().expect("a name");
                assert!(!families.contains(&name), "{name} twice");
                families.push(name);
            } else if !line.starts_with('#') {
                let name = line.split(['{', ' ']).next().expect("a name");
                let family = families.last().expect("a family first");
                assert!([*family, &format!("{family}_sum"), &format!("{family}_count")].contains(&name), "{line}");
            }
        }
        assert!(page.0.contains("\nactorum_fsync_seconds_sum 1.5\n"), "{}", page.0);
        assert!(page.0.contains("\nactorum_condition{condition=\"no_majority\"} 0\n"), "{}", page.0);
        assert!(
            page.0.contains("\nactorum_condition{condition=\"not_a_member\"} 1\n"),
            "a status says nothing yet: {}",
            page.0
        );
        assert!(page.0.contains("\nactorum_ready 0\n"), "{}", page.0);
        assert!(page.0.contains("\nactorum_disk_state{state=\"ok\"} 1\n"), "{}", page.0);
        assert!(page.0.contains("\nactorum_peer_connected{peer=\"2\"} 0\n"), "{}", page.0);
        let sending = "\nactorum_snapshot_transfer_size_bytes{doing=\"sending\",peer=\"2\"} 40\n";
        assert!(page.0.contains(sending), "{}", page.0);
        let building = "\nactorum_snapshot_transfer_bytes{doing=\"building\",peer=\"0\"} 10\n";
        assert!(page.0.contains(building), "{}", page.0);
    }
}
