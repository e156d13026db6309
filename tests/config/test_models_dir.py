import errno
import os
from pathlib import Path

import pytest

from cotenant.config.model_file_cache import Library
from cotenant.config.models_dir import Catalogue, read_folder
from cotenant.config.names import clean_name
from tests.support.models.gguf_models import llama_3b_tied, llama_70b, projector
from tests.support.models.sparse import part_path


def names(catalogue: Catalogue) -> list[str]:
    return [found.model.path.name for found in catalogue.found]


def told(catalogue: Catalogue) -> dict[str, str]:
    return {problem.path.name: problem.text for problem in catalogue.problems}


@pytest.fixture
def models(folder: Path) -> Path:
    return folder / "models"


def test_models_are_found_in_the_folder_and_some_levels_down(models: Path, tiny: Path) -> None:
    for inner in ("b", "a", "a/2", "a/2/3", "a/2/3/4", "a/2/3/4/5", ".hidden"):
        (models / inner).mkdir()
        (models / inner / "x.gguf").hardlink_to(tiny)
    (models / "a" / "loop").symlink_to(models)
    (models / "notes.txt").touch()
    (models / ".partial.gguf").touch()
    found = [str(each.model.path.relative_to(models)) for each in read_folder(models, Library()).found]
    assert found == ["tiny.gguf", "a/x.gguf", "b/x.gguf", "a/2/x.gguf", "a/2/3/x.gguf", "a/2/3/4/x.gguf"]


@pytest.mark.parametrize("inner", ["", "publisher/repository"])
def test_an_empty_folder_where_models_were_is_no_reading_as_of_a_disk_that_is_away(
    models: Path, tiny: Path, inner: str
) -> None:
    """A mount point without its mount is another folder, and empty."""
    library, place = Library(), models / inner
    place.mkdir(parents=True, exist_ok=True)
    (place / "x.gguf").hardlink_to(tiny)
    before = read_folder(models, library)
    mount = models / inner.partition("/")[0]
    away = mount.rename(models.parent / "away")
    mount.mkdir()
    for _ in range(2):
        with pytest.raises(OSError, match=f"an empty folder is where {mount} was"):
            read_folder(models, library)
    mount.rmdir()
    away.rename(mount)
    assert read_folder(models, library) == before
    # Files that are deleted are gone.
    (place / "x.gguf").unlink()
    assert "x.gguf" not in names(read_folder(models, library))
    assert "x.gguf" not in names(read_folder(models, library))


def test_another_folder_with_models_takes_the_place_of_one(models: Path, tiny: Path) -> None:
    library = Library()
    read_folder(models, library)
    models.rename(models.parent / "away")
    models.mkdir()
    (models / "other.gguf").hardlink_to(models.parent / "away" / "tiny.gguf")
    assert names(read_folder(models, library)) == ["other.gguf"]


def test_folders_as_lm_studio_and_the_hub_lay_them_out_and_capitals(models: Path, tiny: Path) -> None:
    (models / "publisher" / "repository").mkdir(parents=True)
    (models / "publisher" / "repository" / "MODEL.GGUF").hardlink_to(tiny)
    hub = models / "hub" / "models--org--name"
    (hub / "blobs").mkdir(parents=True)
    (hub / "blobs" / "0a").hardlink_to(tiny)
    for revision in ("one", "two"):
        (hub / "snapshots" / revision).mkdir(parents=True)
        (hub / "snapshots" / revision / "hub.gguf").symlink_to(hub / "blobs" / "0a")
    catalogue = read_folder(models, Library())
    assert names(catalogue) == ["tiny.gguf", "MODEL.GGUF", "hub.gguf"]
    assert clean_name(catalogue.found[1].model.path) == "MODEL"


