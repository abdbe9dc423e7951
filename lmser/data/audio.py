"""Recordings cut into segments that overlap (003 App. A.2): views of the recordings, never copies of them.

003 measures "the accuracy per segment using segments of 500ms with an overlap of 90 percent". Its Bird10 is not to be
had any more; `load_audio` reads what stands in for it and any folder of recordings sorted by class.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from lmser.data._draws import check_seed
from lmser.data.audio_files import PARTS, AudioFiles, find_audio

__all__ = ["AudioSegments", "AudioSplit", "cut", "load_audio"]


@dataclass(frozen=True)
class AudioSegments:
    """Labelled segments of one length out of longer recordings.

    samples:    float32 ``(total,)`` on [-1, 1], all recordings one after the other, with silence where a segment
                reaches beyond its recording
    starts:     int64 ``(N,)``, where in `samples` each segment begins
    length:     samples of a segment
    labels:     int64 ``(N,)``, each an index into `classes`
    recordings: int64 ``(N,)``, which recording each is of
    rate:       samples per second
    name:       the data set in words, with the part of it

    A segment takes 24 bytes whatever its length: ten segments that overlap by 90 % share their samples. ``segments[i]``
    is ``(waveform (1, 1, length), label ())`` and `fingerprint` a checksum, so that `lmser.training.train` takes it as
    it is. Raises ValueError naming the field that does not fit.
    """

    samples: Tensor
    starts: Tensor
    length: int
    labels: Tensor
    recordings: Tensor
    classes: tuple[str, ...]
    rate: int
    name: str

    def __post_init__(self) -> None:
        if self.samples.dtype is not torch.float32 or self.samples.dim() != 1:
            raise ValueError(
                f"samples: expected float32 of shape (total,), got {self.samples.dtype} {tuple(self.samples.shape)}"
            )
        for name in ("starts", "labels", "recordings"):
            value = getattr(self, name)
            if value.dtype is not torch.int64 or value.shape != (len(self.starts),):
                raise ValueError(
                    f"{name}: expected int64 of shape ({len(self.starts)},), got {value.dtype} {tuple(value.shape)}"
                )
        last = len(self.samples) - self.length
        for name, high in (("starts", last), ("labels", len(self.classes) - 1)):
            value = getattr(self, name)
            if len(value) and not 0 <= int(value.min()) <= int(value.max()) <= high:
                raise ValueError(
                    f"{name}: expected values in 0..{high}, got {int(value.min())}..{int(value.max())}"
                )

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int, /) -> tuple[Tensor, Tensor]:
        start = int(self.starts[index])
        return self.samples[start : start + self.length].view(1, 1, -1), self.labels[index]

    def waveforms(self, index: Tensor | None = None) -> Tensor:
        """The segments at `index` (int64 ``(n,)``, on the device of the samples), or all: ``(n, 1, 1, length)``."""
        starts = self.starts if index is None else self.starts[index]
        return self.samples.unfold(0, self.length, 1)[starts].view(-1, 1, 1, self.length)

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        moved = {
            name: getattr(self, name).to(device) for name in ("samples", "starts", "labels", "recordings")
        }
        return dataclasses.replace(self, **moved)

    def fingerprint(self) -> str:
        """A checksum of samples, places and labels: two runs that print the same one saw the same data."""
        digest = hashlib.sha256(repr((self.length, self.rate, self.classes)).encode())
        for tensor in (self.samples, self.starts, self.labels):
            digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()


class AudioSplit(NamedTuple):
    """Segments for training, for choosing, and for the final measure; no sample is in two of them."""

    train: AudioSegments
    valid: AudioSegments
    test: AudioSegments


def cut(lengths: Sequence[int], length: int, hop: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where the segments of recordings of so many samples begin: ``(offsets, starts, recordings)``, int64.

    Segments begin every `hop` samples, at every place where the segment lies within the recording or the recording
    within the segment: a recording of n samples gives ``floor(|n - length| / hop) + 1``, a short one wherever in the
    silence around it. `offsets` ``(len(lengths) + 1,)`` is where recording i begins in the samples once each shorter
    one has ``length - n`` samples of silence before and after it; its last entry is their number.

    Raises ValueError naming the argument for what is not a positive number.
    """
    for name, value in (("length", length), ("hop", hop), *(("lengths", n) for n in lengths)):
        if value < 1:
            raise ValueError(f"cut: {name}: expected at least 1, got {value}")
    offsets: list[int] = []
    starts: list[int] = []
    recordings: list[int] = []
    end = 0
    for number, samples in enumerate(lengths):
        silence = max(0, length - samples)
        places = range(end, end + abs(samples - length) + 1, hop)
        starts += places
        recordings += [number] * len(places)
        offsets.append(end + silence)
        end += samples + 2 * silence
    offsets.append(end)
    return torch.tensor(offsets), torch.tensor(starts), torch.tensor(recordings)


