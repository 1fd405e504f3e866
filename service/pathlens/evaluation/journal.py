"""The journal of a long run: what is done is on disk, so that an interrupted run goes on where it stopped."""

import fcntl
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pathlens.errors import EvaluationError
from pathlens.evaluation.observation import Observation


@dataclass(frozen=True)
class Task:
    """One piece of work that is either done or not.

    Attributes:
        name: Unique in the run, and the same in every run with the same settings.
        stage: What the progress bar calls it; tasks of a stage follow each other.
        run: Makes the observations. It must depend on nothing but the settings, not on which tasks ran before in this
            process.
    """

    name: str
    stage: str
    run: Callable[[], Sequence[Observation]]


class Journal:
    """Observations by task, one JSON line each, written as soon as the task is done.

    A journal runs once; until then, it keeps others from writing the file.

    Args:
        path: File to write or to go on with.
        settings: Everything that the observations depend on; JSON values.

    Raises:
        EvaluationError: If the file is of other settings, or another run is writing it.
    """

    def __init__(self, path: Path, settings: Mapping[str, object]) -> None:
        self._done: dict[str, list[Observation]] = {}
        header = json.dumps(settings, sort_keys=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read(path, header)
        except BlockingIOError as error:
            self._file.close()
            raise EvaluationError(f"Another run is writing {path}; wait for it, or choose another --out.") from error
        except EvaluationError:
            self._file.close()
            raise

    def __contains__(self, task: Task) -> bool:
        """Tell whether a task is done."""
        return task.name in self._done

    def run(self, tasks: Iterable[Task]) -> list[Observation]:
        """Run the tasks that are not done yet, and return the observations of all of them in order."""
        observations = []
        with self._file:
            for task in tasks:
                if task not in self:
                    self._record(task.name, list(task.run()))
                observations += self._done[task.name]
        return observations

    def _read(self, path: Path, header: str) -> None:
        self._file.seek(0)
        first, *lines = self._file.read().split("\n")
        if not lines:
            # Nothing was written yet, or the first line was torn.
            self._file.truncate(0)
            self._append(header)
            return
        if first != header:
            raise EvaluationError(
                f"{path} is the journal of a run with other settings or another bundle; remove it to start anew, or "
                "choose another --out."
            )
        # The last line is empty, or torn by what ended the run: in both cases it is no task that was done.
        for line in lines[:-1]:
            entry = json.loads(line)
            self._done[entry["task"]] = [Observation(**values) for values in entry["observations"]]
        self._file.truncate(sum(len(line.encode()) + 1 for line in (first, *lines[:-1])))

    def _record(self, name: str, observations: list[Observation]) -> None:
        self._append(json.dumps({"task": name, "observations": [asdict(observation) for observation in observations]}))
        self._done[name] = observations

    def _append(self, line: str) -> None:
        self._file.write(line + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
