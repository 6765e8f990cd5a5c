//! Between the project's own structs and raft-rs's: the only place that knows both spellings.

use actorum_machine::{
    configuration::{Configuration, RoleChange},
    ids::NodeId,
    members::MemberRole,
};
use raft::{Raft, Storage, eraftpb};

use crate::{
    log::store::HardState,
    wire::{ConfState, Entry, EntryKind, MessageKind, RaftMessage, Snapshot},
};

/// An entry as raft-rs wants it. The payload is shared, not copied.
pub fn entry_to_raft(entry: &Entry) -> eraftpb::Entry {
    let mut out = eraftpb::Entry::default();
    out.set_entry_type(match entry.kind {
        EntryKind::Normal => eraftpb::EntryType::EntryNormal,
        EntryKind::ConfChange => eraftpb::EntryType::EntryConfChangeV2,
    });
    out.term = entry.term;
    out.index = entry.index;
    out.data = entry.data.clone();
    out.context = entry.context.clone();
    out
}

/// An entry as it is stored and sent. The payload is shared, not copied.
pub fn entry_from_raft(entry: &eraftpb::Entry) -> Entry {
    let kind = match entry.get_entry_type() {
        eraftpb::EntryType::EntryNormal => EntryKind::Normal,
        eraftpb::EntryType::EntryConfChange | eraftpb::EntryType::EntryConfChangeV2 => EntryKind::ConfChange,
    };
    Entry { kind, term: entry.term, index: entry.index, data: entry.data.clone(), context: entry.context.clone() }
}

/// A configuration as raft-rs wants it.
pub fn conf_to_raft(conf: &ConfState) -> eraftpb::ConfState {
    eraftpb::ConfState {
        voters: conf.voters.clone(),
        learners: conf.learners.clone(),
        voters_outgoing: conf.voters_outgoing.clone(),
        learners_next: conf.learners_next.clone(),
        auto_leave: conf.auto_leave,
        ..Default::default()
    }
}

/// A configuration as it is stored and sent.
pub fn conf_from_raft(conf: &eraftpb::ConfState) -> ConfState {
    ConfState {
        voters: conf.voters.clone(),
        learners: conf.learners.clone(),
        voters_outgoing: conf.voters_outgoing.clone(),
        learners_next: conf.learners_next.clone(),
        auto_leave: conf.auto_leave,
    }
}

/// The configuration that raft-rs counts by. It keeps the rules of one by itself, and has an empty one before there is
/// a cluster.
pub fn configuration_of(raft: &Raft<impl Storage>) -> Configuration {
    let eraftpb::ConfState { voters, voters_outgoing, learners, learners_next, .. } = raft.prs().conf().to_conf_state();
    let set = |ids: Vec<NodeId>| ids.into_iter().collect();
    Configuration {
        voters: set(voters),
        outgoing: set(voters_outgoing),
        learners: set(learners),
        next_learners: set(learners_next),
    }
}

/// A snapshot as raft-rs wants it.
pub fn snapshot_to_raft(snapshot: &Snapshot) -> eraftpb::Snapshot {
    let mut out = eraftpb::Snapshot { data: snapshot.data.clone(), ..Default::default() };
    let metadata = out.mut_metadata();
    metadata.index = snapshot.index;
    metadata.term = snapshot.term;
    metadata.set_conf_state(conf_to_raft(&snapshot.conf));
    out
}

/// A snapshot as it is stored and sent.
pub fn snapshot_from_raft(snapshot: &eraftpb::Snapshot) -> Snapshot {
    let metadata = snapshot.get_metadata();
    Snapshot {
        index: metadata.index,
        term: metadata.term,
        conf: conf_from_raft(metadata.get_conf_state()),
        data: snapshot.data.clone(),
    }
}

/// The hard state as raft-rs wants it.
pub fn hard_to_raft(hard: HardState) -> eraftpb::HardState {
    eraftpb::HardState { term: hard.term, vote: hard.vote, commit: hard.commit, ..Default::default() }
}

/// The hard state as it is stored.
pub fn hard_from_raft(hard: &eraftpb::HardState) -> HardState {
    HardState { term: hard.term, vote: hard.vote, commit: hard.commit }
}

