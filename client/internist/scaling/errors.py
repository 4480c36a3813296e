"""The scaling check's errors.

ScalingError
└── NotAFamily   these models cannot be compared: too few sizes, or they differ in more than width and depth
                 (also a ValueError)
"""


class ScalingError(Exception):
    """Base of the scaling check's errors."""


class NotAFamily(ScalingError, ValueError):  # noqa: N818
    """These models cannot be compared: too few sizes, or they differ in more than width and depth.

    Raised as well for one model whose width or depth cannot be read from its shapes. The message is a sentence for
    people.
    """
