"""Node lists: a table of cases, what is refused, and agreement with the real `scontrol`."""

import itertools
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launch.nodelist import MOST_NODES, expand
from nn_train.errors import UserError

# what scontrol of Slurm 22.05 answers too
CASES = {
    "n1": "n1",
    "n-1.example": "n-1.example",
    "n[1-3,7]": "n1 n2 n3 n7",
    "n[008-011]": "n008 n009 n010 n011",
    "n[8-11]": "n8 n9 n10 n11",
    "n[9-011]": "n9 n10 n11",
    "n[09-11]": "n09 n10 n11",
    "n[01-1]": "n01",
    "n[1,02]": "n1 n02",
    "n[007,8-10]": "n007 n8 n9 n10",
    "n[3,1]": "n3 n1",
    "a,b,a": "a b a",
    "n[1-2,1],n1": "n1 n2 n1 n1",
    "a[0-1],login,b[0-1]a[1]": "a0 a1 login b0a1 b1a1",
    "r[3,1]n[4,3]": "r3n4 r3n3 r1n4 r1n3",
    "r[09-11]n[1-2]": "r09n1 r09n2 r10n1 r10n2 r11n1 r11n2",
    "n[1-2][3-4]": "n13 n14 n23 n24",
    "n007x[1-2]": "n007x1 n007x2",
    "a[1-2]b[1-2]c[1-2]": "a1b1c1 a1b1c2 a2b1c1 a2b1c2 a1b2c1 a1b2c2 a2b2c1 a2b2c2",
    "[1-3]": "1 2 3",
    "a,,b,": "a b",
    " a[1-2] b\n": "a1 a2 b",
}

# names that go on after the last bracket: scontrol of Slurm 22.05 calls them invalid
SUFFIX_CASES = {
    "n[1-2]-ib": "n1-ib n2-ib",
    "r[1-2]n[3-4]-ib": "r1n3-ib r1n4-ib r2n3-ib r2n4-ib",
    "n[01-02].a.b,m[1]x": "n01.a.b n02.a.b m1x",
}


@pytest.mark.parametrize(("text", "hosts"), [*CASES.items(), *SUFFIX_CASES.items()])
def test_expands(text: str, hosts: str) -> None:
    assert expand(text) == hosts.split()


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "empty"),
        (" , ,", "empty"),
        ("n[1-3", "the bracket at character 2 of the node list is not closed"),
        ("n[", "not closed"),
        ("n[[1]]", "not closed"),
        ("a,n1]", "the bracket at character 5 of the node list was not opened"),
        ("n[1-2]]", "not opened"),
        ("n[3-1]", "the range '3-1' runs backwards"),
        ("n[]", "no number"),
        ("n[1-]", "'1-'"),
        ("n[-1]", "'-1'"),
        ("n[a]", "'a'"),
        ("n[1-2,]", "''"),
        ("n[1 -2]", "'1 -2'"),
        ("n[1-2-3]", "'1-2-3'"),
        ("n[\u0661]", "no number"),
        ("n[" + "9" * 5000 + "]", "no number"),
        (f"n[0-{MOST_NODES}]", "more than 65536 nodes"),
        ("a[1-60000]b[1-60000]c[1-60000]", "more than 65536 nodes"),
    ],
)
def test_refuses(text: str, what: str) -> None:
    with pytest.raises(UserError) as caught:
        expand(text)
    assert what in caught.value.what
    assert text[:100] in caught.value.where
    assert "n[1-3,7]" in caught.value.fix


def test_largest() -> None:
    assert len(expand(f"n[1-{MOST_NODES}]")) == MOST_NODES


# --- anything ---------------------------------------------------------------------------------------------------------

LIGHT = settings(max_examples=300, deadline=None, database=None)
PIECES = (
    "n", "a", "-", ".", "_", ",", ",,", " ", "\n", "[", "]", "[[", "[]", "1-3", "7", "0", "007", "9", "65536",
    "9" * 19,
)  # fmt: skip
slurm_texts = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=25).map("".join),
    st.text("n019[],- .", max_size=40),
    st.lists(
        st.sampled_from(["n[1-2]", "n[01-12,7]", "r[3,1]n[4,3]-ib", "login", "n[0-65535]", "[", ","]), max_size=9
    ).map(",".join),
)


def answer(text: str) -> list[str] | None:
    """The hosts, or None after a look at the error: there is nothing third."""
    try:
        hosts = expand(text)
    except UserError as error:
        assert error.what and error.fix and error.where.startswith("node list '") and len(str(error)) < 800
        return None
    assert 0 < len(hosts) <= MOST_NODES
    assert not any(sign in host for host in hosts for sign in "[], \n")
    assert all(hosts)
    return hosts


