from pathlib import Path

import pytest

from cotenant.config.delete_model import plan_removal
from cotenant.domain.errors import UsageError
from tests.config.conftest import Reader
from tests.support.models.gguf_models import llama_70b, projector

FOLDER = "models_dir: models"


def test_all_parts_and_the_models_own_projector_go(read: Reader, folder: Path) -> None:
    llama_70b(folder / "models" / "big.gguf", parts=2)
    projector(folder / "models" / "mmproj-big-F16.gguf")
    removal = plan_removal(read(FOLDER), "big")
    assert [path.name for path in removal.files] == [
        "big-00001-of-00002.gguf",
        "big-00002-of-00002.gguf",
        "mmproj-big-F16.gguf",
    ]
    assert removal.frees_bytes == sum(path.stat().st_size for path in removal.files)
    removal.carry_out()
    assert [path.name for path in (folder / "models").iterdir()] == ["tiny.gguf"]


def test_a_projector_that_another_model_uses_stays(read: Reader, folder: Path, tiny: Path) -> None:
    (folder / "models" / "tiny-2.gguf").hardlink_to(tiny)
    projector(folder / "models" / "mmproj-F16.gguf")
    assert [path.name for path in plan_removal(read(FOLDER), "tiny").files] == ["tiny.gguf"]


def test_a_link_goes_and_its_target_stays(read: Reader, folder: Path, tiny: Path) -> None:
    (folder / "models" / "link.gguf").symlink_to(tiny)
    removal = plan_removal(read(FOLDER), "link")
    assert removal.frees_bytes == 0
    removal.carry_out()
    assert not (folder / "models" / "link.gguf").is_symlink()
    assert tiny.exists()


def test_a_file_in_a_linked_folder_outside_is_refused(read: Reader, folder: Path, tiny: Path) -> None:
    (folder / "outside").mkdir()
    (folder / "outside" / "far.gguf").hardlink_to(tiny)
    (folder / "models" / "sub").symlink_to(folder / "outside")
    with pytest.raises(UsageError, match="outside of models_dir"):
        plan_removal(read(FOLDER), "far")


@pytest.mark.parametrize(
    "text", ["models: [{path: models/tiny.gguf}]", FOLDER + "\nmodels: [{path: models/tiny.gguf}]"]
)
def test_a_model_with_an_entry_of_its_own_is_refused(read: Reader, text: str) -> None:
    with pytest.raises(UsageError, match="has an entry in"):
        plan_removal(read(text), "tiny")


def test_an_unknown_name_is_refused_with_the_nearest(read: Reader) -> None:
    with pytest.raises(UsageError, match="no model is called 'tinny'") as caught:
        plan_removal(read(FOLDER), "tinny")
    assert caught.value.hint == "Did you mean tiny?"
