"""`cotenant systemd`: the unit as written to a folder, and what systemctl is told."""

import json
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from cotenant.cli.main import main
from cotenant.cli.systemd import command
from cotenant.cli.systemd.unit import is_untouched, signed, unit_text

DEPLOY = Path(__file__).parents[3] / "deploy" / "systemd"
SYSTEM = "etc/systemd/system/cotenant.service"


def unit_of(root: Path) -> Path:
    return root / SYSTEM


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `systemctl` that writes down what it is told, on a machine where systemd runs."""
    told = tmp_path / "told"
    program = tmp_path / "bin" / "systemctl"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\necho "$@" >> {told}\n'
        f"[ -e {tmp_path}/broken ] && {{ echo 'Failed to connect to bus' >&2; exit 1; }}\n"
        'case "$*" in *is-enabled*) echo enabled;; *is-active*) echo active;; esac\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.setattr(command, "_RUNNING", tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    return told


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "cotenant.yaml"
    path.write_text("models_dir: models\n")
    return path


def test_install_writes_the_unit_and_says_that_nothing_was_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["systemd", "install", "--system", "--root", str(tmp_path)]) == 0

    unit = unit_of(tmp_path)
    said = capsys.readouterr().out
    assert is_untouched(unit.read_text())
    assert "serve --config /etc/cotenant/cotenant.yaml" in unit.read_text()
    assert stat.S_IMODE(unit.stat().st_mode) == 0o644
    assert "neither enabled nor started" in said
    assert "sudo systemctl enable --now cotenant.service" in said
    assert [path.name for path in unit.parent.iterdir()] == ["cotenant.service"]


def test_a_dry_run_shows_the_unit_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["systemd", "install", "--user", "--dry-run", "--root", str(tmp_path)]) == 0

    assert "Type=notify" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_an_edited_unit_is_left_alone_unless_forced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install = ["systemd", "install", "--system", "--root", str(tmp_path)]
    main(install)
    unit = unit_of(tmp_path)
    unit.write_text(unit.read_text() + "Nice=5\n")

    assert main(install) == 1
    assert "Nice=5" in unit.read_text()
    assert main(["systemd", "uninstall", "--system", "--root", str(tmp_path)]) == 1
    assert unit.is_file()
    assert "edited" in capsys.readouterr().err
    assert main([*install, "--force"]) == 0
    assert "Nice=5" not in unit.read_text()


def test_installing_again_with_other_settings_replaces_our_own_unit(tmp_path: Path) -> None:
    install = ["systemd", "install", "--system", "--root", str(tmp_path)]
    main(install)

    assert main([*install, "--run-as", "models"]) == 0
    assert "User=models\n" in unit_of(tmp_path).read_text()


def test_install_of_a_user_reloads_systemd_and_enables_only_when_told(systemctl: Path, config: Path) -> None:
    assert main(["systemd", "install", "--user", "--config", str(config)]) == 0
    assert systemctl.read_text().splitlines() == ["--user daemon-reload"]

    assert main(["systemd", "install", "--user", "--config", str(config), "--now"]) == 0
    assert systemctl.read_text().splitlines()[1:] == ["--user enable --now cotenant.service"]


def test_uninstall_stops_disables_and_removes(systemctl: Path, config: Path, tmp_path: Path) -> None:
    main(["systemd", "install", "--user", "--config", str(config)])
    systemctl.unlink()

    assert main(["systemd", "uninstall", "--user"]) == 0

    assert systemctl.read_text().splitlines() == [
        "--user disable --now cotenant.service",
        "--user daemon-reload",
    ]
    assert not (tmp_path / "home" / "systemd" / "user" / "cotenant.service").exists()


def test_uninstall_of_what_is_not_there_is_no_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["systemd", "uninstall", "--system", "--root", str(tmp_path)]) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_a_systemctl_that_fails_is_told_in_one_line(
    systemctl: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken").touch()

    assert main(["systemd", "install", "--user", "--config", str(config)]) == 1

    said = capsys.readouterr().err
    assert "`systemctl --user daemon-reload` failed: Failed to connect to bus" in said
    assert "Traceback" not in said


def test_status_tells_unit_and_systemd(
    systemctl: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["systemd", "status", "--user", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["unit"] == "absent"
    main(["systemd", "install", "--user", "--config", str(config)])
    capsys.readouterr()

    assert main(["systemd", "status", "--user", "--json"]) == 0

    told = json.loads(capsys.readouterr().out)
    assert (told["unit"], told["enabled"], told["active"]) == ("installed", "enabled", "active")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--config", "/no/such/cotenant.yaml"], "does not exist"),
        (["--system", "--run-as", "no such; user"], "not a user name"),
    ],
)
def test_wrong_settings_are_refused(
    systemctl: Path, flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["systemd", "install", *flags]) == 2
    assert said in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "etc").write_text("a file where a folder should be")

    assert main(["systemd", "install", "--system", "--root", str(tmp_path)]) == 1
    assert "cannot be" in capsys.readouterr().err


def test_arguments_are_quoted_as_systemd_reads_them() -> None:
    text = unit_text(["/opt/my bin/cotenant", "serve", "--config", "/50%/a$b.yaml"])

    assert 'ExecStart="/opt/my bin/cotenant" serve --config "/50%%/a$$b.yaml"\n' in text


def test_a_checksum_that_does_not_fit_is_an_edit() -> None:
    assert is_untouched(signed("[Unit]\n"))
    assert not is_untouched(signed("[Unit]\n") + "\n")
    assert not is_untouched("[Unit]\n")


def test_the_unit_in_deploy_is_the_one_that_install_writes() -> None:
    command = ["/opt/cotenant/bin/cotenant", "serve", "--config", "/etc/cotenant/cotenant.yaml"]

    assert (DEPLOY / "cotenant.service").read_text() == unit_text(command, "cotenant", ("video", "render"))


@pytest.mark.slow
@pytest.mark.parametrize("user", ["daemon", None])
def test_systemd_takes_the_unit_and_finds_it_hardened(tmp_path: Path, user: str | None) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze on this machine")
    unit = tmp_path / "cotenant.service"
    unit.write_text(unit_text(["/bin/true", "serve"], user))

    verified = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60
    )
    assert (verified.returncode, verified.stderr) == (0, "")
    if user is not None:
        scored = subprocess.run(
            ["systemd-analyze", "security", "--offline=true", "--threshold=30", str(unit)],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert scored.returncode == 0, scored.stdout[-400:]


def test_gpus_stay_within_reach_of_the_unit() -> None:
    lines = unit_text(["/bin/true"], "cotenant").splitlines()
    settings = {line.partition("=")[0] for line in lines if not line.startswith("#")}

    assert not settings & {"PrivateDevices", "DeviceAllow", "DevicePolicy", "ProtectClock"}
    assert not settings & {"MemoryDenyWriteExecute", "PrivateTmp", "ProtectProc", "ProcSubset"}


def test_the_old_name_works_and_prints_one_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["install", "--system", "--dry-run", "--root", str(tmp_path)]
    assert main(["systemd", *flags]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""

    assert main(["service", *flags]) == 0
    assert capsys.readouterr() == (
        shown.out,
        "cotenant: warning: `cotenant service` is now `cotenant systemd`.\n",
    )
