//! Clients that mean no good, against a real process: connections that say nothing or say it slowly, bodies without
//! end, requests that are none. Honest clients, the status and the members API go on, and the node's memory is bounded.
//!
//! The figures are printed; a flood that did not arrive fails the test.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use crate::lab::{self, Lab, Node, call, wait_for};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What a node may grow by while it is attacked.
const GROWTH: usize = 128 << 20;

/// A node by itself, that leads.
fn one() -> Lab {
    let mut lab = Lab::new(&[1]);
    lab.found(&[1]);
    lab.leader();
    lab
}

/// What its process holds in memory, in bytes.
fn resident(node: &Node) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", node.pid())).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
    line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") << 10
}

fn http_address(node: &Node) -> SocketAddr {
    node.url("").trim_start_matches("http://").parse().expect("an address")
}

/// Everything an honest client may want, and how long the slowest took.
#[track_caller]
fn serves(node: &Node) -> Duration {
    let mut worst = Duration::ZERO;
    let mut timed = |what: &str, status: u16, ask: &dyn Fn() -> lab::HttpReply| {
        let asked = Instant::now();
        let answer = ask();
        worst = worst.max(asked.elapsed());
        assert_eq!(answer.status, status, "{what}: {}", answer.text);
    };
    timed("put", 200, &|| node.put("honest", "v"));
    timed("get", 200, &|| node.get("honest"));
    timed("status", 200, &|| call("GET", &node.url("/status"), ""));
    timed("livez", 200, &|| call("GET", &node.url("/livez"), ""));
    // It answers, if only that this is no way to ask.
    timed("members", 405, &|| call("GET", &node.admin_url("/members"), ""));
    assert!(worst < Duration::from_secs(2), "an honest request took {worst:?}");
    worst
}

/// Sends these bytes; what came back until the server closed, which it must.
fn raw(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).expect("a connection");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
    stream.set_write_timeout(Some(Duration::from_secs(30))).expect("a timeout");
    // The server may have hung up already.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    if let Err(e) = stream.read_to_end(&mut answer) {
        assert!(matches!(e.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "still open: {e}");
    }
    String::from_utf8_lossy(&answer).into_owned()
}

/// Whether the other side has closed. What it says before is read.
fn is_closed(stream: &mut TcpStream) -> bool {
    stream.set_nonblocking(true).expect("a socket");
    let mut rest = [0; 1024];
    loop {
        match stream.read(&mut rest) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(e) => return e.kind() != ErrorKind::WouldBlock,
        }
    }
}

/// Five thousand connections that say nothing. They are closed in a bounded time; until then everybody else is served.
#[test]
fn idle_connections() {
    let lab = one();
    let node = lab.node(1);
    // Besides what this test and those beside it in this process have open.
    let (wanted, others) = (5000, 500);
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let files = maximum.map_or(wanted + others, |most| most.min(wanted + others));
    if current.is_some_and(|current| current < files) {
        setrlimit(Resource::Nofile, Rlimit { current: Some(files), maximum }).expect("more open files");
    }
    let count = (files - others) as usize;
    if count < wanted as usize {
        println!("the limit on open files allows {count} connections instead of {wanted}");
    }

    let before = resident(node);
    let began = Instant::now();
    let http = http_address(node);
    let mut idle: Vec<TcpStream> = (0..count).map(|_| TcpStream::connect(http).expect("a connection")).collect();
    // And as many of the members API as it takes, less one for who is honest.
    idle.extend((0..100).map(|_| TcpStream::connect(node.admin_address()).expect("a connection")));
    let opened = began.elapsed();
    let mut slowest = serves(node);
    // On a slow machine the first are closed before the last are open: then as many again, until a crowd is there at
    // once.
    wait_for("a crowd of idle connections while it serves", Duration::from_secs(60), || {
        let still_open = idle.iter_mut().map(is_closed).filter(|closed| !closed).count();
        if still_open > count / 5 {
            return Some(());
        }
        idle.retain_mut(|stream| !is_closed(stream));
        idle.extend((0..count / 2).filter_map(|_| TcpStream::connect(http).ok()));
        slowest = slowest.max(serves(node));
        None
    });
    wait_for("all idle connections to be closed", Duration::from_secs(60), || {
        slowest = slowest.max(serves(node));
        idle.retain_mut(|stream| !is_closed(stream));
        idle.is_empty().then_some(())
    });
    let (closed, grown) = (began.elapsed(), resident(node).saturating_sub(before));
    println!(
        "{count} idle connections opened in {opened:?}, closed after {closed:?}; honest requests at most {slowest:?}, \
         {} KiB more memory",
        grown >> 10
    );
    assert!(grown < GROWTH, "{grown} bytes");
}

