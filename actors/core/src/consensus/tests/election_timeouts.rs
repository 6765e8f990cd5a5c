//! Election timeouts: what a node draws follows from its settings, its term and its role, and from nothing else.

use actorum_machine::ids::GroupId;

use super::cluster::Cluster;

/// What group 0 of node 1 has always drawn as a follower, by term. Runs of the simulator that were recorded stand on
/// it.
const FIRST_GROUP: [usize; 20] = [15, 17, 17, 15, 10, 16, 12, 15, 11, 17, 10, 14, 13, 17, 16, 15, 16, 13, 10, 15];

/// The timeouts that one group of node 1 draws as a follower, by term: between 10 and 19 ticks.
fn drawn(group: GroupId) -> [usize; 20] {
    let mut cluster = Cluster::new(1);
    cluster.found(&[1]);
    cluster.start(1, None);
    let core = cluster.core(1);
    core.settings.group = group;
    std::array::from_fn(|term| {
        core.raw.raft.term = term as u64 + 1;
        core.draw_election_timeout();
        core.raw.raft.randomized_election_timeout()
    })
}

/// The groups of a node share its seed, its id and its incarnation. In step, all of them would campaign in the same
/// tick.
#[test]
fn two_groups_of_one_node_do_not_draw_in_step() {
    let draws = [GroupId::FIRST, GroupId(1), GroupId(2), GroupId(u32::MAX)].map(drawn);
    assert_eq!(draws[0], FIRST_GROUP);
    for (nth, one) in draws.iter().enumerate() {
        for other in &draws[..nth] {
            let together = one.iter().zip(other).filter(|(one, other)| one == other).count();
            // One draw in ten is the same by chance.
            assert!(together < 8, "{together} of 20 draws are the same: {one:?}, {other:?}");
        }
    }
}
