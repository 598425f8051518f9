"""Real footage to train on, made from what its owners offer for download, and scores of balls.

    python -m benchmarks.footage balls --output=clips/balls
    python -m benchmarks.footage grid --source=s1.zip --align=align --output=clips/words
    python -m benchmarks.footage ped2 --source=UCSD_Anomaly_Dataset.v1p2 --output=clips/ped2
    python -m benchmarks.footage score --checkpoint=runs/balls --clips=clips/balls

balls   six seconds of a plain ball that bounces on a light ground, six times: a user's first clips.
        From one frame nothing says where the ball goes; from three everything does.
grid    the words of one speaker of the GRID audiovisual sentence corpus (Cooke, Barker, Cunningham
        and Shao 2006; CC BY 4.0), each a clip with its word as caption. The first frame and the
        word decide the motion. `--source` is the speaker's archive or folder of .mpg files,
        `--align` the folder of its .align files. Frames of 360 x 288 are cropped to mouth and chin
        (columns 122-218, rows 160-256: speaker 1). A folder of cropped .mp4 files with words.csv
        (file, word, first_frame, end_frame) does as well, without --align.
ped2    the clips of people on a walkway of the UCSD anomaly detection data set, Ped2 (Mahadevan,
        Li, Bhalodia and Vasconcelos 2010; for research), from its folders of .tif frames or from a
        folder of videos: OUTPUT/training and OUTPUT/testing, 240 x 360 pixels, 10 frames a second.
score   how a run continues balls: on the first four fifths of each clip, which it was trained on,
        and on the rest. Prints a table and writes JSON: in how many windows the ball is there in
        the last frame, and how far its centre is off where it is.

Nothing of these data sets is part of this repository. Folders that exist are not written to.
"""

import argparse
import contextlib
import csv
import dataclasses
import math
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from PIL import Image

from benchmarks.measuring import argument_parser, run_command, write_report
from videomar_jax.checks import UserError
from videomar_jax.data.transforms import crop_center, resize_cover
from videomar_jax.evaluation.baselines import Windows, fit_linear, repeat_last
from videomar_jax.evaluation.metrics import psnr
from videomar_jax.inference.stream import VideoSampler
from videomar_jax.io.files import replacing
from videomar_jax.io.media import contact_sheet, write_png
from videomar_jax.io.paths import user_path
from videomar_jax.pretrained.bundle import load_pretrained

# Balls


BALL_FPS = 12
COLOURS = {
    "red": (220, 40, 40),
    "blue": (40, 90, 220),
    "green": (30, 160, 60),
    "orange": (230, 150, 20),
    "purple": (130, 40, 160),
    "black": (20, 20, 20),
}


class Ball(NamedTuple):
    """One clip and where its ball is."""

    frames: np.ndarray
    """[F, size, size, 3] uint8."""
    centres: np.ndarray
    """[F, 2]: x and y of the ball's centre, in pixels."""
    radius: float


def ball_clip(seed: int, count: int, size: int) -> Ball:
    """`count` frames of a ball that bounces off the border."""
    random = np.random.default_rng(seed)
    background = random.uniform(200, 245, 3)
    colour = np.array(list(COLOURS.values())[seed % len(COLOURS)], float)
    radius = size * random.uniform(0.10, 0.14)
    centre = random.uniform(radius, size - radius, 2)
    step = random.uniform(0.6, 1.6, 2) * random.choice([-1, 1], 2) * size / 32
    rows, columns = np.mgrid[0:size, 0:size] + 0.5
    frames, centres = [], []
    for _ in range(count):
        distance = np.hypot(columns - centre[0], rows - centre[1])
        cover = np.clip(radius - distance + 0.5, 0, 1)[..., None]
        frames.append((background * (1 - cover) + colour * cover).astype(np.uint8))
        centres.append(centre.copy())
        centre = centre + step
        for axis in range(2):
            near, far = radius, size - radius
            if not near <= centre[axis] <= far:
                edge = near if centre[axis] < near else far
                centre[axis] = 2 * edge - centre[axis]
                step[axis] = -step[axis]
    return Ball(np.stack(frames), np.stack(centres), radius)