/// Heads that come a byte at a time, also as the second request of a connection, are given up.
#[test]
fn slow_heads() {
    let lab = one();
    let node = lab.node(1);
    let http = http_address(node);
    let head = b"GET /kv/slow HTTP/1.1\r\nhost: x\r\nx-filler: ";
    let mut slow: Vec<(TcpStream, bool)> = (0..200)
        .map(|n| {
            let mut stream = TcpStream::connect(http).expect("a connection");
            let second = n % 2 == 1;
            if second {
                stream.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").expect("a request");
                let mut answer = [0; 15];
                stream.read_exact(&mut answer).expect("an answer");
                assert_eq!(&answer, b"HTTP/1.1 200 OK");
            }
            stream.write_all(head).expect("a beginning");
            (stream, second)
        })
        .collect();
    let began = Instant::now();
    let mut latest = [Duration::ZERO; 2];
    while !slow.is_empty() {
        for (stream, _) in &mut slow {
            let _ = stream.set_nonblocking(false);
            let _ = stream.write_all(b"x");
        }
        slow.retain_mut(|(stream, second)| {
            let closed = is_closed(stream);
            if closed {
                latest[usize::from(*second)] = began.elapsed();
            }
            !closed
        });
        serves(node);
        let seconds = slow.iter().filter(|(_, second)| *second).count();
        assert!(
            began.elapsed() < Duration::from_secs(30),
            "{} are still open, {seconds} of them second requests",
            slow.len()
        );
        thread::sleep(Duration::from_millis(200));
    }
    println!("slow heads were given up after {:?}, slow second heads after {:?}", latest[0], latest[1]);
    assert!(latest.iter().all(|after| *after > Duration::from_secs(2)), "it has some patience");
}

/// Bodies that come a byte at a time under the longest deadline there is.
#[test]
fn slow_bodies() {
    let lab = one();
    let node = lab.node(1);
    let before = resident(node);
    let head = b"PUT /kv/slow?timeout_ms=600000 HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n";
    let mut slow: Vec<TcpStream> = (0..200)
        .map(|_| {
            let mut stream = TcpStream::connect(http_address(node)).expect("a connection");
            stream.write_all(head).expect("a head");
            stream
        })
        .collect();
    let began = Instant::now();
    while !slow.is_empty() {
        for stream in &mut slow {
            let _ = stream.set_nonblocking(false);
            let _ = stream.write_all(b"x");
        }
        slow.retain_mut(|stream| !is_closed(stream));
        serves(node);
        assert!(began.elapsed() < Duration::from_secs(30), "{} are still open", slow.len());
        thread::sleep(Duration::from_millis(200));
    }
    let (after, grown) = (began.elapsed(), resident(node).saturating_sub(before));
    println!("200 slow bodies were given up after {after:?}, {} KiB more memory", grown >> 10);
    assert!(after > Duration::from_secs(5), "it has some patience");
    assert!(grown < GROWTH, "{grown} bytes");
    assert_eq!(node.get("slow").status, 404, "nothing of it was applied");
}

