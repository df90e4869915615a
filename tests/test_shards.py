"""Shards: the same utterances, samples and epochs as from files, out of few files, after any interruption."""

import hashlib
import os
import shutil
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile
import torch
from test_data import batches, by_name

from sec4sr_pl import audio
from sec4sr_pl.checkpoint import checksum
from sec4sr_pl.data import Background, SpeakerData, VoxCeleb
from sec4sr_pl.data import shards as packing
from sec4sr_pl.data.manifest import DataError
from sec4sr_pl.data.shards import convert, main, pack

PARTS = ("train", "development", "test", "trials")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def sharded(voxceleb: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set in shards of about a megabyte."""
    root = tmp_path_factory.mktemp("sharded")
    convert(VoxCeleb(voxceleb), root, megabytes=1)
    return root


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.*"))}


@pytest.mark.parametrize("part", PARTS)
def test_utterances_are_those_of_the_files_to_the_sample(part: str, voxceleb: Path, sharded: Path) -> None:
    files, packed = VoxCeleb(voxceleb).dataset(part), VoxCeleb(sharded).dataset(part)
    assert len(files) == len(packed) > 0
    for index in range(len(files)):
        (expected, *known), (waveform, *rest) = files[index], packed[index]
        assert torch.equal(waveform, expected) and rest == known


def test_epochs_are_those_of_the_files(voxceleb: Path, sharded: Path) -> None:
    settings = {"balanced": True, "crop_seconds": 0.5, "batch_size": 8, "num_workers": 1}
    files, packed = (batches(VoxCeleb(root, **settings).train_dataloader(), 3) for root in (voxceleb, sharded))
    assert [batch.names for batch in files] == [batch.names for batch in packed]
    assert all(torch.equal(crop, by_name(files)[name]) for name, crop in by_name(packed).items())


@pytest.fixture(scope="module")
def opened() -> Iterator[list[str]]:
    """What the process opened since the list was emptied; a hook can't be taken back, so it is told when to end."""
    paths: list[str] = []
    listening = [True]

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if listening[0] and event == "open":
            paths.append(str(arguments[0]))

    sys.addaudithook(hook)
    yield paths
    listening[0] = False


def test_reading_all_utterances_opens_each_shard_once(sharded: Path, opened: list[str]) -> None:
    dataset = VoxCeleb(sharded).dataset("train")
    audio._archive.cache_clear()
    opened.clear()
    for _ in range(2):
        for index in range(len(dataset)):
            dataset[index]
    shards = [path.name for path in (sharded / "vox2_dev" / "wav").glob("*.tar")]
    assert 1 < len(shards) < len(dataset)
    assert sorted(Path(path).name for path in opened) == sorted(shards)


def test_a_file_and_its_copy_in_a_shard_have_one_checksum(voxceleb: Path, sharded: Path) -> None:
    """A campaign knows its utterances by it."""
    files, packed = VoxCeleb(voxceleb).utterances("test"), VoxCeleb(sharded).utterances("test")
    assert [checksum(u.path) for u in files] == [checksum(u.path) for u in packed]


def test_shards_are_plain_tar_files_with_checksums(voxceleb: Path, sharded: Path, tmp_path: Path) -> None:
    folder = sharded / "vox1_test" / "wav"
    sums = dict(line.split()[::-1] for line in (folder / "SHA256SUMS").read_text().splitlines())
    for shard in folder.glob("*.tar"):
        assert hashlib.sha256(shard.read_bytes()).hexdigest() == sums.pop(shard.name)
        with tarfile.open(shard) as tar:
            tar.extractall(tmp_path / "out", filter="data")
    assert not sums
    assert content(tmp_path / "out") == content(voxceleb / "vox1_test" / "wav") != {}


def test_an_interrupted_conversion_goes_on_and_is_the_same(
    voxceleb: Path, sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    added: list[str] = []
    addfile = tarfile.TarFile.addfile

    def interrupted(self: tarfile.TarFile, member: tarfile.TarInfo, file: object = None) -> None:
        addfile(self, member, file)  # type: ignore[arg-type]
        added.append(member.name)
        if len(added) == 30:
            raise KeyboardInterrupt

    output = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "addfile", interrupted)
        with pytest.raises(KeyboardInterrupt):
            convert(VoxCeleb(voxceleb), output, megabytes=1)
    with pytest.raises(DataError, match="holds no <speaker>/<video>/<utterance>"):  # half of it is no data set
        VoxCeleb(output).utterances("train")
    done = {path: path.stat().st_mtime_ns for path in output.rglob("*.tar") if path.name[0] != "."}
    assert done
    convert(VoxCeleb(voxceleb), output, megabytes=1)
    assert all(path.stat().st_mtime_ns == time for path, time in done.items())
    assert content(output) == content(sharded)


def test_a_conversion_that_is_done_reads_no_audio(
    voxceleb: Path, sharded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "write_shard", None)
    monkeypatch.setattr(packing, "checksum", None)
    convert(VoxCeleb(voxceleb), sharded, megabytes=1)


def age(folder: Path) -> None:
    """Make the files of a folder a minute older."""
    for path in folder.rglob("*.*"):
        os.utime(path, ns=(path.stat().st_mtime_ns - 60_000_000_000,) * 2)


@pytest.mark.parametrize("form", ["files", "shards"])
def test_what_was_cut_or_changed_since_is_packed_anew(form: str, voxceleb: Path, tmp_path: Path) -> None:
    """Changed at equal size: the rows of the index stay as they were."""
    source, output, other = (tmp_path / name for name in ("source", "output", "other"))
    shutil.copytree(voxceleb / "vox2_dev", source / "vox2_dev")
    if form == "shards":
        convert(VoxCeleb(source), tmp_path / "packed", ["vox2_dev/wav"], megabytes=1)
        source = tmp_path / "packed"
    age(source)
    convert(VoxCeleb(source), output, ["vox2_dev/wav"], megabytes=1)
    before = content(output)
    last = VoxCeleb(output).scan("vox2_dev/wav")[-1].path
    assert isinstance(last, audio.Member)
    os.truncate(last.archive, last.offset + last.size - 1)
    times = {path: path.stat().st_mtime_ns for path in output.rglob("*.tar")}
    convert(VoxCeleb(source), output, ["vox2_dev/wav"], megabytes=1)
    assert content(output) == before
    assert [path for path, time in times.items() if path.stat().st_mtime_ns != time] == [last.archive] != [*times]

    place = VoxCeleb(source).scan("vox2_dev/wav")[0].path
    packed = isinstance(place, audio.Member)
    path, end = (place.archive, place.offset + place.size) if packed else (place, place.stat().st_size)
    with path.open("r+b") as file:
        file.seek(end - 100)
        file.write(bytes(range(100)))
    convert(VoxCeleb(source), output, ["vox2_dev/wav"], megabytes=1)
    convert(VoxCeleb(source), other, ["vox2_dev/wav"], megabytes=1)
    assert content(output) == content(other) != before


def test_lists_in_the_root_go_along_in_their_folders(voxceleb: Path, tmp_path: Path) -> None:
    root, output = tmp_path / "root", tmp_path / "output"
    shutil.copytree(voxceleb / "vox1_test", root / "vox1_test")
    (root / "lists").mkdir()
    shutil.copy(voxceleb / "veri_test2.txt", root / "lists" / "veri.txt")
    trials = Path("lists") / "veri.txt"
    for given in (trials, root / trials, voxceleb / "veri_test2.txt"):  # the last is found where it is
        convert(VoxCeleb(root, trials=given), output, splits=["vox1_test/wav"])
        assert len(VoxCeleb(output, trials=given).utterances("trials")) == 16
        assert [path.relative_to(output) for path in output.rglob("*.txt")] == [trials]


def test_background_speakers_are_packed_with_their_list(tmp_path: Path) -> None:
    root, output = tmp_path / "root", tmp_path / "output"
    for folder in (root / split / speaker for split in ("Spk251_train", "Spk251_test") for speaker in ("ann", "bob")):
        folder.mkdir(parents=True)
        soundfile.write(folder / f"{folder.name}.wav", torch.zeros(120_000).numpy(), 16_000)
    (root / "background201.txt").write_text("bob\n")
    convert(Background(root), output)
    assert [u.name for u in Background(output).utterances("train")] == ["bob#0", "bob#1"]


def test_shards_of_other_utterances_are_refused(voxceleb: Path, sharded: Path) -> None:
    utterances = VoxCeleb(voxceleb).scan("vox1_test/wav")
    with pytest.raises(DataError, match="shards of other utterances"):
        pack(utterances[1:], voxceleb / "vox1_test" / "wav", sharded / "vox1_test" / "wav", 1_000_000)
    with pytest.raises(DataError, match="another folder than that of the data"):
        convert(VoxCeleb(voxceleb), voxceleb)


def test_shards_are_packed_again(voxceleb: Path, sharded: Path, tmp_path: Path) -> None:
    for root, output in ((voxceleb, tmp_path / "files"), (sharded, tmp_path / "shards")):
        convert(VoxCeleb(root), output, splits=["vox1_test/wav"], megabytes=2)
    assert content(tmp_path / "files") == content(tmp_path / "shards")


def test_a_truncated_shard_is_named(voxceleb: Path, tmp_path: Path) -> None:
    folder = tmp_path / "vox1_test" / "wav"
    pack(VoxCeleb(voxceleb).scan("vox1_test/wav"), voxceleb / "vox1_test" / "wav", folder, 10**9)
    shard = folder / "00000.tar"
    shard.write_bytes(shard.read_bytes()[:100_000])
    with pytest.raises(DataError, match=r"00000\.tar has 100000 bytes, expected at least \d+: make the shards again"):
        VoxCeleb(tmp_path).utterances("test")
    data = VoxCeleb(tmp_path)
    with data.collected():
        last = data.utterances("test")[-1]
    with pytest.raises(audio.AudioError, match=r"00000.tar.*truncated"):
        audio.read(last.path)
    shard.unlink()
    audio._archive.cache_clear()
    with pytest.raises(audio.AudioError, match=r"in .*00000.tar does not exist"):
        audio.read(last.path)


def test_a_damaged_index_is_named(tmp_path: Path) -> None:
    (tmp_path / "vox1_test" / "wav").mkdir(parents=True)
    (tmp_path / "vox1_test" / "wav" / "index.csv").write_text("a,b,c\n")
    with pytest.raises(DataError, match=r"index.csv has the row \['a', 'b', 'c'\]"):
        VoxCeleb(tmp_path).utterances("test")


def test_the_command_converts_and_tells_how_to_go_on(
    voxceleb: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--data=VoxCeleb", f"--data.root={voxceleb}", f"--output={tmp_path / 'out'}"])
    assert "use it as --data.root" in capsys.readouterr().out
    assert len(VoxCeleb(tmp_path / "out").utterances("trials")) == 16
    with pytest.raises(SystemExit) as stop:
        main(["--data=VoxCeleb", f"--data.root={tmp_path}", f"--output={tmp_path / 'other'}"])
    assert stop.value.code == 1 and "There is no folder" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", ["../outside", "/outside"])
def test_splits_and_lists_that_lead_out_of_the_output_are_refused_before_anything_is_written(
    wrong: str, voxceleb: Path, tmp_path: Path
) -> None:
    for data, splits in ((VoxCeleb(voxceleb), [wrong]), (VoxCeleb(voxceleb, trials=voxceleb / ".." / "x.txt"), None)):
        with pytest.raises(ValueError, match="Expected the name of something inside"):
            convert(data, tmp_path / "made" / "out", splits)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    "row",
    [
        "a,ann,16000,16000,../00000.tar,ann/a.wav,100,512",
        "a,ann,16000,16000,/00000.tar,ann/a.wav,100,512",
        "a,ann,16000,16000,00000.tar,../../a.wav,100,512",
        "a,ann,16000,16000,00000.tar,ann/a.wav,-1,512",
        "a,ann,-1,16000,00000.tar,ann/a.wav,100,512",
    ],
)
def test_an_index_that_points_out_of_its_folder_or_before_its_beginning_is_refused(row: str, tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "index.csv").write_text(f"{row}\n")
    with pytest.raises(DataError, match=r"index.csv has the row"):
        SpeakerData(tmp_path).utterances("test")


def test_an_index_that_promises_more_than_there_is_takes_no_memory(tmp_path: Path) -> None:
    (tmp_path / "00000.tar").write_bytes(bytes(1_000))
    with pytest.raises(audio.AudioError, match="ends 1000000000000 bytes too early"):
        audio.read(audio.Member(tmp_path / "00000.tar", "a.wav", 500, 10**12 + 500))


def test_an_index_without_rows_or_with_a_name_twice_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "vox1_test" / "wav"
    folder.mkdir(parents=True)
    row = "id1-v-1,id1,8000,16000,00000.tar,id1/v/1.wav,16044,512\n"
    for text, said in (("", "has no row"), (row + row, "expected each name once")):
        (folder / "index.csv").write_text(text)
        with pytest.raises(DataError, match=rf"index\.csv .*{said}.*: make the shards again"):
            VoxCeleb(tmp_path).utterances("test")
