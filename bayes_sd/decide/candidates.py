"""Candidates for a deployment, as a YAML file names them."""

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from bayes_sd.cli_options import structure_of
from bayes_sd.errors import InputError
from bayes_sd.predict.size import Size
from bayes_sd.predict.system import System
from bayes_sd.traces.numbers import Count, Positive, count, fraction, number, sentence

SIZES = {f.name: count if f.name.startswith("experts") else number for f in fields(Size)}


def _model(value: Any) -> str | Size:
    """A measured model by name, or one that nobody measured by size."""
    if isinstance(value, str):
        return value
    if not isinstance(value, dict) or "params" not in value:
        raise ValueError(
            f"must be a measured model's name or a size as in {{params: 8e9}}, got {value!r}"
        )
    if unknown := [str(name) for name in value if name not in SIZES]:
        raise ValueError(f"has the unknown size {unknown[0]!r}; known are {', '.join(SIZES)}")
    # YAML takes 8e9 for a word.
    sizes: dict[str, Any] = {name: SIZES[name](size) for name, size in value.items()}
    return Size(**sizes)


def _acceptance(value: Any) -> Any:
    """A fraction, or one for each position."""
    if not isinstance(value, list):
        return None if value is None else fraction(value)
    if not value:
        raise ValueError("must be a number from 0 to 1, or a list of such by position, got []")
    return tuple(fraction(one) for one in value)


class _Candidate(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    verifier: Annotated[str | Size, BeforeValidator(_model)]
    drafter: Annotated[str | Size | None, BeforeValidator(_model)] = None
    k: Count = 0
    acceptance: Annotated[float | tuple[float, ...] | None, BeforeValidator(_acceptance)] = None
    environment: str | None = None
    extrapolate: bool = False
    structure: str | None = None
    price_per_hour: Positive | None = None


def read_candidates(
    path: str | Path,
) -> tuple[dict[str, tuple[System, int]], dict[str, float] | None]:
    """Read named candidates for :func:`bayes_sd.decide.deploy.deployments`.

    Parameters
    ----------
    path : path
        YAML: a name to ``verifier`` (a measured one's name, or a size as in ``{params: 8e9}``) and
        perhaps ``drafter`` (likewise), ``k`` (draft tokens, 0 is plain), ``acceptance``,
        ``environment``, ``extrapolate``, ``structure`` (as behind ``--structure``) and
        ``price_per_hour``.

    Returns
    -------
    candidates : dict
        (System, draft tokens) by name.
    prices : dict or None
        By name, as far as given; None where no candidate has one.

    Raises
    ------
    InputError
        If the file cannot be used: names the candidate and the key.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     file = Path(folder, "deployments.yaml")
    ...     _ = file.write_text("eagle: {verifier: llama-8b, drafter: eagle, k: 3}")
    ...     read_candidates(file)[0]["eagle"][1]
    3
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; YAML with named candidates is needed.")
    try:
        text = path.read_text(encoding="utf-8")
        data, node = yaml.safe_load(text), yaml.compose(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is not YAML ({str(error).splitlines()[0]}).") from None
    if not isinstance(data, dict) or not data:
        raise InputError(f"{path}: must map a name to each candidate, at least one.")
    assert isinstance(node, yaml.MappingNode)
    names = [key.value for key, _ in node.value]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"{path}: {twice[0]} is named twice; every candidate needs its own name.")
    found: dict[str, tuple[System, int]] = {}
    prices: dict[str, float] = {}
    for name, keys in data.items():
        if not isinstance(keys, dict):
            raise InputError(f"{path}: {name} must map keys to values, as verifier: llama-8b.")
        try:
            given = _Candidate.model_validate(keys)
            system = System(
                given.verifier,
                given.drafter,
                given.acceptance,
                given.environment,
                given.extrapolate,
                structure_of(given.structure),
            )
        except ValidationError as error:
            raise InputError(f"{path}: {name}: {sentence(error)}.") from None
        except (InputError, typer.BadParameter) as error:
            raise InputError(f"{path}: {name}: {error}") from None
        found[str(name)] = (system, given.k)
        if given.price_per_hour is not None:
            prices[str(name)] = given.price_per_hour
    return found, prices or None
