"""Clips as local files: the last frame is the last one, and a film is its clips, packet by packet."""

from __future__ import annotations

import io
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import av
import pytest
from PIL import Image

from prefect_veogen.download.clips import NotJoinable, check_pyav, join_clips, read_last_frame
from prefect_veogen.errors import ConfigurationError, StoreUnavailable
from tests.support.clips import frame_times, sound_seconds, write_clip


def clips(folder: Path, *seconds: int) -> list[Path]:
    return [write_clip(folder / f"{number}.mp4", seconds=length) for number, length in enumerate(seconds)]


def pictures_of(path: Path) -> list[bytes]:
    with av.open(path, "r") as clip:
        return [frame.reformat(format="rgb24").to_ndarray().tobytes() for frame in clip.decode(video=0)]


def encoded_packets(path: Path, kind: str) -> list[bytes]:
    with av.open(path, "r") as clip:
        return [bytes(packet) for packet in clip.demux(**{kind: 0}) if packet.size]


def test_the_last_frame_is_the_last_that_is_shown_and_has_the_same_bytes_each_time(tmp_path: Path) -> None:
    (clip,) = clips(tmp_path, 3)
    frame = read_last_frame(clip)
    picture = Image.open(io.BytesIO(frame))
    assert (picture.format, picture.size) == ("PNG", (160, 90))
    assert picture.tobytes() == pictures_of(clip)[-1]
    assert read_last_frame(clip) == frame


def test_the_colours_of_a_large_clip_that_does_not_say_how_they_are_encoded_are_those_of_hd(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "hd.mp4", size="1280x720", hertz=None)
    with av.open(clip, "r") as opened:
        *_, last = opened.decode(video=0)
        as_hd = last.reformat(format="rgb24", src_colorspace="ITU709").to_ndarray().tobytes()
        as_sd = last.reformat(format="rgb24", src_colorspace="ITU601").to_ndarray().tobytes()
    assert as_hd != as_sd
    assert Image.open(io.BytesIO(read_last_frame(clip))).tobytes() == as_hd


@pytest.mark.parametrize("body", [b"", b"no clip at all" * 100])
def test_what_is_no_clip_has_no_last_frame(body: bytes, tmp_path: Path) -> None:
    (tmp_path / "odd.mp4").write_bytes(body)
    with pytest.raises((OSError, ValueError)):
        read_last_frame(tmp_path / "odd.mp4")


def test_a_film_is_its_clips_one_after_the_other_without_a_gap_and_copied_as_they_are(tmp_path: Path) -> None:
    parts, film = clips(tmp_path, 2, 1, 3), tmp_path / "film.mp4"
    join_clips(parts, film)
    assert encoded_packets(film, "video") == [packet for part in parts for packet in encoded_packets(part, "video")]
    assert pictures_of(film) == [picture for part in parts for picture in pictures_of(part)]
    times = frame_times(film)
    assert len(times) == 24 * 6
    steps = [after - before for before, after in pairwise(times)]
    assert 0.04 < min(steps) <= max(steps) < 0.06, "each picture for a 24th of a second, a joint some milliseconds more"
    assert sound_seconds(film) == pytest.approx(6, abs=0.1)
    first, *others = (encoded_packets(part, "audio") for part in parts)
    warmed_up = [packet for packets in others for packet in packets[1:]]
    assert encoded_packets(film, "audio") == first + warmed_up, "what warms up a decoder comes once, at the beginning"
    with av.open(film, "r") as opened:
        assert opened.duration is not None
        assert opened.duration / 1_000_000 == pytest.approx(6, abs=0.1)
        tracks = [float((track.duration or 0) * (track.time_base or 0)) for track in opened.streams]
        assert tracks == pytest.approx([6, 6], abs=0.1)


def test_clips_without_sound_are_a_film_without_sound(tmp_path: Path) -> None:
    part, film = write_clip(tmp_path / "a.mp4", hertz=None), tmp_path / "film.mp4"
    join_clips([part, part], film)
    with av.open(film, "r") as opened:
        assert [track.type for track in opened.streams] == ["video"]
    assert len(frame_times(film)) == 48


def test_one_clip_is_a_film(tmp_path: Path) -> None:
    (part,) = clips(tmp_path, 1)
    join_clips([part], tmp_path / "film.mp4")
    assert pictures_of(tmp_path / "film.mp4") == pictures_of(part)


def test_a_clip_that_differs_from_the_first_is_named_with_what_differs(tmp_path: Path) -> None:
    first = write_clip(tmp_path / "first.mp4")
    others = {
        "its size is 320x180, that of the first 160x90": write_clip(tmp_path / "large.mp4", size="320x180"),
        "its sound is none, that of the first aac 48000 Hz stereo": write_clip(tmp_path / "mute.mp4", hertz=None),
        "it can't be copied: Invalid data found": tmp_path / "odd.mp4",
    }
    (tmp_path / "odd.mp4").write_bytes(b"no clip")
    for problem, other in others.items():
        with pytest.raises(NotJoinable, match=problem) as caught:
            join_clips([first, first, other, first], tmp_path / "film.mp4")
        assert caught.value.position == 2


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let no file of this process grow above a size, as a full disk would not."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("missing", ["all", "most", "index"])
def test_a_film_that_its_disk_has_no_room_for_is_no_clips_fault(missing: str, tmp_path: Path) -> None:
    parts, film = clips(tmp_path, 1, 1), tmp_path / "film.mp4"
    join_clips(parts, film)
    room = {"all": 0, "most": film.stat().st_size // 2, "index": film.stat().st_size - 10}[missing]
    with pytest.raises(StoreUnavailable, match=r"TMPDIR.*nothing has to be bought") as full, files_of_at_most(room):
        join_clips(parts, film)
    assert full.value.retryable


def test_a_full_device_is_said_to_be_full(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="could not be written: No space left on device"):
        join_clips(clips(tmp_path, 1), Path("/dev/full"))


def test_without_pyav_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    check_pyav()
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ConfigurationError, match=r"Nothing was bought.*pip install 'prefect-veogen\[media\]'"):
        check_pyav()
