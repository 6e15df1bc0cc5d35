# SPDX-License-Identifier: Apache-2.0
"""The benchmark: that it measures what it says, and says what it measured. No test says how fast."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from bench.cases import (
    ALONE,
    AMONG,
    BY_KEY,
    CASES,
    CLIENTS,
    FLOOR,
    KERNEL,
    NOTHING,
    ONE,
    OURS,
    OUTSIDE,
    UMOCKDEV,
)
from bench.chart import draw
from bench.explain import Explainer, Profile
from bench.instrument import place, table
from bench.machine import EACH, EMPTY, Machine
from bench.measure import PINNED, UNPINNED, Progress, Step, plan
from bench.quote import DOCUMENTS, RESULTS, quoted, sections, titles
from bench.report import Report
from bench.samples import Key, Results, Sample, parse
from bench.targets import TARGETS, missed
from tests import needs, ordinary_user

ROOT = Path(__file__).parent.parent
PLACES = ("build", "python", "folder", "floor", "floor-names", "lab", "device0", "container", "attribute")


def sample(median: float, calls: int = 1000, p99: float | None = None) -> Sample:
    return Sample(
        calls, median / 2, median, median, median, p99 or median * 2, median * 3, median * 4, median
    )


def results_of(case: str, *pairs: tuple[float, float], mode: str = PINNED, calls: int = 1000) -> Results:
    """Repetitions of ours and of the base's, in nanoseconds."""
    results = Results()
    for ours, theirs in pairs:
        results.add(Key(case, OURS, mode), sample(ours, calls))
        results.add(Key(case, BY_KEY[case].base or "", mode), sample(theirs, calls))
    return results


def row(text: str, start: str) -> str:
    """The line of a table that starts so."""
    return next(line for line in text.splitlines() if line.startswith(f"| {start}"))


# ---- samples ----


def test_a_line_is_a_sample() -> None:
    assert parse("900 1 2 3 4 5 6 7 3.5\n") == Sample(900, 1, 2, 3, 4, 5, 6, 7, 3.5)


@pytest.mark.parametrize("line", ["", "900", "900 1 2 3", "client: line 3: fd >= 0", "9 1 2 3 4 5 6 7 8 9"])
def test_another_line_is_not(line: str) -> None:
    with pytest.raises(ValueError, match=r"no sample|unpack|invalid literal"):
        parse(line)


def test_a_figure_is_the_median_of_repetitions_and_a_ratio_that_of_runs_beside_each_other() -> None:
    results = results_of("read-hook", (30, 10), (20, 10), (90, 60))
    key, base = Key("read-hook", OURS, PINNED), Key("read-hook", FLOOR, PINNED)
    assert results.median(key) == 30
    assert results.ratio(key, base) == 2  # of 3, 2 and 1.5, and not 30 / 10
    assert results.median(Key("read-hook", KERNEL, PINNED)) is None
    assert results.ratio(key, Key("read-hook", KERNEL, PINNED)) is None
    assert results.beyond(key, base) == 20  # of 20, 10 and 30, and not 30 - 10
    assert results.beyond(base, Key("read-hook", KERNEL, PINNED)) is None
    assert (results.repetitions(PINNED), results.repetitions(UNPINNED)) == (3, 0)


# ---- what is run ----


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """With a floor and a lab, of which only the names are there."""
    with ExitStack() as stack:
        yield Machine(tmp_path, stack, places={name: f"/{name}" for name in PLACES})


def test_what_a_case_names_and_is_not_here_is_left_out(machine: Machine) -> None:
    runs = BY_KEY["ioctl-struct"].runs
    assert machine.has(runs[OURS]) and machine.has(runs[FLOOR]) and not machine.has(runs[UMOCKDEV])
    subjects = [step.subject for step in plan(machine, ["ioctl-struct"], quick=True)]
    assert subjects == [OURS, FLOOR] * 2


def test_words_become_a_command_line(machine: Machine) -> None:
    words = BY_KEY["read-hook"].runs[OURS]
    assert machine.command(words) == ["/build/client", "read", "20000", "/device0", "0", "4"]
    assert replace(machine, calls=7).command(words)[2] == "7"
    machine.places["umockdev"] = "umockdev-run\0--"
    assert machine.command(BY_KEY["ioctl-struct"].runs[UMOCKDEV])[:3] == [
        "umockdev-run",
        "--",
        "/build/client",
    ]


