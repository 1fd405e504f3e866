import gc
import io
import multiprocessing
import resource
import tempfile
import tracemalloc
import zipfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image

from pathlens.classifier.images import ImageSource
from pathlens.errors import ImagesError, InvalidRequestError


def pixels(number: int, side: int = 6) -> NDArray[np.uint8]:
    return np.full((side, side, 3), number, dtype=np.uint8)


def write(path: Path, number: int, kind: str = "PNG") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(number)).save(path, format=kind)


def npz(path: Path, **arrays: NDArray[np.generic]) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


class TestFolders:
    def test_are_read_in_the_order_of_their_names(self, tmp_path: Path) -> None:
        for name, number in {"c.png": 3, "a.png": 1, "b.png": 2}.items():
            write(tmp_path / name, number)
        read = list(ImageSource(tmp_path))
        assert [(position, int(image[0, 0, 0])) for position, image in read] == [(0, 1), (1, 2), (2, 3)]

    def test_have_no_classes_when_flat(self, tmp_path: Path) -> None:
        write(tmp_path / "a.png", 1)
        assert ImageSource(tmp_path).class_names == ()

    def test_name_their_class_folders_in_alphabetical_order(self, tmp_path: Path) -> None:
        for name in ("zebra/1.png", "ant/2.png", "ant/1.png"):
            write(tmp_path / name, 5)
        source = ImageSource(tmp_path)
        assert source.class_names == ("ant", "zebra")
        assert len(source) == 3

    @pytest.mark.parametrize(
        ("name", "kind"), [("a.jpg", "JPEG"), ("a.JPEG", "JPEG"), ("a.PNG", "PNG"), ("a.webp", "WEBP")]
    )
    def test_may_hold_every_format(self, name: str, kind: str, tmp_path: Path) -> None:
        write(tmp_path / name, 200, kind)
        ((_, image),) = list(ImageSource(tmp_path))
        assert image.shape == (6, 6, 3)

    def test_may_hold_other_files(self, tmp_path: Path) -> None:
        write(tmp_path / "a.png", 1)
        (tmp_path / "notes.txt").write_text("not an image")
        assert len(ImageSource(tmp_path)) == 1

    @pytest.mark.parametrize("files", [[], ["notes.txt"]])
    def test_without_images_are_refused(self, files: list[str], tmp_path: Path) -> None:
        for name in files:
            (tmp_path / name).touch()
        with pytest.raises(ImagesError, match=r"holds no images; expected files ending in \.jpeg"):
            ImageSource(tmp_path)


class TestNpz:
    def test_gives_colour_images_as_they_are(self, tmp_path: Path) -> None:
        images = np.random.default_rng(0).integers(0, 256, (4, 5, 7, 3), dtype=np.uint8)
        read = list(ImageSource(npz(tmp_path / "a.npz", images=images)))
        assert [position for position, _ in read] == [0, 1, 2, 3]
        assert all(np.array_equal(image, images[position]) for position, image in read)

    def test_gives_grey_images_three_equal_channels(self, tmp_path: Path) -> None:
        images = np.random.default_rng(0).integers(0, 256, (2, 5, 7), dtype=np.uint8)
        for position, image in ImageSource(npz(tmp_path / "a.npz", images=images)):
            assert np.array_equal(image, np.stack([images[position]] * 3, axis=2))

    @pytest.mark.parametrize(
        "images", [np.zeros((2, 4, 4, 3), np.float32), np.zeros((4, 4), np.uint8), np.zeros((1, 1, 1, 1, 1), np.uint8)]
    )
    def test_of_another_type_or_shape_is_refused_naming_both(self, images: NDArray[np.generic], tmp_path: Path) -> None:
        with pytest.raises(ImagesError, match=rf"{images.dtype}.*expected uint8 \[N, H, W, 3\]"):
            ImageSource(npz(tmp_path / "a.npz", images=images))

    def test_without_the_array_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ImagesError, match="an array named images"):
            ImageSource(npz(tmp_path / "a.npz", pictures=np.zeros((2, 4, 4), np.uint8)))

    def test_with_pickled_objects_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "a.npz"
        np.savez(path, images=np.array([{}], dtype=object))
        with pytest.raises(ImagesError, match=r"a\.npz"):
            ImageSource(path)

    def test_without_images_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ImagesError, match="holds no images"):
            ImageSource(npz(tmp_path / "a.npz", images=np.zeros((0, 4, 4, 3), np.uint8)))

    @pytest.mark.parametrize("kind", ["empty", "text", "npy", "cut", "scrambled"])
    def test_that_is_none_is_refused(self, kind: str, tmp_path: Path) -> None:
        buffer, array = io.BytesIO(), np.random.default_rng(0).integers(0, 256, (9, 9, 9, 3), dtype=np.uint8)
        np.savez_compressed(buffer, images=array)
        whole, single = buffer.getvalue(), io.BytesIO()
        np.save(single, array)
        scrambled = whole[:200] + bytes(200) + whole[400:]
        contents = {
            "empty": b"",
            "text": b"images",
            "npy": single.getvalue(),
            "cut": whole[:900],
            "scrambled": scrambled,
        }
        (tmp_path / "a.npz").write_bytes(contents[kind])
        with pytest.raises(ImagesError, match=r"a\.npz is neither a folder nor an NPZ"):
            ImageSource(tmp_path / "a.npz")

    def test_that_is_missing_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ImagesError, match="missing"):
            ImageSource(tmp_path / "missing.npz")