/// More than anybody may send, in every place where it can stand: cut off, not collected.
#[test]
fn without_end() {
    let lab = one();
    let node = lab.node(1);
    let (http, before) = (http_address(node), resident(node));
    let kinds: [(&str, &[u8], &[u8]); 4] = [
        ("a path", b"GET /kv/", b"aaaaaaaaaaaaaaaa"),
        ("a header", b"GET /kv/k HTTP/1.1\r\nhost: x\r\nx-filler: ", b"aaaaaaaaaaaaaaaa"),
        ("headers", b"GET /kv/k HTTP/1.1\r\nhost: x\r\n", b"x-filler: aaaa\r\n"),
        (
            "a chunked body",
            b"PUT /kv/k HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n",
            b"b\r\naaaaaaaaaaa\r\n",
        ),
    ];
    for (what, head, part) in kinds {
        let mut stream = TcpStream::connect(http).expect("a connection");
        stream.set_write_timeout(Some(Duration::from_secs(30))).expect("a timeout");
        stream.write_all(head).expect("a head");
        let block = part.repeat(4096);
        let (mut sent, began) = (0, Instant::now());
        let cut_off = loop {
            match stream.write_all(&block) {
                Ok(()) => sent += block.len(),
                Err(e) => break e,
            }
            // What has been refused is read for a moment more, so that its sender hears why; it is not kept.
            assert!(began.elapsed() < Duration::from_secs(15), "{what}: it took {sent} bytes");
        };
        println!("{what} without end was cut off after {} KiB and {:?}: {cut_off}", sent >> 10, began.elapsed());
        assert!(!matches!(cut_off.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{what}: left open");
        serves(node);
    }
    let answer = raw(http, b"PUT /kv/k HTTP/1.1\r\nhost: x\r\ncontent-length: 1152921504606846976\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    let grown = resident(node).saturating_sub(before);
    assert!(grown < GROWTH, "{grown} bytes");
    assert_eq!(node.get("k").status, 404, "nothing of it was applied");
}

/// Requests that are none, or that two readers would read differently: an error of the client's, and the end of the
/// connection.
#[test]
fn malformed_requests() {
    let lab = one();
    let node = lab.node(1);
    let http = http_address(node);
    let close = "host: x\r\nconnection: close\r\n";
    let mut noise = Vec::new();
    let mut rng = 7u64;
    for _ in 0..4096 {
        rng = rng.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        noise.push((rng >> 56) as u8);
    }
    noise.extend_from_slice(b"\r\n\r\n");
    let requests: Vec<Vec<u8>> = vec![
        noise,
        b"\r\n\r\n\0\0\0\0\r\n\r\n".to_vec(),
        b"GET\r\n\r\n".to_vec(),
        b"GET /status\r\n\r\n".to_vec(),
        b"GET /status HTTP/9.9\r\n\r\n".to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec(),
        format!("GET /kv/%FF HTTP/1.1\r\n{close}\r\n").into_bytes(),
        format!("GET /kv/%00%zz%2 HTTP/1.1\r\n{close}\r\n").into_bytes(),
        format!("GET /kv/../../etc/passwd HTTP/1.1\r\n{close}\r\n").into_bytes(),
        format!("GET //////// HTTP/1.1\r\n{close}\r\n").into_bytes(),
        format!("GET * HTTP/1.1\r\n{close}\r\n").into_bytes(),
        format!("GET http://[::1/kv/k HTTP/1.1\r\n{close}\r\n").into_bytes(),
        format!("GET /kv/a\0b HTTP/1.1\r\n{close}\r\n").into_bytes(),
        format!("GET /kv/{} HTTP/1.1\r\n{close}\r\n", "%41".repeat(2000)).into_bytes(),
        format!("GET /status?{} HTTP/1.1\r\n{close}\r\n", "a=1&".repeat(5000)).into_bytes(),
        format!("GE\u{7f}T /status HTTP/1.1\r\n{close}\r\n").into_bytes(),
        format!("GET /status HTTP/1.1\r\n{close}bad header\r\n\r\n").into_bytes(),
        format!("PUT /kv/k HTTP/1.1\r\n{close}content-length: -1\r\n\r\n").into_bytes(),
        format!("PUT /kv/k HTTP/1.1\r\n{close}content-length: 99999999999999999999999\r\n\r\n").into_bytes(),
        format!("PUT /kv/k HTTP/1.1\r\n{close}content-length: 1\r\ncontent-length: 2\r\n\r\nxx").into_bytes(),
        format!("PUT /kv/k HTTP/1.1\r\n{close}content-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n")
            .into_bytes(),
        format!("PUT /kv/k HTTP/1.1\r\n{close}transfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\nx").into_bytes(),
        format!("PUT /kv/k HTTP/1.1\r\n{close}transfer-encoding: chunked\r\n\r\nzz\r\nx\r\n0\r\n\r\n").into_bytes(),
        format!("PUT /kv/k HTTP/1.1\r\n{close}transfer-encoding: gzip, chunked, gzip\r\n\r\n").into_bytes(),
    ];
    for request in &requests {
        let shown = String::from_utf8_lossy(&request[..request.len().min(60)]).into_owned();
        for address in [http, node.admin_address()] {
            let answer = raw(address, request);
            let status = answer.split(' ').nth(1).unwrap_or("").to_owned();
            assert!(answer.is_empty() || status.starts_with('4'), "{shown:?}: {answer}");
            assert!(
                answer.is_empty() || answer.ends_with('}') && answer.contains("{\"error\":"),
                "{shown:?}: {answer}"
            );
        }
    }
    serves(node);
    assert!(!node.last_words(usize::MAX).contains("ERROR"), "a client's mistake is none of the node's");
    assert_eq!(node.get("k").status, 404, "nothing of it was applied");
    println!("{} malformed requests, each to both servers", requests.len());
}
