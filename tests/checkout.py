# SPDX-License-Identifier: Apache-2.0
"""A small checkout in which the set-up scripts are run for real, and nothing outside it is touched.

What they would call (python, apt-get, gcc, ...) is faked by files in a directory that is all of PATH: nothing
is installed or downloaded, and each call is on record. Used by one test at a time; no state outlives it.
"""

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("setup.cfg", "pyproject.toml", "setup.py", "ioctl_shim/_build.py", "ioctl_shim/native/pump.c")
REAL = "bash cat chmod env find flock grep ln mkdir mv readlink realpath rm sha256sum sleep sort tail touch"
FAKED = ("fusermount3", "pkg-config", "gcc")

# Answers the probe of tools/setup.sh, and makes what `-m venv` and `-m pip` would leave.
PYTHON = """#!{bash}
case "$*" in
    "-I -c "*) echo "{probe}" ;;
    "-m venv "*)
        echo "venv" >>"{calls}"
        mkdir -p "$3/bin"
        ln -sf "{path}" "$3/bin/python"
        ;;
    "-m pip "*)
        echo "pip ${{!#}}" >>"{calls}"
        {pip}
        touch ioctl_shim/_native.abi3.so
        printf '#!{bash}\\nprintf "%%s\\\\n" "$@"\\n' >.venv/bin/vfsfuse
        chmod +x .venv/bin/vfsfuse
        ;;
    "-m compileall "*) echo "${{*:3}}" >>.venv/compiled ;;
    "-m "*)
        echo "$*" >>"{calls}"
        [[ $2 != "{fails}" ]]
        ;;
esac
"""


class Checkout:
    """A checkout in a path with a space, and the directory that is its PATH."""

    def __init__(self, where: Path) -> None:
        self.root = where / "a clone"
        self.bin = where / "bin"
        self.calls_file = where / "calls"
        self.bin.mkdir()
        for name in ("mount.sh", "tools/setup.sh", "tests/run.sh"):
            self.add(name, (ROOT / name).read_text()).chmod(0o755)
        for name in SOURCES:
            self.add(name, f"as {name} was")
        for name in REAL.split():
            real = shutil.which(name)
            assert real, name
            (self.bin / name).symlink_to(real)
        for name in FAKED:
            self.fake(name)
        self.python()

    def add(self, name: str, text: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def fake(self, name: str, script: str = "exit 0") -> Path:
        path = self.bin / name
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_text(f"#!{self.bin}/bash\n{script}\n")
        path.chmod(0o755)
        return path

    def python(
        self, name: str = "python3", probe: str = "1 1 1", pip: str = ":", says: str = "", fails: str = ""
    ) -> Path:
        """probe: optimized, has venv, has Python.h; pip: what pip does first; fails: a module that does."""
        path = self.fake(name)
        answer = f"{probe} {says or path}"
        path.write_text(
            PYTHON.format(
                bash=self.bin / "bash", probe=answer, calls=self.calls_file, path=path, pip=pip, fails=fails
            )
        )
        return path

    def user(self, uid: int) -> None:
        """apt-get fails until it was told to update; then each package is there after it."""
        self.fake("id", f"echo {uid}")
        self.fake(
            "apt-get",
            f'echo "apt-get ${{*: 3}}" >>"{self.calls_file}"\n'
            f'if [[ $3 == update ]]; then touch "{self.bin}/updated"; fi\n'
            f'[[ -e "{self.bin}/updated" ]] || {{ echo "E: Unable to locate package"; exit 100; }}\n'
            f'ln -sf "{self.bin}/fusermount3" "{self.bin}/gcc"',
        )

    def start(self, script: str, *args: str, **env: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [self.root / script, *args],
            env={"PATH": str(self.bin), "HOME": str(self.root), "LC_ALL": "C", **env},
            cwd=self.root.parent,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, script: str, *args: str, status: int = 0, **env: str) -> tuple[str, str]:
        with self.start(script, *args, **env) as process:
            out, err = process.communicate(timeout=60)
        assert process.returncode == status, err
        return out, err

    def calls(self) -> list[str]:
        """What was called since the last time this was asked."""
        said = self.calls_file.read_text().splitlines() if self.calls_file.exists() else []
        self.calls_file.unlink(missing_ok=True)
        return said