SAVE: dict[str, Callable[..., None]] = {"stored": np.savez, "compressed": np.savez_compressed}

stored_or_compressed = pytest.mark.parametrize("kind", SAVE)


def open_files() -> int:
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


class TestMappedNpz:
    @stored_or_compressed
    @settings(max_examples=30)
    @given(
        images=arrays(
            np.uint8,
            st.tuples(*[st.integers(1, 5)] * 3, st.just(3)) | st.tuples(*[st.integers(1, 5)] * 3),
        ),
        fortran_order=st.booleans(),
        others=st.integers(0, 5000),
    )
    def test_gives_the_pixels_that_numpy_loads(
        self, kind: str, images: NDArray[np.uint8], fortran_order: bool, others: int
    ) -> None:
        if fortran_order:
            images = np.asfortranarray(images)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "a.npz"
            # Another array before the images moves where they begin.
            SAVE[kind](path, before=np.ones(others, np.uint8), images=images)
            with np.load(path) as file:
                expected = file["images"]
            source = ImageSource(path)
            for position in reversed(range(len(images))):
                image = source.read(position)
                assert np.array_equal(image if images.ndim == 4 else image[:, :, 1], expected[position])
                assert image.flags.writeable
                assert image.flags.c_contiguous

    @stored_or_compressed
    def test_is_never_in_memory_as_a_whole(self, kind: str, tmp_path: Path) -> None:
        images = np.zeros((400, 256, 256), dtype=np.uint8)
        SAVE[kind](tmp_path / "a.npz", images=images)
        tracemalloc.start()
        try:
            source = ImageSource(tmp_path / "a.npz")
            read = [position for position, _ in source]
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert len(read) == 400
        assert peak < images.nbytes / 4

    @stored_or_compressed
    def test_leaves_no_file_open(self, kind: str, tmp_path: Path) -> None:
        SAVE[kind](tmp_path / "a.npz", images=np.zeros((2, 4, 4), np.uint8))
        before = open_files()
        source = ImageSource(tmp_path / "a.npz")
        assert len(list(source)) == 2
        del source
        assert open_files() == before

    @stored_or_compressed
    def test_is_read_by_processes_that_start_with_it(self, kind: str, tmp_path: Path) -> None:
        images = np.random.default_rng(0).integers(0, 256, (4, 5, 7, 3), dtype=np.uint8)
        SAVE[kind](tmp_path / "a.npz", images=images)
        source = ImageSource(tmp_path / "a.npz")
        np.savez(tmp_path / "b.npz", images=np.zeros((1, 4, 4), np.uint8))
        (tmp_path / "b.npz").replace(tmp_path / "a.npz")
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as processes:
            read = list(processes.map(source.read, range(4)))
        assert np.array_equal(np.stack(read), images)

    @stored_or_compressed
    def test_may_be_replaced_while_it_is_in_use(self, kind: str, tmp_path: Path) -> None:
        SAVE[kind](tmp_path / "a.npz", images=np.full((2, 4, 4), 7, np.uint8))
        source = ImageSource(tmp_path / "a.npz")
        np.savez(tmp_path / "b.npz", images=np.zeros((1, 4, 4), np.uint8))
        (tmp_path / "b.npz").replace(tmp_path / "a.npz")
        assert [int(image.min()) for _, image in source] == [7, 7]

    @stored_or_compressed
    def test_with_a_changed_byte_is_refused(self, kind: str, tmp_path: Path) -> None:
        images = np.random.default_rng(0).integers(0, 256, (9, 9, 9, 3), dtype=np.uint8)
        SAVE[kind](tmp_path / "a.npz", images=images)
        contents = bytearray((tmp_path / "a.npz").read_bytes())
        contents[1000] ^= 1
        (tmp_path / "a.npz").write_bytes(contents)
        with pytest.raises(ImagesError, match=r"a\.npz is neither a folder nor an NPZ"):
            ImageSource(tmp_path / "a.npz")

    @pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    @pytest.mark.parametrize(
        "shape", [(3, 4, 4), (-2, 4, 4), (-2, -1, 4), (10**30, 4, 4), (0, 10**30, 4), (2**62, 2, 2)]
    )
    def test_with_a_shape_of_more_elements_than_it_has_is_refused(
        self, shape: tuple[int, ...], compression: int, tmp_path: Path
    ) -> None:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
        with zipfile.ZipFile(tmp_path / "a.npz", "w", compression) as archive:
            archive.writestr("images.npy", header.getvalue() + bytes(47))
            archive.writestr("more.npy", bytes(1000))
        with pytest.raises(ImagesError, match=r"a\.npz"):
            ImageSource(tmp_path / "a.npz")

    @pytest.mark.parametrize("room", [0, 500_000, 1_000_100])
    def test_that_does_not_fit_unpacked_is_refused_with_the_remedy(self, room: int, tmp_path: Path) -> None:
        np.savez_compressed(tmp_path / "a.npz", images=np.zeros((100, 100, 100), np.uint8))
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
        try:
            with pytest.raises(ImagesError, match=r"no room to unpack it.*TMPDIR to a folder with 1000128 bytes free"):
                ImageSource(tmp_path / "a.npz")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)


