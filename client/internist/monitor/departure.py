"""The departure from a program: whether its own code has come to its end, or how it left before that."""

import dis
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any, Final

_RETURNS: Final = ("RETURN_VALUE", "RETURN_CONST", "RETURN_GENERATOR")
_SILENT: Final = ("CACHE", "EXTENDED_ARG", "NOP", "PRECALL", "PUSH_NULL")
"""Instructions that stand between others and add no value of their own."""
_CONSTANTS: Final = ("LOAD_CONST", "LOAD_SMALL_INT")
_VARIABLES: Final = ("LOAD_NAME", "LOAD_GLOBAL")
_WORDS: Final = ("BUILD_STRING", "FORMAT_VALUE", "FORMAT_SIMPLE", "FORMAT_WITH_SPEC")
"""Instructions that leave a string, whatever its letters are."""


def outermost_frame() -> FrameType:
    """The frame with which this thread began: the program's own, in the main thread."""
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
    return frame


def program_frame() -> FrameType | None:
    """The innermost frame of the program's own module; None where none is under way in this thread."""
    own = vars(sys.modules["__main__"]) if "__main__" in sys.modules else {}
    frame: FrameType | None = sys._getframe()
    while frame is not None and not (frame.f_globals is own and frame.f_code.co_name == "<module>"):
        frame = frame.f_back
    return frame


def is_under_way(frame: FrameType) -> bool:
    """Whether this thread is still inside the frame that it began with."""
    return outermost_frame() is frame


def has_returned(frame: FrameType) -> bool:
    """Whether a frame that is over came to its end; an error that leaves it stops it at some other instruction."""
    return dis.opname[frame.f_code.co_code[frame.f_lasti]] in _RETURNS if frame.f_lasti >= 0 else False


def raised_exit(frame: FrameType) -> SystemExit | None:
    """The SystemExit that a frame of a module which is over has raised itself, where it can still be told with which
    status: a constant, a variable, words. None where it left in another way, or with what a call returned.

    Python forgets the error before anything at exit runs, but not the instruction that raised it.
    """
    before: list[dis.Instruction] = []
    for step in dis.get_instructions(frame.f_code):
        if step.offset >= frame.f_lasti:
            return _raised(before, frame) if (step.opname, step.arg) == ("RAISE_VARARGS", 1) else None
        if step.opname not in _SILENT:
            before.append(step)
    return None


def _raised(before: Sequence[dis.Instruction], frame: FrameType) -> SystemExit | None:
    """What is raised after these instructions."""
    if not before or before[-1].opname != "CALL":
        value = _loaded(before[-1], frame) if before else None
        return SystemExit() if value is SystemExit else value if isinstance(value, SystemExit) else None
    if before[-1].arg == 0:
        return SystemExit() if len(before) > 1 and _loaded(before[-2], frame) is SystemExit else None
    if before[-1].arg != 1 or len(before) < 3:
        return None
    status = before[-2]
    if status.opname in _WORDS:
        return SystemExit("words")
    if _loaded(before[-3], frame) is not SystemExit or status.opname not in _CONSTANTS + _VARIABLES:
        return None
    return SystemExit(_loaded(status, frame))


def _loaded(step: dis.Instruction, frame: FrameType) -> Any:
    """What an instruction loads; None where that is not known."""
    if step.opname in _CONSTANTS:
        return step.argval
    if step.opname not in _VARIABLES:
        return None
    return frame.f_globals.get(step.argval, frame.f_builtins.get(step.argval))
