"""What is done with clips as local files: their last frame as a picture, and one film of several, not re-encoded.

It needs PyAV (`pip install "prefect-veogen[media]"`). All of it blocks, and holds one frame or some packets in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any, cast

from prefect_veogen.errors import ConfigurationError, StoreUnavailable

if TYPE_CHECKING:
    from pathlib import Path

    import av

    InputContainer = av.container.InputContainer
    OutputContainer = av.container.OutputContainer
    OutputStreams = Mapping[str, av.video.stream.VideoStream | av.audio.stream.AudioStream]

FILM_TYPE = "video/mp4"
# How far before the end a decoder starts: it goes back from there to a frame that needs no other.
_BEFORE_END_SECONDS = Fraction(1, 2)
_HD_HEIGHT = 720
_SETTINGS = "encoder settings"


class NotJoinable(Exception):
    """A clip that no film can be made of, or not together with the first one: its position, and why."""

    def __init__(self, position: int, reason: str) -> None:
        super().__init__(reason)
        self.position = position


def check_pyav() -> None:
    """Validate that PyAV is installed.

    Raises:
        ConfigurationError: it is not.
    """
    try:
        import av  # noqa: F401 - whether it can be imported is the question
    except ImportError:
        raise ConfigurationError(
            "Clips can't be chained or joined without PyAV, which is not installed",
            next_step="Nothing was bought. Install it: pip install 'prefect-veogen[media]'",
        ) from None


def reason_of(error: Exception) -> str:
    """Return what FFmpeg says, without the name of a temporary file."""
    return str(getattr(error, "strerror", None) or error)


def temporary_trouble(error: OSError) -> StoreUnavailable:
    """Return the error for a temporary file that can't be written: it says nothing about any clip."""
    return StoreUnavailable(
        f"A temporary file could not be written: {reason_of(error)}",
        next_step="Free some space in the temporary folder, or set TMPDIR to another one, then run it again: nothing "
        "has to be bought again.",
    )


# ---------------------------------------------------------------- the last frame


def read_last_frame(path: Path) -> bytes:
    """Return the last frame of a clip as a PNG; the same clip gives the same bytes with the same FFmpeg.

    Raises:
        ValueError, OSError: it can't be decoded.
    """
    import av

    with av.open(path, "r") as clip:
        if not clip.streams.video:
            raise ValueError("it has no video track")
        video = clip.streams.video[0]
        last = _decode_last(clip, video, near_end=True) or _decode_last(clip, video, near_end=False)
        if last is None:
            raise ValueError("it has no frame")
        return _png(last)


def _decode_last(clip: InputContainer, video: Any, *, near_end: bool) -> Any:
    start, ticks = video.start_time or 0, round(_BEFORE_END_SECONDS / video.time_base)
    end = start + (video.duration or 0)
    clip.seek(max(start, end - ticks) if near_end else start, stream=video, backward=True)
    last = None
    for frame in clip.decode(video):
        last = frame  # they come in the order in which they are shown
    return last


def _png(frame: Any) -> bytes:
    import av
    from av.video.reformatter import Colorspace

    # A clip in HD that doesn't say how its colours are encoded is shown as BT.709; FFmpeg would take it for BT.601.
    is_unsaid = frame.colorspace not in (Colorspace.ITU709, Colorspace.ITU601, Colorspace.SMPTE240M)
    told = {"src_colorspace": Colorspace.ITU709} if is_unsaid and frame.height >= _HD_HEIGHT else {}
    picture = frame.reformat(format="rgb24", **told)
    encoder = av.CodecContext.create("png", "w")
    encoder.width, encoder.height, encoder.pix_fmt = picture.width, picture.height, "rgb24"
    encoder.time_base = Fraction(1, 25)
    picture.pts = 0
    return b"".join(bytes(packet) for packet in [*encoder.encode(picture), *encoder.encode(None)])


# ---------------------------------------------------------------- one film


