//! Whether the switch does to frames what it says: seen from both ends of a link, by somebody else.

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader, Read},
    process::Stdio,
};

use super::world::World;

/// How many datagrams are sent.
const SENT: usize = 400;

/// Numbered datagrams with the time in them.
const SENDER: &str = "
import socket, struct, sys, time, zlib
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for i in range(int(sys.argv[1])):
    data = struct.pack('!Qd', i, time.time()) + bytes(400)
    s.sendto(data + struct.pack('!I', zlib.crc32(data)), ('10.77.0.2', 9999))
    time.sleep(0.001)
";

/// What arrived until there was nothing for a second: number and age in milliseconds, or that it is damaged.
const RECEIVER: &str = "
import socket, struct, time, zlib
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(('10.77.0.2', 9999))
s.settimeout(2.0)
print('ready', flush=True)
try:
    while True:
        data = s.recv(2000)
        if zlib.crc32(data[:-4]) == struct.unpack('!I', data[-4:])[0]:
            number, sent = struct.unpack('!Qd', data[:16])
            print(number, round((time.time() - sent) * 1000))
        else:
            print('damaged')
        s.settimeout(1.0)
except TimeoutError:
    pass
";

/// What came out at the other end.
struct Arrived {
    numbers: Vec<usize>,
    youngest_ms: i64,
    damaged: usize,
}

fn send(world: &World) -> Arrived {
    let mut receiver = world.on(2, "python3").args(["-c", RECEIVER]).stdout(Stdio::piped()).spawn().expect("python3");
    let mut out = BufReader::new(receiver.stdout.take().expect("a pipe"));
    let mut ready = String::new();
    out.read_line(&mut ready).expect("a line");
    assert_eq!(ready, "ready\n");
    let sent = world.on(1, "python3").args(["-c", SENDER, &SENT.to_string()]).status().expect("python3");
    assert!(sent.success());
    let mut text = String::new();
    out.read_to_string(&mut text).expect("lines");
    assert!(receiver.wait().expect("it ends").success());
    let mut arrived = Arrived { numbers: vec![], youngest_ms: i64::MAX, damaged: 0 };
    for line in text.lines() {
        let Some((number, age)) = line.split_once(' ') else {
            arrived.damaged += 1;
            continue;
        };
        arrived.numbers.push(number.parse().expect("a number"));
        arrived.youngest_ms = arrived.youngest_ms.min(age.parse().expect("milliseconds"));
    }
    arrived
}

/// Sends under one fault, in one direction, and then under none, when all must be as before.
pub(crate) fn try_all(world: &mut World) {
    let in_order = |numbers: &[usize]| numbers.is_sorted();
    let different = |numbers: &[usize]| numbers.iter().collect::<BTreeSet<_>>().len();
    let healthy = |arrived: &Arrived| arrived.numbers == (0..SENT).collect::<Vec<_>>() && arrived.damaged == 0;
    assert!(healthy(&send(world)), "before any fault");

    let mut under = |fault: &str, value: f64| {
        let before = world.link(1, 2, fault, value);
        let arrived = send(world);
        let met = world.link(1, 2, fault, 0.0) - before;
        println!(
            "{fault} {value}: {} of {SENT} arrived, {} damaged, {met} met",
            arrived.numbers.len(),
            arrived.damaged
        );
        (arrived, met as usize)
    };
    let (cut, met) = under("cut", 1.0);
    assert!(cut.numbers.is_empty() && met >= SENT);
    let (loss, met) = under("loss", 0.5);
    assert!((SENT / 4..SENT * 3 / 4).contains(&loss.numbers.len()), "{}", loss.numbers.len());
    assert!(met >= SENT - loss.numbers.len());
    let (duplicate, met) = under("duplicate", 0.5);
    assert!(different(&duplicate.numbers) == SENT && duplicate.numbers.len() > SENT * 5 / 4 && met > SENT / 4);
    let (corrupt, met) = under("corrupt", 0.5);
    // Half of them the kernel finds out, the others reach the program.
    assert!(corrupt.damaged > SENT / 20 && corrupt.numbers.len() < SENT * 3 / 4 && met > SENT / 4);
    assert!(corrupt.numbers.len() + corrupt.damaged < SENT);
    let (delay, met) = under("delay", 0.1);
    assert!(delay.youngest_ms >= 100 && in_order(&delay.numbers) && delay.numbers.len() == SENT && met >= SENT);
    let (reorder, met) = under("reorder", 0.3);
    assert!(!in_order(&reorder.numbers) && different(&reorder.numbers) == SENT && met > SENT / 10);
    assert!(healthy(&send(world)), "after all faults");
}
