"""The folder of a population: what its members are, and where each of them is.

population.json         the config that all start from, the members, the groups that were trained as one program
metrics.jsonl           one JSON object a group and epoch
permutation.json        where pixels are permuted, and alike in all members, their order
checkpoints/0/          of group 0; see `lstm_mnist_jax.training.checkpoint`
results.csv  results.png    a row a member; curves and the settings by rank
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from lstm_mnist_jax.config import Config
from lstm_mnist_jax.config.json import from_dict, from_value, to_dict
from lstm_mnist_jax.errors import ConfigError, RunError
from lstm_mnist_jax.sweeps.space import Setting, Space, setting_of, with_setting
from lstm_mnist_jax.training.run_folder import POPULATION_FILE as FILE
from lstm_mnist_jax.training.run_folder import DataFacts, write_atomically, write_permutation

FORMAT = 4
"""Number of the folder's format: raised when an older program could misread it."""


@dataclass(frozen=True)
class Member:
    """One training of a population.

    Attributes:
      seed: its seed.
      setting: what else of the config is its own.
    """

    seed: int
    setting: Setting


@dataclass(frozen=True)
class PopulationFolder:
    """The paths of a population, and the contents of its population.json.

    Attributes:
      path: the folder.
      config: what the members start from.
      space: what was asked for.
      members: the trainings.
      groups: the numbers of the members that share a program, group by group.
      data: what they are trained on.
      environment: the versions that they were begun with.
    """

    path: Path
    config: Config
    space: Space
    members: tuple[Member, ...]
    groups: tuple[tuple[int, ...], ...]
    data: DataFacts
    environment: dict[str, str]

    def member_config(self, member: int) -> Config:
        """The config of a member, as that of a run of its own."""
        chosen = self.members[member]
        return replace(with_setting(self.config, chosen.setting), seed=chosen.seed)

    def group_of(self, member: int) -> int:
        """The group in which a member is trained."""
        return next(number for number, group in enumerate(self.groups) if member in group)

    def checkpoints(self, group: int) -> Path:
        return self.path / "checkpoints" / str(group)

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"


def is_population(path: Path) -> bool:
    """Whether a folder holds a population."""
    return (path / FILE).is_file()


def read_population_folder(path: Path) -> PopulationFolder:
    """Opens the folder of a population.

    Raises:
      RunError: it is not one, or one of another version, or its population.json is damaged.
    """
    file = path / FILE
    if not file.is_file():
        raise RunError(f"{path} is not the folder of a population: it has no {FILE}. lstm-mnist sweep makes one.")
    try:
        contents = json.loads(file.read_text("utf-8"))
        if contents["format"] != FORMAT:
            raise RunError(
                f"{path} is a population of format {contents['format']}; this version of lstm-mnist-jax reads "
                f"format {FORMAT}. Use the version that wrote it, or sweep anew."
            )
        config = from_dict(Config, contents["config"])
        members = tuple(
            Member(from_value(int, member.pop("seed"), "seed"), setting_of(member)) for member in contents["members"]
        )
        return PopulationFolder(
            path=path,
            config=config,
            space=from_dict(Space, contents["space"]),
            members=members,
            groups=tuple(tuple(map(int, group)) for group in contents["groups"]),
            data=from_dict(DataFacts, contents["data"]),
            environment=dict(contents["environment"]),
        )
    except RunError:
        raise
    except (ConfigError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{file} is damaged or of another version: {error!r}.") from error


def write_population_folder(folder: PopulationFolder) -> None:
    """Writes population.json, whole or not at all.

    Raises:
      RunError: it cannot be written.
    """
    contents = {
        "format": FORMAT,
        "config": to_dict(folder.config),
        "space": to_dict(folder.space),
        "members": [{"seed": member.seed, **member.setting} for member in folder.members],
        "groups": folder.groups,
        "data": to_dict(folder.data),
        "environment": folder.environment,
    }
    try:
        if not {"task", "permutation_seed"} & set(folder.space.names):
            write_permutation(folder.path, folder.config, folder.data)
        write_atomically(folder.path / FILE, json.dumps(contents, indent=2) + "\n")
    except OSError as error:
        raise RunError(f"{folder.path} cannot be written to: {error.strerror or error}.") from error