def write_balls(args: argparse.Namespace) -> None:
    """ballN.mp4, captions if asked for, and truth.npz with centres_N and radius_N."""
    truth: dict[str, Any] = {}
    with new_folder(args.output) as output:
        for number in range(args.clips):
            seed = args.seed + number
            ball = ball_clip(seed, round(args.seconds * BALL_FPS), args.size)
            truth |= {f"centres_{number}": ball.centres, f"radius_{number}": ball.radius}
            write_clip(output / f"ball{number}.mp4", ball.frames, BALL_FPS)
            if args.captions and number % 2 == 0:
                caption = f"a {list(COLOURS)[seed % len(COLOURS)]} ball bounces\n"
                (output / f"ball{number}.txt").write_text(caption, encoding="utf-8")
        np.savez(output / "truth.npz", **truth)
    print(f"{args.clips} clips in {args.output}")


# GRID


GRID_FPS = 25
GRID_FRAME = (288, 360)
"""Pixel (rows, columns) of the corpus."""
MOUTH = (slice(160, 256), slice(122, 218))
"""Rows and columns of speaker 1's mouth and chin in such a frame."""
SAMPLES_A_FRAME = 1000
"""Of sound, at 25 kHz: what .align files count in."""
PAUSES = ("sil", "sp")


class Word(NamedTuple):
    """A spoken word and the frame in which it begins."""

    word: str
    first_frame: int


def read_align(text: str, name: str) -> list[Word]:
    """The words of an .align file: lines of "first_sample last_sample word".

    Raises:
        UserError: a line is not of this form.
    """
    words = []
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 3 or not fields[0].isdecimal():
            raise UserError(f"{name}, line {number}: needs two numbers and a word, not {line!r}.")
        if fields[2] not in PAUSES:
            frame = math.floor(int(fields[0]) / SAMPLES_A_FRAME + 0.5)
            words.append(Word(fields[2], frame))
    return words