def join_clips(clips: Sequence[Path], film: Path) -> None:
    """Write the clips, one after the other, into one MP4 file; their streams are copied, not encoded again.

    Raises:
        NotJoinable: a clip can't be read, or its streams differ from those of the first.
        StoreUnavailable: the film can't be written, mostly because its disk is full.
    """
    import av

    try:
        with av.open(film, "w", format="mp4", options={"movflags": "+faststart"}) as output:
            _append_all(clips, output)
    except OSError as error:  # closing it writes much of it, and all of it once more to have the index in front
        raise temporary_trouble(error) from None


def _append_all(clips: Sequence[Path], output: OutputContainer) -> None:
    import av

    streams: OutputStreams = {}
    shape: dict[str, Any] = {}
    joiner = _Joiner(output)
    for position, path in enumerate(clips):
        try:
            with av.open(path, "r") as clip:
                found = _shape_of(clip)
                if not streams:
                    shape = found
                    streams = {stream.type: output.add_stream_from_template(stream) for stream in _tracks(clip)}
                if differences := _differences(found, shape):
                    raise NotJoinable(position, "; ".join(differences))
                joiner.append(clip, streams)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise NotJoinable(position, f"it can't be copied: {reason_of(error)}") from None


def _tracks(clip: InputContainer) -> list[Any]:
    """Return the first picture track and the first sound track: time codes and the like are left out."""
    return [*clip.streams.video[:1], *clip.streams.audio[:1]]


def _shape_of(clip: InputContainer) -> dict[str, Any]:
    """Return what has to be the same for two clips to be copied into one track each."""
    if not clip.streams.video:
        raise ValueError("it has no video track")
    video, sound = clip.streams.video[0], next(iter(clip.streams.audio), None)
    return {
        "codec": video.codec_context.name,
        "size": f"{video.width}x{video.height}",
        "pixel format": video.pix_fmt,
        "sound": f"{sound.codec_context.name} {sound.rate} Hz {sound.layout.name}" if sound else "none",
        "time base": [str(track.time_base) for track in _tracks(clip)],
        _SETTINGS: [bytes(track.codec_context.extradata or b"") for track in _tracks(clip)],
    }


def _differences(found: Mapping[str, Any], first: Mapping[str, Any]) -> list[str]:
    differing = {name: value for name, value in found.items() if value != first[name]}
    if differing.keys() == {_SETTINGS}:
        return [f"its {_SETTINGS} differ from those of the first"]
    return [
        f"its {name} is {value}, that of the first {first[name]}"
        for name, value in differing.items()
        if name != _SETTINGS
    ]


class _Joiner:
    """Copies packets of clips into one file, each clip's times moved behind those of the clips before it."""

    def __init__(self, output: OutputContainer) -> None:
        self._output = output
        self._end = Fraction(0)
        self._last_dts: dict[str, int] = {}

    def append(self, clip: InputContainer, streams: OutputStreams) -> None:
        """Copy a clip's packets behind what is there."""
        video = clip.streams.video[0]
        moved = self._end - (video.start_time or 0) * cast("Fraction", video.time_base)
        is_first, end = not self._last_dts, self._end
        for packet in _packets_of(clip):
            ends = (packet.pts + (packet.duration or 0)) * packet.time_base
            if not is_first and ends + moved <= self._end:
                continue  # what an encoder of sound puts before the beginning, to warm up
            end = max(end, ends + moved)
            self._copy(packet, streams[packet.stream.type], round(moved / packet.time_base))
        self._end = end

    def _copy(self, packet: Any, stream: Any, ticks: int) -> None:
        packet.pts, packet.dts = packet.pts + ticks, packet.dts + ticks
        # Sound may reach over the end of its clip by part of a packet, and yet decoding times have to increase.
        if (last := self._last_dts.get(stream.type)) is not None and packet.dts <= last:
            packet.dts = last + 1
            packet.pts = max(packet.pts, packet.dts)
        self._last_dts[stream.type] = packet.dts
        packet.stream = stream
        try:
            self._output.mux(packet)
        except OSError as error:  # a packet that MP4 can't hold is a ValueError
            raise temporary_trouble(error) from None


def _packets_of(clip: InputContainer) -> Iterator[Any]:
    for packet in clip.demux(*_tracks(clip)):
        if packet.dts is not None and packet.pts is not None and packet.size:  # the last ones only flush decoders
            yield packet