/// A message as raft-rs wants it.
pub fn message_to_raft(from: NodeId, to: NodeId, message: RaftMessage) -> eraftpb::Message {
    use eraftpb::MessageType;
    let mut out = eraftpb::Message::default();
    out.set_msg_type(match message.kind {
        MessageKind::Append => MessageType::MsgAppend,
        MessageKind::AppendResponse => MessageType::MsgAppendResponse,
        MessageKind::Heartbeat => MessageType::MsgHeartbeat,
        MessageKind::HeartbeatResponse => MessageType::MsgHeartbeatResponse,
        MessageKind::PreVote => MessageType::MsgRequestPreVote,
        MessageKind::PreVoteResponse => MessageType::MsgRequestPreVoteResponse,
        MessageKind::Vote => MessageType::MsgRequestVote,
        MessageKind::VoteResponse => MessageType::MsgRequestVoteResponse,
        MessageKind::Snapshot => MessageType::MsgSnapshot,
        MessageKind::TimeoutNow => MessageType::MsgTimeoutNow,
    });
    out.from = from;
    out.to = to;
    out.term = message.term;
    out.log_term = message.log_term;
    out.index = message.index;
    out.commit = message.commit;
    out.commit_term = message.commit_term;
    out.reject = message.reject;
    out.reject_hint = message.reject_hint;
    out.request_snapshot = message.request_snapshot;
    out.priority = message.priority;
    out.context = message.context;
    if !message.entries.is_empty() {
        out.set_entries(message.entries.iter().map(entry_to_raft).collect::<Vec<_>>().into());
    }
    if let Some(snapshot) = &message.snapshot {
        out.set_snapshot(snapshot_to_raft(snapshot));
    }
    out
}

/// A message as it is sent; `None` for the kinds that travel as requests or never leave a node.
pub fn message_from_raft(message: &eraftpb::Message) -> Option<RaftMessage> {
    use eraftpb::MessageType;
    let kind = match message.get_msg_type() {
        MessageType::MsgAppend => MessageKind::Append,
        MessageType::MsgAppendResponse => MessageKind::AppendResponse,
        MessageType::MsgHeartbeat => MessageKind::Heartbeat,
        MessageType::MsgHeartbeatResponse => MessageKind::HeartbeatResponse,
        MessageType::MsgRequestPreVote => MessageKind::PreVote,
        MessageType::MsgRequestPreVoteResponse => MessageKind::PreVoteResponse,
        MessageType::MsgRequestVote => MessageKind::Vote,
        MessageType::MsgRequestVoteResponse => MessageKind::VoteResponse,
        MessageType::MsgSnapshot => MessageKind::Snapshot,
        MessageType::MsgTimeoutNow => MessageKind::TimeoutNow,
        _ => return None,
    };
    let snapshot = message.get_snapshot();
    Some(RaftMessage {
        kind,
        term: message.term,
        log_term: message.log_term,
        index: message.index,
        entries: message.entries.iter().map(entry_from_raft).collect(),
        commit: message.commit,
        commit_term: message.commit_term,
        snapshot: (snapshot.get_metadata().index > 0).then(|| snapshot_from_raft(snapshot)),
        request_snapshot: message.request_snapshot,
        reject: message.reject,
        reject_hint: message.reject_hint,
        context: message.context.clone(),
        priority: message.priority,
    })
}

/// Changes as raft-rs wants them. It makes of them what [`Configuration::after`] does.
pub fn conf_change(changes: &[RoleChange]) -> eraftpb::ConfChangeV2 {
    let single = |change: &RoleChange| {
        let mut single = eraftpb::ConfChangeSingle { node_id: change.node(), ..Default::default() };
        single.set_change_type(match change.becomes() {
            Some(MemberRole::Learner) => eraftpb::ConfChangeType::AddLearnerNode,
            Some(MemberRole::Voter) => eraftpb::ConfChangeType::AddNode,
            None => eraftpb::ConfChangeType::RemoveNode,
        });
        single
    };
    let mut conf_change = eraftpb::ConfChangeV2::default();
    conf_change.set_changes(changes.iter().map(single).collect::<Vec<_>>().into());
    // Otherwise raft-rs would propose by itself to leave the joint configuration, in an entry without our context.
    if changes.len() > 1 {
        conf_change.set_transition(eraftpb::ConfChangeTransition::Explicit);
    }
    conf_change
}

/// The same in protobuf, for the leader's own raft-rs, which looks into the change that it is asked to append.
pub fn encode_conf_change(changes: &[RoleChange]) -> Vec<u8> {
    use protobuf::Message;
    conf_change(changes).write_to_bytes().expect("a conf change of numbers encodes")
}
