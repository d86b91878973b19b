"""A stream of numbers that depends on its seed alone, far cheaper to start than `random.Random`."""

_MASK = (1 << 64) - 1


class Draw:
    """Deterministic choices: the same seed makes the same ones in every release."""

    __slots__ = ("_state", "depth")

    def __init__(self, seed: int) -> None:
        self._state = seed & _MASK
        self.depth = 0  # levels of nesting around the value that is being made

    def below(self, limit: int) -> int:
        """An integer from 0 up to, not including, the limit."""
        self._state = (self._state * 6364136223846793005 + 1442695040888963407) & _MASK
        return (self._state >> 24) % limit

    def share(self) -> float:
        """A number from 0 up to, not including, 1."""
        return self.below(1 << 30) / (1 << 30)

    def shuffle(self, items: list[object]) -> None:
        for last in range(len(items) - 1, 0, -1):
            other = self.below(last + 1)
            items[last], items[other] = items[other], items[last]


WORDS = (
    "amber", "basin", "cedar", "delta", "ember", "fjord", "grove", "harbor", "inlet", "jasper", "kelp", "lagoon",
    "meadow", "nectar", "orchid", "prairie", "quartz", "river", "summit", "tundra", "umber", "valley", "willow", "yarrow",
)  # fmt: skip


def phrase(draw: Draw, words: int) -> str:
    return " ".join(WORDS[draw.below(len(WORDS))] for _ in range(words))
