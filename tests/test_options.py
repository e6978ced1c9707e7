"""Options: ours are split from the inner compiler's, and wrong ones are told the right ones."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest

from mhf_compile.errors import FlashMHFError, OptionError
from mhf_compile.options import Options, parse

VALID = {
    "inner": ["inductor", "eager", "aot_eager"],
    "prove": ["auto", "always", "never"],
    "require": [0, 1, 20],
    "dense": ["auto", "always", "never"],
    "workspace": [None, 0, 2**30],
    "strict": [True, False],
}


def test_nothing_given_is_all_defaults() -> None:
    assert parse(None) == parse({}) == (Options(), {})
    assert Options() == Options(inner="inductor", prove="auto", require=0, dense="auto", strict=False)


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in VALID.items() for value in values]
)
def test_a_valid_value_is_taken(name: str, value: object) -> None:
    ours, others = parse({f"flashmhf.{name}": value})
    assert getattr(ours, name) == value
    assert others == {}


def test_every_option_is_tried_here() -> None:
    assert set(VALID) == {field.name for field in fields(Options)}


def test_other_keys_are_passed_on_in_order() -> None:
    given = {
        "max_autotune": True,
        "flashmhf.prove": "never",
        "trace.enabled": False,
        "flashmhf": 1,
        "prove": 2,
    }
    ours, others = parse(given)
    assert ours == Options(prove="never")
    assert list(others.items()) == [
        ("max_autotune", True),
        ("trace.enabled", False),
        ("flashmhf", 1),
        ("prove", 2),
    ]


@pytest.mark.parametrize("key", ["flashmhf.", "flashmhf.Prove", "flashmhf.prov", "flashmhf.prove.all"])
def test_an_unknown_key_is_told_the_known_ones(key: str) -> None:
    with pytest.raises(OptionError, match=re.escape(f"unknown option {key!r}")) as raised:
        parse({key: "auto"})
    for name in VALID:
        assert f"flashmhf.{name}" in str(raised.value)


@pytest.mark.parametrize(
    ("key", "value", "valid"),
    [
        ("prove", "sometimes", ["'auto'", "'always'", "'never'"]),
        ("prove", None, ["'auto'", "'always'", "'never'"]),
        ("prove", ["auto"], ["'auto'", "'always'", "'never'"]),
        ("dense", "yes", ["'auto'", "'always'", "'never'"]),
        ("dense", True, ["'auto'", "'always'", "'never'"]),
        ("strict", "yes", ["True", "False"]),
        ("strict", None, ["True", "False"]),
        ("require", -1, ["an int of 0 or more"]),
        ("require", True, ["an int of 0 or more"]),
        ("require", "all", ["an int of 0 or more"]),
        ("require", 1.0, ["an int of 0 or more"]),
        ("workspace", -1, ["a number of bytes"]),
        ("workspace", True, ["a number of bytes"]),
        ("workspace", "1 GiB", ["a number of bytes"]),
        ("inner", "inducter", ["inductor", "eager", "aot_eager"]),
        ("inner", None, ["inductor", "eager", "aot_eager"]),
        ("inner", "flashmhf", ["inductor", "eager", "aot_eager"]),
    ],
)
def test_a_wrong_value_is_told_the_valid_ones(key: str, value: object, valid: list[str]) -> None:
    with pytest.raises(OptionError, match=re.escape(f"flashmhf.{key} is {value!r}; it takes ")) as raised:
        parse({f"flashmhf.{key}": value})
    wanted = str(raised.value).partition("; it takes ")[2]
    assert all(text in wanted for text in valid)
    assert isinstance(raised.value, (FlashMHFError, ValueError))
