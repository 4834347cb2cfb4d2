import pytest
from typer.testing import CliRunner

from tfalign import __version__, cli
from tfalign.jobs import config as configs
from tfalign.jobs import demo, train


def test_help_and_version():
    runner = CliRunner()
    shown = runner.invoke(cli.app, ["demo", "--help"], env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})
    for option in ("--out", "--steps", "--max-shift", "--seed"):
        assert option in shown.output
    assert __version__ in runner.invoke(cli.app, ["--version"]).output


def test_options_reach_the_job(monkeypatch, tmp_path):
    seen = []

    def run(out, settings, *, track):
        seen.append((out, settings))
        track("plain", 2)(1)
        arm = {"psnr": 20.0}
        return {"arms": dict.fromkeys(demo.ARMS, arm), "gap_recovered_in_place": 0.987}

    monkeypatch.setattr(demo, "run", run)
    arguments = ["demo", "--out", str(tmp_path), "--steps", "7", "--max-shift", "3", "--seed", "2"]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    assert seen == [(tmp_path, demo.Settings(steps=7, max_shift=3, seed=2))]
    assert "gap recovered 0.987" in result.output
    assert "report.html" in result.output


def test_a_mistake_is_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sys.argv", ["tfalign", "demo", "--steps", "-1", "--out", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    message = capsys.readouterr().err.strip().splitlines()
    assert message == ["tfalign: `steps` must be >= 1. Received: steps=-1."]


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """What `tfalign train` hands to its job; the data are folders of one file each."""
    seen = []

    def run(out, config, *, track, announce):
        seen.append((out, config))
        track("training", 2)(1)
        announce("epoch [1/2] of_é")
        scores = {"in_place": {"mae": 0.25}, "registered": {"mae": 0.125}}
        return {"best_epoch": 0, "epochs": 2, "validation": scores, "drift": [0.0, -0.5]}

    monkeypatch.setattr(train, "run", run)
    monkeypatch.chdir(tmp_path)
    return seen


DATA = ["train", "--inputs", "images", "--labels", "labels", "--out", "run"]
FLAGS = {
    "epochs": 3, "steps_per_epoch": 4, "batch_size": 5, "seed": 6, "filters": 7, "depth": 2, "workers": 0,
    "learning_rate": 0.5,
}  # fmt: skip
LOSS_FLAGS = {"max_rotation": 1.5, "max_scale": 0.1, "max_shear": 2.0, "base": "mse", "similarity": "mi"}


def test_flags_reach_the_training(trained, tmp_path):
    words = [f"--{name.replace('_', '-')}={value}" for name, value in {**FLAGS, **LOSS_FLAGS}.items()]
    words += ["--max-shift", "8,4", "--patch-size", "64", "--strict", "--deformable", "--set", "loss.moving=prediction"]
    result = CliRunner().invoke(cli.app, [*DATA, *words, "--set", "flips=[0]"])
    assert result.exit_code == 0, result.output
    ((out, config),) = trained
    assert str(out) == "run"
    assert config.inputs == str(tmp_path / "images")
    for name, value in {**FLAGS, "patch_size": 64, "strict": True, "deformable": True, "flips": [0]}.items():
        assert getattr(config, name) == value
    for name, value in {**LOSS_FLAGS, "max_shift": [8, 4], "moving": "prediction"}.items():
        assert config.loss[name] == value
    assert "epoch [1/2] of_é" in result.output
    assert "Best epoch 1 of 2; in place: mae 0.25; labels registered: mae 0.125; drift 0.50 px." in result.output


def test_flags_go_before_a_file_of_settings(trained, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("inputs: images\nlabels: labels\nepochs: 9\nseed: 8\nloss: {base: mse}\n")
    result = CliRunner().invoke(cli.app, ["train", "--config", str(path), "--out", "run", "--epochs", "3"])
    assert result.exit_code == 0, result.output
    ((_, config),) = trained
    assert (config.epochs, config.seed, config.loss["base"]) == (3, 8, "mse")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(configs.text_of(config))
    assert CliRunner().invoke(cli.app, ["train", "--out", "run"]).exit_code == 0
    assert trained[1][1] == config


def test_code_is_run_only_from_the_command_line(trained, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("inputs: images\nlabels: labels\nmodel: mine:make\n")
    result = CliRunner().invoke(cli.app, ["train", "--config", str(path), "--out", "run"])
    assert "--model mine:make on the command line" in str(result.exception)
    assert not trained
    words = ["train", "--config", str(path), "--out", "run", "--model", "mine:make"]
    assert CliRunner().invoke(cli.app, words).exit_code == 0
    assert trained[0][1].model == "mine:make"


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        ([*DATA, "--epochs", "0"], 2, "`epochs` must be >= 1. Received: epochs=0."),
        ([*DATA, "--set", "epoch=3"], 2, "Is it 'epochs'?"),
        ([*DATA, "--set", "epochs"], 2, "key=value"),
        ([*DATA, "--max-shift", "8,x"], 2, "`max_shift` must be whole numbers"),
        ([*DATA, "--model", "vgg"], 2, "unet, FILE.keras or module:function"),
        (["train", "--out", "run"], 2, "Give --inputs and --labels, or --tfds."),
        (["train", "--out", "run", "--config", "none.yaml"], 2, "No such file"),
        (["evaluate", "--run", "none"], 2, "must be the folder of a run"),
        (["realign", "--run", "none", "--out", "there"], 2, "must be the folder of a run"),
    ],
)
def test_mistakes_are_one_line_and_a_code(trained, monkeypatch, capsys, words, code, text):
    monkeypatch.setattr("sys.argv", ["tfalign", *words])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == code
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("tfalign: ")
    assert text in line
    assert not trained


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (OSError(28, "The disk must have room. Received: out='run'."), 3, "tfalign: The disk must have room."),
        (PermissionError(13, "Permission denied", "run"), 3, "Permission denied"),
        (FileNotFoundError(2, "No such file or directory", "x"), 2, "No such file"),
        (MemoryError("A step must fit into the memory."), 3, "tfalign: A step must fit"),
        (ImportError("`tensorboard` must be installed."), 2, "must be installed"),
        (RuntimeError("first\n  second"), 1, "tfalign: RuntimeError: first second Add --debug to see where."),
        (ValueError("x" * 9000), 2, "xxx … Add --debug to see it all."),
    ],
)
def test_what_fails_is_told_by_the_exit_code(trained, monkeypatch, capsys, error, code, text):
    def run(*_, **__):
        raise error

    monkeypatch.setattr(train, "run", run)
    monkeypatch.setattr("sys.argv", ["tfalign", *DATA])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == code
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert text in line
    assert len(line) < 2100
    monkeypatch.setattr("sys.argv", ["tfalign", *DATA, "--debug"])
    with pytest.raises(type(error)):
        cli.main()


def test_an_interruption_says_how_to_go_on(trained, monkeypatch, capsys):
    def run(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "run", run)
    monkeypatch.setattr("sys.argv", ["tfalign", *DATA])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "tfalign: interrupted; the same command goes on with what is not done yet.\n"


def test_help_shows_examples_and_exit_codes():
    plain = {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    for command in ("train", "evaluate", "realign"):
        assert f"Example: tfalign {command} " in CliRunner().invoke(cli.app, [command, "--help"], env=plain).output
    assert "Exit codes: 0 done" in CliRunner().invoke(cli.app, ["--help"], env=plain).output
