"""How fast the device is, measured on the latest calls."""

WEIGHT = 0.3  # of the latest call: speeds differ with the number of images in a call


class Speed:
    """The measured speed of the device.

    Attributes:
        computed: rows that it computes per second; 0 before the first call.
        served: rows per second that the same images would take one by one. The queue counts such rows.
        seconds: that the latest call took.
    """

    def __init__(self) -> None:
        self.computed = self.served = self.seconds = 0.0

    def note(self, computed: float, independent: float, seconds: float) -> None:
        """Note a call.

        Args:
            computed: rows that it computed.
            independent: rows that its images would take one by one.
            seconds: that it took, with encoding, decoding and writing.
        """
        if seconds <= 0:
            return
        first, self.seconds = self.computed == 0, seconds
        for name, rows in (("computed", computed), ("served", independent)):
            now = rows / seconds
            setattr(self, name, now if first else (1 - WEIGHT) * getattr(self, name) + WEIGHT * now)
