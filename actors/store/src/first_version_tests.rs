//! What the first version makes of the fields that entries and snapshots have got since. It has no features, so these
//! fields are not gated (see `actorum_core::features`): it skips them, and what it does with the rest is the same.

use std::collections::BTreeMap;

use actorum_core::{
    entry::{ChangeId, SystemCommand},
    marks::{HashValue, StateHash},
    system_state::{Audit, RecoveredBecause, SystemState},
    versions::Announcement,
    wire::{ConfState, SnapshotFile},
};
use actorum_machine::{
    ids::{Address, ClusterId, GroupId, Incarnation, NodeId},
    machine::{decode, encode},
    members::Change,
};

use crate::snapshot::file::{Header, Writer};

/// Its definitions, as they stand in its source.
mod first {
    use std::sync::Arc;

    use actorum_machine::members::Membership;
    use serde::{Deserialize, Serialize};

    use super::*;

    #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
    pub(super) enum SystemCommand {
        Change {
            id: ChangeId,
            change: Change,
        },
        Incarnation {
            node: NodeId,
            incarnation: Incarnation,
        },
        Recovered {
            // What the recovery made.
            cluster: ClusterId,
            node: NodeId,
            address: Address,
            incarnation: Option<Incarnation>,
            // Who made it, and why.
            audit: Audit,
        },
    }

    #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
    pub(super) struct SystemState {
        pub cluster: ClusterId,
        pub membership: Arc<Membership>,
        pub last_time_us: u64,
        #[serde(default, skip_serializing_if = "is_zero")]
        pub recovered_at: u64,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub audit: Vec<Audit>,
    }

    fn is_zero(n: &u64) -> bool {
        *n == 0
    }

    #[derive(Serialize, Deserialize)]
    pub(super) struct SnapshotData {
        pub system: SystemState,
        #[serde(default)]
        pub file: Option<SnapshotFile>,
        #[serde(default)]
        pub formed_with: BTreeMap<NodeId, Incarnation>,
    }

    #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
    pub(super) struct Header {
        pub cluster: ClusterId,
        pub index: u64,
        pub term: u64,
        pub conf: ConfState,
        pub system: SystemState,
        #[serde(default)]
        pub formed_with: BTreeMap<NodeId, Incarnation>,
    }
}

fn founded() -> SystemState {
    let founders = [1, 2].map(|id: NodeId| (id, Address(format!("n{id}:7000"))));
    SystemState::founded(ClusterId(7), &founders.into())
}

/// It reads a change that was forced as the change that it is, and the membership that follows is the same.
#[test]
fn a_forced_change_is_a_change() {
    let id = ChangeId { node: 1, boot: 3, number: 9 };
    let changes = [Change::AddLearner(3, "n3:7000".into()), Change::Promote(2), Change::Demote(2), Change::Remove(2)];
    for change in changes {
        let written = |forced| encode(&SystemCommand::Change { id, change: change.clone(), forced }).unwrap();
        let known = first::SystemCommand::Change { id, change: change.clone() };
        for forced in [false, true] {
            assert_eq!(decode::<first::SystemCommand>(&written(forced)).unwrap(), known, "{change}, forced: {forced}");
        }
        assert_eq!(written(false), encode(&known).unwrap(), "what nobody forced is byte for byte what it always was");
        let applied = |forced| {
            let mut state = founded();
            state.apply(9, &SystemCommand::decode(&written(forced)).unwrap());
            state
        };
        assert_eq!(applied(true), applied(false), "{change}: the field changes nothing that is applied");
        let back = SystemCommand::decode(&encode(&known).unwrap()).unwrap();
        assert_eq!(back, SystemCommand::Change { id, change: change.clone(), forced: false });
    }
}

/// A kind of entry that it does not know is another matter: it cannot read it, and stops. So that has a feature.
#[test]
fn a_new_kind_of_entry_stops_it() {
    for restart in [false, true] {
        let mark = encode(&SystemCommand::Mark { restart }).unwrap();
        let error = decode::<first::SystemCommand>(&mark).unwrap_err().to_string();
        assert!(error.contains("Mark"), "{error}");
    }
}

