#!/usr/bin/env python3
"""The same synthetic powercap trees, given at the same time to Coppice, CodeCarbon, Carbontracker and Zeus: a table of truth.

    python3 -m venv /tmp/peers && /tmp/peers/bin/pip install codecarbon carbontracker zeus
    sudo unshare -m /tmp/peers/bin/python tests/peers/energy_peers.py build/bin/coppice > tests/bench/results/energy_peers.md

Rows that are named behind the program are run alone. Where a file may not be read the tools run without root's right to read it.

Needs root and a mount namespace of its own: a tree is mounted over /sys/class, so that every tool finds it where it looks.
Counters advance by known amounts while all tools measure one window; what each says is set beside what is true.
"""
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

STEPS, PAUSE = 24, 0.25  # a window of 6 s
INTEL, AMD = 262143328850, 65532610987
ROOT = "/sys/class/powercap"
RESTRICTED = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]


class Tree:
    """Nested as in /sys/devices/virtual/powercap, with the flat links of /sys/class/powercap."""

    def __init__(self):
        shutil.rmtree(ROOT, ignore_errors=True)
        os.makedirs(ROOT)
        self.values, self.forbidden = {}, set()

    def path(self, zone):
        driver, _, rest = zone.partition(":")
        parts, parent = rest.split(":"), f"{ROOT}/{driver}"
        for i in range(len(parts)):
            parent += "/" + driver + ":" + ":".join(parts[: i + 1])
        return parent

    def zone(self, zone, name, microjoules=0, maximum=INTEL):
        path = self.path(zone)
        os.makedirs(path)
        driver = zone.partition(":")[0]
        if not os.path.lexists(f"{ROOT}/{driver}/subsystem"):
            os.symlink(ROOT, f"{ROOT}/{driver}/subsystem")
        os.symlink(path, f"{ROOT}/{zone}")
        self.write(zone, "name", name)
        if maximum is not None:
            self.write(zone, "max_energy_range_uj", maximum)
        self.set(zone, microjoules)

    def write(self, zone, file, text):
        # By rename: no reader ever meets an empty file.
        path = f"{self.path(zone)}/{file}"
        with open(path + "~", "w") as out:
            out.write(f"{text}\n")
        os.chmod(path + "~", 0 if (zone, file) in self.forbidden else 0o444)
        os.rename(path + "~", path)

    def set(self, zone, microjoules):
        self.values[zone] = microjoules
        self.write(zone, "energy_uj", microjoules)

    def add(self, zone, joules, maximum=INTEL):
        value = self.values[zone] + round(joules * 1e6)
        self.set(zone, value - maximum if value >= maximum else value)

    def forbid(self, zone, file):
        self.forbidden.add((zone, file))
        os.chmod(f"{self.path(zone)}/{file}", 0)

    def remove(self, zone):
        os.unlink(f"{ROOT}/{zone}")
        shutil.rmtree(self.path(zone))


def plain(tree):
    tree.zone("intel-rapl:0", "package-0", 5_000_000_000)
    return lambda step: tree.add("intel-rapl:0", 10), "240"


def nested(tree):
    tree.zone("intel-rapl:0", "package-0", 5_000_000_000)
    tree.zone("intel-rapl:0:0", "core", 4_000_000_000)
    tree.zone("intel-rapl:0:1", "dram", 1_000_000_000)

    def advance(step):
        tree.add("intel-rapl:0", 10)
        tree.add("intel-rapl:0:0", 8)
        tree.add("intel-rapl:0:1", 2)

    return advance, "288 (package 240 + memory 48)"


def psys(tree):
    tree.zone("intel-rapl:0", "package-0", 5_000_000_000)
    tree.zone("intel-rapl:1", "psys", 9_000_000_000)

    def advance(step):
        tree.add("intel-rapl:0", 10)
        tree.add("intel-rapl:1", 16)

    return advance, "240 (384 with the rest of the machine)"


def twins(tree):
    tree.zone("intel-rapl:0", "package-0", 5_000_000_000)
    tree.zone("intel-rapl-mmio:0", "package-0", 5_000_000_000)

    def advance(step):
        tree.add("intel-rapl:0", 10)
        tree.add("intel-rapl-mmio:0", 10)

    return advance, "240"


def dies(tree):
    for die in (0, 1):
        tree.zone(f"intel-rapl:{die}", f"package-0-die-{die}", 5_000_000_000, AMD)

    def advance(step):
        for die in (0, 1):
            tree.add(f"intel-rapl:{die}", 10, AMD)

    return advance, "240"


