"""Small videos whose frame numbers can be read back from the brightness."""

from pathlib import Path

import av
import numpy as np
import pytest

CODECS = {
    ".gif": ("gif", "rgb8"),
    ".avi": ("mjpeg", "yuvj420p"),
    ".webm": ("libvpx-vp9", "yuv420p"),
}
DARKEST, STEP = 10, 5


def _write(
    path: Path, count: int = 40, *, fps: int = 10, size: tuple[int, int] = (32, 48), gop: int = 12
) -> Path:
    """Frame i is grey of brightness DARKEST + STEP * i (count <= 48)."""
    codec, pixels = CODECS.get(path.suffix.lower(), ("libx264", "yuv420p"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width, stream.pix_fmt = *size, pixels
        stream.codec_context.gop_size = gop
        for number in range(count):
            frame = np.full((*size, 3), DARKEST + STEP * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def _numbers(video: np.ndarray) -> list[int]:
    """The frame numbers of a clip, from its brightness."""
    return [round((frame.mean() - DARKEST) / STEP) for frame in video]


@pytest.fixture
def write_video():
    return _write


@pytest.fixture
def numbers():
    return _numbers
