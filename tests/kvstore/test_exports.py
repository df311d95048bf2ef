"""What users may import is listed, sorted, documented, and nothing else is public by accident."""

from __future__ import annotations

import inspect
import subprocess
import sys
import types

import pytest

import kvstore
import kvstore.client
import kvstore.errors
import kvstore.values


@pytest.mark.parametrize("package", [kvstore, kvstore.client, kvstore.errors, kvstore.values])
def test_exports_are_sorted_and_exist(package: types.ModuleType) -> None:
    assert package.__all__ == sorted(set(package.__all__))
    for name in package.__all__:
        assert hasattr(package, name), name


@pytest.mark.parametrize("package", [kvstore, kvstore.client])
def test_no_public_name_strays_in(package: types.ModuleType) -> None:
    for name in package.__all__:
        getattr(package, name)  # those of `kvstore` are loaded on demand
    public = {
        name
        for name, member in vars(package).items()
        if not name.startswith("_") and not isinstance(member, types.ModuleType)
    }
    assert public - {"annotations", "TYPE_CHECKING"} == set(package.__all__)


def test_every_error_is_exported() -> None:
    assert set(kvstore.errors.__all__) <= set(kvstore.__all__)


@pytest.mark.parametrize("name", kvstore.__all__)
def test_every_export_is_documented(name: str) -> None:
    export = getattr(kvstore, name)
    assert inspect.getdoc(export), name
    if inspect.isclass(export):
        for method_name, method in inspect.getmembers(export, inspect.isfunction):
            if not method_name.startswith("_") and method.__module__.startswith("kvstore"):
                assert inspect.getdoc(method), f"{name}.{method_name}"


def test_errors_do_not_load_the_clients() -> None:
    script = "import sys, kvstore.errors; sys.exit('kvstore.client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_a_name_that_is_none_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="conect"):
        getattr(kvstore, "conect")  # noqa: B009
