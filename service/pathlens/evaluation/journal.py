"""The journal of a long run: what is done is on disk, so that an interrupted run goes on where it stopped."""

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

    Args:
        path: File to write or to go on with.
        settings: Everything that the observations depend on; JSON values.

    Raises:
        EvaluationError: If the file is of other settings.
    """

    def __init__(self, path: Path, settings: Mapping[str, object]) -> None:
        self._path = path
        self._done: dict[str, list[Observation]] = {}
        header = json.dumps(settings, sort_keys=True)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(header + "\n", encoding="utf-8")
            return
        first, *lines = path.read_text(encoding="utf-8").split("\n")
        if first != header:
            raise EvaluationError(
                f"{path} is the journal of a run with other settings or another bundle; remove it to start anew, or "
                "choose another --out."
            )
        # The last line is empty, or torn by what ended the run: in both cases it is no task that was done.
        for line in lines[:-1]:
            entry = json.loads(line)
            self._done[entry["task"]] = [Observation(**values) for values in entry["observations"]]
        os.truncate(path, sum(len(line.encode()) + 1 for line in (first, *lines[:-1])))

    def __contains__(self, task: Task) -> bool:
        """Tell whether a task is done."""
        return task.name in self._done

    def run(self, tasks: Iterable[Task]) -> list[Observation]:
        """Run the tasks that are not done yet, and return the observations of all of them in order."""
        observations = []
        for task in tasks:
            if task not in self:
                self._record(task.name, list(task.run()))
            observations += self._done[task.name]
        return observations

    def _record(self, name: str, observations: list[Observation]) -> None:
        line = json.dumps({"task": name, "observations": [asdict(observation) for observation in observations]})
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._done[name] = observations
