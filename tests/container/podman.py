"""podman with settings and storage of its own, which leave no trace on the machine."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

_CONTAINERS = """
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=30000:30000"]
netns = "host"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
tmp_dir = "{folder}/libpod"
"""
_STORAGE = """
[storage]
driver = "overlay"
graphroot = "{folder}/graph"
runroot = "{folder}/run"
"""


class Podman:
    """Runs podman.

    Args:
        folder: Where it keeps everything. The same folder again finds the same images.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        temporary = folder / "tmp"
        temporary.mkdir(parents=True, exist_ok=True)
        files = {"CONTAINERS_CONF": _CONTAINERS, "CONTAINERS_STORAGE_CONF": _STORAGE}
        self._environment = {**os.environ, "TMPDIR": str(temporary)}
        for variable, text in files.items():
            file = folder / f"{variable.lower()}.toml"
            file.write_text(text.format(folder=folder))
            self._environment[variable] = str(file)

    def __call__(self, *arguments: object, within: Sequence[str] = ()) -> str:
        """Run a command of podman.

        Args:
            arguments: The command.
            within: What to put before it, to run it in another network.

        Returns:
            What it wrote to standard output.

        Raises:
            RuntimeError: It failed; the message has what it wrote to standard error.
        """
        command = [*within, "podman", *map(str, arguments)]
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"`{' '.join(command)}` exited with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout.strip()

    def show(self, *arguments: object) -> None:
        """Run a command whose output is for whoever waits for it.

        Raises:
            subprocess.CalledProcessError: It failed.
        """
        subprocess.run(["podman", *map(str, arguments)], env=self._environment, check=True)

    def has_image(self, name: str) -> bool:
        """Say whether there is an image of this name."""
        return name in self("images", "--format", "{{.Repository}}:{{.Tag}}").split()

    @contextlib.contextmanager
    def running(self, *arguments: object, within: Sequence[str] = ()) -> Iterator[str]:
        """Run a container in the background; leaving the context removes it, whatever has become of it.

        Yields:
            Its id.
        """
        container = self("run", "--detach", "--pull=never", *arguments, within=within)
        try:
            yield container
        finally:
            self("rm", "--force", "--time=0", "--volumes", container)

    def stop(self) -> None:
        """End all containers."""
        self("pod", "rm", "--all", "--force", "--time=0")
        self("rm", "--all", "--force", "--time=0")

    def remove(self) -> None:
        """Remove everything, with the mounts that broken containers leave behind."""
        self.stop()
        for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
            point = line.split()[1]
            if point.startswith(f"{self._folder}/"):
                subprocess.run(["umount", "--lazy", point], check=True)
        shutil.rmtree(self._folder)