def sockets(tree):
    tree.zone("intel-rapl:0", "package-0", 5_000_000_000)
    tree.zone("intel-rapl:1", "package-1", 7_000_000_000)

    def advance(step):
        tree.add("intel-rapl:0", 10)
        tree.add("intel-rapl:1", 5)

    return advance, "360"


def wrap(tree):
    tree.zone("intel-rapl:0", "package-0", INTEL - 100_000_000)
    return lambda step: tree.add("intel-rapl:0", 10), "240"


def wrap_without_range(tree):
    tree.zone("intel-rapl:0", "package-0", INTEL - 100_000_000, maximum=None)
    return lambda step: tree.add("intel-rapl:0", 10), "240, not knowable"


def wraps_often(tree):
    tree.zone("intel-rapl:0", "package-0", 5_000_000, maximum=60_000_000)

    def advance(step):
        for _ in range(25):  # 160 W while it moves
            tree.add("intel-rapl:0", 1.6, 60_000_000)
            time.sleep(0.01)

    return advance, "960"


def without_permission(tree):
    tree.zone("intel-rapl:0", "package-0", 5_000_000_000)
    tree.zone("intel-rapl:0:0", "dram", 1_000_000_000)
    tree.forbid("intel-rapl:0:0", "energy_uj")

    def advance(step):
        tree.add("intel-rapl:0", 10)
        tree.add("intel-rapl:0:0", 2)

    return advance, "240 and memory"


def range_without_permission(tree):
    tree.zone("intel-rapl:0", "package-0", INTEL - 100_000_000)
    tree.forbid("intel-rapl:0", "max_energy_range_uj")
    return lambda step: tree.add("intel-rapl:0", 10), "240, not knowable"


def reset(tree):
    tree.zone("intel-rapl:0", "package-0", 100_000_000_000)

    def advance(step):
        tree.set("intel-rapl:0", 0) if step == 12 else tree.add("intel-rapl:0", 10)

    return advance, "240, not knowable"


def vanishes(tree):
    tree.zone("intel-rapl:0", "package-0", 5_000_000_000)
    tree.zone("intel-rapl:0:0", "dram", 1_000_000_000)

    def advance(step):
        tree.add("intel-rapl:0", 10)
        if step < 12:
            tree.add("intel-rapl:0:0", 2)
        elif step == 12:
            tree.remove("intel-rapl:0:0")

    return advance, "240 and memory"


def garbage(tree):
    tree.zone("intel-rapl:0", "package-0", 5_000_000_000)

    def advance(step):
        tree.add("intel-rapl:0", 10)
        if step >= 12:
            tree.write("intel-rapl:0", "energy_uj", "n/a")

    return advance, "240, not knowable"


def stalled(tree):
    tree.zone("intel-rapl:0", "package-0", 5_000_000_000)
    return lambda step: None, "not knowable"


CASES = {
    "one package": plain,
    "core and memory inside the package": nested,
    "psys beside the package": psys,
    "one package by two drivers (MSR, MMIO)": twins,
    "two dies that mirror one AMD socket": dies,
    "two sockets": sockets,
    "the counter wraps": wrap,
    "it wraps several times within a second": wraps_often,
    "it wraps and names no range": wrap_without_range,
    "it wraps and its range may not be read": range_without_permission,
    "memory may not be read": without_permission,
    "the counter is reset": reset,
    "the memory zone vanishes": vanishes,
    "the file turns to \"n/a\"": garbage,
    "the counter stands still": stalled,
}


# Each tool runs in a process of its own: says "ready" once it measures, and its joules (or why not) after a line comes in.
def codecarbon():
    import logging

    from codecarbon import OfflineEmissionsTracker

    logging.disable(logging.CRITICAL)
    tracker = OfflineEmissionsTracker(
        country_iso_code="FRA", measure_power_secs=1, save_to_file=False, log_level="critical", allow_multiple_runs=True
    )
    tracker.start()
    yield
    tracker.stop()
    data = tracker.final_emissions_data
    mode = [getattr(part, "_mode", "") for part in tracker._hardware if type(part).__name__ == "CPU"]
    yield f"{data.cpu_energy * 3.6e6:.1f}" + ("" if mode == ["intel_rapl"] else f" ({mode[0] if mode else 'no CPU'})")


