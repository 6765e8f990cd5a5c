#!/usr/bin/env python3
"""Cuts the power under a program, again and again, on a loop-mounted filesystem.

Each cycle: start the writer, let it run for a random while, freeze it, read how far it acknowledged, shut the
filesystem down without flushing (everything that was not synced is gone, as after a power cut), kill the
writer, remount, run the verifier. The image lives on from cycle to cycle.

The writer prints `A <n>` (flushed) whenever everything up to <n> has been acknowledged as durable.
The verifier gets the highest acknowledged <n>; exit status 0 means that nothing acknowledged is missing and the
store opens. `{dir}`, `{acked}` and `{cycle}` are replaced in both commands.

    sudo tests/tools/powercut.py --cycles 40 --write 'powercut_writer write {dir}' \\
        --verify 'powercut_writer verify {dir} {acked}'

With `--disk DIR` it runs nothing: it mounts a new filesystem at DIR and obeys the lines on its standard input,
answering each with `ok` or with what went wrong: `cut`, `remount`. At the end of its input it unmounts and removes
it, so whoever started it may die as it likes. tests/mounts/ is the other side of it.

Exit status: 0 all well; 1 something acknowledged was lost, or the store did not open; 2 the harness itself
could not do its work, which says nothing about the store.

Needs root, loop devices, and mkfs.ext4 or mkfs.xfs. The cut models a drive without a volatile cache. Nothing stays
mounted, however this ends, short of its own SIGKILL.
"""
import argparse, fcntl, os, random, shlex, signal, struct, subprocess, sys, tempfile, time

GOINGDOWN = 0x8004587D      # _IOR('X', 125, u32), the same for ext4 and XFS
NO_LOG_FLUSH = 2            # drop the page cache and the uncommitted journal
FAILED, BROKEN = 1, 2


def sh(*command):
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def umount(mount):
    """What the writer had open may take a moment to be let go."""
    for _ in range(50):
        if subprocess.run(["umount", mount], stderr=subprocess.DEVNULL).returncode == 0:
            return
        time.sleep(0.05)
    sh("umount", mount)


def cut(mount):
    fd = os.open(mount, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, GOINGDOWN, struct.pack("I", NO_LOG_FLUSH))
    finally:
        os.close(fd)


def last_ack(path, before):
    acked = before
    with open(path, errors="replace") as lines:
        for line in lines:
            if line.startswith("A ") and line.endswith("\n"):
                acked = max(acked, int(line.split()[1]))
    return acked


def disk(fs, size, mount):
    """A filesystem of its own, obeying its standard input."""
    image = f"{mount}.image"
    # The whole process group may hear a Ctrl-C; the end of the input comes in any case.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.mkdir(mount)
    try:
        make(fs, size, image)
        sh("mount", "-o", "loop", image, mount)
        print("ok", flush=True)
        for line in sys.stdin:
            try:
                if line == "cut\n":
                    cut(mount)
                elif line == "remount\n":
                    umount(mount)
                    sh("mount", "-o", "loop", image, mount)
                else:
                    raise ValueError(f"unknown: {line!r}")
                print("ok", flush=True)
            except (OSError, ValueError) as error:
                print(error, flush=True)
            except subprocess.CalledProcessError as error:
                print(f"{shlex.join(error.cmd)}: {(error.stderr or b'').decode(errors='replace').strip()}", flush=True)
    finally:
        let_go(mount)
        os.unlink(image)
        os.rmdir(mount)


def make(fs, size, image):
    sh("truncate", "-s", size, image)
    sh(*(["mkfs.ext4", "-q", "-F", image] if fs == "ext4" else ["mkfs.xfs", "-q", "-f", image]))


def let_go(mount):
    """Unmounts it for good, now or when the last process lets it go."""
    if not os.path.ismount(mount):
        return
    try:
        umount(mount)
    except subprocess.CalledProcessError:
        subprocess.run(["umount", "-l", mount], stderr=subprocess.DEVNULL)


def kill(writer):
    if writer and writer.poll() is None:
        os.killpg(writer.pid, signal.SIGKILL)
        writer.wait()


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--fs", choices=["ext4", "xfs"], default="ext4")
    p.add_argument("--size", default="2G")
    p.add_argument("--cycles", type=int, default=20)
    p.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    seconds = "seconds before the cut"
    p.add_argument("--run", type=float, nargs=2, default=(0.15, 1.2), metavar=("MIN", "MAX"), help=seconds)
    p.add_argument("--write")
    p.add_argument("--verify")
    p.add_argument("--disk", metavar="DIR")
    a = p.parse_args()
    # A terminated harness cleans up like one that ends.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(BROKEN))
    if a.disk:
        return disk(a.fs, a.size, a.disk)
    if not a.write or not a.verify:
        p.error("--write and --verify are needed, or --disk")
    rng = random.Random(a.seed)
    os.environ.setdefault("POWERCUT_SEED", str(a.seed))
    work = tempfile.mkdtemp(prefix="powercut-")
    image, mount = f"{work}/image", f"{work}/mnt"
    os.mkdir(mount)
    writer, cycle, acked, failed = None, 0, 0, False
    try:
        make(a.fs, a.size, image)
        sh("mount", "-o", "loop", image, mount)
        print(f"powercut: {a.fs}, {a.cycles} cycles, seed {a.seed}", flush=True)
        for cycle in range(1, a.cycles + 1):
            def argv(text):
                return shlex.split(text.format(dir=f"{mount}/data", acked=acked, cycle=cycle))
            with open(f"{work}/out", "w") as out:
                writer = subprocess.Popen(argv(a.write), stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
            time.sleep(rng.uniform(*a.run))
            died = writer.poll() is not None
            if not died:
                # Frozen first: what it prints after the last sync could otherwise be read, and what it synced after the
                # reading would not be asked for.
                os.killpg(writer.pid, signal.SIGSTOP)
                time.sleep(0.03)
            acked = last_ack(f"{work}/out", acked)
            cut(mount)
            kill(writer)
            umount(mount)
            sh("mount", "-o", "loop", image, mount)
            verdict = subprocess.run(argv(a.verify), capture_output=True, text=True, timeout=120)
            if died or verdict.returncode != 0:
                failed = True
                why = "the writer ended by itself" if died else f"verifier exit {verdict.returncode}"
                tail = (open(f"{work}/out").read() if died else verdict.stdout + verdict.stderr)[-600:]
                print(f"cycle {cycle}: acked {acked}: {why}: {tail}", flush=True)
                break
        print(f"powercut: {cycle} cycles, acked {acked}, {int(failed)} failed", flush=True)
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"powercut: {error}", flush=True)
        sys.exit(BROKEN)
    except subprocess.CalledProcessError as error:
        print(f"powercut: {shlex.join(error.cmd)}: {(error.stderr or b'').decode(errors='replace')}", flush=True)
        sys.exit(BROKEN)
    finally:
        kill(writer)
        let_go(mount)
        subprocess.run(["rm", "-rf", work])
    if failed:
        sys.exit(FAILED)
    sys.exit(BROKEN if acked == 0 else 0)


if __name__ == "__main__":
    main()
