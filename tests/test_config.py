from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from reid.config import Config, as_dict, from_dict, load_config, save_config
from reid.core.errors import ReidError

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))


def test_defaults_are_the_bot_recipe() -> None:
    config = load_config()
    assert config == Config()
    assert (config.model.backbone, config.model.height, config.model.width, config.model.last_stride) == (
        "resnet50",
        256,
        128,
        1,
    )
    assert (config.sampler.batch_size, config.sampler.crops_per_id) == (64, 4)
    assert (config.optim.name, config.optim.lr, config.optim.weight_decay) == ("adam", 3.5e-4, 5e-4)
    schedule = config.schedule
    assert (schedule.epochs, schedule.milestones, schedule.gamma) == (120, [40, 70], 0.1)
    assert (schedule.warmup_epochs, schedule.warmup_start) == (10, 0.01)
    assert (config.loss.margin, config.loss.label_smoothing) == (0.3, 0.1)
    assert (config.augment.erase, config.augment.erase_area, config.augment.erase_ratio) == (0.5, [0.02, 0.4], 0.3)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_recipe_loads_and_says_where_it_aims(path: Path) -> None:
    assert load_config(path).data.train
    assert path.read_text("utf-8").startswith("#")


def test_overrides_beat_the_file_and_the_file_beats_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("optim: {lr: 0.5, weight_decay: 0.25}\nloss: {margin: null}\n")
    config = load_config(path, ["optim.lr=1e-3", "data.train=market1501:/a", "schedule.milestones=[1,2]"])
    assert (config.optim.lr, config.optim.weight_decay, config.loss.margin) == (1e-3, 0.25, None)
    assert config.data.train == ["market1501:/a"]
    assert config.schedule.milestones == [1, 2]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optm.lr=1", "optm.*Did you mean 'optim'"),  # a group misspelt
        ("optim.lrr=1", "optim.lrr.*Did you mean 'lr'"),  # a key misspelt
        ("optim.lr=abc", "optim.lr.*abc"),  # a word for a number
        ("optim=3", "optim.*group of settings"),  # a value for a group
        ("sampler.kind=identty", "Did you mean 'identity'"),  # a choice misspelt
        ("augment.flip=2", "augment.flip.*between 0 and 1"),  # out of range
        ("augment.erase_area=[0.1,7]", "augment.erase_area"),  # out of range inside a list
        ("schedule.epochs=1.5", "schedule.epochs.*1.5"),  # a fraction for a count
        ("schedule.epochs=0", "schedule.epochs=0"),  # nothing to do
        ("epochs", "key.sub=value"),  # no value
        ("optim.lr=[", "not valid YAML"),  # broken YAML
        ("optim.lr=.nan", "optim.lr"),  # not a number in YAML's own words
    ],
)
def test_a_wrong_override_is_named(override: str, words: str) -> None:
    with pytest.raises(ReidError, match=words):
        load_config(None, [override])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("optim: {lr: [1", "not valid YAML"),  # cut off
        ("- 1\n- 2\n", "key: value"),  # a list
        ("modle: {backbone: resnet18}", "Did you mean 'model'"),  # misspelt
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ReidError, match=words) as caught:
        load_config(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ReidError, match=r"nowhere\.yaml"):
        load_config("nowhere.yaml")


def test_saved_settings_come_back(tmp_path: Path) -> None:
    config = load_config(None, ["loss.margin=null", "data.train=[a:b,c:d]", "seed=7"])
    save_config(config, tmp_path / "c.yaml")
    assert load_config(tmp_path / "c.yaml") == config
    assert from_dict(as_dict(config)) == config
    assert yaml.safe_load((tmp_path / "c.yaml").read_text())["loss"]["margin"] is None
