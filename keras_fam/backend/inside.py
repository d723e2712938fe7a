"""What holds inside a `with` block."""

import contextlib
import threading


class Inside(threading.local):
    """A value that is set inside a block, on one thread: blocks of other threads have their own.

    Attributes:
        value: what the innermost block set; None outside.
    """

    value = None

    @contextlib.contextmanager
    def set(self, value):
        """Inside, `self.value` is `value`."""
        before, self.value = self.value, value
        try:
            yield
        finally:
            self.value = before