def load_audio(
    root: str | os.PathLike[str],
    name: str = "fsdd",
    *,
    seconds: float = 0.5,
    overlap: float = 0.9,
    seed: int = 0,
) -> AudioSplit:
    """Segments of `seconds`, each `overlap` of the one before it, of the recordings called `name` in `root`.

    ==============  =================================================================================================
    "fsdd"          Free Spoken Digit Dataset, 10 digits, 8,000 Hz: its files recordings/DIGIT_SPEAKER_INDEX.wav, or a
                    subset fsdd_subset.npz, in `root` or its subfolder fsdd or free-spoken-digit-dataset. By
                    recording: index 0-4 is for testing, which is the set's own rule, 5-9 for validation, the rest for
                    training. All speakers are in all parts.
    "birds10"       Song of 10 species, 16,000 Hz: birds10.npz in `root` or its subfolder birds10. One recording of
                    each, divided by time, the first 60 %, the next 20 % and the last 20 %: what is measured is the
                    recognition of the recording as much as of the species.
    another name    the folder ``root/name``, or one so called anywhere: CLASS/\\*.wav of one rate, PCM, channels
                    averaged. By file: of each class `seed` chooses a fifth for testing and a fifth for validation, at
                    least one each.
    ==============  =================================================================================================

    Recordings shorter than a segment are placed in silence (`cut`). Samples keep their scale, full scale being 1.

    Errors: `MissingData` with the folders searched and how to get the data; `BadData` naming the file that is
    damaged, foreign, empty or of another rate, a class with fewer than three files, or a part without any segment;
    TypeError or ValueError for `seconds` that is not positive, `overlap` outside [0, 1) or a negative seed.
    """
    if not isinstance(seconds, (int, float)) or not math.isfinite(seconds) or seconds <= 0:
        raise ValueError(f"load_audio: seconds must be a positive number, got {seconds!r}")
    if not isinstance(overlap, (int, float)) or not 0 <= overlap < 1:
        raise ValueError(f"load_audio: overlap must be in [0, 1), got {overlap!r}")
    check_seed("load_audio", seed)
    files = find_audio("load_audio", root, name, seed)
    length = max(1, round(seconds * files.rate))
    hop = max(1, round(length * (1 - overlap)))
    return AudioSplit(*(_segments(files, part, length, hop) for part in PARTS))


def _segments(files: AudioFiles, part: str, length: int, hop: int) -> AudioSegments:
    """One part of the files as segments."""
    found = [recording for recording in files.recordings if recording.part == part]
    offsets, starts, recordings = cut([len(recording.samples) for recording in found], length, hop)
    samples = torch.zeros(int(offsets[-1]))
    for offset, recording in zip(offsets.tolist(), found, strict=False):
        samples[offset : offset + len(recording.samples)] = recording.samples
    labels = torch.tensor([recording.label for recording in found])
    return AudioSegments(
        samples=samples,
        starts=starts,
        length=length,
        labels=labels[recordings],
        recordings=recordings,
        classes=files.classes,
        rate=files.rate,
        name=f"{files.name}, {len(found):,} recordings for {PARTS[part]}",
    )
