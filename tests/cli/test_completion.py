"""What shells complete, asked of the shells themselves."""

import subprocess
from pathlib import Path

import pytest

from cotenant.cli.main import main
from tests.support.debian import installed

# Each completes the words that it is given: a function or a program of the shell is asked as it would ask it.
_ASK = {
    "bash": """source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _cotenant
               printf '%s\\n' "${COMPREPLY[@]}" """,
    "zsh": """compdef() {}; source "$1"; shift
              _describe() { print -l -- "${(@)found%%:*}" }; _files() {}
              compadd() { shift; print -l -- "$@" }
              words=("$@"); CURRENT=$#; _cotenant""",
    "fish": "source $argv[1]; complete -C (string join -- ' ' $argv[2..]) | string split -f 1 \\t; true",
}


@pytest.mark.slow
@pytest.mark.parametrize("shell", _ASK)
def test_a_shell_completes_commands_flags_and_values(
    shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = installed(shell)
    if program is None:
        pytest.skip(f"completion for {shell} cannot be tested here: it is not installed")
    assert main(["completion", shell]) == 0
    script = tmp_path / "script"
    script.write_text(capsys.readouterr().out)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.gguf").touch()
    options = ["-f"] if shell == "zsh" else []

    def offered(*words: str) -> list[str]:
        first = [] if shell == "fish" else ["-"]
        argv = [program, *options, "-c", _ASK[shell], *first, str(script), "cotenant", *words]
        done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=30)
        assert done.stderr == ""
        return [word for word in done.stdout.split("\n") if word.startswith(words[-1]) and word]

    assert offered("se") == ["serve", "services"]
    assert "service" not in offered("")
    assert offered("services", "ro") == ["rollback"]
    assert offered("serve", "--device-order", "f") == ["free_desc"]
    assert offered("serve", "--device-o") == ["--device-order"]
    assert "--json" not in offered("serve", "--")
    assert offered("services", "list", "--js") == ["--json"]
    assert offered("completion", "") == ["bash", "zsh", "fish"] or shell == "fish"
    assert set(offered("serve", "--model", "m")) <= {"model.gguf"}, "a path is left to the shell"


_AT_A_TERMINAL = """
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell "PS1=; autoload -U compinit; compinit -D -u; source $1"
zpty -w shell 'cotenant() { print -r -- GO""T "$@" EN""D }; print REA""DY'
zpty -r -m shell seen '*READY*'
zpty -w -n shell $'cotenant services rec\t--js\t\n'
zpty -r -m shell seen '*END*'
print -r -- $seen
"""


@pytest.mark.slow
def test_zsh_completes_at_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = installed("zsh")
    if program is None:
        pytest.skip("completion for zsh cannot be tested here: it is not installed")
    assert main(["completion", "zsh"]) == 0
    script = tmp_path / "script"
    script.write_text(capsys.readouterr().out)

    argv = [program, "-f", "-c", _AT_A_TERMINAL, "-", str(script)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)

    assert "GOT services recommend --json END" in done.stdout, done.stdout + done.stderr


def test_another_shell_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["completion", "tcsh"])
    assert end.value.code == 2
    assert "invalid choice: 'tcsh'" in capsys.readouterr().err
