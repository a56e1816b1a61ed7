"""How much of a layer one tensor-parallel rank holds: the largest share where they differ."""


def largest_part(size: int, pieces: int, ranks: int) -> int:
    """Of `size` elements in `pieces` pieces that stay whole; fewer pieces than ranks are held by several each."""
    return size // pieces * max(1, -(-pieces // ranks))
