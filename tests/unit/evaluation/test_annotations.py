import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixture_data import FOLDER, cifar, needs_fixtures
from pathlens.classifier.images import ImageSource
from pathlens.errors import ImagesError
from pathlens.evaluation.annotations import Annotation, read_annotations, read_folder_labels, read_npz_labels

LABELS = ("cat", "dog", "crane", "crane", "a, b")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "labels.csv"


def read(file: Path, text: str) -> dict[str, Annotation]:
    file.write_text(text, encoding="utf-8")
    return read_annotations(file, LABELS)


class TestFile:
    def test_gives_labels_and_boxes_by_image(self, file: Path) -> None:
        annotations = read(file, 'file,label,boxes_xyxy\na.jpg,1,"[[0, 1.5, 2, 3], [4, 4, 5, 5]]"\nb/c.png,0,[]\n')
        assert annotations == {
            "a.jpg": Annotation(1, ((0, 1.5, 2, 3), (4, 4, 5, 5))),
            "b/c.png": Annotation(0, ()),
        }

    def test_may_name_a_class_by_its_text(self, file: Path) -> None:
        annotations = read(file, 'label,file\ndog,a.jpg\n"a, b",b.jpg\n 2 ,c.jpg\n')
        assert [annotation.label for annotation in annotations.values()] == [1, 4, 2]

    def test_means_the_text_where_a_label_is_a_number(self, file: Path) -> None:
        file.write_text("file,label\na.jpg,1\nb.jpg,2\n")
        annotations = read_annotations(file, ("3", "2", "1"))
        assert [annotation.label for annotation in annotations.values()] == [2, 1]

    def test_tells_nothing_where_a_cell_is_empty(self, file: Path) -> None:
        assert read(file, "file,label,boxes\na.jpg,,\n") == {"a.jpg": Annotation(None, ())}

    @pytest.mark.parametrize("column", ["label", "boxes"])
    def test_may_lack_labels_or_boxes(self, file: Path, column: str) -> None:
        assert read(file, f"file,{column}\na.jpg,\n") == {"a.jpg": Annotation()}

    def test_may_hold_other_columns_blank_lines_and_any_line_ends(self, file: Path) -> None:
        assert read(file, "file,name,label\r\n\r\na.jpg,Tübingen,1\r\n\n") == {"a.jpg": Annotation(1)}

    def test_may_start_with_a_byte_order_mark(self, file: Path) -> None:
        file.write_bytes("file,label\nä.jpg,1\n".encode("utf-8-sig"))
        assert read_annotations(file, LABELS) == {"ä.jpg": Annotation(1)}

    @pytest.mark.parametrize(
        ("text", "line", "message"),
        [
            ("", 0, r"the columns are \[\]; expected file, and label or boxes or both"),
            ("name,label\na.jpg,1\n", 1, r"the columns are \['name', 'label'\]; expected file"),
            ("file,class\na.jpg,1\n", 1, r"the columns are \['file', 'class'\]; expected file, and label"),
            ("file,boxes,boxes2\n", 1, r"the columns \['boxes', 'boxes2'\] are all of boxes; leave one"),
            ("file,label,file\n", 1, r"the columns \['file', 'file'\] are all of file; leave one"),
            ("file,label\na.jpg,5\n", 2, r"the label '5' is no class; give a label .* 'cat', or an index from 0 to 4"),
            ("file,label\na.jpg,-1\n", 2, "the label '-1' is no class"),
            ("file,label\na.jpg,1.0\n", 2, "the label '1.0' is no class"),
            ("file,label\na.jpg,¹\n", 2, "the label '¹' is no class"),
            ("file,label\na.jpg," + "9" * 5000 + "\n", 2, "the label '9{70,90} is no class"),
            ("file,label\na.jpg,1\nb.jpg,horse\n", 3, "the label 'horse' is no class"),
            (
                "file,label\na.jpg,crane\n",
                2,
                r"the label 'crane' is that of the classes \[2, 3\]; give the index of one",
            ),
            ("file,label\na.jpg,1\n\na.jpg,1\n", 4, "'a.jpg' is described a second time; leave one line"),
            ("file,label\n,1\n", 2, "'' is no file; give the path"),
            ("file,label\na.jpg\n", 2, "1 values for 2 columns; put values that hold commas in quotes"),
            ("file,boxes\na.jpg,[[1, 2, 3, 4]]\n", 2, "5 values for 2 columns; put values"),
            ('file,label\na.jpg,"1"2\n', 2, "not CSV .*; put values that hold commas or quotes in quotes"),
            ('file,label\na.jpg,"1\n', 2, "not CSV"),
        ],
    )
    def test_that_is_malformed_is_refused_with_line_value_and_remedy(
        self, file: Path, text: str, line: int, message: str
    ) -> None:
        with pytest.raises(ImagesError, match=rf"labels\.csv, line {line}: {message}"):
            read(file, text)

    @pytest.mark.parametrize(
        "boxes",
        [
            *("[[1, 2, 3]]", "[[1, 2, 3, 4, 5]]", "[1, 2, 3, 4]", "{}", "null", "[[", "1 2 3 4"),
            *("[[1, 2, 3, NaN]]", "[[1, 2, 3, 1e999]]", "[[1, 2, 3, true]]", '[[1, 2, 3, "4"]]', "[" * 100_000),
        ],
    )
    def test_with_boxes_that_are_none_is_refused(self, file: Path, boxes: str) -> None:
        quoted = boxes.replace('"', '""')
        with pytest.raises(ImagesError, match=r"line 2: the boxes .* are no JSON list of \[left, top, right, bottom\]"):
            read(file, f'file,boxes\na.jpg,"{quoted}"\n')

    @pytest.mark.parametrize("box", ["[3, 0, 3, 1]", "[4, 0, 3, 1]", "[0, 2, 1, 2]", "[0, 2, 1, 1]"])
    def test_with_an_empty_box_is_refused(self, file: Path, box: str) -> None:
        with pytest.raises(ImagesError, match=r"line 2: the box \[.*\] is empty; give left < right and top < bottom"):
            read(file, f'file,boxes\na.jpg,"[[0, 0, 1, 1], {box}]"\n')

    def test_that_is_not_utf8_is_refused(self, file: Path) -> None:
        file.write_bytes(b"file,label\na.jpg,1\n\xe4.jpg,1\n")
        with pytest.raises(ImagesError, match="line 3: the byte 0xE4 is not UTF-8; save the file as UTF-8"):
            read_annotations(file, LABELS)

    def test_that_is_not_there_is_refused(self, file: Path) -> None:
        with pytest.raises(ImagesError, match=r"labels\.csv cannot be read"):
            read_annotations(file, LABELS)

    @given(st.binary(max_size=60))
    @settings(max_examples=50)
    def test_of_any_content_is_read_or_refused(self, tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
        file = tmp_path_factory.getbasetemp() / "any.csv"
        file.write_bytes(b"file,label,boxes\n" + content)
        with suppress(ImagesError):
            assert "" not in read_annotations(file, LABELS)

    @needs_fixtures
    def test_of_real_images_names_each_of_them(self) -> None:
        folder = FOLDER / "imagenet_val"
        labels = tuple(f"class {number}" for number in range(1000))
        annotations, source = read_annotations(folder / "labels.csv", labels), ImageSource(folder)
        assert annotations.keys() == {source.name(position) for position in range(len(source))}
        assert all(annotation.label is not None and annotation.boxes for annotation in annotations.values())


class TestNpz:
    def write(self, folder: Path, **arrays: Any) -> Path:
        np.savez(folder / "images.npz", **{"images": np.zeros((3, 4, 4, 3), dtype=np.uint8)} | arrays)
        return folder / "images.npz"

    def test_gives_labels_under_the_names_of_the_source(self, tmp_path: Path) -> None:
        path = self.write(tmp_path, labels=np.array([2, 0, 4], dtype=np.uint8))
        annotations, source = read_npz_labels(path, LABELS), ImageSource(path)
        assert annotations is not None
        assert [annotations[source.name(position)] for position in range(3)] == [
            Annotation(2),
            Annotation(0),
            Annotation(4),
        ]

    def test_without_labels_gives_none(self, tmp_path: Path) -> None:
        assert read_npz_labels(self.write(tmp_path), LABELS) is None

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            (np.zeros(3), r"labels in .* is float64 \[3\]; expected an integer for each of 3 images"),
            (np.zeros(2, dtype=np.int64), r"int64 \[2\]; expected an integer for each of 3 images"),
            (np.zeros((3, 1), dtype=np.int64), r"int64 \[3, 1\]; expected"),
            (np.array([0, 5, 1]), r"labels\[1\] in .* is 5; give a class index from 0 to 4"),
            (np.array([0, 1, -1]), r"labels\[2\] in .* is -1; give a class index from 0 to 4"),
            (np.array(["a", "b", "c"]), "expected an integer for each"),
            (np.array([None, 1, 2], dtype=object), "is not an NPZ file with images and labels"),
        ],
    )
    def test_with_labels_that_are_none_is_refused(self, tmp_path: Path, labels: Any, message: str) -> None:
        path = self.write(tmp_path, labels=labels)
        with pytest.raises(ImagesError, match=message):
            read_npz_labels(path, LABELS)

    @pytest.mark.parametrize("content", [b"", b"PK\x03\x04", json.dumps({}).encode()])
    def test_that_is_damaged_is_refused(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "images.npz"
        path.write_bytes(content)
        with pytest.raises(ImagesError, match=r"images\.npz is not an NPZ file"):
            read_npz_labels(path, LABELS)

    @needs_fixtures
    def test_of_real_images_gives_their_labels(self) -> None:
        annotations = read_npz_labels(FOLDER / "cifar10_test_jpegged.npz", [str(number) for number in range(10)])
        assert annotations is not None
        assert [annotation.label for annotation in annotations.values()] == cifar()[1].tolist()


@pytest.fixture
def class_folders(tmp_path: Path) -> ImageSource:
    for name in ("cat/1.png", "cat/2.png", "dog/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return ImageSource(tmp_path)


def test_class_folders_label_their_images(class_folders: ImageSource) -> None:
    assert read_folder_labels(class_folders, ("cow", "dog", "cat")) == {
        "cat/1.png": Annotation(2),
        "cat/2.png": Annotation(2),
        "dog/1.png": Annotation(1),
    }


@pytest.mark.parametrize("labels", [("cat", "cow"), ("cat", "dog", "dog")])
def test_folders_that_are_not_one_class_each_label_nothing(class_folders: ImageSource, labels: tuple[str, ...]) -> None:
    assert read_folder_labels(class_folders, labels) == {}
