from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from reid.config import Config, DataConfig, Settings, load_config, load_settings, save_settings
from reid.core.errors import ConfigError
from reid.pipelines.demo import DemoSettings
from reid.pipelines.settings import AdaptKeys
from reid.synthetic.settings import SyntheticSettings

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))
SETTINGS = {"adapt": AdaptKeys, "demo": DemoSettings, "synthetic": SyntheticSettings}


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
    assert (config.augment.erase, config.augment.erase_area, config.augment.erase_ratio) == (0.5, (0.02, 0.4), 0.3)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_file_loads_and_has_a_comment(path: Path) -> None:
    load_settings(SETTINGS.get(path.stem, Config), path)
    assert path.read_text("utf-8").startswith("#")


@pytest.mark.parametrize("name", ["quickstart.yaml", "configs/quickstart.yaml"])
def test_config_files_of_the_package_are_found_from_any_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load_config("configs/quickstart.yaml")
    monkeypatch.chdir(tmp_path)
    assert load_config(name) == expected != load_config()
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("seed: 77\n")
    assert load_config(name).seed == 77  # a file of the user's comes first


@pytest.mark.parametrize("name", ["nope.yaml", "configs/nope.yaml"])
def test_a_missing_config_file_lists_those_of_the_package(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"There is no file {name}.*come with reid: adapt.yaml, .*quickstart.yaml"):
        load_config(name)
    with pytest.raises(ConfigError, match=r"There is no file elsewhere/quickstart.yaml. Check the path.$"):
        load_config("elsewhere/quickstart.yaml")


def test_overrides_beat_the_file_and_the_file_beats_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("optim: {lr: 0.5, weight_decay: 0.25}\nloss: {margin: null}\n")
    config = load_config(path, ["optim.lr=1e-3", "data.train=market1501:/a", "schedule.milestones=[1,2]"])
    assert (config.optim.lr, config.optim.weight_decay, config.loss.margin) == (1e-3, 0.25, None)
    assert config.data.train == ["market1501:/a"]
    assert config.schedule.milestones == [1, 2]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optm.lr=1", "optm.*Did you mean 'optim'"),  # misspelt group
        ("optim.lrr=1", "optim.lrr.*Did you mean 'lr'"),  # misspelt key
        ("optim.lr=abc", "optim.lr.*abc"),  # text for a number
        ("optim=3", "optim.*group of settings.*optim.lr"),  # a value for a group
        ("sampler.kind=identty", "Did you mean 'identity'"),  # misspelt choice
        ("augment.flip=2", "augment.flip=2.*less than or equal to 1"),  # out of range
        ("augment.erase_area=[0.1,7]", "augment.erase_area"),  # out of range inside a pair
        ("schedule.epochs=1.5", "schedule.epochs.*1.5"),  # fraction for a count
        ("schedule.epochs=0", "schedule.epochs=0"),  # below the range
        ("epochs", "key.sub=value"),  # no equals sign
        ("optim.lr=[", "not valid YAML"),  # invalid YAML
        ("optim.lr=.nan", "optim.lr"),  # not a number in YAML's notation
        ("optim.groups.backbone.lrr=1", "optim.groups.backbone.lrr.*Did you mean 'lr'"),
        ("optim.groups.backbone.lr=-1", "optim.groups.backbone.lr=-1.*greater than or equal to 0"),
        ("optim.groups.backbone=0.1", "optim.groups.backbone.*group of settings.*freeze_epochs"),
        ("loss.extra.center.lr=1", "loss.extra.center.weight is missing"),
        ("loss.extra.center={weight: 1, input: logits}", "center.input='logits'.*Known: embeddings, features"),
        ("loss.schedules={margn: [[0, 1]]}", "Did you mean 'margin'"),
        ("loss.schedules={margin: [[0.5, 1], [0, 2]]}", "loss.schedules.margin.*rising fractions"),
        ("loss.schedules={hardness: [[0, 2]]}", "hardness has a value above 1"),
        ("schedule.sizes=[[0.5, 16, 8]]", "schedule.sizes.*rise from 0"),
        ("schedule.sizes=[[0, 16]]", "schedule.sizes.0.2 .*missing"),
        ("schedule.batch_sizes=[[0, 1.5]]", "schedule.batch_sizes.0.1=1.5"),
    ],
)
def test_invalid_overrides_are_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim: {lr: [1", "not valid YAML"),  # cut off
        ("- 1\n- 2\n", "key: value"),  # a list
        ("modle: {backbone: resnet18}", "Did you mean 'model'"),  # misspelt
    ],
)
def test_invalid_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(path)
    assert str(path) in str(caught.value)