def carbontracker():
    import threading

    from carbontracker.components.cpu.intel import IntelCPU

    cpu = IntelCPU(pids=[], devices_by_pid=False)
    cpu.init()
    powers, end = [], threading.Event()

    def poll():
        while not end.is_set():
            powers.append(sum(cpu.power_usage()))

    thread = threading.Thread(target=poll)
    begin = time.monotonic()
    thread.start()
    yield
    end.set()
    seconds = time.monotonic() - begin
    thread.join()
    yield f"{sum(powers) / len(powers) * seconds:.1f}"  # its tracker multiplies the mean power by the time, too


def zeus():
    from zeus.device.cpu.rapl import RAPLCPUs

    def total():
        joules = 0
        for cpu in cpus.cpus:
            part = cpu.get_total_energy_consumption()
            joules += (part.cpu_mj + (part.dram_mj or 0)) / 1000
        return joules

    cpus = RAPLCPUs()
    begin = total()
    time.sleep(2)  # the processes that watch for wraps start slowly
    yield
    yield f"{total() - begin:.1f}"


def coppice(binary):
    record = tempfile.mktemp(suffix=".json")
    command = [binary, "track", "-q", "--energy", "rapl", "--json", record, "--", "cat"]
    with open("/dev/null", "w") as null:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=null, stderr=subprocess.PIPE, text=True)
    while not os.path.exists(f"/proc/{process.pid}/task/{process.pid}/children") or not open(
        f"/proc/{process.pid}/task/{process.pid}/children"
    ).read():
        if process.poll() is not None:
            raise RuntimeError(process.stderr.read().strip())
        time.sleep(0.05)
    yield
    process.stdin.close()
    process.wait()
    with open(record) as file:
        energy = json.load(file)["energy_j"]
    os.unlink(record)
    yield f"{energy['value']:.1f}" if energy["value"] is not None else "unavailable: " + energy["reason"].replace(ROOT, "...")


def serve(tool, binary):
    answers, sys.stdout = sys.stdout, sys.stderr  # some tools print
    try:
        steps = coppice(binary) if tool == "coppice" else globals()[tool]()
        next(steps)
        print("ready", file=answers, flush=True)
        sys.stdin.readline()
        print(json.dumps(next(steps)), file=answers, flush=True)
    except BaseException as error:
        text = f"fails: {type(error).__name__}: {error}".splitlines()[0][:110]
        print(json.dumps(text), file=answers, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)  # pollers of some tools would keep the process alive


TOOLS = ["coppice", "codecarbon", "carbontracker", "zeus"]


def run(case, binary):
    tree = Tree()
    advance, truth = CASES[case](tree)
    processes = {
        tool: subprocess.Popen(
            (RESTRICTED if tree.forbidden else []) + [sys.executable, __file__, "--serve", tool, binary],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )
        for tool in TOOLS
    }
    said = {}
    for tool, process in processes.items():
        line = process.stdout.readline().strip()
        if line != "ready":
            said[tool] = json.loads(line) if line else "fails at the start"
    for step in range(STEPS):
        advance(step)
        time.sleep(PAUSE)
    for tool, process in processes.items():
        if tool not in said:
            process.stdin.write("stop\n")
            process.stdin.flush()
    for tool, process in processes.items():
        if tool not in said:
            line = process.stdout.readline().strip()
            said[tool] = json.loads(line) if line else "fails at the end"
        process.wait()
    return truth, said


def main():
    if sys.argv[1] == "--serve":
        serve(sys.argv[2], sys.argv[3])
        return
    subprocess.run(["mount", "-t", "tmpfs", "none", "/sys/class"], check=True)
    from importlib.metadata import version

    names = [f"CodeCarbon {version('codecarbon')}", f"Carbontracker {version('carbontracker')}", f"Zeus {version('zeus')}"]
    print("# Energy counters: what each tool makes of the same tree\n")
    print(
        f"`tests/peers/energy_peers.py`: synthetic powercap trees whose counters advance by known amounts during one window of "
        f"{STEPS * PAUSE:.0f} s that all tools measure at once. Joules.\n"
    )
    print("| tree | truth | Coppice | " + " | ".join(names) + " |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    for case in sys.argv[2:] or CASES:
        truth, said = run(case, sys.argv[1])
        cells = [said[tool].replace("|", "/") for tool in TOOLS]
        print(f"| {case} | {truth} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
