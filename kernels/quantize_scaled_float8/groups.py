"""The groups of columns that share a scale."""

WHOLE_ROW = -1


def num_groups(columns: int, group_size: int) -> int:
    """How many scales a row of so many columns has."""
    return 1 if group_size == WHOLE_ROW else -(-columns // group_size)


def group_width(columns: int, group_size: int) -> int:
    """How many columns share a scale."""
    return columns if group_size == WHOLE_ROW else min(group_size, columns)
