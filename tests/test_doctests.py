"""The examples in the docstrings are true, numbers included."""

import doctest
import re
from importlib import import_module
from pathlib import Path

import pytest

import valuegraph

PACKAGE = Path(valuegraph.__file__).parent
DECIMAL = re.compile(r"-?(?:\d+\.(\d*)|\.(\d+))(?:e[-+]?\d+)?(?![\w.])")
PADDING = re.compile(r" +(?=[,\])])")  # numpy pads short decimals inside an array


class Rounding(doctest.OutputChecker):
    """Decimals agree to the digits written, three at least: 0.729 stands for 0.72899998, not for 0.7296."""

    def check_output(self, want, got, optionflags):
        written = DECIMAL.finditer(want)

        def as_written(found):
            match = next(written, found)
            tolerance = 0.5 * 10.0 ** -max(len(match[1] or match[2] or ""), 3)
            return match[0] if abs(float(found[0]) - float(match[0])) <= tolerance else found[0]

        got = PADDING.sub("", DECIMAL.sub(as_written, got))
        return super().check_output(PADDING.sub("", want), got, optionflags)


def failures(examples: doctest.DocTest) -> int:
    runner = doctest.DocTestRunner(Rounding(), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    return runner.run(examples).failed


def modules_with_examples() -> list[str]:
    """Read as text, so that only a module with examples is imported, with the host it may need."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if ">>> " in path.read_text("utf-8"):
            parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
            found.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return found


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples(name):
    found = [test for test in doctest.DocTestFinder().find(import_module(name)) if test.examples]
    assert found
    assert [test.name for test in found if failures(test)] == []


def written_as(text: str) -> doctest.DocTest:
    return doctest.DocTestParser().get_doctest(f">>> print(0.72899998, .5)\n{text}\n", {}, text, None, 0)


def test_rounded_numbers_pass():
    assert failures(written_as("0.729 0.50")) == 0


@pytest.mark.parametrize("wrong", ["2", "0.7290001 0.5", "0.73 0.5", "0.729 0.5 0.5", "0.729", "0.729 x"])
def test_control_a_wrong_number_fails(wrong):
    assert failures(written_as(wrong)) == 1
