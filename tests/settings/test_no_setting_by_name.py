"""Loading treats all settings alike: what is special about one belongs to its declaration."""

from __future__ import annotations

import ast
import inspect

import pytest

from pkg.settings import declared
from pkg.settings.declared import SETTINGS


def test_loading_names_no_setting() -> None:
    tree = ast.parse(inspect.getsource(declared.load))
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    assert texts.isdisjoint(setting.name for setting in SETTINGS)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_what_a_setting_refers_to_is_declared(setting: declared.Setting[object]) -> None:
    names = [other.name for other in SETTINGS]
    # In the order in which they are read.
    assert not setting.needs or names.index(setting.needs) < names.index(setting.name)
    assert setting.file is None or (setting.secret and setting.file.setting in names)
    assert setting.implied is None or setting.implied.setting in names
