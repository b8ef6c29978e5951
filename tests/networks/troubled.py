"""A task under which workers meet with accidents. It stands in a module, so that other processes can import it."""

import os
import signal
import time
from pathlib import Path

from networks.tasks import Agreement


class Troubled(Agreement):
    """Agreement in small batches; `slow` seconds for each. `fatal`, `raising`: the place of a bad batch.

    A fatal batch kills its process as long as the file `lives` holds a number above 0, which it lowers.
    """

    def __init__(self, model, *, slow=0.0, fatal=None, raising=None, error=None, lives=None):
        super().__init__(model, batch=10)
        self.slow, self.fatal, self.raising, self.error, self.lives = slow, fatal, raising, error, lives

    def losses(self, model, batch):
        time.sleep(self.slow)
        if self._is(self.fatal, batch) and self._lives_left():
            os.kill(os.getpid(), signal.SIGKILL)
        if self._is(self.raising, batch):
            raise self.error
        return super().losses(model, batch)

    def _is(self, place, batch):
        return place is not None and self.splits["search"][place][0].equal(batch[0])

    def _lives_left(self):
        left = int(Path(self.lives).read_text())
        Path(self.lives).write_text(str(left - 1))
        return left > 0
