#!/usr/bin/env python3
"""A network that misbehaves on order: a switch in user space between network namespaces, one per host.

    host 1 (namespace) eth0 --tap--+                 +--tap-- eth0 host 2        10.77.0.1 .. 10.77.0.N
                                   +---- switch -----+
    host 3 (namespace) eth0 --tap--+       ^
                                         orders

Stands in for netem, which not every kernel has. Makes the namespaces PREFIX1 .. PREFIXn, each with eth0 at 10.77.0.i/24
through the switch and mgmt0, whose other end is in the namespace that this was started from and which no fault ever
touches: with --mgmt 198.18.40 they are 198.18.(40 + i).2 and 198.18.(40 + i).1. Says `{"ready": true}` when they are
there.

Orders come as JSON on standard input, a line each, and each is answered with a line:

    {"from": 1, "to": 2, "fault": "loss", "value": 0.2}     one direction of one link; value 0 ends it
    {"heal": true}                                          ends all faults
    {"totals": true}                                        counts since the start

The answer to each holds what was done to frames so far, by fault: of that link, or of all. So a fault that never fired
is seen.

    fault        value          what happens to a frame
    cut          1              dropped
    loss         probability    dropped
    duplicate    probability    delivered twice, the second a little later
    corrupt      probability    one bit of it is turned. UDP's checksum is removed with it half of the time, so that it
                                is not the kernel that finds out
    delay        seconds        delivered that much later, in order
    reorder      probability    held back for up to 30 ms, while others pass it

When standard input ends, so does the switch: it kills what runs in its namespaces and removes them. Needs root and
iproute2.
"""
import argparse, fcntl, heapq, json, os, random, select, signal, struct, subprocess, sys, time

TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
FAULTS = ["cut", "loss", "duplicate", "corrupt", "delay", "reorder"]
# What waits in the switch for its time; at the bound frames are dropped, as in any switch.
MAX_WAITING = 20000


def sh(command):
    subprocess.run(command, shell=True, check=True, stdout=subprocess.DEVNULL)


def tap(name):
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TAP | IFF_NO_PI))
    return fd


def remove(namespace):
    found = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True)
    for pid in found.stdout.split():
        try:
            os.kill(int(pid), signal.SIGKILL)
        except ProcessLookupError:
            pass
    # The other end of mgmt0 goes with it.
    subprocess.run(["ip", "netns", "del", namespace], stderr=subprocess.DEVNULL)


def make(prefix, mgmt, i):
    namespace, outer = f"{prefix}{i}", f"{prefix}m{i}"
    network, third = mgmt.rsplit(".", 1)
    mgmt = f"{network}.{int(third) + i}"
    fd = tap(f"{prefix}t{i}")
    sh(f"ip netns add {namespace} && ip link set {prefix}t{i} netns {namespace} name eth0")
    sh(f"ip -n {namespace} link set eth0 address 02:00:00:00:00:{i:02x}")
    sh(f"ip -n {namespace} addr add 10.77.0.{i}/24 dev eth0 && ip -n {namespace} link set eth0 up")
    sh(f"ip link add {outer} type veth peer name mgmt0 netns {namespace}")
    sh(f"ip addr add {mgmt}.1/24 dev {outer} && ip link set {outer} up")
    sh(f"ip -n {namespace} addr add {mgmt}.2/24 dev mgmt0 && ip -n {namespace} link set mgmt0 up")
    sh(f"ip -n {namespace} link set lo up")
    return fd


