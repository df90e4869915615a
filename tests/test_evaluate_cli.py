"""The command line of evaluation, as its users meet it: processes, kills, configs, typos."""

import inspect
import json
import os
import re
import resource
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
import yaml
from forked import Forked
from test_campaign import SPEAKERS, files, fit, load, voice, write_voices

from sec4sr_pl.checkpoint import save_recognizer
from sec4sr_pl.defenses import FeCo
from sec4sr_pl.evaluation import evaluate, main
from sec4sr_pl.types import SAMPLE_RATE

REPOSITORY = Path(__file__).parent.parent
ATTACKS: list[Any] = ["FGSM", {"class_path": "PGD", "init_args": {"steps": 5, "restarts": 1, "draws": 2}}]
TABLES = ("summary.json", "summary.csv", "summary.md")
UNITS = 3 * 6 + 1
"""Benign, FGSM and PGD on twelve utterances, two at a time."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `voices/test` and `feco.ckpt`, a recognizer with a randomized defense."""
    place = tmp_path_factory.mktemp("evaluate")
    data = load(write_voices(place / "voices"))
    save_recognizer(fit(data).with_defenses([FeCo(0.5)]), place / "feco.ckpt")
    return place


def options(place: Path, output: Path) -> dict[str, Any]:
    """A whole campaign, as a config."""
    return {
        "checkpoint": str(place / "feco.ckpt"),
        "data": {"class_path": "SpeakerData", "init_args": {"root": str(place / "voices")}},
        "attacks": ATTACKS,
        "output": str(output),
        "goal": "random",
        "batch_size": 2,
        "draws": 3,
        "accelerator": "cpu",
    }


def flags(settings: dict[str, Any]) -> list[str]:
    """The same, as flags."""
    return [text for name, value in settings.items() for text in (f"--{name}", json.dumps(value).strip('"'))]


