# SPDX-License-Identifier: Apache-2.0
"""[nodes] of a lab file: what arrives in the lab, and each mistake."""

from pathlib import Path

import pytest

from devmodel.lifecycle.spec import NodeSpec
from vfsfuse.labfile.reader import LabFileError, load

GPU = """
[parents."0000:01:00.0"]
kind = "gpu"
driver = "vgpu"
memory = "16M"
types.half = { memory = "8M", description = "half" }
"""
ONE = '[nodes.0]\ncpus = "0-3"\nmemory = "1G"\n'
TWO = ONE + '[nodes.1]\ncpus = "4-7"\n'


def read(folder: Path, text: str) -> tuple[NodeSpec, ...]:
    source = folder / "my.toml"
    source.write_text(text)
    return load(source).nodes


def test_every_key_arrives(tmp_path: Path) -> None:
    text = """
    [nodes.10]
    cpus = " 8 , 2-3,9,,"
    threads = 2
    memory = "2G"
    distances = [255, 10]
    [nodes.2]
    cpus = 4
    """
    assert read(tmp_path, text + GPU) == (
        NodeSpec(2, frozenset({4})),
        NodeSpec(10, frozenset({2, 3, 8, 9}), 2 << 30, (255, 10), 2),
    )
    assert read(tmp_path, GPU) == ()


@pytest.mark.parametrize(
    ("text", "path", "why"),
    [
        ('[nodes.x]\ncpus = "0"', "nodes.x", "not the number of a node"),
        ("[nodes.1024]\ncpus = 0", "nodes.1024", "give 0 to 1023"),
        ("[nodes.01]\ncpus = 0", "nodes.01", "not the number of a node"),
        ("[nodes.0]\ncpus = true", "nodes.0.cpus", "not a list of CPUs"),
        ('[nodes.0]\ncpus = "0-x"', "nodes.0.cpus", "neither a CPU nor a range"),
        ('[nodes.0]\ncpus = "3-1"', "nodes.0.cpus", "is no range (give the lower number first)"),
        ("[nodes.0]\ncpus = 8192", "nodes.0.cpus", "out of range"),
        ("[nodes.0]\ncpus = -1", "nodes.0.cpus", "neither a CPU"),
        ("[nodes.0]\ncores = 3", "nodes.0.cores", "there is no such key"),
        ("[nodes.0]\ndistances = 10", "nodes.0.distances", "not a list of distances"),
        (ONE + "distances = [9]", "nodes.0.distances", "not a distance"),
        (ONE + "distances = [10, 256]", "nodes.0.distances", "not a distance"),
        (ONE + "distances = [10, 20]", "nodes.0.distances", "has 2 for 1 nodes"),
        (TWO + "distances = [10, 20]", "nodes.1.distances", "number 2, is 10"),
        (TWO + "distances = [10, 10]", "nodes.1.distances", "number 2, is 10"),
        (ONE + "threads = 3", "nodes.0.threads", "4 CPUs do not make cores of 3"),
        (TWO.replace("4-7", "2-5"), "nodes.1.cpus", "CPU 2 is in node 0, too"),
        ("[nodes.0]", "nodes.0", "neither CPUs nor memory"),
        ("[nodes.0]\ncpus = 0", "nodes", "no node has memory"),
        ('[nodes.0]\nmemory = "1G"', "nodes", "no node has a CPU"),
        (ONE + GPU + "numa_node = 1", 'parents."0000:01:00.0".numa_node', "there is no node 1"),
    ],
)
def test_mistakes(tmp_path: Path, text: str, path: str, why: str) -> None:
    with pytest.raises(LabFileError) as caught:
        read(tmp_path, text if "parents" in text else text + GPU)
    (line,) = caught.value.lines
    assert line.startswith(f"{tmp_path / 'my.toml'}: {path}: ") and why in line and line.endswith(")")


def test_all_mistakes_are_found_at_once(tmp_path: Path) -> None:
    text = '[nodes.0]\ncpus = "a"\nmemory = -1\n[nodes.1]\n[nodes.y]\n'
    with pytest.raises(LabFileError) as caught:
        read(tmp_path, text + GPU)
    keys = [line.split(": ")[1] for line in caught.value.lines]
    assert keys == ["nodes.0.cpus", "nodes.0.memory", "nodes.1", "nodes.y"]
