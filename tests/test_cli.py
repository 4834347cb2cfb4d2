import pytest
from typer.testing import CliRunner

from tfalign import __version__, cli
from tfalign.jobs import demo


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
