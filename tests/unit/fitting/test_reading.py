import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pathlens.classifier.images import ImageSource
from pathlens.classifier.preprocessing import Colour, Preprocessing
from pathlens.fitting.reading import ImageReader

PREPROCESSING = Preprocessing(5, 6, mean=(0.4, 0.5, 0.6), std=(0.1, 0.2, 0.3))
COUNT = 13
RANDOM = np.random.default_rng(0).integers(0, 256, (COUNT, 9, 7, 3), dtype=np.uint8)
BATCHES = [[4, 1, 12], [0], [2, 3, 5, 6], [11, 10], [7, 8, 9]]


def folder(path: Path) -> Path:
    for number, pixels in enumerate(RANDOM):
        Image.fromarray(pixels).save(path / f"{number:02}.png")
    return path


def stored(path: Path) -> Path:
    np.savez(path / "images.npz", images=RANDOM)
    return path / "images.npz"


def compressed(path: Path) -> Path:
    np.savez_compressed(path / "images.npz", images=RANDOM)
    return path / "images.npz"


def grey(path: Path) -> Path:
    np.savez(path / "images.npz", images=RANDOM[:, :, :, 0])
    return path / "images.npz"


WAYS = (folder, stored, compressed, grey)

any_number_of_workers = pytest.mark.parametrize("workers", [0, 1, 2, 99])


@pytest.fixture
def source(tmp_path: Path) -> ImageSource:
    return ImageSource(folder(tmp_path))


def reading(
    source: ImageSource, workers: int, batches: Sequence[Sequence[int]] = BATCHES
) -> Generator[tuple[list[int], Tensor], None, None]:
    iterator = ImageReader(source, PREPROCESSING, workers).read(batches)
    assert isinstance(iterator, Generator)
    return iterator


def start_fork_server(environment: dict[str, str], prepare: str = "") -> subprocess.CompletedProcess[str]:
    """Start a fork server in a process that has none."""
    code = f"from pathlens.fitting import reading\n{prepare}\nreading._fork_server()"
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=False
    )


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


class TestBatches:
    @any_number_of_workers
    @pytest.mark.parametrize("write", WAYS)
    def test_hold_the_inputs_of_their_positions_in_order(
        self, write: Callable[[Path], Path], workers: int, tmp_path: Path
    ) -> None:
        source = ImageSource(write(tmp_path))
        read = list(reading(source, workers))
        assert [positions for positions, _ in read] == BATCHES
        for positions, inputs in read:
            expected = [torch.from_numpy(PREPROCESSING.apply(source.read(position))) for position in positions]
            assert torch.equal(inputs, torch.stack(expected))
            assert inputs.dtype == torch.float32
            assert inputs.is_contiguous()

    @any_number_of_workers
    def test_have_one_channel_for_a_grey_classifier(self, source: ImageSource, workers: int) -> None:
        preprocessing = Preprocessing(5, 6, mean=(0.5,), std=(0.5,), colour=Colour.GREY)
        ((_, inputs),) = ImageReader(source, preprocessing, workers).read([[3, 1]])
        assert inputs.shape == (2, 1, 5, 6)

    @any_number_of_workers
    def test_may_name_an_image_again(self, source: ImageSource, workers: int) -> None:
        (first, inputs), (second, again) = reading(source, workers, [[1, 1, 2], (1, 2)])
        assert (first, second) == ([1, 1, 2], [1, 2])
        assert torch.equal(inputs[1:], again)

    @any_number_of_workers
    def test_may_be_changed_in_place(self, source: ImageSource, workers: int) -> None:
        for _, inputs in reading(source, workers):
            assert bool((inputs.zero_() == 0).all())

    @any_number_of_workers
    @pytest.mark.parametrize("batches", [[], [[]]])
    def test_without_images_are_none(self, source: ImageSource, workers: int, batches: list[list[int]]) -> None:
        assert list(reading(source, workers, batches)) == []

    @any_number_of_workers
    def test_larger_than_a_pipe_holds_come_whole(self, source: ImageSource, workers: int) -> None:
        preprocessing = Preprocessing(300, 300, mean=(0.0,) * 3, std=(1.0,) * 3)
        read = list(ImageReader(source, preprocessing, workers).read(BATCHES))
        for positions, inputs in read:
            expected = [torch.from_numpy(preprocessing.apply(source.read(position))) for position in positions]
            assert torch.equal(inputs, torch.stack(expected))

    @any_number_of_workers
    def test_leave_the_random_numbers_as_they_were(self, source: ImageSource, workers: int) -> None:
        before = torch.get_rng_state()
        list(reading(source, workers))
        assert torch.equal(torch.get_rng_state(), before)