def start(arguments: Sequence[str], place: Path) -> Forked:
    """`python evaluate.py` in a session of its own."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(place / "cache"), "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    return Forked(["evaluate.py", *arguments], REPOSITORY, environment)


def run(arguments: Sequence[str], place: Path) -> tuple[int, str, str]:
    """Exit status, stdout and stderr."""
    process = start(arguments, place)
    try:
        stdout, stderr = process.communicate(timeout=400)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, stdout, stderr


def whole_files(output: Path) -> dict[str, bytes]:
    """What a campaign left, but the picture and what a killed process was just writing."""
    left = {path: content for path, content in files(output).items() if not Path(path).name.startswith(".")}
    return {path: content for path, content in left.items() if path != "summary.png"}


@pytest.fixture(scope="module")
def alone(place: Path) -> tuple[Path, str]:
    """The output folder of one process, told by a YAML file, and what it printed."""
    output = place / "alone"
    (place / "campaign.yaml").write_text(yaml.safe_dump(options(place, output)))
    status, stdout, stderr = run(["--config", str(place / "campaign.yaml")], place)
    assert status == 0, stderr
    return output, stdout


def test_one_process_leaves_records_audio_and_tables_and_prints_what_fits_80_columns(alone: tuple[Path, str]) -> None:
    output, stdout = alone
    left = files(output)
    assert {*TABLES, "summary.png", "campaign.json"} < set(left)
    assert len([path for path in left if path.endswith(".jsonl")]) == UNITS
    assert len([path for path in left if path.endswith(".wav")]) == 2 * 12
    names = [json.loads(line)["name"] for path, text in left.items() if "benign/" in path for line in text.splitlines()]
    assert sorted(names) == sorted(f"{speaker}-{index}" for speaker in SPEAKERS for index in range(3))
    lines = stdout.splitlines()
    (place,) = [line for line in lines if line.startswith("Full tables: ")]
    assert all(f"{output}/{name}" in place for name in TABLES)
    assert all(len(line) <= 80 for line in lines if line != place)
    for attack in ("none (benign)", "FGSM", "PGD-5-x1-EOT2", "worst case"):
        assert sum(line.strip().startswith(f"{attack} ") and "[" in line for line in lines) == 1
    assert any(line.startswith("R1") for line in lines) and any("over draws" in line for line in lines)


def test_two_processes_leave_the_bytes_of_one_and_flags_say_what_yaml_says(
    alone: tuple[Path, str], place: Path
) -> None:
    settings = {**options(place, place / "two"), "devices": 2}
    status, stdout, stderr = run(flags(settings), place)
    assert status == 0, stderr
    assert whole_files(place / "two") == whole_files(alone[0])
    assert stdout.count("Full tables: ") == 1  # one of them speaks
    assert " 30/30 " in stderr  # its half of twelve in three units, and the probe


def test_a_campaign_killed_in_the_middle_and_resumed_leaves_the_bytes_of_one_that_was_not(
    alone: tuple[Path, str], place: Path
) -> None:
    settings = options(place, place / "killed")
    process = start(flags({**settings, "devices": 2}), place)
    records = place / "killed" / "records"
    deadline = time.monotonic() + 300
    while len(list(records.rglob("[!.]*.jsonl"))) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    assert process.poll() is None, process.communicate()[1]
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.communicate()
    done = {path: path.stat().st_mtime_ns for path in records.rglob("[!.]*.jsonl")}
    assert 3 <= len(done) < UNITS
    assert not any((place / "killed" / name).exists() for name in TABLES)
    status, _, stderr = run(flags(settings), place)
    assert status == 0, stderr
    assert whole_files(place / "killed") == whole_files(alone[0])
    assert all(path.stat().st_mtime_ns == before for path, before in done.items())


def test_a_missing_checkpoint_is_one_line_and_status_1_for_any_number_of_processes(place: Path) -> None:
    settings = {**options(place, place / "nothing"), "checkpoint": str(place / "none.ckpt"), "devices": 2}
    status, stdout, stderr = run(flags(settings), place)
    assert (status, stdout) == (1, "")
    assert stderr == f"evaluate.py: error: There is no checkpoint {place / 'none.ckpt'}\n"
    assert not (place / "nothing").exists()


@pytest.mark.slow
def test_a_file_that_one_of_two_processes_cannot_read_ends_both_without_a_traceback(place: Path) -> None:
    root = write_voices(place / "damaged")
    path = root / "test" / "anna" / "anna-2.flac"  # in the second process's first batch
    soundfile.write(path, soundfile.read(path.with_suffix(".wav"))[0], SAMPLE_RATE)
    path.with_suffix(".wav").unlink()
    content = path.read_bytes()  # the look before the work finds nothing wrong with its head
    path.write_bytes(content[:5000] + bytes(3000) + content[8000:])
    data = {"class_path": "SpeakerData", "init_args": {"root": str(root)}}
    status, _, stderr = run(flags({**options(place, place / "half"), "data": data, "devices": 2}), place)
    assert status != 0 and "Traceback" not in stderr
    assert f"{path} can't be decoded" in stderr
    assert len(list((place / "half").rglob("*.jsonl"))) >= 9  # the other one did its part


# The rest needs no process of its own: evaluate.py is a call of main


@pytest.fixture
def call(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """call(goal="hardest", ...) -> exit status, stdout, stderr; one FGSM on the first two utterances unless told."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    monkeypatch.setenv("COLUMNS", "80")

    def run_main(*more: str, **changes: Any) -> tuple[int, str, str]:
        settings = {**options(place, tmp_path / "out"), "attacks": ["FGSM"], "limit": 2, "perceptual": False, **changes}
        status = 0
        try:
            main([*flags(settings), *more])
        except SystemExit as error:
            status = int(error.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    return run_main


def campaign(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "campaign.json").read_text())
    return found


