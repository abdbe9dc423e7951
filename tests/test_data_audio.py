"""Recordings as segments: where they begin, which part they are in, and files that are refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import made_up_data
import numpy as np
import pytest
import torch

from lmser.data import AudioSegments, BadData, MissingData, load_audio
from lmser.data.audio import cut
from lmser.data.audio_files import read_wav
from lmser.training import TrainConfig, train


def test_segments_lie_in_the_recording_or_the_recording_in_them() -> None:
    offsets, starts, recordings = cut([10, 4, 6], length=6, hop=2)
    # 10 samples hold a segment at 0, 2, 4; 4 samples lie in one at 0 and 2 of those with silence around them.
    assert offsets.tolist() == [0, 12, 18, 24]
    assert starts.tolist() == [0, 2, 4, 10, 12, 18]
    assert recordings.tolist() == [0, 0, 0, 1, 1, 2]
    generator = np.random.default_rng(0)
    for length, hop in ((7, 3), (50, 5), (1, 1)):
        lengths = generator.integers(1, 100, 20).tolist()
        offsets, starts, recordings = cut(lengths, length, hop)
        count = recordings.bincount().tolist()
        assert count == [abs(n - length) // hop + 1 for n in lengths]
        for start, number in zip(starts.tolist(), recordings.tolist(), strict=True):
            first, last = int(offsets[number]), int(offsets[number]) + lengths[number]
            inside = first <= start and start + length <= last
            around = start <= first and last <= start + length
            assert inside or around
        assert int((starts + length).max()) <= int(offsets[-1])
    for bad in ({"length": 0, "hop": 1}, {"length": 1, "hop": 0}):
        with pytest.raises(ValueError, match="expected at least 1, got 0"):
            cut([3], **bad)
    with pytest.raises(ValueError, match="lengths: expected at least 1, got 0"):
        cut([3, 0], 1, 1)


def test_spoken_digits_are_divided_by_their_index(tmp_path: Path) -> None:
    split = load_audio(made_up_data.fsdd(tmp_path), seconds=0.5, overlap=0.9)
    file = np.load(tmp_path / "fsdd" / "fsdd_subset.npz")
    for part, indices in zip(split, (range(10, 12), range(5, 10), range(5)), strict=True):
        assert part.length == 500
        assert part.rate == 1000
        assert part.classes == tuple("0123456789")
        kept = [i for i in range(120) if file["index"][i] in indices]
        lengths = [900 - 50 * int(file["index"][i]) for i in kept]
        places = [abs(n - 500) // 50 + 1 for n in lengths]
        assert part.recordings.bincount().tolist() == places
        assert part.labels.tolist() == np.repeat(file["digit"][kept], places).tolist()
        start = int(file["offsets"][kept[0]])
        first = torch.from_numpy(file["samples"][start : start + lengths[0]] / 2**15).float()
        silence = max(0, 500 - lengths[0])
        expected = torch.cat([torch.zeros(silence), first])[:500]
        assert torch.equal(part.waveforms()[0, 0, 0], expected)
        assert len(part.waveforms()) == len(part) == sum(places)
    assert [part.name.rpartition(", ")[2] for part in split] == [
        "20 recordings for training",
        "50 recordings for validation",
        "50 recordings for testing",
    ]


def test_the_sets_own_files_give_the_same(tmp_path: Path) -> None:
    root = made_up_data.fsdd(tmp_path / "a")
    file = np.load(root / "fsdd" / "fsdd_subset.npz")
    ends = file["offsets"]
    for i in range(120):
        name = f"{file['digit'][i]}_george_{file['index'][i]}.wav"
        place = tmp_path / "b" / "free-spoken-digit-dataset" / "recordings" / name
        made_up_data.wav(place, file["samples"][ends[i] : ends[i + 1]])
    subset, files = load_audio(root), load_audio(tmp_path / "b")
    for ours, theirs in zip(subset, files, strict=True):
        assert sorted(ours.labels.tolist()) == sorted(theirs.labels.tolist())
        assert ours.waveforms().sum().item() == pytest.approx(theirs.waveforms().sum().item(), abs=1e-2)
    assert "120 recordings, 20 recordings for training" in files.train.name
    made_up_data.wav(place.with_name("seven.wav"), np.zeros(9, np.int64))
    with pytest.raises(BadData, match=r"seven\.wav: expected a name like 7_jackson_32\.wav"):
        load_audio(tmp_path / "b")


def test_birds_are_divided_by_time(tmp_path: Path) -> None:
    split = load_audio(made_up_data.birds10(tmp_path), "birds10", seconds=0.2, overlap=0.5)
    samples = torch.from_numpy(np.load(tmp_path / "birds10" / "birds10.npz")["samples"]).float() / 2**15
    for part, (first, last) in zip(split, ((0, 1800), (1800, 2400), (2400, 3000)), strict=True):
        assert part.labels.bincount().tolist() == [(last - first - 200) // 100 + 1] * 10
        own = samples[:, first:last].unfold(1, 200, 100).reshape(-1, 200)
        assert torch.equal(part.waveforms().flatten(1), own)
    assert split.train.classes[3] == "Avis 3"


def tones(folder: Path, count: int = 10, **options: int) -> Path:
    generator = np.random.default_rng(0)
    for name in ("low", "high"):
        for i in range(count):
            made_up_data.wav(folder / name / f"{i}.wav", generator.integers(-9999, 9999, 700), **options)
    return folder


def test_a_folder_is_divided_by_file_and_seed(tmp_path: Path) -> None:
    folder = tones(tmp_path / "mine")
    split = load_audio(tmp_path, "mine")
    assert split.train.classes == ("high", "low")
    assert [int(part.recordings.max()) + 1 for part in split] == [12, 4, 4]
    assert [part.labels.unique().tolist() for part in split] == [[0, 1]] * 3
    whole = torch.cat([part.waveforms().flatten(1).unique(dim=0) for part in split])
    assert len(whole.unique(dim=0)) == len(whole)  # no file in two parts
    again, other = load_audio(tmp_path, str(folder)), load_audio(tmp_path, "mine", seed=1)
    assert [part.fingerprint() for part in again] == [part.fingerprint() for part in split]
    assert other.test.fingerprint() != split.test.fingerprint()
    (folder / "low" / "notes.txt").touch()
    assert load_audio(tmp_path, "mine").test.fingerprint() == split.test.fingerprint()


def test_wav_files_of_every_width(tmp_path: Path) -> None:
    for width in (1, 2, 3, 4):
        most = 2 ** (8 * width - 1)
        values = np.array([0, most // 2, -most // 4, -most], np.int64)
        samples, rate = read_wav(made_up_data.wav(tmp_path / f"{width}.wav", values, width=width, rate=44100))
        assert samples.tolist() == [0, 0.5, -0.25, -1]
        assert samples.dtype is torch.float32
        assert rate == 44100
    stereo = made_up_data.wav(tmp_path / "two.wav", np.array([[16384, 0], [0, -16384]]))
    assert read_wav(stereo)[0].tolist() == [0.25, -0.25]


def test_segments_are_views_that_training_takes(tmp_path: Path) -> None:
    part = load_audio(made_up_data.fsdd(tmp_path)).train
    assert part.samples.numel() < part.waveforms().numel() / 2
    waveform, label = part[3]
    assert torch.equal(waveform, part.waveforms(torch.tensor([3]))[0])
    assert waveform.untyped_storage().data_ptr() == part.samples.untyped_storage().data_ptr()
    assert int(label) == int(part.labels[3])
    assert torch.equal(part.to("cpu").samples, part.samples)
    assert len({p.fingerprint() for p in load_audio(tmp_path)}) == 3
    moved = dataclasses.replace(part, starts=part.starts.flip(0))
    assert moved.fingerprint() != part.fingerprint()
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(500, 10))

    def loss(network: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(network(x), y)

    found = train(model, loss, part, TrainConfig(steps=30, batch_size=20, lr=0.01), progress=False)
    assert found.curve[-1][1] < found.curve[0][1]


def test_segments_check_themselves() -> None:
    good = AudioSegments(
        samples=torch.zeros(20),
        starts=torch.tensor([0, 10]),
        length=10,
        labels=torch.tensor([0, 1]),
        recordings=torch.tensor([0, 0]),
        classes=("a", "b"),
        rate=8000,
        name="made up",
    )
    for field, value, message in (
        ("samples", torch.zeros(20, dtype=torch.int16), r"samples: expected float32 of shape \(total,\)"),
        ("starts", torch.tensor([0, 11]), r"starts: expected values in 0\.\.10, got 0\.\.11"),
        ("starts", torch.tensor([-1, 3]), r"starts: expected values in 0\.\.10, got -1\.\.3"),
        ("labels", torch.tensor([0, 2]), r"labels: expected values in 0\.\.1, got 0\.\.2"),
        ("labels", torch.tensor([0]), r"labels: expected int64 of shape \(2,\)"),
        ("recordings", torch.tensor([0.0, 1.0]), r"recordings: expected int64 of shape \(2,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(good, **{field: value})


def rewritten(path: Path, **changes: np.ndarray | None) -> None:
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    arrays = {name: value for name, value in {**arrays, **changes}.items() if value is not None}
    np.savez(path, **arrays)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"digit": None}, "not an npz file with samples, offsets, digit, index, rate"),
        ({"samples": np.zeros(5)}, "samples must be int16, got float64"),
        ({"offsets": np.array([0, 3, 2])}, "offsets must rise from 0"),
        ({"offsets": np.array([[0]])}, r"offsets must have 1 dimensions, got shape \(1, 1\)"),
        ({"digit": np.full(120, 10)}, r"digit must lie in 0\.\.9, found 10\.\.10"),
        ({"index": np.zeros(3, int)}, "index must be 120 integers"),
        ({"index": np.full(120, 7)}, "no recording for training"),
        ({"rate": np.array(0)}, "rate must be a positive integer"),
    ],
)
def test_a_subset_that_does_not_fit_is_refused(
    changes: dict[str, np.ndarray | None], message: str, tmp_path: Path
) -> None:
    path = made_up_data.fsdd(tmp_path) / "fsdd" / "fsdd_subset.npz"
    rewritten(path, **changes)
    with pytest.raises(BadData, match=message) as caught:
        load_audio(tmp_path)
    assert caught.value.path == path


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = made_up_data.fsdd(tmp_path / "a") / "fsdd" / "fsdd_subset.npz"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(BadData, match=r"fsdd_subset\.npz: it is not an npz file"):
        load_audio(tmp_path / "a")
    path = made_up_data.birds10(tmp_path / "b") / "birds10" / "birds10.npz"
    rewritten(path, species=np.array(["same"] * 10))
    with pytest.raises(BadData, match="species must be 10 different names"):
        load_audio(tmp_path / "b", "birds10")

    folder = tones(tmp_path / "wavs")
    file = folder / "low" / "3.wav"
    content = file.read_bytes()
    for damaged, message in (
        (content[:-5], "its header promises 700 samples, it holds 697"),
        (content[:30], "not a wav file of PCM samples, or damaged"),
        (b"", "not a wav file of PCM samples, or damaged"),
        (content[:20] + b"\x03\x00" + content[22:], "not a wav file of PCM samples, or damaged"),  # floats
        (content[:24] + b"\x00\x10" + content[26:], "it has 4096 samples a second, 0.wav has 1000"),
    ):
        file.write_bytes(damaged)
        with pytest.raises(BadData, match=message) as caught:
            load_audio(tmp_path, "wavs")
        assert caught.value.path == file
    for i in range(3, 10):
        (folder / "low" / f"{i}.wav").unlink()
    assert len(load_audio(tmp_path, "wavs").test) > 0
    (folder / "low" / "2.wav").unlink()
    with pytest.raises(BadData, match="low: a class needs 3 wav files or more to be divided, found 2"):
        load_audio(tmp_path, "wavs")
    with pytest.raises(BadData, match="expected two or more folders"):
        load_audio(tmp_path, "wavs/low")


def test_what_is_not_there_or_wrong(tmp_path: Path) -> None:
    for name, brings in (("fsdd", "0_george_0"), ("birds10", "AmyangXYZ/BirdSong")):
        with pytest.raises(MissingData, match=brings) as caught:
            load_audio(tmp_path, name)
        assert str(tmp_path) in str(caught.value)
    with pytest.raises(MissingData, match="mine does not exist"):
        load_audio(tmp_path, "mine")
    with pytest.raises(TypeError, match="load_audio: name must be"):
        load_audio(tmp_path, "")
    for bad in ({"seconds": 0}, {"seconds": float("nan")}, {"overlap": 1}, {"overlap": -0.1}, {"seed": -1}):
        with pytest.raises(ValueError, match=f"load_audio: {next(iter(bad))} must"):
            load_audio(tmp_path, **bad)
