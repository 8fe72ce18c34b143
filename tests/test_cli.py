"""The command line as a whole: help, misspelt words, Ctrl-C, terminals, completion, files that cannot be written."""

from __future__ import annotations

import errno
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import proptim
from proptim import cli
from proptim._files import check_out, whole
from proptim.cli import main
from proptim.cli._parser import nearest, overwritten

COMMANDS = [module.__name__.rpartition(".")[2] for module in cli.COMMANDS]
PROGRAM = Path(sys.executable).with_name("proptim")


def ended(capsys, *command):
    """Exit code, and what is printed to standard output and error."""
    try:
        code = main(command)
    except SystemExit as stop:
        code = stop.code
    return (code, *capsys.readouterr())


def on_terminal(*command, interrupt_at=None, **variables):
    """Run the installed command in a pseudo-terminal of 80 columns: exit code and all that is shown."""
    pty, termios = pytest.importorskip("pty"), pytest.importorskip("termios")
    import fcntl
    import struct

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    unwanted = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR")
    environment = {k: v for k, v in os.environ.items() if k not in unwanted} | {"TERM": "xterm"} | variables
    process = subprocess.Popen(
        [PROGRAM, *command],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # background jobs ignore it
    )
    os.close(theirs)
    shown = b""
    try:
        while True:
            try:
                part = os.read(ours, 1 << 16)
            except OSError:  # Linux says so when the other end is closed
                break
            if not part:
                break
            shown += part
            if interrupt_at is not None and interrupt_at in shown:
                os.kill(process.pid, signal.SIGINT)
                interrupt_at = None
        return process.wait(60), shown.decode().replace("\r\n", "\n")
    finally:
        os.close(ours)
        process.kill()
        process.wait()


installed = pytest.mark.skipif(not PROGRAM.exists(), reason=f"{PROGRAM} is not installed")


# Help -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [[], *([each] for each in COMMANDS)], ids=["proptim", *COMMANDS])
@installed
def test_help_has_examples_and_fits_the_terminal(command):
    code, shown = on_terminal(*command, "--help", NO_COLOR="1")
    assert code == 0
    assert re.search(r"\nexamples:\n  \S", shown)
    assert max(map(len, shown.splitlines())) <= 80


@installed
def test_bare_command_shows_help():
    assert on_terminal(NO_COLOR="1") == on_terminal("--help", NO_COLOR="1")


def test_examples_are_commands_that_are_understood():
    """Everything that completion scripts and help name: commands, options and their values."""
    parser = cli.make_parser()
    (commands,) = (action.choices for action in parser._actions if isinstance(action.choices, dict))
    lines = [line for each in (parser, *commands.values()) for line in re.findall(r"^  (\S.*)$", each.epilog, re.M)]
    assert len(lines) >= 3 * len(commands)
    for line in lines:
        words = line.replace("'", "").partition(" | ")[0].split()
        words = words[words.index("proptim") + 1 :]
        if words[0] != "COMMAND":
            assert parser.parse_args(words).command == words[0]


# What was probably meant ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (
            ["trian"],
            "proptim: error: argument COMMAND: 'trian' is unknown; did you mean 'train'? Expected info, train, ",
        ),
        (["selftset"], "'selftset' is unknown; did you mean 'selftest'?"),
        (["--verison"], "proptim: error: unrecognized arguments: --verison; did you mean --version?"),
        (
            ["train", "--optimiser", "adam"],
            "proptim train: error: unrecognized arguments: --optimiser adam; did you mean ",
        ),
        (["train", "--optimiser=adam"], "did you mean --optimizer?"),
        (["train", "--epohcs", "3"], "did you mean --epochs?"),
        (["train", "--zzz"], "unrecognized arguments: --zzz; proptim train --help lists what there is"),
        (["train", "digits"], "unrecognized arguments: digits; proptim train --help lists what there is"),
        (["train", "--backend", "nunba"], "argument --backend: 'nunba' is unknown; did you mean 'numba'? Expected c, "),
        (["train", "--task", "clasification"], "did you mean 'classification'?"),
        (["train", "--optimizer", "RMSporp"], "'RMSporp' is unknown; did you mean 'rmsprop'?"),
        (["train", "--optimizer", "adam,irprp"], "'irprp' is unknown; did you mean 'irprop-'?"),
        (["bench", "--rules", "adamv"], "'adamv' is unknown; did you mean 'adam"),
        (["bench", "--html", "f", "--gaols"], "did you mean --goals?"),
        (["explain", "--outt", "x"], "did you mean --out?"),
    ],
)
def test_misspelt(capsys, command, told):
    code, out, err = ended(capsys, *command)
    assert (code, out) == (2, "")
    assert told in err
    assert "Traceback" not in err