def recorded(output: Path, name: str) -> list[dict[str, Any]]:
    paths = sorted((output / "records" / name).glob("*.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def test_defenses_goal_and_manner_come_from_the_flags(call: Callable[..., Any], tmp_path: Path) -> None:
    assert call(goal="untargeted")[0] == 0
    own = campaign(tmp_path / "out")
    assert own["recognizer"]["init_args"]["defenses"][0]["class_path"].endswith("FeCo") and own["randomized"]
    assert (own["goal"], own["adaptive"]) == ("untargeted", True)
    assert {record["target"] for record in recorded(tmp_path / "out", "FGSM")} == {None}

    changes = {"output": str(tmp_path / "other"), "defenses": [], "goal": "hardest", "adaptive": False}
    assert call(**changes)[0] == 0
    other = campaign(tmp_path / "other")
    assert (other["recognizer"]["init_args"]["defenses"], other["randomized"]) == ([], False)
    assert (other["goal"], other["adaptive"]) == ("hardest", False)
    targets = [record["target"] for record in recorded(tmp_path / "other", "FGSM")]
    assert targets == [record["target"] for record in recorded(tmp_path / "other", "benign")] and None not in targets
    assert {record["correct_rate"] for record in recorded(tmp_path / "other", "FGSM")} == {None}

    qt = [{"class_path": "Quantization", "init_args": {"step": 256}}]
    status, stdout, _ = call(output=str(tmp_path / "qt"), defenses=qt, adaptive=False)
    assert status == 0 and "Oblivious" in stdout
    (defense,) = campaign(tmp_path / "qt")["recognizer"]["init_args"]["defenses"]
    assert defense == {"class_path": "sec4sr_pl.defenses.waveform.Quantization", "init_args": {"step": 256}}


def test_limit_spreads_over_the_manifest_and_max_seconds_cuts(call: Callable[..., Any], tmp_path: Path) -> None:
    assert call(limit=4, max_seconds=0.5, defenses=[])[0] == 0
    records = recorded(tmp_path / "out", "FGSM")
    assert [record["name"] for record in records] == [f"{speaker}-0" for speaker in SPEAKERS]
    assert {soundfile.info(tmp_path / "out" / record["audio"]).frames for record in records} == {8000}


def test_the_development_part_is_taken_from_the_training_split(
    call: Callable[..., Any], place: Path, tmp_path: Path
) -> None:
    data = {"class_path": "SpeakerData", "init_args": {"root": str(place / "voices"), "train_split": "test"}}
    assert call(data=data, part="development", limit=None, defenses=[])[0] == 0
    assert [record["name"] for record in recorded(tmp_path / "out", "benign")] == [f"{name}-2" for name in SPEAKERS]


def test_a_flag_wins_over_the_config_before_it(call: Callable[..., Any], place: Path, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        yaml.safe_dump({**options(place, tmp_path / "out"), "seed": 5, "goal": "simplest"})
    )
    main(["--config", str(tmp_path / "base.yaml"), "--attacks", "[FGSM]", "--limit", "2", "--seed", "6"])
    found = campaign(tmp_path / "out")
    assert (found["seed"], found["goal"], list(found["attacks"]), found["utterances"]) == (6, "simplest", ["FGSM"], 2)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"atacks": "[FGSM]"}, "--atacks"),
        ({"attacks": [{"class_path": "PGD", "init_args": {"stepz": 3}}]}, "stepz"),
        ({"attacks": ["PDG"]}, "PDG"),
        ({"goal": "hardes"}, "hardes"),
        ({"batch_size": "many"}, "batch_size"),
        ({"data": {"class_path": "SpeakerData", "init_args": {"rot": "x"}}}, "rot"),
        ({"defenses": [{"class_path": "FeCo", "init_args": {"ration": 0.5}}]}, "ration"),
    ],
    ids=str,
)
def test_a_typo_in_a_flag_is_status_2_and_an_error_that_names_it(
    call: Callable[..., Any], tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    status, stdout, stderr = call(**changes)
    assert (status, stdout) == (2, "")
    assert named in stderr.split("error: ", 1)[1] and "Traceback" not in stderr
    assert not (tmp_path / "out").exists()


def test_a_typo_in_a_config_is_status_2_and_an_error_that_names_it(call: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "typo.yaml").write_text("goal: random\nbatchsize: 3\n")
    status, _, stderr = call("--config", str(tmp_path / "typo.yaml"))
    assert status == 2 and "batchsize" in stderr.split("error: ", 1)[1]
    status, _, stderr = call("--config", str(tmp_path / "none.yaml"))
    assert status == 2 and "none.yaml" in stderr.split("error: ", 1)[1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"checkpoint": "{place}/none.ckpt"}, "There is no checkpoint {place}/none.ckpt"),
        ({"checkpoint": "{place}/voices/test/anna/anna-0.wav"}, "anna-0.wav"),
        ({"data": "{place}/nowhere"}, "There is no folder {place}/nowhere/test"),
        ({"data": "{place}/strangers"}, "unknown to the recognizer (zoe)"),
        ({"data": "{place}/short"}, "Utterance 'anna-0' has 800 samples"),
        ({"data": "{place}/truncated", "limit": None}, "anna-0.wav is truncated"),
        ({"output": "{place}/feco.ckpt/under"}, "Not a directory: '{place}/feco.ckpt/under"),
        ({"attacks": ["FGSM", "FGSM"]}, "names of their own, got FGSM, FGSM"),
        ({"attacks": [{"class_path": "FGSM", "init_args": {"epsilon": 3.0}}]}, "got 3.0"),
        ({"defenses": [{"class_path": "FeCo", "init_args": {"after": "cmvn"}}]}, "LogMel has waveform, raw"),
        ({"limit": 0}, "at least one utterance"),
        ({"batch_size": 0}, "batch_size and draws >= 1"),
        ({"threads": 0}, "threads from 1 to 1,024 and target_prior in (0, 1), got 0 and"),
        ({"threads": 1_000_000}, "threads from 1 to 1,024"),
        ({"devices": 0}, "devices"),
        ({"accelerator": "abacus"}, "abacus"),
        pytest.param(
            {"accelerator": "cuda"},
            "got cuda",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
    ids=str,
)
def test_a_mistake_is_status_1_and_one_line_that_says_what_was_expected(
    call: Callable[..., Any], place: Path, changes: dict[str, Any], said: str
) -> None:
    odd_voices(place)
    filled = {name: value.format(place=place) if isinstance(value, str) else value for name, value in changes.items()}
    if "data" in filled:
        filled["data"] = {"class_path": "SpeakerData", "init_args": {"root": filled["data"]}}
    status, stdout, stderr = call(**filled)
    lines = [line for line in stderr.splitlines() if "attacked utterances" not in line]  # the progress until then
    assert (status, stdout, len(lines)) == (1, "", 1)
    assert lines[0].startswith("evaluate.py: error: ") and said.format(place=place) in lines[0]