def test_ours_and_theirs_take_turns_in_every_repetition(machine: Machine) -> None:
    steps = plan(machine, ["read-hook"], quick=False)
    assert [step.subject for step in steps] == [OURS, FLOOR] * (len(steps) // 2)
    modes = [step.mode for step in steps[::2]]
    assert modes[:2] == [PINNED, UNPINNED] and modes.count(PINNED) == 5 and modes.count(UNPINNED) == 3


def test_a_mount_is_not_measured_on_one_processor(machine: Machine) -> None:
    steps = plan(machine, ["mount", "create"], quick=True)
    assert [(step.mode, step.case) for step in steps] == [
        (PINNED, "create"),
        (UNPINNED, "create"),
        (UNPINNED, "mount"),
    ]


def test_clients_of_many_devices_are_runs_of_their_own(machine: Machine) -> None:
    assert {step.case for step in plan(machine, [CLIENTS], quick=True)} == {CLIENTS}


def test_the_time_left_is_that_of_the_last_time() -> None:
    steps = [Step(PINNED, case, OURS, "") for case in ("a", "b", "a", "b")]
    progress = Progress(steps)
    assert progress.left() == 0
    assert progress.done(10).startswith("[1/4, 0:30 left] same core: a")
    assert progress.done(60).startswith("[2/4, 1:10 left]")
    assert progress.done(20).startswith("[3/4, 1:00 left]")


# ---- what is said ----


def test_a_target_is_met_or_not() -> None:
    results = results_of("read-hook", (2400, 2000))
    text = Report(results, {}).text()
    assert row(text, "trapped 4-byte read or write").endswith("| <= 1.25 x | 1.20 x | yes |")
    assert row(text, "memory read by pread").endswith("| not measured here | |")
    results.add(Key("write-hook", OURS, PINNED), sample(3000))
    results.add(Key("write-hook", FLOOR, PINNED), sample(2000))
    text = Report(results, {}).text()
    assert row(text, "trapped 4-byte read or write").endswith("| <= 1.25 x | 1.50 x | **no** |")
    assert "1.50 x (trapped 4-byte write, Python hook, same core).\n  - vfsfuse: min 1.50 us," in text
    assert "  - C libfuse: min 1.00 us, p10 2.00 us, median 2.00 us" in text


def test_speeds_have_to_be_as_high_as_the_limit() -> None:
    results = results_of("memset", (1000, 900))
    assert row(Report(results, {}).text(), "mmap BAR memset").endswith("| >= 0.97 x | 0.90 x | **no** |")
    assert [found.of for _, found in missed(results, {})] == ["memset"]


def test_what_is_shown_is_what_is_compared() -> None:
    results = results_of("memset", (1000, 968))
    assert row(Report(results, {}).text(), "mmap BAR memset").endswith("| >= 0.97 x | 0.97 x | yes |")
    results = results_of("memset", (1000, 964))
    assert row(Report(results, {}).text(), "mmap BAR memset").endswith("| >= 0.97 x | 0.96 x | **no** |")


def test_neighbours_count_on_the_same_core_and_are_explained() -> None:
    results = Results()
    for mode, among in ((PINNED, 400), (UNPINNED, 900)):
        for subject in (OURS, FLOOR):
            results.add(Key(ALONE, subject, mode), sample(10, p99=100_000))
            results.add(Key(AMONG, subject, mode), sample(10, p99=among * 1000))
            results.add(Key(ONE, subject, mode), sample(2500))
    ((target, found),) = missed(results, {})
    assert (found.value, found.mode) == (4, PINNED) and target.met(3)
    text = Report(results, {}).text()
    assert "C libfuse: 4.00 x. One turn of all 8 clients on one processor\n" in text
    assert "takes 20.00 us, 0.20 times the quiet client's p99 alone." in text


@pytest.mark.parametrize(
    ("cases", "title"),
    [(("map", "unmap"), "65,535 mappings"), (("ioas-map", "ioas-unmap"), "65,535 areas of an IOAS")],
)
def test_mappings_are_measured_beyond_an_ioctl(cases: tuple[str, str], title: str) -> None:
    results = results_of(cases[0], (6500, 4000))
    results.runs |= results_of(cases[1], (6000, 4000)).runs
    assert row(Report(results, {}).text(), title).endswith("| <= 3.00 us | 2.50 us | yes |")


def test_facts_and_seconds_have_their_units() -> None:
    results = Results()
    results.add(Key("mount", OURS, UNPINNED), sample(0.3e9, calls=5))
    text = Report(results, {EMPTY: 40 << 20, EACH: 5 << 10}).text()
    assert row(text, "mount to ready").endswith("| <= 0.350 s | 0.300 s | yes |")
    assert row(text, "resident memory, empty").endswith("| <= 60.0 MiB | 40.0 MiB | yes |")
    assert row(text, "resident memory of each").endswith("| <= 4.00 KiB | 5.00 KiB | **no** |")
    assert f"- {EMPTY}: 40,960.0 KiB" in text


def test_every_figure_has_its_unit() -> None:
    for value, shown in ((50, "50.00 ns"), (2500, "2.50 us"), (3.5e6, "3.50 ms")):
        text = Report(results_of("read-hook", (value, value)), {}).text()
        assert f"| {BY_KEY['read-hook'].title} | vfsfuse | {shown} |" in text
    text = Report(results_of("memset", (1 << 20, 1 << 20)), {}).text()
    assert f"| {BY_KEY['memset'].title} | vfsfuse | 1.05 ms (16.0 GB/s) |" in text
    text = Report(results_of("load", (2500, 2500)), {}).text()
    assert f"| {BY_KEY['load'].title} | vfsfuse | 2.50 ns |" in text


def test_a_p99_wants_samples() -> None:
    many, few = (Report(results_of("read-hook", (2000, 2000), calls=calls), {}).text() for calls in (100, 99))
    title = BY_KEY["read-hook"].title
    assert f"| {title} | vfsfuse | 2.00 us | 4.00 us | 1.00 x |" in many
    assert f"| {title} | vfsfuse | 2.00 us |  | 1.00 x |" in few


def test_the_report_says_what_was_done() -> None:
    once, twice = (results_of("read-hook", *[(1, 1)] * count) for count in (1, 2))
    assert "the median of one repetition with" in Report(once, {}).text()
    assert "the median of 2 repetitions with" in Report(twice, {}).text()


def test_the_summary_counts_the_targets_that_are_met() -> None:
    results = results_of("read-hook", (2400, 2000))
    results.runs |= results_of("memset", (1000, 900)).runs
    lines = sections(Report(results, {}).text())["Summary"].splitlines()
    assert "takes 2.40 us on one core," in lines[0] and lines[1].startswith("1.20 times as long")
    assert lines[-1] == "Of 2 measured performance targets, vfsfuse meets 1."
    assert "Summary" not in sections(Report(Results(), {}).text())


def test_missing_peers_have_no_lines() -> None:
    results = results_of("attr-read", (9000, 6000))
    results.add(Key("attr-read", KERNEL, PINNED), sample(1500))
    text = Report(results, {}).text()
    assert "| kernel sysfs | 1.50 us | 3.00 us | 0.25 x |" in text
    assert "| lxcfs |" not in text and "| umockdev |" not in text
    assert UNPINNED not in sections(text) and f"All figures, {UNPINNED}" not in sections(text)


def test_a_profile_adds_up() -> None:
    title = BY_KEY["read-hook"].title
    profile = Profile(title, "us", [("floor", 3), ("Python", 1)], "Seen:", ("what", "how"), [("f", "1.0")])
    text = Report(results_of("read-hook", (4000, 2000)), {}, profiles=[profile]).text()
    told = sections(text)["Where the time goes"]
    assert (
        "| Python | 1.00 | 25% |\n| whole | 4.00 | 100% |\n\nSeen:\n\n| what | how |\n|---|---|\n| f | 1.0 |"
        in told
    )
    assert "The profile is below." in sections(text)["Not met"]


def test_functions_are_those_of_each_call_and_known_by_no_path_of_this_machine() -> None:
    ours = str(ROOT / "ioctl_shim/lane.py")
    found = table(
        [(ours, 5, "f", 100, 3.0), ("~", 0, "<built-in len>", 200, 1.0), (ours, 9, "once", 1, 99.0)], 100
    )
    assert found == [("`f`, ioctl_shim/lane.py:5", "1.0", "75%"), ("`<built-in len>`", "2.0", "25%")]
    assert place("/usr/lib/python3.11/contextlib.py") == "contextlib.py"
    assert place(str(ROOT / ".venv/lib/python3.11/site-packages/trio/_core/_run.py")) == "trio/_core/_run.py"


def test_the_chart_is_a_picture(tmp_path: Path) -> None:
    results = results_of("read-hook", (4000, 2000))
    sizes = []
    for case in ("read-hook", "attr-read"):
        results.runs |= results_of(case, (4000, 2000)).runs
        draw(tmp_path / "chart.png", results)
        with Image.open(tmp_path / "chart.png") as image:
            image.load()
            sizes.append(image.size)
            assert image.format == "PNG" and len(image.getcolors(1 << 16) or ()) > 4
    assert sizes[0][0] == sizes[1][0] and sizes[0][1] < sizes[1][1]


def test_cases_and_targets_are_told_apart() -> None:
    assert len(BY_KEY) == len(CASES) == len({case.title for case in CASES})
    assert len({target.what for target in TARGETS}) == len(TARGETS)
    assert all(case.base is None or case.base in case.runs for case in CASES)


# ---- the documents ----


def test_a_quotation_is_a_section() -> None:
    results = "# What\n\n## One\n\nfirst\n\n## Two\n\nsecond\n### more\n"
    begin, end = "<!-- quoted from bench/RESULTS.md: {} -->\n", "<!-- end of quotation -->"
    document = f"a\n{begin.format('Two')}old\nlines\n{end}\nb\n{begin.format('None')}gone\n{end}\n"
    new = f"a\n{begin.format('Two')}second\n### more\n{end}\nb\n{begin.format('None')}\n{end}\n"
    assert quoted(document, results) == new == quoted(new, results)
    assert titles(document) == ["Two", "None"]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_documents_quote_the_results_as_they_are(path: Path) -> None:
    assert RESULTS.exists(), "bench/run.sh makes it"
    document = path.read_text()
    assert {"README.md": "Summary", "performance.md": "Targets"}[path.name] in titles(document)
    assert quoted(document, RESULTS.read_text()) == document, "python -m bench.quote brings it up to date"


def test_the_results_have_their_chart_and_name_no_path_of_the_machine() -> None:
    text = RESULTS.read_text()
    assert (RESULTS.parent / "results.png").exists() and "(results.png)" in text
    assert not re.search(r"/(tmp|root|home|work|usr)/", text)


# ---- the programs ----


@pytest.fixture(scope="module")
def build() -> Iterator[Path]:
    """Where everybody may read them: the client and the floor, compiled."""
    asked = ["pkg-config", "--cflags", "--libs", "fuse3"]
    flags = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.split()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for name in ("client", "floor"):
            command = ["gcc", "-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-o", f"{folder}/{name}"]
            subprocess.run([*command, ROOT / f"bench/{name}.c", *flags], check=True)
        os.chmod(folder, 0o755)
        yield Path(folder)


def client(build: Path, *words: object) -> subprocess.CompletedProcess[str]:
    command = [str(build / "client"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("words", [[], ["sing", 5], ["read", 5, "file"], ["eventfd", 0], ["eventfd", "many"]])
def test_the_client_says_how_it_is_used(build: Path, words: list[object]) -> None:
    done = client(build, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert "client read COUNT PATH OFFSET SIZE\n" in done.stderr


def test_the_client_says_what_failed(build: Path) -> None:
    done = client(build, "read", 5, "/nowhere", 0, 4)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"client: line \d+: fd >= 0 \(No such file or directory\)\n", done.stderr)


@pytest.mark.parametrize(
    "words",
    [
        *(["memcpy-read", 8192], ["memcpy-write", 8192], ["memread", 8192], ["memwrite", 8192]),
        *(["getppid"], ["fstat", "/etc/passwd"], ["python", sys.executable]),
        *(["memset", "memfd", 0, 8192], ["load", "memfd", 0, 8192], ["store", "memfd", 0, 8192]),
    ],
    ids=lambda words: words[0],
)
def test_the_client_measures_all_but_the_first_tenth(build: Path, words: list[object]) -> None:
    measured = parse(client(build, words[0], 50, *words[1:]).stdout)
    assert measured.calls == 45
    assert measured.min <= measured.p10 <= measured.p50 <= measured.p90 <= measured.p99 <= measured.max
    assert measured.min <= measured.mean <= measured.max


def test_the_client_measures_interrupts_that_it_hears_of_one_by_one(build: Path) -> None:
    assert 0 < parse(client(build, "eventfd", 50).stdout).calls <= 45


def test_files_are_read_and_written_where_it_is_said(build: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"0123456789")
    assert parse(client(build, "read", 10, file, 6, 4).stdout).calls == 9
    assert client(build, "read", 10, file, 8, 4).returncode == 1
    assert parse(client(build, "write", 10, file, 4, 2).stdout).calls == 9
    assert file.read_bytes() == b"0123\0\0" + b"6789"


def test_no_name_is_looked_up_twice(build: Path, tmp_path: Path) -> None:
    names = tmp_path / "names"
    names.write_text("".join(f"file{number}\n" for number in range(5)))
    for number in (2, 3, 4):
        (tmp_path / f"file{number}").touch()
    assert parse(client(build, "lookup", 3, tmp_path, names).stdout).calls == 3
    assert names.read_text() == "file0\nfile1\n"
    assert client(build, "lookup", 2, tmp_path, names).returncode == 1  # they are not there
    done = client(build, "lookup", 1, tmp_path, names)
    assert done.returncode == 1 and "end > text" in done.stderr  # there are no more


# ---- all of it ----


def as_whom() -> dict[str, list[str]]:
    user = [sys.executable, "-m", "tests.ordinary_user"]
    return {"as it is": [], "as an ordinary user": user} if os.geteuid() == 0 else {"as it is": []}


@pytest.mark.parametrize("who", as_whom())
def test_a_run_of_few_calls(build: Path, who: str) -> None:
    if who != "as it is" and needs.NO_OPEN_FUSE:
        pytest.skip(needs.NO_OPEN_FUSE)
    with tempfile.TemporaryDirectory(prefix="bench-") as output:
        if who != "as it is":
            os.chown(output, ordinary_user.UID, ordinary_user.UID)
        cases = (
            *("read-hook", "interrupt", "dma-shared-read-4096", "map", "ioas-map", "ioas-unmap-few"),
            *("run-fstat-node", "run-device-fd"),
        )
        chosen = [f"--only={case}" for case in cases]
        options = ["--quick", "--calls=1000", f"--output={output}/new", *chosen]
        command = [*as_whom()[who], sys.executable, "-m", "bench", str(build), *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=ROOT, check=False)
        assert done.returncode == 0, done.stderr
        text = Path(output, "new/RESULTS.md").read_text()
        with Image.open(Path(output, "new/results.png")) as image:
            image.load()
    check_run(text)


def check_run(text: str) -> None:
    told = sections(text)
    for mode in (PINNED, UNPINNED):
        rows = told[f"All figures, {mode}"].splitlines()[2:]
        subjects = [tuple(cell.strip() for cell in line.split("|")[1:3]) for line in rows]
        assert subjects == [
            (BY_KEY["read-hook"].title, OURS),
            (BY_KEY["read-hook"].title, FLOOR),
            (BY_KEY["dma-shared-read-4096"].title, OURS),
            (BY_KEY["dma-shared-read-4096"].title, "memcpy"),
            (BY_KEY["interrupt"].title, OURS),
            (BY_KEY["interrupt"].title, "eventfd"),
            *(
                (BY_KEY[case].title, subject)
                for case in ("map", "ioas-map", "ioas-unmap-few")
                for subject in (OURS, NOTHING)
            ),
            (BY_KEY["run-fstat-node"].title, OURS),
            (BY_KEY["run-fstat-node"].title, OUTSIDE),
            (BY_KEY["run-device-fd"].title, OURS),
        ]
    profile = told["Where the time goes"]
    assert f"### {BY_KEY['read-hook'].title}\n" in profile
    assert row(profile, "Python, from the pump's call to its return")
    assert "`hooked_read`, bench/model.py" in profile
    assert "not measured here" in told["Targets"]


def test_every_kind_of_profile(tmp_path: Path) -> None:
    results = results_of("dma-private-write-65536", (9000, 3000))
    results.add(Key("mount", OURS, UNPINNED), sample(300e6))
    places = {"python": sys.executable, "folder": str(tmp_path), "lab": "its own"}
    with ExitStack() as stack:
        machine = Machine(tmp_path, stack, places, facts={EACH: 30_000}, calls=20)
        wanted = ["dma-private-write-65536", "mount", EACH]
        found = {one.title: one for one in Explainer(machine, results).profiles(wanted, wanted)}
    dma, mount, memory = (found[key] for key in (BY_KEY[wanted[0]].title, BY_KEY["mount"].title, EACH))
    assert any("devmodel/iommu/" in details[0] and details[1] == "1.0" for details in dma.details)
    assert sum(spent for _, spent in dma.parts) == pytest.approx(9)
    assert any("trio" in details[0] or "vfsfuse" in details[0] for details in mount.details)
    assert sum(spent for _, spent in mount.parts) == pytest.approx(300)
    assert any(details[0].startswith("vfsfuse/") for details in memory.details)
    assert sum(size for _, size in memory.parts) == pytest.approx(30_000 / 1024)
