"""Random numbers addressed by counters: one multiplication chain instead of a generator per record (80 us each)."""

_MASK = 2**64 - 1


def scramble(*counters: int) -> int:
    """Returns a fixed pseudo-random number of 64 bits for the counters: the splitmix64 finaliser over each in turn
    (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators")."""
    x = 0
    for counter in counters:
        x = (x + counter + 0x9E3779B97F4A7C15) & _MASK
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
        x ^= x >> 31
    return x
