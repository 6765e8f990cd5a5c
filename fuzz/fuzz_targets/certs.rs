//! Certificates and keys: what a stranger shows in a handshake (DER), and what an operator puts into a directory (PEM).

#![no_main]

use actorum_transport::{fuzzing, tls::node_name};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((how, data)) = data.split_first() else { return };
    match how % 3 {
        // A peer's certificate, in the form that TLS hands on.
        0 => match fuzzing::node_of(data) {
            Ok(id) => assert!(id != 0 && node_name(id).len() < 40),
            Err(names) => assert!(names.chars().count() <= 200, "a stranger's names are bounded"),
        },
        // The same as a PEM text.
        1 => {
            for der in fuzzing::certificates_in(data) {
                let _ = fuzzing::node_of(&der);
                fuzzing::verify(&der);
            }
        }
        // The three files of a directory.
        _ => {
            let mut parts = data.splitn(3, |byte| *byte == 0);
            let [ca, cert, key] = [parts.next(), parts.next(), parts.next()].map(Option::unwrap_or_default);
            if let Err(error) = fuzzing::identity(1 + u64::from(how / 64), ca, cert, key) {
                assert!(!error.to_string().is_empty());
            }
        }
    }
});
