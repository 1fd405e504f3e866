"""TorchServe's JVM from its start to its end, with the workers that come and go with it."""

import contextlib
import subprocess
import time

from pathlens.errors import ServerStartError
from pathlens.torchserve.command import Command
from pathlens.torchserve.family import Guard, ProcessFamily
from pathlens.torchserve.instance import InstanceFolder, Ports
from pathlens.torchserve.journal import Journal

# TorchServe unpacks the archives before it listens, and a large one takes its time.
_LISTEN_SECONDS = 120.0
_POLL_SECONDS = 0.05
_REAP_SECONDS = 10.0


class Jvm:
    """A JVM that has been started and must be ended.

    Args:
        command: How to start it.
        folder: Its folder, with its configuration.
        ports: What the configuration tells it to listen on.

    Raises:
        ServerStartError: The system cannot run the program.
    """

    def __init__(self, command: Command, folder: InstanceFolder, ports: Ports) -> None:
        self.ports = ports
        self.journal = Journal(folder.log, folder.console)
        try:
            with folder.console.open("wb") as console:
                self._process = subprocess.Popen(
                    command.arguments,
                    env=dict(command.environment),
                    cwd=folder.path,
                    stdin=subprocess.DEVNULL,
                    stdout=console,
                    stderr=subprocess.STDOUT,
                    # Ctrl-C in a terminal is for us alone: we then let TorchServe finish its work.
                    start_new_session=True,
                )
        except OSError as error:
            raise ServerStartError(
                f"{command.arguments[0]} cannot be run ({error.strerror}): set java_home to a Java for this machine.",
                metadata={"java": command.arguments[0]},
            ) from error
        self._family = ProcessFamily(self._process.pid, folder.temporary)
        self._guard: Guard | None = None
        try:
            self._guard = Guard((folder.path,), leader=self._process.pid)
        except BaseException:
            self.end(drain_seconds=0)
            raise

    @property
    def pid(self) -> int:
        """Process id of the JVM."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the JVM is alive."""
        return self._process.poll() is None

    def wait_until_listening(self) -> bool:
        """Wait until the JVM itself, and nobody else, listens on all its ports.

        Returns:
            False if the JVM ended because another process held one of the ports.

        Raises:
            ServerStartError: The JVM ended for another reason, or does not listen in time.
        """
        deadline = time.monotonic() + _LISTEN_SECONDS
        while not self.ports.opened <= self._family.listening_ports():
            if not self.is_running:
                if self.journal.could_not_bind():
                    return False
                raise ServerStartError(
                    f"TorchServe ended with status {self._process.returncode} while it started. Its log says:\n"
                    f"{self.journal.tail()}",
                    reason="JVM_ENDED",
                    metadata={"status": self._process.returncode},
                )
            if time.monotonic() > deadline:
                raise ServerStartError(
                    f"TorchServe does not listen after {_LISTEN_SECONDS:g} s. Its log says:\n{self.journal.tail()}",
                    reason="START_TIMEOUT",
                )
            time.sleep(_POLL_SECONDS)
        return True

    def end(self, drain_seconds: float) -> None:
        """Let the JVM finish what it has accepted, then kill whatever is left of it and its workers.

        Args:
            drain_seconds: How long accepted requests may take; 0 kills at once.
        """
        # Found while the JVM lives: afterwards, what a worker has started has lost its parent.
        self._family.members()
        try:
            if drain_seconds > 0 and self.is_running:
                self._process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(drain_seconds)
        finally:
            self._family.kill()
            # A process inside a stuck device driver cannot be killed; stopping goes on without it.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_REAP_SECONDS)
            if self._guard is not None:
                self._guard.dismiss()