@LIGHT
@given(text=slurm_texts)
def test_any_text_of_slurms_signs_is_a_list_or_one_error(text: str) -> None:
    if hosts := answer(text):
        assert expand(",".join(hosts)) == hosts  # names stand for themselves


@LIGHT
@given(text=st.text(max_size=60))
def test_any_text_at_all_is_a_list_or_one_error(text: str) -> None:
    answer(text)


def shorten(hosts: list[tuple[str, str]]) -> str:
    """Hosts (name, digits) in Slurm's short form, neighbours with numbers that follow each other as one range."""
    pieces: list[tuple[str, str, int]] = []  # name, first digits, length of the range
    for name, digits in hosts:
        if pieces and pieces[-1][0] == name:
            _, first, length = pieces[-1]
            if digits == f"{int(first) + length:0{len(first)}d}":
                pieces[-1] = (name, first, length + 1)
                continue
        pieces.append((name, digits, 1))
    texts = []
    for name, group in itertools.groupby(pieces, key=lambda piece: piece[0]):
        ranges = [
            first if length == 1 else f"{first}-{int(first) + length - 1:0{len(first)}d}" for _, first, length in group
        ]
        texts.append(f"{name}[{','.join(ranges)}]")
    return ",".join(texts)


runs = st.builds(
    lambda name, first, width, length: [(name, f"{number:0{width}d}") for number in range(first, first + length)],
    st.sampled_from(["n", "node-", "r1n", "a.b"]),
    st.one_of(st.integers(0, 12), st.integers(95, 105), st.integers(0, 10**12)),
    st.integers(1, 6),
    st.integers(1, 15),
)


@LIGHT
@given(hosts=st.lists(runs, min_size=1, max_size=8).map(lambda lists: [host for part in lists for host in part]))
def test_what_is_shortened_expands_to_what_it_was(hosts: list[tuple[str, str]]) -> None:
    names = [name + digits for name, digits in hosts]
    assert expand(shorten(hosts)) == names
    assert expand(",".join(names)) == names


@LIGHT
@given(texts=st.lists(slurm_texts, min_size=2, max_size=3))
def test_lists_that_are_joined_give_their_hosts_in_order(texts: list[str]) -> None:
    parts = [answer(text) for text in texts]
    if all(part is not None for part in parts) and sum(len(part or ()) for part in parts) <= MOST_NODES:
        assert expand(",".join(texts)) == [host for part in parts for host in part or ()]


# --- the real scontrol ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scontrol(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which scontrol answers without a cluster: it wants a configuration, and asks nobody."""
    if shutil.which("scontrol") is None:
        if os.environ.get("NN_TRAIN_REQUIRE_SLURM") == "1":
            pytest.fail("NN_TRAIN_REQUIRE_SLURM=1, and there is no scontrol")
        pytest.skip("no scontrol on this machine")
    config: Path = tmp_path_factory.mktemp("slurm") / "slurm.conf"
    config.write_text("ClusterName=test\nSlurmctldHost=localhost\n")
    return {**os.environ, "SLURM_CONF": str(config)}


def ask_scontrol(text: str, env: dict[str, str]) -> list[str]:
    command = ["scontrol", "show", "hostnames", text]
    result = subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=60)
    assert not result.stderr, result.stderr
    return result.stdout.split()


fixed_part = st.from_regex(r"\A[a-z][a-z0-9.-]{0,5}\Z")
small_range = st.builds(
    lambda first, length, width: f"{first:0{width}d}" + (f"-{first + length}" if length else ""),
    st.integers(0, 1200),
    st.integers(0, 4),
    st.integers(1, 5),
)
group = st.lists(small_range, min_size=1, max_size=3).map(lambda ranges: f"[{','.join(ranges)}]")
name = st.lists(st.tuples(fixed_part, group), min_size=1, max_size=4).map(lambda parts: "".join(map("".join, parts)))
node_lists = st.lists(st.one_of(name, fixed_part), min_size=1, max_size=20).map(",".join)


@pytest.mark.slurm
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=node_lists)
def test_agrees_with_scontrol(scontrol: dict[str, str], text: str) -> None:
    assert expand(text) == ask_scontrol(text, scontrol)


@pytest.mark.slurm
def test_cases_agree_with_scontrol(scontrol: dict[str, str]) -> None:
    assert expand(",".join(CASES)) == ask_scontrol(",".join(CASES), scontrol)