class TestUnreadableImages:
    def test_are_left_out_and_named(self, tmp_path: Path) -> None:
        write(tmp_path / "a.png", 1)
        (tmp_path / "b.png").write_bytes(b"not a PNG")
        write(tmp_path / "c.png", 3)
        (tmp_path / "d.png").mkdir()
        source = ImageSource(tmp_path)
        assert [position for position, _ in source] == [0, 2]
        assert [line.split(": ")[0] for line in source.skipped] == [str(tmp_path / "b.png"), str(tmp_path / "d.png")]

    def test_of_an_npz_are_named_by_their_position(self, tmp_path: Path) -> None:
        source = ImageSource(npz(tmp_path / "a.npz", images=np.zeros((2, 4, 4, 7), np.uint8)))
        assert list(source) == []
        assert [line.split(":")[0] for line in source.skipped] == ["images[0]", "images[1]"]

    def test_are_named_once_however_often_they_are_asked_for(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_bytes(b"")
        source = ImageSource(tmp_path)
        for _ in range(3):
            assert list(source.select([0])) == []
        assert len(source.skipped) == 1

    def test_noted_by_another_reader_are_named_as_one_read_here(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_bytes(b"")
        read_here, read_elsewhere = ImageSource(tmp_path), ImageSource(tmp_path)
        assert list(read_here) == []
        with pytest.raises(InvalidRequestError) as error:
            read_elsewhere.read(0)
        assert read_elsewhere.skipped == []
        read_elsewhere.reasons[0] = str(error.value)
        assert read_elsewhere.skipped == read_here.skipped
