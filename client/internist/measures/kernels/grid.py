"""How a kernel's work is cut into programs.

Triton has the same two functions; they take ten times as long on the host, whose time is what a launch costs.
"""


def power_of_two(number: int) -> int:
    """The least power of two that is not less than a positive number."""
    return 1 << (number - 1).bit_length()


def pieces_of(number: int, size: int) -> int:
    """How many pieces of a size hold a number of things."""
    return -(-number // size)
