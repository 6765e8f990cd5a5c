//! A simulation whose clients never let time pass ends all the same, with the cause: virtual time moves only while
//! everybody waits.

use std::time::Duration;

use actorum::prelude::*;
use actorum_testkit::{Simulation, Violation};
use serde::{Deserialize, Serialize};

/// Remembers the last word. Words may be longer than a command may be.
#[derive(Default, Serialize, Deserialize)]
struct Word(String);

impl StateMachine for Word {
    type Command = String;
    type Response = ();

    fn apply(&mut self, _: &ApplyContext, word: &String) {
        self.0.clone_from(word);
    }

    serde_snapshot!();
}

/// Each command is refused in the client's own thread, before anything could take time.
fn refusing() -> Simulation<Word> {
    Simulation::new(11).configure(|config| config.max_entry_bytes = 4096)
}

/// The runs here would hang without the watchdog: this one reports it instead.
fn end_of(what: &'static str, simulation: Simulation<Word>) -> Violation {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || drop(sender.send(simulation.run(Duration::from_secs(5)))));
    let report = receiver.recv_timeout(Duration::from_secs(300)).unwrap_or_else(|_| panic!("{what} never ends"));
    assert_eq!(report.seed, 11, "the report names the seed");
    report.violation.unwrap_or_else(|| panic!("{what}: a run in which no time passes is broken"))
}

fn too_long() -> String {
    "x".repeat(5000)
}

#[test]
fn clients_that_are_refused_at_once_and_never_think_end_with_the_cause() {
    let simulation = refusing().workload(|mut client| async move {
        while client.goes_on() {
            assert!(client.propose(too_long()).await.is_err());
        }
    });
    let violation = end_of("a client that is refused at once", simulation);
    assert_eq!(violation.invariant, "time passes");
    assert!(violation.detail.contains("max_entry_bytes"), "it says how requests ended: {}", violation.detail);
    assert!(violation.detail.contains("think"), "and the way out: {}", violation.detail);
}

#[test]
fn one_that_does_not_even_ask_whether_it_goes_on_ends_too() {
    let simulation = refusing().workload(|mut client| async move {
        loop {
            assert!(client.propose(too_long()).await.is_err());
        }
    });
    assert_eq!(end_of("a client that never ends", simulation).invariant, "time passes");
}

#[test]
fn a_client_that_does_nothing_but_ask_ends_too() {
    let simulation = Simulation::<Word>::new(11).workload(|client| async move { while client.goes_on() {} });
    assert_eq!(end_of("a client that does nothing", simulation).invariant, "time passes");
}

/// Each turn takes real time, and many of them take none of the virtual: their number alone would not end the run for
/// minutes. Real time does.
#[test]
fn turns_that_cost_real_time_and_no_virtual_time_end_too() {
    let simulation = refusing().standstill(Duration::from_secs(2)).workload(|mut client| async move {
        while client.goes_on() {
            std::thread::sleep(Duration::from_millis(5));
            assert!(client.propose(too_long()).await.is_err());
        }
    });
    let violation = end_of("a client whose turns are expensive", simulation);
    assert_eq!(violation.invariant, "virtual time moves");
    assert!(violation.detail.contains("2s of real time") && violation.detail.contains("turns"), "{}", violation.detail);
}

/// It takes no turn at all, and no task of the run is ever woken by the time.
#[test]
fn one_that_yields_for_ever_and_never_asks_ends_too() {
    let simulation = Simulation::<Word>::new(11).standstill(Duration::from_secs(2)).workload(|_| async move {
        loop {
            tokio::task::yield_now().await;
        }
    });
    let violation = end_of("a client that yields for ever", simulation);
    assert_eq!(violation.invariant, "virtual time moves");
    assert!(violation.detail.contains("without waiting"), "{}", violation.detail);
}

/// A deadline that has passed on arrival: the node answers, and no virtual time has passed.
#[test]
fn requests_with_no_time_left_end_with_the_cause() {
    let simulation = Simulation::<Word>::new(11).standstill(Duration::from_secs(5)).workload(|mut client| async move {
        client.set_deadline(Duration::ZERO);
        while client.goes_on() {
            let _ = client.propose("late".into()).await;
        }
    });
    let violation = end_of("a client without a deadline", simulation);
    assert!(["virtual time moves", "time passes"].contains(&violation.invariant), "{violation:?}");
}
