"""The launcher's own options: read, checked, written down and read back; and the profiles of clusters."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.profile import Profile, load_profile
from launch.request import STOP_SIGNALS, Options, Parser, add_options, count, options_from, split_words
from launch.target import Target, check_folder, resolve_target
from nn_train.errors import ConfigError, UserError
from tests.conftest import ROOT

characters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
names = st.text(characters, min_size=1, max_size=12).filter(lambda name: name != "--")
seconds = st.integers(0, 10**8).map(float) | st.integers(0, 10**8).map(lambda value: value / 1000)
counts = st.none() | st.integers(1, 10**6)


def read(words: list[str]) -> Options:
    parser = Parser(prog="python -m launch run", allow_abbrev=False)
    add_options(parser)
    return options_from(parser.parse_args(words))


@given(
    st.builds(
        Options,
        script=st.none() | names,
        run_dir=st.none() | names,
        processes=counts,
        threads=counts,
        cpu=st.booleans(),
        max_restarts=st.integers(0, 10**6),
        lead_s=st.none() | seconds,
        grace_s=seconds,
        stop_signal=st.sampled_from(["", *STOP_SIGNALS]),
        network_interface=st.just("") | names,
        accelerate_options=st.lists(names, max_size=4).map(tuple),
    )
)
def test_options_read_back_from_their_words(options: Options) -> None:
    assert read(options.words()) == options


def test_options_with_their_default_need_no_words() -> None:
    assert Options().words() == []
    assert read([]) == Options()


def test_words_are_written_as_a_person_would() -> None:
    options = Options(
        script="my script.py", cpu=True, processes=2, lead_s=90, grace_s=0.5, accelerate_options=("--a", "b c")
    )
    assert options.words() == ["--script=my script.py", "--processes=2", "--cpu", "--lead=90", "--grace=0.5",
                               "--accelerate=--a 'b c'"]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "lead_s"), [("90", 90), ("90s", 90), ("1.5m", 90), ("2h", 7200), ("1d", 86400), ("12d", 1036800)]
)
def test_durations(text: str, lead_s: float) -> None:
    assert read([f"--lead={text}"]).lead_s == lead_s
    assert read(read([f"--lead={text}"]).words()).lead_s == lead_s


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--proceses=2"], "unrecognized arguments: --proceses=2; did you mean '--processes'?"),
        (["--max-restart", "3"], "did you mean '--max-restarts'?"),
        (["--zzz"], "unrecognized arguments: --zzz"),
        (["train.max_epochs=3"], "words for the script go after a lone --"),
        (["--processes=0"], "'0' is not a whole number of 1 or more"),
        (["--processes=two"], "'two' is not a whole number of 1 or more"),
        (["--processes"], "expected one argument"),
        (["--lead=soon"], "'soon' is no duration: write 90, 90s, 10m or 2h"),
        (["--lead=-1"], "'-1' is no duration"),
        (["--max-restarts=many"], "--max-restarts"),
        (["--stop-signal=SIGKILL"], "invalid choice: 'SIGKILL'"),
        (["--accelerate=--a 'b"], "--accelerate"),
    ],
)
def test_a_wrong_option_is_one_message_with_the_mend(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(words)
    assert message in caught.value.what
    assert caught.value.fix == "python -m launch run --help shows the options"


@pytest.mark.parametrize("flag", ["--script", "--run-dir", "--network-interface"])
def test_a_dash_pair_is_no_value(flag: str) -> None:
    with pytest.raises(ConfigError, match=f"{flag}=-- is no value"):
        read([f"{flag}=--"])


def test_a_parser_without_a_script_gives_no_hint_of_words() -> None:
    with pytest.raises(ConfigError) as caught:
        Parser(prog="python -m launch ls").parse_args(["more"])
    assert caught.value.what == "unrecognized arguments: more"


def test_words_are_split_at_the_first_lone_dash_pair() -> None:
    assert split_words(["--cpu", "--", "a", "--", "b"]) == (["--cpu"], ["a", "--", "b"])
    assert split_words(["a", "b"]) == ([], ["a", "b"])
    assert count("12") == 12


# ----------------------------------------------------------------------------------------------------- targets


def test_the_projects_own_training_is_checked_as_it_would_check_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    target = resolve_target(["run.name=x", "run.seed=3"])
    assert target.script == ROOT / "nn_train" / "train.py"
    assert target.words == ("run.name=x", "run.seed=3", f"run.dir={tmp_path}/runs/x")
    again = resolve_target(target.words)
    assert again.words == target.words  # what is said of it does not grow from attempt to attempt
    assert target.config is not None and target.config.run.seed == 3
    with pytest.raises(ConfigError, match=r"did you mean 'run\.seed'"):
        resolve_target(["run.sed=3"])
    with pytest.raises(UserError, match="this only prints something"):
        resolve_target(["--help"])
    assert list(tmp_path.iterdir()) == []


def test_any_script_gets_its_words_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my script.py").touch()
    target = resolve_target(["--lr", "0.1", "--", "%a"], script="my script.py")
    assert target == Target(
        script=tmp_path / "my script.py", words=("--lr", "0.1", "--", "%a"), run_dir=tmp_path / "runs" / "my script"
    )
    with pytest.raises(UserError, match="there is no such script") as caught:
        resolve_target([], script="other.py")
    assert caught.value.where == str(tmp_path / "other.py")


@pytest.mark.parametrize(
    ("words", "run_dir", "script", "folder", "said"),
    [
        (["run.name=s-%a"], None, None, "runs/s-7", "run.name=s-7"),
        ([], None, None, "runs/telco-7", None),
        (["run.seed=%a"], "out/%a", None, "out/7", "run.seed=7"),
        (["run.seed=%a"], "out", None, "out", "run.seed=7"),
        (["--seed=%a%%a"], None, "s.py", "runs/s", "--seed=7%7"),
        ([], "out", "s.py", "out-7", None),
    ],
)
def test_a_task_of_an_array_has_its_index_in_its_words(
    words: list[str], run_dir: str | None, script: str | None, folder: str, said: str | None,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.py").touch()
    target = resolve_target(words, script=script, run_dir=run_dir, task="7")
    assert target.run_dir == tmp_path / folder
    assert said is None or said in target.words


def test_a_run_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check_folder(tmp_path / "a" / "b" / "c")
    for place in (tmp_path / "file", tmp_path / "file" / "a" / "b"):
        with pytest.raises(UserError, match="this is a file") as caught:
            check_folder(place)
        assert caught.value.where == str(tmp_path / "file")
    with pytest.raises(UserError, match="the run folder cannot be"):
        check_folder(Path("/proc/1/nowhere"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# ---------------------------------------------------------------------------------------------------- profiles


def test_the_example_profile_asks_for_nothing_and_names_keys_that_exist() -> None:
    assert load_profile("example") == Profile()
    text = (ROOT / "configs" / "clusters" / "example.yaml").read_text(encoding="utf-8")
    named = re.findall(r"^(?:# )?(\w+):(?: |$)", text, re.MULTILINE)
    assert set(named) - {"In"} <= set(Profile.model_fields) and len(named) > 10


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpu_per_node: 4", "unknown key 'gpu_per_node'; did you mean 'gpus_per_node'?"),
        ("zzz: 4", "unknown key 'zzz'; the keys are partition, account"),
        ("gpus_per_node: -1", "gpus_per_node=-1"),
        ("gpus_per_node: many", "gpus_per_node='many'"),
        ("nodes: 0", "nodes=0"),
        ("memory_per_node: lots", "memory_per_node='lots'"),
        ("time: soon", "time='soon'"),
        ("lead: soon", "lead='soon'"),
        ("container: 3", "container=3"),
        ("- a\n- b", "a config is sections with keys in them"),
        ("a: [", "this is not YAML"),
    ],
)
def test_a_wrong_profile_is_named_with_its_key(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_profile(file)
    assert message in caught.value.what and caught.value.where == str(file) and caught.value.fix


@pytest.mark.parametrize("name", ["nowhere", "no/such.yaml"])
def test_a_profile_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match="there is no such cluster profile") as caught:
        load_profile(name)
    assert "example" in caught.value.fix


@pytest.mark.parametrize(
    ("values", "key", "value"),
    [
        ({"lead": "2m"}, "lead", 120),
        ({"setup": "a\nb\n"}, "setup", ("a", "b")),
        ({"setup": ["a", "b"]}, "setup", ("a", "b")),
        ({"container": ["a", "b c"]}, "container", ("a", "b c")),
        ({"time": "1-00:00:00"}, "time", "1-00:00:00"),
    ],
)
def test_values_of_a_profile(values: dict[str, Any], key: str, value: object) -> None:
    assert getattr(Profile.model_validate(values), key) == value