def test_a_full_disk_is_status_1_and_one_line_that_names_the_file_and_the_same_command_goes_on(
    call: Callable[..., Any], tmp_path: Path
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, hard))  # as if the disk were full there: audio has 22 kB
    try:
        status, _, stderr = call(defenses=[])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    (line,) = [line for line in stderr.splitlines() if "error" in line]
    path = tmp_path / "out" / "audio" / "FGSM" / "anna" / "anna-0.wav"
    assert (status, line) == (1, f"evaluate.py: error: [Errno 27] File too large: '{path}'")
    assert "Traceback" not in stderr and not [*path.parent.iterdir()]
    status, _, stderr = call(defenses=[])
    assert status == 0, stderr


def odd_voices(place: Path) -> None:
    """Data sets with something wrong: a speaker nobody knows, 50 ms of sound, half a file."""
    samples = voice(0, 0, 0.7)
    for name, speaker, content in (("strangers", "zoe", samples), ("short", "anna", samples[:800])):
        path = place / name / "test" / speaker / f"{speaker}-0.wav"
        if not path.exists():
            path.parent.mkdir(parents=True)
            soundfile.write(path, content, SAMPLE_RATE)
    if not (place / "truncated").exists():
        path = write_voices(place / "truncated", utterances=1) / "test" / "anna" / "anna-0.wav"
        path.write_bytes(path.read_bytes()[:5000])


def test_the_folder_of_another_campaign_is_refused_with_what_differs(call: Callable[..., Any]) -> None:
    assert call(defenses=[])[0] == 0
    status, _, stderr = call(defenses=[], seed=3, goal="hardest")
    assert status == 1 and "holds another campaign, which differs in goal, seed: choose another" in stderr
    assert call(defenses=[])[0] == 0


def test_help_explains_every_option(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.partition("options:")[2].split())
    for name in ("config", *inspect.signature(evaluate).parameters):
        metavar = r"(?: (?:\[ITEM,\.\.\.\]|\{[\w,]+\}|[A-Z_]+))"
        found = re.search(rf" --{name}{metavar}(?:, --{name}\+{metavar})? ([^-(][^()]*)", text)
        assert found and len(found[1]) > 5, f"--{name} has no explanation"
