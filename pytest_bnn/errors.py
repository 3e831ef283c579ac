"""Everything that pytest-bnn raises about its input or its surroundings. Each message ends with how to fix it."""

from __future__ import annotations


class PytestBnnError(Exception):
    """Base of all errors of pytest-bnn: what is wrong, then how to fix it."""

    def __init__(self, problem: str, *, fix: str) -> None:
        super().__init__(f"{problem}. {fix[:1].upper()}{fix[1:]}.")
        self.problem = problem
        self.fix = fix


class InputError(PytestBnnError):
    """A path, factory, checkpoint, option, image or model that cannot be used."""


class OptionError(InputError, ValueError):
    """An argument of a check, given in Python, whose value cannot be used."""


class WeightsError(InputError):
    """A teacher's weights that cannot be loaded."""


class ConversionError(InputError):
    """A network, or a part of it, that cannot be converted; nothing was touched."""


class BrokenEnvironmentError(PytestBnnError):
    """An installation in which pytest-bnn cannot work, such as a torch and a torchvision that do not match."""


class ClaimWarning(UserWarning):
    """What a check of a network that is audited without a test found and no claim forbids."""


class WriteError(PytestBnnError):
    """A report that the system would not write, for want of space for example; the one before it is unchanged."""


#: Characters of somebody else's error beside words of ours.
_LONGEST = 200


def in_words(error: BaseException) -> str:
    """Return an error of somebody else as a text: its type, and what it says."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def in_a_line(error: BaseException) -> str:
    """Return an error of somebody else as `in_words` does, in one line of at most some 200 characters."""
    text = " ".join(in_words(error).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."