class Switch:
    def __init__(self, ports, seed):
        self.ports, self.rng = ports, random.Random(seed)
        self.rules, self.counts, self.waiting, self.number = {}, {}, [], 0

    def order(self, order):
        if "from" in order:
            link, fault = (order["from"], order["to"]), order["fault"]
            if fault not in FAULTS or not set(link) <= set(self.ports):
                return {"error": f"no such fault or link: {order}"}
            rule = self.rules.setdefault(link, {})
            rule.pop(fault, None)
            if order["value"]:
                rule[fault] = order["value"]
            return self.counts.get(link, {})
        if "heal" in order:
            self.rules.clear()
        totals = dict.fromkeys(["forwarded", "overflowed", *FAULTS], 0)
        for counts in self.counts.values():
            for name, count in counts.items():
                totals[name] += count
        return totals

    def forward(self, link, frame):
        rule, counts = self.rules.get(link, {}), self.counts.setdefault(link, {})

        def fires(fault):
            fired = fault in rule and self.rng.random() < rule[fault]
            if fired:
                counts[fault] = counts.get(fault, 0) + 1
            return fired

        if fires("cut") or fires("loss"):
            return
        late = [0.0]
        if rule.get("delay"):
            counts["delay"] = counts.get("delay", 0) + 1
            late[0] += rule["delay"]
        # Never the address resolution: a frame that is not IPv4 over UDP has nothing to turn but itself.
        if len(frame) > 43 and frame[12:14] == b"\x08\x00" and frame[23] == 17 and fires("corrupt"):
            turned = bytearray(frame)
            if self.rng.random() < 0.5:
                turned[40:42] = b"\0\0"
            turned[self.rng.randrange(42, len(turned))] ^= 1 << self.rng.randrange(8)
            frame = bytes(turned)
        if fires("reorder"):
            late[0] += self.rng.uniform(0.002, 0.03)
        if fires("duplicate"):
            late.append(late[0] + self.rng.uniform(0.0, 0.02))
        # Now, and not when the first frame of this turn was read: this one may have been sent since then.
        now = time.monotonic()
        for seconds in late:
            if seconds == 0.0:
                self.deliver(link[1], frame)
            elif len(self.waiting) < MAX_WAITING:
                self.number += 1
                heapq.heappush(self.waiting, (now + seconds, self.number, link[1], frame))
            else:
                counts["overflowed"] = counts.get("overflowed", 0) + 1
        counts["forwarded"] = counts.get("forwarded", 0) + len(late)

    def deliver(self, to, frame):
        try:
            os.write(self.ports[to], frame)
        except OSError:
            pass  # the receiver's queue is full

    def run(self):
        owner, orders = {fd: i for i, fd in self.ports.items()}, b""
        while True:
            wait = max(0.0, self.waiting[0][0] - time.monotonic()) if self.waiting else None
            ready = select.select([*owner, 0], [], [], wait)[0]
            now = time.monotonic()
            while self.waiting and self.waiting[0][0] <= now:
                _, _, to, frame = heapq.heappop(self.waiting)
                self.deliver(to, frame)
            for fd in ready:
                if fd == 0:
                    read = os.read(0, 65536)
                    if not read:
                        return
                    *lines, orders = (orders + read).split(b"\n")
                    for line in lines:
                        print(json.dumps(self.order(json.loads(line))), flush=True)
                    continue
                for _ in range(64):
                    try:
                        frame = os.read(fd, 70000)
                    except BlockingIOError:
                        break
                    known = frame[:5] == b"\x02\0\0\0\0" and frame[5] in self.ports
                    for to in [frame[5]] if known else [j for j in self.ports if j != owner[fd]]:
                        self.forward((owner[fd], to), frame)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--hosts", type=int, default=3)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--prefix", default="switch", help="of namespaces and interfaces, at most 13 characters")
    p.add_argument("--mgmt", default="198.18.0", help="of management addresses; the host is added to the third number")
    p.add_argument("--remove", metavar="NAMESPACE", nargs="+", help="only kill what runs in these, and remove them")
    a = p.parse_args()
    if a.remove:
        for namespace in a.remove:
            remove(namespace)
        return
    # A terminal's Ctrl-C reaches the whole group; the end of standard input tells when to go.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        ports = {i: make(a.prefix, a.mgmt, i) for i in range(1, a.hosts + 1)}
        print(json.dumps({"ready": True}), flush=True)
        Switch(ports, a.seed).run()
    finally:
        for i in range(1, a.hosts + 1):
            remove(f"{a.prefix}{i}")


if __name__ == "__main__":
    main()