def read_words(table: Path) -> dict[str, list[Word]]:
    """The words of each file of a words.csv, by the file's stem."""
    words: dict[str, list[Word]] = defaultdict(list)
    with open(table, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            word = Word(row["word"], int(row["first_frame"]))
            words[Path(row["file"]).stem].append(word)
    return dict(words)


def grid_words(source: Path, align: Path | None) -> dict[str, list[Word]]:
    """The words of each sentence, by the stem of its file."""
    if align is not None:
        files = sorted(align.rglob("*.align"))
        return {
            file.stem: read_align(file.read_text(encoding="utf-8"), str(file)) for file in files
        }
    table = source / "words.csv"
    if not table.is_file():
        raise UserError(
            f"{source} has no words.csv: name the folder of the speaker's .align files with "
            "--align=DIR."
        )
    return read_words(table)


def grid_videos(source: Path) -> dict[str, Path]:
    """The videos under a folder by their stem."""
    found = [path for path in sorted(source.rglob("*")) if path.suffix in (".mpg", ".mp4")]
    return {path.stem: path for path in found}


def mouth(frames: np.ndarray, name: str) -> np.ndarray:
    """Frames of the corpus cropped to the mouth; square ones are cropped already.

    Raises:
        UserError: frames of another size.
    """
    size = frames.shape[1:3]
    if size == GRID_FRAME:
        return frames[:, *MOUTH]
    if size[0] != size[1]:
        raise UserError(
            f"{name} has frames of {size[1]}x{size[0]}; the corpus has 360x288: take the videos of "
            "normal quality."
        )
    return frames


def write_grid(args: argparse.Namespace) -> None:
    """A clip for each word, SENTENCE_NUMBER_WORD.mp4, and captions.csv."""
    source = user_path(args.source, "--source")
    with tempfile.TemporaryDirectory() as folder:
        if source.suffix == ".zip":
            source = unpacked(source, Path(folder))
        words = grid_words(source, user_path(args.align, "--align") if args.align else None)
        videos = grid_videos(source)
        known = sorted(words.keys() & videos.keys())
        if not known:
            raise UserError(
                f"{args.source}: none of {len(videos)} videos has its words among {len(words)} "
                "sentences; files must have the names of the corpus, such as bbaf2n."
            )
        chosen = known[args.skip :][: args.sentences]
        captions: list[tuple[str, str]] = []
        with new_folder(args.output) as output:
            for name in chosen:
                frames = shrunk(mouth(read_frames(videos[name]), str(videos[name])), args.size)
                captions += write_words(output, name, frames, words[name], args)
            with open(output / "captions.csv", "w", newline="", encoding="utf-8") as file:
                table = csv.writer(file)
                table.writerow(["file", "caption"])
                table.writerows(captions)
    print(f"{len(captions)} clips of {len(chosen)} sentences in {args.output}")


def write_words(
    output: Path,
    name: str,
    frames: np.ndarray,
    words: Sequence[Word],
    args: argparse.Namespace,
) -> Iterator[tuple[str, str]]:
    """Writes the clips of one sentence; yields the file and the word of each."""
    for number, (word, first) in enumerate(words):
        # The frame before shows the mouth as the word begins.
        start = first - args.before
        if start >= 0 and start + args.frames <= len(frames):
            file = f"{name}_{number}_{word}.mp4"
            write_clip(output / file, frames[start : start + args.frames], GRID_FPS)
            yield file, word


def unpacked(archive: Path, folder: Path) -> Path:
    """The videos of a .zip archive, in `folder`."""
    with zipfile.ZipFile(archive) as opened:
        names = [name for name in opened.namelist() if name.endswith((".mpg", ".mp4"))]
        opened.extractall(folder, names)
    return folder


# Ped2


PED2_FPS = 10
PARTS = {"training": "Train", "testing": "Test"}


def ped2_clips(source: Path) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yields (part, name, frames) of every clip of the data set.

    Raises:
        UserError: the folder holds neither its folders of frames nor training_*.mp4.
    """
    inner = source / "UCSDped2"
    root = inner if inner.is_dir() else source
    found = False
    for part, folder in PARTS.items():
        for clip in sorted((root / folder).glob(f"{folder}[0-9][0-9][0-9]")):
            frames = [np.asarray(Image.open(file)) for file in sorted(clip.glob("*.tif"))]
            if frames:
                found = True
                number = int(clip.name.removeprefix(folder))
                yield part, f"{part}_{number:02d}", coloured(np.stack(frames))
        for video in sorted(root.glob(f"{part}_*.mp4")):
            found = True
            yield part, video.stem, read_frames(video)
    if not found:
        raise UserError(
            f"{source} holds neither Train/Train001/*.tif nor training_*.mp4: name the folder "
            "UCSD_Anomaly_Dataset.v1p2, or its UCSDped2."
        )


def coloured(frames: np.ndarray) -> np.ndarray:
    """Grey frames [F, Hp, Wp] as RGB; frames with channels as they are, without transparency."""
    if frames.ndim == 3:
        return np.repeat(frames[..., None], 3, axis=-1)
    return frames[..., :3]


def write_ped2(args: argparse.Namespace) -> None:
    """OUTPUT/training/training_NN.mp4 and OUTPUT/testing/testing_NN.mp4."""
    count = 0
    with new_folder(args.output) as output:
        for part, name, frames in ped2_clips(user_path(args.source, "--source")):
            (output / part).mkdir(exist_ok=True)
            write_clip(output / part / f"{name}.mp4", frames, PED2_FPS)
            count += 1
    print(f"{count} clips in {args.output}")


# Files


@contextlib.contextmanager
def new_folder(place: str) -> Iterator[Path]:
    """A hidden folder that becomes `place` when all of it is written.

    Raises:
        FileExistsError: the folder exists.
    """
    path = user_path(place, "--output")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, overwrite=False) as part:
        part.mkdir()
        yield part


def read_frames(path: Path) -> np.ndarray:
    """All frames of a video, [F, Hp, Wp, 3]."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def shrunk(frames: np.ndarray, size: int) -> np.ndarray:
    """Square frames averaged down to size x size pixels."""
    pictures = [Image.fromarray(frame) for frame in frames]
    box = Image.Resampling.BOX
    return np.stack([np.asarray(picture.resize((size, size), box)) for picture in pictures])


def write_clip(path: Path, frames: np.ndarray, fps: int) -> None:
    """H.264 that is nearly lossless, with colours at full resolution."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv444p"
        stream.options = {"crf": "6", "preset": "veryfast"}
        for pixels in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


# Scores of balls


TRAINED, HELD_OUT = "training part", "held-out part"
SHARE = 0.8
"""Of each clip, from its beginning, that a run with data.holdout 0.2 trains on."""
PRESENT = (0.5, 1.6)
"""A ball is there if its area is within these shares of the true one."""
HEADER = ["part", "given", "windows", "predictor", "there", "centre off, px", "PSNR, dB"]
WINDOWS = ((TRAINED, 6), (HELD_OUT, 3))
"""Windows of each clip."""
# Cover below this is a halo, and no ball.
_FAINT = 0.3


class BallWindow(NamedTuple):
    """A stretch of a clip, at the size of the model."""

    frames: np.ndarray
    centre: np.ndarray
    """x and y in the last frame, in pixels of the model."""
    radius: float


def ball_windows(
    folder: Path, part: str, frames: int, size: tuple[int, int], count: int
) -> list[BallWindow]:
    """`count` evenly spread windows of the part of each clip; fewer where it holds fewer.

    Raises:
        UserError: there is no truth.npz, or the part is too short.
    """
    place = folder / "truth.npz"
    if not place.is_file():
        raise UserError(f"{folder} has no truth.npz: write it with `benchmarks.footage balls`.")
    truth = np.load(place)
    found = []
    for number in range(len(list(folder.glob("ball*.mp4")))):
        clip = read_frames(folder / f"ball{number}.mp4")
        cut = math.ceil(SHARE * len(clip))
        first, last = (0, cut) if part == TRAINED else (cut, len(clip))
        if last - first < frames:
            raise UserError(
                f"{folder}: the {part} of ball{number}.mp4 has {last - first} frames, {frames} are "
                "needed; write longer clips with --seconds."
            )
        scale = size[0] / clip.shape[1]
        small = crop_center(resize_cover(clip, *size), *size)
        starts = np.linspace(first, last - frames, count).round().astype(int)
        for start in np.unique(starts):
            stop = start + frames
            centre = truth[f"centres_{number}"][stop - 1] * scale
            radius = float(truth[f"radius_{number}"]) * scale
            found.append(BallWindow(small[start:stop], centre, radius))
    return found


def ball_cover(frame: np.ndarray, first: np.ndarray) -> np.ndarray:
    """How much of each pixel the ball covers, 0 to 1.

    Ground and colour are those of the true frame `first`: its median, and the mean of the pixels
    that differ most from it.
    """
    ground = np.median(first.reshape(-1, 3), axis=0)
    difference = np.linalg.norm(first - ground, axis=-1)
    colour = first[difference > 0.9 * difference.max()].mean(axis=0)
    direction = colour - ground
    cover = (frame - ground) @ direction / (direction @ direction)
    return np.where(cover < _FAINT, 0, np.clip(cover, 0, 1))


def score_ball(frame: np.ndarray, window: BallWindow) -> tuple[bool, float]:
    """Whether the ball is there in a last frame, and how far its centre is off in pixels.

    Where it is not there the distance is NaN, since nothing can be off.
    """
    cover = ball_cover(frame.astype(float), window.frames[0].astype(float))
    area = cover.sum() / (math.pi * window.radius**2)
    if not PRESENT[0] <= area <= PRESENT[1]:
        return False, math.nan
    rows, columns = np.mgrid[0 : frame.shape[0], 0 : frame.shape[1]] + 0.5
    centre = np.array([(cover * columns).sum(), (cover * rows).sum()]) / cover.sum()
    return True, float(np.linalg.norm(centre - window.centre))


def score_balls(
    sampler: VideoSampler, folder: Path, given: Sequence[int], frames: int, size: tuple[int, int]
) -> tuple[list[list[Any]], dict[tuple[str, int], np.ndarray]]:
    """Rows of the table, and what the model made of each part, by given frames."""
    rows, made = [], {}
    every = ball_windows(folder, TRAINED, frames, size, 10**4)
    trained_on = np.stack([window.frames for window in every])
    fit_on = [Windows(trained_on, [""] * len(trained_on))]
    linear = fit_linear(fit_on, [], given, len(trained_on))
    for part, count in WINDOWS:
        windows = ball_windows(folder, part, frames, size, count)
        video = np.stack([window.frames for window in windows])
        prompts = [""] * len(video)
        for known in given:
            predictors = {"model": sampler, "linear": linear[known], "copy": repeat_last}
            for name, predict in predictors.items():
                clips = predict(video[:, :known], prompts, frames)
                if name == "model":
                    made[part, known] = clips
                results = [score_ball(clip[-1], w) for clip, w in zip(clips, windows, strict=True)]
                there = float(np.mean([seen for seen, _ in results]))
                distances = [distance for seen, distance in results if seen]
                off = float(np.mean(distances)) if distances else None
                quality = float(psnr(clips[:, known:], video[:, known:]).mean())
                rows.append([part, known, len(video), name, there, off, quality])
    return rows, made


def report_balls(args: argparse.Namespace) -> None:
    """Prints the table, writes JSON and, if asked for, pictures."""
    loaded = load_pretrained(args.checkpoint)
    bundle = loaded.bundle
    config = bundle.sampling
    if args.temperature is not None:
        config = dataclasses.replace(config, temperature=args.temperature)
    sampler = VideoSampler.from_bundle(loaded.model, bundle, config, batch_size=18)
    given = [int(word) for word in args.given.split(",")]
    size, folder = (bundle.height, bundle.width), user_path(args.clips, "--clips")
    rows, made = score_balls(sampler, folder, given, bundle.num_frames, size)
    print("| " + " | ".join(HEADER) + " |\n" + "|---" * len(HEADER) + "|")
    for part, known, count, name, there, off, quality in rows:
        place = "" if off is None else f"{off:.1f}"
        print(f"| {part} | {known} | {count} | {name} | {there:.0%} | {place} | {quality:.1f} |")
    report = {
        "checkpoint": str(args.checkpoint),
        "step": loaded.step,
        "temperature": config.temperature,
        "rows": [dict(zip(HEADER, row, strict=True)) for row in rows],
    }
    write_report(report, args.out, "balls")
    if args.picture:
        truth = {
            part: ball_windows(folder, part, bundle.num_frames, size, n) for part, n in WINDOWS
        }
        shown = []
        for (part, known), clips in made.items():
            shown.append((f"{part}, {known} given: truth", truth[part][0].frames))
            shown.append((f"{part}, {known} given: generated", clips[0]))
        write_png(args.picture, contact_sheet(shown, scale=-(-128 // min(size))), overwrite=True)


# Flags


def _arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argument_parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    balls = commands.add_parser("balls", help="clips of a bouncing ball")
    balls.add_argument("--output", required=True, help="the folder to write")
    balls.add_argument("--clips", type=int, default=6)
    balls.add_argument("--seconds", type=float, default=6.0, help="of each clip, at 12 fps")
    balls.add_argument("--size", type=int, default=64, help="pixels of a side")
    balls.add_argument("--seed", type=int, default=0)
    balls.add_argument("--captions", action="store_true", help="half of the clips get one")
    balls.set_defaults(run=write_balls)

    grid = commands.add_parser("grid", help="words of a speaker of the GRID corpus")
    grid.add_argument("--source", required=True, help="archive or folder of the speaker's videos")
    grid.add_argument("--align", help="folder of the speaker's .align files")
    grid.add_argument("--output", required=True, help="the folder to write")
    grid.add_argument("--frames", type=int, default=9, help="of a clip, at 25 fps")
    grid.add_argument("--before", type=int, default=1, help="frames ahead of the word")
    grid.add_argument("--size", type=int, default=64, help="pixels of a side")
    grid.add_argument("--skip", type=int, default=0, help="sentences to leave out")
    grid.add_argument("--sentences", type=int, default=10_000, help="sentences to take, at most")
    grid.set_defaults(run=write_grid)

    ped2 = commands.add_parser("ped2", help="clips of UCSD Ped2")
    ped2.add_argument("--source", required=True, help="the folder UCSD_Anomaly_Dataset.v1p2")
    ped2.add_argument("--output", required=True, help="the folder to write")
    ped2.set_defaults(run=write_ped2)

    score = commands.add_parser("score", help="how a run continues balls")
    score.add_argument("--checkpoint", required=True, help="a run's folder")
    score.add_argument("--clips", required=True, help="the folder of balls")
    score.add_argument("--given", default="1,3,5", help="frames to continue from")
    score.add_argument("--temperature", type=float, help="the model's own unless set")
    score.add_argument("--out", help="the JSON file")
    score.add_argument("--picture", help="a PNG of truth and model")
    score.set_defaults(run=report_balls)
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    args = _arguments(words)
    args.run(args)


if __name__ == "__main__":
    run_command(main)