@pytest.mark.parametrize("name", proptim.OPTIMIZERS)
def test_every_optimizer_is_known_by_its_class_and_near_it(name):
    from proptim.cli.bench import _rules
    from proptim.cli.train import _names

    cls = proptim.OPTIMIZERS[name].__name__
    assert _rules(cls) == [name]
    assert _names(cls) == _names(name) == _names(cls.upper())
    assert nearest(cls + cls[-1], proptim.OPTIMIZERS) == name


def test_far_words_have_no_hint():
    assert nearest("newton", proptim.OPTIMIZERS) == ""


# Ctrl-C ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_ctrl_c_is_130(capsys, monkeypatch, tmp_path, command):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    module = sys.modules[f"proptim.cli.{command}"]
    monkeypatch.setattr(module, "run", interrupt)
    needed = ["model.npz", "--data", "x.npz"] if command == "predict" else []
    assert ended(capsys, command, *needed) == (130, "", f"proptim {command}: interrupted\n")


@installed
def test_ctrl_c_in_training_on_a_terminal():
    pytest.importorskip("sklearn")
    code, shown = on_terminal("train", "--epochs", "500", "--hidden", "8", interrupt_at=b"/500", TERM="dumb")
    assert code == 130
    assert "proptim train: interrupted; these epochs are complete\n" in shown
    assert "Traceback" not in shown


# Terminals ------------------------------------------------------------------------------------------------------------

COLOUR = re.compile(r"\x1b\[[0-9;]*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])[0-9;]*m")


@pytest.mark.parametrize(
    ("variables", "bar", "coloured"),
    [({}, True, True), ({"NO_COLOR": "1"}, True, False), ({"TERM": "dumb"}, False, False)],
    ids=["xterm", "no-color", "dumb"],
)
@installed
@pytest.mark.once  # what a terminal shows does not depend on the backend
def test_progress(variables, bar, coloured):
    pytest.importorskip("rich")
    pytest.importorskip("sklearn")
    code, shown = on_terminal("train", "--epochs", "5", "--hidden", "8", **variables)
    assert code == 0
    assert ("\x1b[" in shown) == bar
    assert bool(COLOUR.search(shown)) == coloured
    assert ("epoch   5/5" in shown) == (not bar)
    if not bar:
        assert all(line.isprintable() for line in shown.splitlines())


# Completion -----------------------------------------------------------------------------------------------------------