def test_missing_files_are_named() -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        load_config("nowhere.yaml")


def test_saved_settings_are_read_back_unchanged(tmp_path: Path) -> None:
    config = load_config(
        None, ["loss.margin=null", "data.train=[a:b,c:d]", "seed=7", "schedule.sizes=[[0,16,8]]", "loss_limit=.inf"]
    )
    save_settings(config, tmp_path / "c.yaml")
    assert load_config(tmp_path / "c.yaml") == config
    assert Config.from_dict(config.as_dict()) == config
    assert yaml.safe_load((tmp_path / "c.yaml").read_text())["loss"]["margin"] is None


def test_extra_losses_and_parameter_groups_are_merged_key_by_key(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("loss: {extra: {center: {weight: 1e-3, alpha: 0.5}}}\noptim: {groups: {backbone: {lr: 0.1}}}\n")
    config = load_config(path, ["loss.extra.center.lr=2", "optim.groups.backbone.freeze_epochs=1"])
    center, group = config.loss.extra["center"], config.optim.groups["backbone"]
    assert (center.weight, center.lr, center.options) == (1e-3, 2, {"alpha": 0.5})
    assert (group.lr, group.freeze_epochs, group.weight_decay) == (0.1, 1, None)


def test_construction_and_assignment_raise_config_errors() -> None:
    config = Config()
    with pytest.raises(ConfigError, match=r"store='disk'.*Known: files, packed"):
        DataConfig(store="disk")
    with pytest.raises(ConfigError, match=r"data\.store='disk'"):
        Config(data={"store": "disk"})
    with pytest.raises(ConfigError, match="batch_size=0"):
        config.sampler.batch_size = 0
    assert Config().sampler is not config.sampler


def test_every_problem_is_reported_with_its_source(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("optim: {lr: -1}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path, ["seed=-1"])
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"optim.lr=-1 in {path} ")
    assert second.startswith("seed=-1 in the override 'seed=-1' ")


def test_other_packages_use_the_same_loader(tmp_path: Path) -> None:
    save_settings(Filter(size=5), tmp_path / "f.yaml")
    assert load_settings(Filter, tmp_path / "f.yaml", ["name=2"]) == Filter(size=5, name="2")


class Filter(Settings):
    size: int = 3
    name: str = ""


@pytest.mark.parametrize("kind", ["identity", "hard_identity"])
@pytest.mark.parametrize(
    "loss", [[], ["loss.triplet_weight=0", "loss.extra={circle: {weight: 1}}"]], ids=["triplet", "circle"]
)
@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (["sampler.batch_size=4"], "4 crops with crops_per_id=4 contains only one identity. Use a batch_size of 8"),
        (["schedule.batch_sizes=[[0, 4], [0.5, 64]]"], "4 crops with crops_per_id=4 contains only one identity"),
        (["sampler.crops_per_id=1"], "contains only different identities. Use a crops_per_id of 2 or more"),
    ],
)
def test_batches_without_the_pairs_that_a_loss_compares_are_refused(
    kind: str, loss: list[str], sizes: list[str], message: str
) -> None:
    settings = [f"sampler.kind={kind}", *loss]
    with pytest.raises(ConfigError, match=message):
        load_config(None, [*settings, *sizes])
    without = ["loss.triplet_weight=0", "loss.extra={arcface: {weight: 1}}"]
    with_memory = ["loss.triplet_weight=0", "loss.extra={circle: {weight: 1, memory: 64}}"]
    for accepted in (without, with_memory):
        load_config(None, [f"sampler.kind={kind}", *accepted, *sizes])
    later = load_config(None, settings)
    later.sampler.batch_size = 4  # an assignment within a group is checked by the trainer
    with pytest.raises(ConfigError, match="only one identity"):
        later.check_batches()


@pytest.mark.parametrize(
    "setting",
    ["sampler.batch_size=1", "schedule.batch_sizes=[[0, 1]]", "loss.chunk=1", "schedule.sizes=[[0, 4, 64]]"],
)
def test_sizes_too_small_for_a_network_are_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match=r"greater than or equal to|Use 2 or more"):
        load_config(None, [setting])
