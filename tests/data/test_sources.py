"""Names and folders become datasets."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from benchmark.cli import app
from benchmark.commands_data import data_states
from benchmark.data import SOURCES, open_dataset, prepared_folders, source_for
from benchmark.data.base import SPLITS
from benchmark.data.splits import choose_split, split_names
from benchmark.doctor import examine
from results.errors import UserError
from tests.data.made_data import quiet


@pytest.mark.parametrize("name", SOURCES)
def test_every_card_is_filled_in(name):
    card = SOURCES[name].card
    assert card.name == name
    assert set(card.geometry) == {"full", "reduced", "tiny"}
    assert all([card.title, card.reference, card.licence, card.modality, card.structure])
    assert all(note.endswith(".") for note in card.all_notes)


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize(("size", "multiple"), [("full", 16), ("reduced", 8), ("tiny", 4)])
def test_patches_suit_the_networks_of_each_size(name, size, multiple):
    geometry = SOURCES[name].card.geometry[size]
    assert all(side % multiple == 0 for side in geometry.patch)
    assert all(0 < s <= p for s, p in zip(geometry.stride, geometry.patch, strict=True))
    assert 0 < geometry.scale <= 1


def test_the_published_sizes_are_those_of_the_papers():
    full = {name: SOURCES[name].card.geometry["full"] for name in ("la", "pancreas", "brats2019")}
    assert full["la"].patch == (112, 112, 80)
    assert full["la"].stride == (18, 18, 4)
    assert full["pancreas"].patch == full["brats2019"].patch == (96, 96, 96)


def test_an_unknown_name_gets_a_suggestion_and_all_that_is_known(tmp_path):
    expected = (
        "unknown dataset 'phantm'. Did you mean 'phantom'? Known: brats2019, la, pancreas, "
        "phantom; or a folder in the Medical Segmentation Decathlon layout"
    )
    for call in (lambda: source_for("phantm"), lambda: open_dataset("phantm", tmp_path)):
        with pytest.raises(UserError) as error:
            call()
        assert str(error.value) == expected


def test_prepared_folders_are_known_names_too(blobs, tmp_path):
    root = tmp_path / "root"
    assert prepared_folders(root) == []
    source_for(str(blobs)).prepare(blobs, root, quiet)
    assert prepared_folders(root) == ["task99-blobs"]
    with pytest.raises(UserError, match=r"Did you mean 'task99-blobs'\?"):
        open_dataset("task99-blob", root)


def test_a_folder_may_not_take_a_known_name(blobs):
    taken = blobs.rename(blobs.parent / "LA")
    with pytest.raises(UserError, match=r"name of the dataset 'la'\. Rename it"):
        source_for(str(taken))


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere is not in the .* layout: it has no dataset.json"):
        open_dataset(str(tmp_path / "nowhere"), tmp_path)


@pytest.mark.parametrize(
    ("name", "origin"),
    [
        ("la", "cardiacatlas.org"),
        ("pancreas", "Cancer Imaging Archive"),
        ("brats2019", "BraTS organisers"),
    ],
)
def test_datasets_that_are_not_prepared_say_what_to_get_and_what_to_run(name, origin, tmp_path):
    for call in (
        lambda: open_dataset(name, tmp_path),
        lambda: SOURCES[name].prepare(tmp_path, tmp_path, quiet),
    ):
        with pytest.raises(UserError, match=rf"{origin}.*bench data prepare {name} --source DIR"):
            call()


@pytest.mark.parametrize("name", [name for name in SOURCES if name != "phantom"])
def test_the_counts_on_a_card_are_those_of_its_split(name):
    lists = choose_split(name).lists
    assert SOURCES[name].card.counts == tuple(len(lists[split]) for split in SPLITS)


def test_the_counts_of_the_embedded_dataset_are_on_its_card(tmp_path):
    dataset = open_dataset("phantom", tmp_path)
    assert dataset.card.counts == tuple(len(dataset.splits[split]) for split in SPLITS)


@pytest.mark.parametrize("name", SOURCES)
def test_the_list_shows_the_whole_card_of_datasets_that_are_not_there_yet(name, tmp_path):
    result = CliRunner(env={"COLUMNS": "1000"}).invoke(
        app, ["data", "list", "--data", str(tmp_path)]
    )
    assert result.exit_code == 0
    card = SOURCES[name].card
    said = [card.source, card.licence, card.size, card.how_to_get, card.reference, *card.all_notes]
    assert all(text in result.output for text in said)
    assert all(f"{split}" in result.output for split in split_names(name))
    assert "/".join(map(str, card.counts)) in result.output


def test_the_list_says_what_is_damaged(la_source, tmp_path):
    root = tmp_path / "root"
    SOURCES["la"].prepare(la_source, root, quiet)
    (root / "la" / "manifest.json").write_text("{")
    (la,) = [state for state in data_states(root) if state.name == "la"]
    assert la.cells[1] == "damaged"
    assert "manifest.json is damaged" in la.advice
    found = {finding.subject: finding for finding in examine(tmp_path / "runs", root)}
    assert found["data la"].state == "bad"
    assert found["data pancreas"].state == "note"
    assert "bench data prepare pancreas --source DIR" in found["data pancreas"].text