def test_completion_without_shtab(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    code, out, err = ended(capsys, "--print-completion", "bash")
    assert (code, out) == (1, "")
    assert "--print-completion needs shtab" in err
    assert err.endswith("pip install 'proptim[completion]'\n")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["proptim", "tr"], {"train"}),
        (["proptim", "train", "--opt"], {"--optimizer"}),
        (["proptim", "train", "--optimizer", "rms"], {"rmsprop"}),
        (["proptim", "train", "--backend", "num"], {"numba", "numpy"}),
        (["proptim", "predict", "mod"], {"model.npz"}),
        (["proptim", "explain", "--out", "fig"], {"figures"}),
    ],
)
def test_completion_in_bash(capsys, tmp_path, words, expected):
    pytest.importorskip("shtab")
    if not shutil.which("bash"):
        pytest.skip("bash is not installed")
    code, script, err = ended(capsys, "--print-completion", "bash")
    assert (code, err) == (0, "")
    (tmp_path / "model.npz").touch()
    (tmp_path / "figures").mkdir()
    function = re.search(r"complete .*-F (\w+)", script)[1]
    quoted = " ".join(f"'{word}'" for word in words)
    ask = f"COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; COMP_TYPE=63\n{function}\n"
    done = subprocess.run(
        ["bash", "-c", script + "\ncompopt() { :; }\n" + ask + 'printf "%s\\n" "${COMPREPLY[@]}"'],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    assert set(done.stdout.split()) == expected


# Files ----------------------------------------------------------------------------------------------------------------


def test_whole(tmp_path):
    path = tmp_path / ("x" * 240 + ".png")
    with whole(path) as temporary:
        assert temporary.parent == path.parent
        assert temporary.suffix == ".png"
        temporary.write_text("first")
        assert not path.exists()
    assert path.read_text() == "first"

    def fail(error):
        with whole(path) as temporary:
            temporary.write_text("sec")
            raise error

    with pytest.raises(OSError, match="No space left") as failed:
        fail(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert failed.value.filename == str(path)
    with pytest.raises(KeyboardInterrupt):
        fail(KeyboardInterrupt())
    assert path.read_text() == "first"
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_links_lead_to_the_same_file(tmp_path):
    """Two names of one file, through a link to it or to its folder, and a link whose file is not there yet."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "elsewhere").symlink_to("folder")
    (tmp_path / "link").symlink_to("folder/file")
    names = [tmp_path / name for name in ("folder/file", "elsewhere/file", "link", "folder/../link")]
    for there in (False, True):
        if there:
            names[0].touch()
        for one, other in itertools.permutations(names, 2):
            assert overwritten([("-i", one)], [("-o", other)]) == f"-o would overwrite {other}, which -i reads"
            assert overwritten([], [("-o", one), ("-p", other)]) == f"-p would overwrite {other}, which -o writes"
    assert overwritten([("-i", names[0]), ("-j", names[0])], [("-o", tmp_path / "file"), ("-p", None)]) == ""


@pytest.mark.skipif(os.name != "posix", reason="pipes and modes of POSIX")
def test_files_replace_files_only(tmp_path):
    """What is no regular file is refused and left alone, by everything that writes; a file keeps its mode."""
    opt = proptim.SGD([np.ones(2)])
    watch = opt.watch()
    opt.step([np.ones(2)])
    pipe, kept = tmp_path / "pipe", tmp_path / "kept.csv"
    os.mkfifo(pipe)
    for act in (watch.save, opt.save, opt.load, lambda path: proptim.plot(watch, path)):
        for path in (pipe, "/dev/null", tmp_path):
            with pytest.raises(ValueError, match="is not a regular file; expected a path for a"):
                act(path)
    for path in (pipe, "/dev/null"):
        with pytest.raises(ValueError, match=f"--out {path} is not a regular file; expected the name of a file"):
            check_out(path, "--out")
    assert pipe.is_fifo()
    kept.touch(0o600)
    watch.save(kept)
    assert kept.stat().st_mode & 0o777 == 0o600
    assert kept.stat().st_size > 0
    assert sorted(tmp_path.iterdir()) == [kept, pipe]


def test_pictures_are_whole_or_what_was_before(capsys, monkeypatch, tmp_path):
    """A disk that is full while a picture is written."""
    figure = pytest.importorskip("matplotlib.figure")
    pytest.importorskip("sklearn")

    def full(self, path, **options):
        Path(path).write_bytes(b"half a")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(figure.Figure, "savefig", full)
    path = tmp_path / "1_sizes.png"
    path.write_bytes(b"before")
    for command in (
        ["train", "--hidden", "4", "--epochs", "1", "--json", "--plot", str(path)],
        ["explain", "--out", str(tmp_path)],
    ):
        code, _, err = ended(capsys, *command)
        assert code == 1
        assert err == f"proptim {command[0]}: [Errno 28] No space left on device: {str(path)!r}\n"
        assert path.read_bytes() == b"before"
        assert [each.name for each in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "command", [["explain", "--out"], ["train", "--plot"], ["train", "--save"], ["bench", "--json"]]
)
def test_paths_are_looked_at_before_the_work(capsys, monkeypatch, tmp_path, command):
    pytest.importorskip("matplotlib")
    if command[0] == "explain":
        (tmp_path / "2_mini_batches.png").mkdir()
        path = tmp_path
        expected = f"{tmp_path / '2_mini_batches.png'} is a folder; expected the name of a file"
    else:
        path = tmp_path / "x.png"
        path.mkdir()
        expected = f"{path} is a folder; expected the name of a file"
    code, out, err = ended(capsys, *command, str(path))
    assert (code, out) == (1, "")
    assert err.endswith(f"{expected}\n")