def test_where_nothing_is_found_and_where_too_much_is_it_is_told(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert told(read_folder(empty, Library())) == {
        "empty": "no GGUF file is in it, nor up to 4 folders below it"
    }
    monkeypatch.setattr("cotenant.config.models_dir._MOST_FOLDERS", 2)
    for name in ("a", "b"):
        (models / name).mkdir()
    assert "over 2 folders" in told(read_folder(models, Library()))["models"]


def test_models_too_far_down_and_folders_that_cannot_be_read_are_told(
    models: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for inner, name in (("a/2/3/4/5", "far.GGUF"), ("b/2/3/4/5", "notes.txt"), ("c", "closed.gguf")):
        (models / inner).mkdir(parents=True)
        (models / inner / name).hardlink_to(tiny)
    listdir = os.listdir

    def refuse(path: str) -> list[str]:
        if path.endswith("/c"):  # root may read everything
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return listdir(path)

    monkeypatch.setattr("os.listdir", refuse)
    catalogue = read_folder(models, Library())
    assert names(catalogue) == ["tiny.gguf"]
    assert told(catalogue) == {
        "5": "it is more than 4 folders down: the models in it are not served",
        "c": "cannot be read: Permission denied",
    }
    assert not read_folder(models, Library(), depth=0).problems


def test_a_split_model_is_one_and_a_missing_part_is_told(models: Path) -> None:
    first = llama_70b(models / "big.gguf", parts=3)
    catalogue = read_folder(models, Library())
    assert names(catalogue) == [first.name, "tiny.gguf"]
    assert len(catalogue.found[0].model.parts) == 3
    part_path(models / "big.gguf", 2, 3).unlink()
    catalogue = read_folder(models, Library())
    assert names(catalogue) == ["tiny.gguf"]
    assert "big-00002-of-00003.gguf is missing" in told(catalogue)[first.name]
    first.unlink()
    assert "is part 3 of 3" in told(read_folder(models, Library()))["big-00003-of-00003.gguf"]


def test_what_is_no_model_is_told_and_stops_nothing(models: Path) -> None:
    (models / "cut.gguf").write_bytes(b"GGUF\x03\0\0\0")
    (models / "page.gguf").write_text("<html>")
    (models / "gone.gguf").symlink_to(models / "nothing")
    (models / "folder.gguf").mkdir()
    os.mkfifo(models / "pipe.gguf")
    catalogue = read_folder(models, Library())
    assert names(catalogue) == ["tiny.gguf"]
    assert set(told(catalogue)) == {"cut.gguf", "page.gguf", "gone.gguf", "folder.gguf", "pipe.gguf"}


def test_a_file_still_being_written_waits(models: Path, tiny: Path) -> None:
    (models / "fetched.gguf").hardlink_to(tiny)
    (models / "fetched.gguf.aria2").touch()
    catalogue = read_folder(models, Library(), {models / "tiny.gguf"})
    assert names(catalogue) == []
    assert set(told(catalogue).values()) == {"is still being written"}


def test_a_served_file_that_is_written_again_stays_what_it_was_until_it_is_complete(models: Path) -> None:
    library, path = Library(), models / "tiny.gguf"
    (before,) = read_folder(models, library).found
    path.unlink()
    path.write_bytes(b"GGUF")
    assert read_folder(models, library, {path}).found == (before,)
    (models / "tiny.gguf.aria2").touch()
    assert read_folder(models, library).found == (before,)
    (models / "tiny.gguf.aria2").unlink()
    assert read_folder(models, library).found == ()


def test_a_file_is_read_again_only_when_it_changed(models: Path) -> None:
    library = Library()
    path = models / "tiny.gguf"
    once = library.open(path)
    assert library.open(path) is once
    os.utime(path, ns=(1, 1))
    assert library.open(path) is not once


@pytest.mark.parametrize(
    ("projectors", "paired"),
    [
        (["mmproj-Qwen-VL-7B-F16.gguf"], {"Qwen-VL-7B-Q4_K_M.gguf": "mmproj-Qwen-VL-7B-F16.gguf"}),
        (["Qwen-VL-7B.mmproj-Q8_0.gguf"], {"Qwen-VL-7B-Q4_K_M.gguf": "Qwen-VL-7B.mmproj-Q8_0.gguf"}),
        (["mmproj-BF16.gguf", "mmproj-F32.gguf"], {}),
        (["mmproj-Gemma-F16.gguf"], {}),
        (
            ["mmproj-Qwen-F16.gguf", "mmproj-Qwen-VL-f16.gguf", "mmproj-Qwen-VL-f32.gguf"],
            {"Qwen-VL-7B-Q4_K_M.gguf": "mmproj-Qwen-VL-f16.gguf"},
        ),
    ],
)
def test_a_projector_goes_with_the_model_that_it_is_named_for(
    models: Path, projectors: list[str], paired: dict[str, str]
) -> None:
    llama_3b_tied(models / "Qwen-VL-7B-Q4_K_M.gguf")
    for name in projectors:
        projector(models / name)
    catalogue = read_folder(models, Library())
    found = {each.model.path.name: each.projector.path.name for each in catalogue.found if each.projector}
    assert found == paired
    assert bool(told(catalogue)) is (not paired or len(projectors) == 3)


def test_a_projector_without_a_name_goes_with_all_makings_of_one_model(models: Path, tiny: Path) -> None:
    (models / "tiny-Q8_0.gguf").hardlink_to(tiny)
    projector(models / "mmproj-F16.gguf")
    projector(models / "mmproj-BF16.gguf")
    catalogue = read_folder(models, Library())
    assert [each.projector and each.projector.path.name for each in catalogue.found] == [
        "mmproj-F16.gguf"
    ] * 2
    assert not catalogue.problems


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("Llama-3.2-3B-Instruct-Q4_K_M.gguf", "Llama-3.2-3B-Instruct-Q4_K_M"),
        ("big-00001-of-00003.gguf", "big"),
        ("my model (v2).gguf", "my-model-v2"),
        ("../x;rm -rf.gguf", "x-rm--rf"),
        ("模型.gguf", "model"),
    ],
)
def test_names_are_those_of_the_files_without_odd_characters(file: str, name: str) -> None:
    assert clean_name(Path(file)) == name


def test_a_later_part_without_the_first_is_not_served_and_the_missing_one_named(
    models: Path, tiny: Path
) -> None:
    (models / "big-00002-of-00002.gguf").hardlink_to(tiny)
    catalogue = read_folder(models, Library())
    assert [each.model.path.name for each in catalogue.found] == ["tiny.gguf"]
    assert "needs big-00001-of-00002.gguf" in told(catalogue)["big-00002-of-00002.gguf"]
