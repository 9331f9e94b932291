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
        weight = 1.0 if self.computed == 0 else WEIGHT
        self.seconds = seconds
        self.computed += weight * (computed / seconds - self.computed)
        self.served += weight * (independent / seconds - self.served)