class TestUnreadableImages:
    @any_number_of_workers
    def test_are_left_out_and_named_once(self, workers: int, tmp_path: Path) -> None:
        folder(tmp_path)
        for name in ("01.png", "11.png", "10.png"):
            (tmp_path / name).write_bytes(b"not a PNG")
        source = ImageSource(tmp_path)
        (tmp_path / "05.png").unlink()
        reader = ImageReader(source, PREPROCESSING, workers)
        for _ in range(2):
            read = [positions for positions, _ in reader.read(BATCHES)]
            assert read == [[4, 12], [0], [2, 3, 6], [7, 8, 9]]
        names = [line.split(": ")[0] for line in source.skipped]
        assert names == [str(tmp_path / name) for name in ("01.png", "05.png", "11.png", "10.png")]

    @any_number_of_workers
    def test_have_the_reason_that_the_source_gives(self, workers: int, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", images=np.zeros((3, 4, 4, 7), np.uint8))
        here, source = ImageSource(tmp_path / "a.npz"), ImageSource(tmp_path / "a.npz")
        assert list(here) == []
        assert list(reading(source, workers, [[0, 1], [2]])) == []
        assert source.skipped == here.skipped
        assert len(source.skipped) == 3


class TestWorkers:
    def test_are_none_for_zero(self, source: ImageSource) -> None:
        iterator = reading(source, 0)
        next(iterator)
        assert multiprocessing.active_children() == []

    def test_are_never_more_than_batches(self, source: ImageSource) -> None:
        iterator = reading(source, 99, [[0]])
        next(iterator)
        assert len(multiprocessing.active_children()) == 1
        iterator.close()

    @pytest.mark.parametrize("workers", [1, 2])
    def test_end_with_the_last_batch(self, source: ImageSource, workers: int) -> None:
        list(reading(source, workers))
        assert multiprocessing.active_children() == []

    @pytest.mark.parametrize("workers", [1, 2])
    def test_end_when_the_iterator_is_closed(self, source: ImageSource, workers: int) -> None:
        iterator = reading(source, workers, BATCHES * 20)
        next(iterator)
        assert multiprocessing.active_children()
        iterator.close()
        assert multiprocessing.active_children() == []

    @pytest.mark.parametrize("workers", [1, 2])
    def test_end_when_the_iterator_is_dropped(self, source: ImageSource, workers: int) -> None:
        iterator = reading(source, workers, BATCHES * 20)
        next(iterator)
        del iterator
        assert multiprocessing.active_children() == []

    def test_end_promptly_with_large_batches_on_their_way(self, source: ImageSource) -> None:
        preprocessing = Preprocessing(300, 300, mean=(0.0,) * 3, std=(1.0,) * 3)
        iterator = ImageReader(source, preprocessing, 2).read([list(range(COUNT))] * 20)
        next(iterator)
        start = time.monotonic()
        del iterator
        assert time.monotonic() - start < 4
        assert multiprocessing.active_children() == []

    def test_leave_no_file_open(self, source: ImageSource) -> None:
        list(reading(source, 2))
        before = open_files()
        for _ in range(3):
            list(reading(source, 2))
            iterator = reading(source, 2)
            next(iterator)
            iterator.close()
        # A queue's own thread closes its pipe, a moment later.
        deadline = time.monotonic() + 20
        while open_files() > before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert open_files() <= before

    def test_leave_interrupts_to_the_parent(self, source: ImageSource) -> None:
        iterator = reading(source, 2, BATCHES * 20)
        # Each worker has sent a batch, so that each has started.
        read = [next(iterator), next(iterator)]
        for worker in multiprocessing.active_children():
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGINT)
        read += iterator
        assert [positions for positions, _ in read] == BATCHES * 20

    def test_start_however_long_the_path_of_temporary_files_is(self, tmp_path: Path) -> None:
        temporary = tmp_path / ("long" * 25)
        temporary.mkdir()
        started = start_fork_server({"TMPDIR": str(temporary)})
        assert started.returncode == 0, started.stderr
        assert list(temporary.iterdir()) == []

    def test_that_cannot_start_are_an_error_that_names_the_remedies(self) -> None:
        code = "reading._SHORT_BASE = '/nowhere'; reading._LONGEST_BASE = 0"
        started = start_fork_server({}, code)
        assert started.returncode == 1
        assert "FitError" in started.stderr
        assert "TMPDIR" in started.stderr
        assert "--workers 0" in started.stderr

    def test_that_start_during_an_interrupt_do_not_lose_it(self, source: ImageSource) -> None:
        handler = signal.getsignal(signal.SIGINT)

        def interrupt() -> None:
            while not multiprocessing.active_children():
                time.sleep(0)
            os.kill(os.getpid(), signal.SIGINT)

        with ThreadPoolExecutor(1) as threads:
            interrupting = threads.submit(interrupt)
            with pytest.raises(KeyboardInterrupt):
                list(reading(source, 2, BATCHES * 1000))
            interrupting.result()
        assert signal.getsignal(signal.SIGINT) is handler
        gc.collect()
        assert multiprocessing.active_children() == []

    @any_number_of_workers
    def test_may_be_started_by_any_thread(self, source: ImageSource, workers: int) -> None:
        with ThreadPoolExecutor(1) as threads:
            read = threads.submit(lambda: list(reading(source, workers))).result()
        assert [positions for positions, _ in read] == BATCHES

    def test_are_not_fewer_than_none(self, source: ImageSource) -> None:
        with pytest.raises(ValueError, match="workers is -1; give 0 or more"):
            ImageReader(source, PREPROCESSING, -1)
