"""Handle JSON values: the objects of an API, which are made of nothing else."""

from __future__ import annotations

from typing import Any, TypeVar

_NESTED = (dict, list)
T = TypeVar("T")


def copied(value: T) -> T:
    """Copy a JSON value so that nothing is shared; faster than copy.deepcopy, which has to expect anything."""
    return _copied(value)  # type: ignore[no-any-return]


def _copied(value: Any) -> Any:
    if type(value) is dict:
        return {key: _copied(each) if type(each) in _NESTED else each for key, each in value.items()}
    if type(value) is list:
        return [_copied(each) if type(each) in _NESTED else each for each in value]
    return value
