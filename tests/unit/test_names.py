# SPDX-License-Identifier: Apache-2.0
"""Lines that create and destroy vGPUs, and the numbers they get."""

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devmodel.ida import Ida
from devmodel.lifecycle.requests import MAX_INSTANCE, parse_create_line, parse_destroy_line
from devmodel.uuids import parse_uuid

TEXT = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"


@pytest.mark.parametrize("text", [TEXT, TEXT + "\n", TEXT.upper()])
def test_a_uuid_is_read_in_either_case_with_at_most_one_newline(text: str) -> None:
    assert parse_uuid(text) == UUID(TEXT)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        TEXT + "\n\n",
        " " + TEXT,
        TEXT + " ",
        TEXT + "\0",
        TEXT.replace("-", ""),
        "{" + TEXT + "}",
        "urn:uuid:" + TEXT,
        TEXT[:-1],
        TEXT[:-1] + "g",
        TEXT[:-1] + "\N{FULLWIDTH DIGIT ONE}",
        "83b8f4f25-09f-382f-3c1e-e6bfe0fa1001",
    ],
)
def test_what_is_not_a_uuid_is_refused(text: str) -> None:
    for parse, line in (
        (parse_uuid, text),
        (parse_create_line, f"{text}:0:vgpu-4"),
        (parse_destroy_line, f"{text}:0"),
    ):
        with pytest.raises(ValueError):
            parse(line)


@given(st.uuids(), st.integers(0, MAX_INSTANCE), st.sampled_from(["vgpu-4", "a", "i915-GVTg_V5.4"]))
def test_create_and_destroy_lines(uuid: UUID, instance: int, type_name: str) -> None:
    assert parse_create_line(f"{uuid}:{instance}:{type_name}\n") == (uuid, instance, type_name, {})
    assert parse_destroy_line(f"{uuid}:{instance}") == (uuid, instance)


@pytest.mark.parametrize(
    "rest",
    [
        "",
        ":",
        ":0",
        ":0:",
        ":0:a:b",
        ":-1:a",
        ":+1:a",
        ":1_0:a",
        ":0x1:a",
        ": 1:a",
        f":{2**31}:a",
        ":\u0661:a",
    ],
)
def test_malformed_create_lines_are_refused(rest: str) -> None:
    with pytest.raises(ValueError):
        parse_create_line(TEXT + rest)


@pytest.mark.parametrize("type_name", ["..", ".x", "-x", "a/b", "a b", "a\n\n", "\u00e9"])
def test_type_names_cannot_leave_their_directory(type_name: str) -> None:
    with pytest.raises(ValueError):
        parse_create_line(f"{TEXT}:0:{type_name}")


@pytest.mark.parametrize("rest", ["", ":", ":x", ":0:", ":0\n\n", f":{'9' * 5000}"])
def test_malformed_destroy_lines_are_refused(rest: str) -> None:
    with pytest.raises(ValueError):
        parse_destroy_line(TEXT + rest)


@given(st.lists(st.integers(0, 30), max_size=60))
def test_numbers_are_always_the_lowest_that_is_free(choices: list[int]) -> None:
    numbers = Ida()
    taken: set[int] = set()
    for choice in choices:
        if choice in taken:
            taken.remove(choice)
            numbers.give(choice)
        else:
            lowest = next(number for number in range(100) if number not in taken)
            assert numbers.take() == lowest
            taken.add(lowest)