/// It starts from a snapshot with a hash as from one without, and what it writes itself has none: whoever starts from
/// that has none until the next mark, which is proposed only where every member has the feature.
#[test]
fn a_hash_in_a_snapshot_is_skipped() {
    let mut state = founded();
    state.last_time_us = 5;
    state.recovered_at = 3;
    state.audit.push(Audit {
        who: "ada".into(),
        when: 1,
        why: RecoveredBecause::Backup,
        may_be_lost: "nothing".into(),
        index: 3,
        cluster: ClusterId(6),
        members: state.membership.members.clone(),
    });
    let hash = StateHash { since: 4, value: HashValue(u128::MAX) };
    let hashed = SystemState { state_hash: Some(hash), ..state.clone() };
    let known = first::SystemState {
        cluster: state.cluster,
        membership: state.membership.clone(),
        last_time_us: state.last_time_us,
        recovered_at: state.recovered_at,
        audit: state.audit.clone(),
    };
    let (file, formed_with) = (SnapshotFile { bytes: 100, hash: [9; 32] }, BTreeMap::from([(1, Incarnation(11))]));

    // As it stands in the log.
    let snapshot = |state: &SystemState| state.snapshot(9, 2, file, formed_with.clone()).unwrap();
    let data: first::SnapshotData = decode(&snapshot(&hashed).data).unwrap();
    assert_eq!((&data.system, data.file, &data.formed_with), (&known, Some(file), &formed_with));
    assert_eq!(encode(&data).unwrap(), snapshot(&state).data.to_vec(), "without a hash it is byte for byte its own");
    let theirs = actorum_core::wire::Snapshot { data: encode(&data).unwrap().into(), ..snapshot(&hashed) };
    assert_eq!(SystemState::of(&theirs).unwrap(), (state.clone(), Some(file)));

    // And as the file says it.
    let header: first::Header =
        decode(&encode(&Header::new(GroupId::FIRST, 9, 2, hashed.clone(), formed_with.clone())).unwrap()).unwrap();
    assert_eq!((header.index, header.term, &header.system), (9, 2, &known));
    let back: Header = decode(&encode(&header).unwrap()).unwrap();
    assert_eq!(back, Header::new(GroupId::FIRST, 9, 2, state, formed_with.clone()));
    // Whatever this version writes for itself it reads.
    assert_eq!(SystemState::of(&snapshot(&hashed)).unwrap().0, hashed);
    // Of group 0, without a hash, the header too is byte for byte its own.
    let mine = Header::new(GroupId::FIRST, 9, 2, back.system.clone(), formed_with);
    assert_eq!(encode(&mine).unwrap(), encode(&header).unwrap());
}

/// It knows one group, and would skip the field that names another: it refuses the file by the number of its format.
#[test]
fn a_file_of_another_group_is_refused_by_number() {
    let header = Header::new(GroupId(7), 9, 2, founded(), BTreeMap::new());
    let skipped: first::Header = decode(&encode(&header).unwrap()).unwrap();
    assert_eq!(skipped.system.cluster, header.cluster, "it would read it");
    let mut written = Vec::new();
    Writer::begin(&mut written, &header).unwrap();
    assert_eq!(written[16..20], [0, 0, 0, 3]);
}

/// A state with announcements it must not begin with: it would decide commands by an older version of the state
/// machine.
#[test]
fn what_members_announced_keeps_it_from_starting() {
    let (file, formed_with) = (SnapshotFile { bytes: 100, hash: [9; 32] }, BTreeMap::from([(1, Incarnation(11))]));
    let mut state = founded();
    let announcement = Announcement { features: ["x".to_owned()].into(), machine: 2, boot: 1 };
    state.apply(8, &SystemCommand::Announce { node: 1, announcement });
    let snapshot = state.snapshot(9, 2, file, formed_with.clone()).unwrap();
    assert_eq!(SystemState::of(&snapshot).unwrap(), (state.clone(), Some(file)));
    let error = decode::<first::SnapshotData>(&snapshot.data).err().unwrap().to_string();
    assert!(error.contains("missing field `last_time_us`"), "{error}");
    let header = encode(&Header::new(GroupId::FIRST, 9, 2, state.clone(), formed_with)).unwrap();
    assert!(decode::<first::Header>(&header).is_err());
    let mut written = Vec::new();
    let header = Header::new(GroupId::FIRST, 9, 2, state, BTreeMap::new());
    Writer::begin(&mut written, &header).unwrap();
    assert_eq!(written[16..20], [0, 0, 0, 2], "it refuses the file by the number of its format");
}
