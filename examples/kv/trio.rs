//! Three nodes of this very program: started, used, one of them killed, used again.

use std::{
    env,
    error::Error,
    io::{self, Write},
    net::{TcpListener, UdpSocket},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// A process that does not outlive us.
struct Node(Child);

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts three nodes, writes through one, reads through another, and does it again with one dead.
pub(crate) fn run() -> Result<(), Box<dyn Error>> {
    let mut out = io::stdout();
    let dir = tempfile::tempdir()?;
    let ports = [1, 2, 3].map(|id| (id, UdpSocket::bind("127.0.0.1:0"), TcpListener::bind("127.0.0.1:0")));
    let (mut peers, mut http) = (Vec::new(), Vec::new());
    for (id, udp, tcp) in ports {
        peers.push(format!("{id}={}", udp?.local_addr()?));
        http.push(tcp?.local_addr()?.to_string());
    }
    let mut nodes = Vec::new();
    for (id, http) in (1..).zip(&http) {
        let mut command = Command::new(env::current_exe()?);
        command.args([&format!("{id}"), http]).arg(dir.path()).args(&peers).stdin(Stdio::piped());
        nodes.push(Node(command.spawn()?));
    }

    let index = retry("PUT through node 1", || Ok(ureq::put(format!("http://{}/color", http[0])).send("blue")?))?;
    writeln!(out, "node 1 answered: applied at index {index}")?;
    let value = retry("GET through node 3", || Ok(ureq::get(format!("http://{}/color", http[2])).call()?))?;
    assert_eq!(value, "blue", "a linearizable read sees what was answered before it began");
    writeln!(out, "node 3 reads: {value}")?;

    drop(nodes.remove(0));
    writeln!(out, "node 1 is dead (SIGKILL)")?;
    retry("PUT through node 2", || Ok(ureq::put(format!("http://{}/color", http[1])).send("green")?))?;
    let value = retry("GET through node 3", || Ok(ureq::get(format!("http://{}/color", http[2])).call()?))?;
    assert_eq!(value, "green", "two of three go on");
    writeln!(out, "node 3 reads: {value}")?;
    writeln!(out, "a map on three processes: written anywhere, read anywhere, alive without one of them")?;
    Ok(())
}

/// Setting a key twice to the same value is the same as once, so here even an unknown outcome may be tried again.
fn retry(
    what: &str,
    call: impl Fn() -> Result<ureq::http::Response<ureq::Body>, Box<dyn Error>>,
) -> Result<String, Box<dyn Error>> {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        match call() {
            Ok(mut response) => return Ok(response.body_mut().read_to_string()?),
            Err(e) if Instant::now() > until => return Err(format!("{what}: {e}").into()),
            Err(_) => thread::sleep(Duration::from_millis(50)),
        }
    }
}
