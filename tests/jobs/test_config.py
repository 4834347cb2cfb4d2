import inspect

import pytest

import tfalign
from tfalign.jobs import config

DATA = {"inputs": "images", "labels": "labels"}


def test_every_keyword_of_the_loss_is_a_setting():
    parameters = inspect.signature(tfalign.ShiftInvariantLoss).parameters.values()
    defaults = {one.name: list(one.default) if one.default == () else one.default for one in parameters}
    assert config.from_mapping(DATA).loss == defaults
    assert "base" in defaults


def test_a_file_gives_back_what_was_written(tmp_path):
    known = config.from_mapping(
        {**DATA, "epochs": 7, "loss": {"max_shift": (8, 4), "base": "mse"}, "preprocessing": [{"step": "ZScore"}]}
    )
    path = tmp_path / "é.yaml"
    path.write_text(config.text_of(known), encoding="utf-8")
    again = config.from_mapping(config.read(path))
    assert again == known
    assert again.differences(known) == {}
    assert again.loss["max_shift"] == [8, 4]


def test_differences_name_the_settings():
    one = config.from_mapping({**DATA, "workers": 3})
    other = config.from_mapping({**DATA, "epochs": 2, "loss": {"subpixel": True}})
    assert one.differences(other) == {"epochs": (30, 2), "loss.subpixel": (False, True)}


@pytest.mark.parametrize(
    ("text", "value"),
    [("learning_rate=1e-4", 1e-4), ("learning_rate=.5E-1", 0.05), ("stop_patience=null", None), ("flips=[0]", [0])],
)
def test_settings_are_read_as_yaml(text, value):
    assert config.setting(text) == {text.split("=")[0]: value}
    assert getattr(config.from_mapping({**DATA, **config.setting(text)}), text.split("=")[0]) == value


def test_later_mappings_go_before():
    given = config.setting("loss.moving=prediction")
    assert config.merged({"epochs": 3, "loss": {"base": "mse"}}, given, {"epochs": 4}) == {
        "epochs": 4,
        "loss": {"base": "mse", "moving": "prediction"},
    }


@pytest.mark.parametrize(
    ("mapping", "text"),
    [
        ({"epoch": 3}, "setting must be known.*'epoch'.*Is it 'epochs'"),
        ({"loss": {"maxshift": 3}}, "keyword of the loss.*'maxshift'.*'max_shift'"),
        ({"loss": [1]}, "`loss` must be keywords"),
        ({"epochs": 0}, "`epochs` must be >= 1.*epochs=0"),
        ({"epochs": 2.5}, "`epochs` must be a whole number"),
        ({"steps_per_epoch": "many"}, "`steps_per_epoch` must be a whole number"),
        ({"learning_rate": -1.0}, "`learning_rate` must be >= 0"),
        ({"schedule": "step"}, "`schedule` must be one of"),
        ({"patch_size": "large"}, "`patch_size` must be"),
        ({"label_range": [1, 0]}, "`label_range` must be two numbers"),
        ({"name": "../x"}, "`name` must be letters"),
        ({"model": "vgg"}, "unet, FILE.keras or module:function"),
        ({"inputs": None}, "Either `inputs` or `tfds`"),
        ({"tfds": "mnist"}, "Either `inputs` or `tfds`"),
        ({"validation_inputs": "truth"}, "together"),
        ({"strict": "maybe"}, "`strict` must be one of"),
    ],
)
def test_bad_settings_are_named(mapping, text):
    with pytest.raises((ValueError, TypeError), match=text):
        config.from_mapping({**DATA, **mapping})


@pytest.mark.parametrize(
    ("text", "error"),
    [("a: [1", "must be YAML.*line 1"), ("- 1", "settings with"), ("x: !!python/name:os.system", "YAML")],
)
def test_files_are_data(tmp_path, text, error):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=error):
        config.read(path)
