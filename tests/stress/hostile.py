# SPDX-License-Identifier: Apache-2.0
"""Campaign `hostile`: files that answer nothing and memory that waits, at random places of VFIO's interface.

tests/clients/hostile_fuse.c is the client. tests/hostile has a row for each place and judges its errno. Here
the places, the descriptors, the memory and what is held are chosen at random, several clients at a time. The
campaign judges what everybody else gets.
"""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.ordinary_user import UID
from tests.stress.campaign import Campaign, Run
from tests.stress.killed_clients import compare, settled
from tests.stress.lab import GPUS, Vgpu
from tests.stress.setting import ROOT

SOURCE = ROOT / "tests/clients/hostile_fuse.c"
DOCUMENTED_CLIENTS = 400
WARM_UP = 2
HELD_SECONDS = 1.5
"""Longer than the stall that is a fault."""
AT_ONCE = 8
END_SECONDS = 15.0
SKIPPED = 77
"""Its exit status where the machine has no such memory."""
OWN_END_SECONDS = 6
"""When a client ends by itself, whatever it waits for."""
TAKE_DESCRIPTORS = ("set-irqs", "unmask", "ioeventfd", "wake-up", "set-container", "hot-reset", "bind")
NEED_A_PATH = {"read-file", "write-file", "list", "get-device-fd", "get-device-fd-of"}
KINDS = ("GETATTR", "OPEN", "READ", "WRITE", "RELEASE", "FLUSH", "IOCTL", "POLL")


@dataclass(frozen=True)
class Words:
    """What its command line may have: names of calls, of descriptors and of kinds of memory."""

    calls: list[str]
    descriptors: list[str]
    memories: list[str]

    def choose(self, random: Random) -> list[str]:
        """Options and a call: a descriptor that answers nothing, memory that waits, or anything."""
        call, number = random.choice(self.calls), random.choice(["1", "1", "3", "40"])
        match random.randrange(5):
            case 0:
                held = ",".join(random.sample(KINDS, random.randint(1, 3)))
                return ["-H", held, "-d", "hostile", "-n", number, random.choice(TAKE_DESCRIPTORS)]
            case 1:
                return ["-d", random.choice(self.descriptors), "-n", number, random.choice(TAKE_DESCRIPTORS)]
            case _:
                descriptor = {"hot-reset": "group", "bind": "iommufd"}.get(call, "eventfd")
                return ["-d", descriptor, "-m", random.choice(self.memories), "-n", number, call]


def known_words() -> Words:
    """From its source, so that a new row of its tables is tried as well."""
    text = "".join(path.read_text() for path in (SOURCE, SOURCE.with_name("held_memory.h")))

    def table(name: str, row: str) -> list[str]:
        found = re.search(rf"\b{name}\[\] = {{(.*?)\n}};", text, re.DOTALL)
        assert found, f"{SOURCE} has no table {name}"
        return re.findall(row, found.group(1))

    calls = set(table("calls", r'(?:IOCTL\(|\.name = )"([^"]+)"')) - NEED_A_PATH
    memories = table("memories", r'{(?:\.name = )?"([^"]+)"')
    return Words(sorted(calls), sorted(set(table("descriptors", r'{"([^"]+)"')) - {"path"}), sorted(memories))


def compile_client(folder: Path) -> Path:
    program = folder / "hostile_fuse"
    flags = ["-O1", "-Wall", "-Wextra", "-static"]
    subprocess.run(["gcc", *flags, "-o", program, SOURCE, "-lpthread"], check=True)
    return program


class Hostile:
    """One client under way, with the words that it was started with."""

    def __init__(
        self, run: Run, program: Path, pair: tuple[Vgpu, Vgpu], words: Words, random: Random
    ) -> None:
        """`pair`: the vGPU whose own file it opens, and the one whose group."""
        file = run.setting.folder / f"held-{random.getrandbits(32)}"
        file.touch()
        file.chmod(0o666)
        self._file = file
        ordinary = run.setting.root and random.random() < 0.5
        options = ["-s", str(OWN_END_SECONDS), "-i", str(random.randrange(5))]
        options += ["-u"] if ordinary or not run.setting.root else random.choice([[], ["-u"]])
        self.words = [*options, *words.choose(random)]
        self.label = " ".join(self.words)
        devdir, cdev, group = run.lab.path / "dev/vfio", pair[0].cdev.removeprefix("devices/"), pair[1].group
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            [str(program), *self.words[:-1], str(file), self.words[-1], str(devdir), group, cdev],
            stdin=pipe,
            stdout=pipe,
            stderr=subprocess.STDOUT,
            user=UID if ordinary else None,
            group=UID if ordinary else None,
            extra_groups=[] if ordinary else None,
        )

    def release(self) -> None:
        """Let go of what it holds; it goes on and ends."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(b"g")
            self.process.stdin.close()
        except BrokenPipeError:
            pass

    def finish(self) -> str:
        """What it was: "held", "not held", "skipped" or "stuck"."""
        try:
            status = self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGKILL)
            return "stuck"
        finally:
            assert self.process.stdout is not None
            said = self.process.stdout.read() if self.process.poll() is not None else b""
            self.process.stdout.close()
            self._file.unlink(missing_ok=True)
        if status == SKIPPED:
            return "skipped"
        return "held" if b"held " in said else "not held"


def attack(
    run: Run, program: Path, pairs: list[tuple[Vgpu, Vgpu]], words: Words, number: int
) -> Counter[str]:
    """A client for each pair, all at once."""
    random = run.random(str(number))
    clients = [Hostile(run, program, pair, words, random) for pair in pairs]
    time.sleep(HELD_SECONDS)
    for client in clients:
        client.release()
    found = Counter[str]()
    for client in clients:
        outcome = client.finish()
        found[outcome] += 1
        if outcome == "stuck":
            run.fault(f"a hostile client does not end after it has let go of everything: {client.label}")
    for text in run.lab.complaints():
        run.fault(f"{text}, after {'; '.join(client.label for client in clients)}")
    return found


def hostile(run: Run) -> None:
    wanted = run.setting.share(DOCUMENTED_CLIENTS, 40)
    program, words = compile_client(run.setting.folder), known_words()
    vgpus = [run.lab.vgpu(run.lab.create(GPUS[0], "small")) for _ in range(2 * AT_ONCE)]
    pairs = list(zip(vgpus[:AT_ONCE], vgpus[AT_ONCE:], strict=True))
    for number in range(WARM_UP):
        attack(run, program, pairs, words, -1 - number)
    before = settled(run)
    counts: Counter[str] = Counter()
    for number in range(-(-wanted // len(pairs))):
        counts += attack(run, program, pairs, words, number)
        if not run.lab.alive:
            return
    run.bystander.stop(run.report)
    compare(run, before, settled(run, before))
    run.figures = (
        f"{counts.total():,} hostile clients, {counts['held']:,} of them had a call that waited for them, "
        f"{HELD_SECONDS:.1f} s each"
    )
    if counts["skipped"]:
        run.left_out.append(
            f"{counts['skipped']} clients with memory that this machine or user does not have"
        )
    run.lab.clear()
    for text in run.lab.left():
        run.fault(text)


CAMPAIGN = Campaign("hostile", hostile, "files that answer nothing and memory that waits, at random places")
