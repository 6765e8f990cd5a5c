//! Settings: a TOML file and environment variables, by whoever wrote them.

#![no_main]

use actorum::Config;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (file, variables) = text.split_once('\0').unwrap_or((text, text));
    let mut config = Config::default();
    let mut whole = true;
    if let Ok(table) = file.parse::<toml::Table>() {
        match config.apply(table) {
            Ok(()) => {}
            Err(error) => {
                whole = false;
                let _ = error.to_string();
            }
        }
    }
    let variables = variables.lines().filter_map(|line| line.split_once('='));
    let variables = variables.map(|(key, value)| (format!("ACTORUM_{}", key.trim()), value.trim().to_owned()));
    if let Err(error) = config.apply_env("ACTORUM", &["ID", "DATA"], variables) {
        whole = false;
        assert!(!error.to_string().is_empty());
    }
    // What passes both is judged, and what is judged well can be written and read again.
    if whole && config.validate().is_ok() {
        let shown = format!("{config:?}");
        assert!(!shown.is_empty());
        assert!(config.heartbeat_ms > 0 && config.election_ms >= config.heartbeat_ms);
    }
});
