"""Import this module to let threadpoolctl see the threads of proptim and limit their number.

Examples
--------
>>> import proptim.threadpoolctl
>>> from threadpoolctl import threadpool_info, threadpool_limits
>>> [pool["user_api"] for pool in threadpool_info() if pool["user_api"] == "proptim"]
['proptim']
>>> with threadpool_limits(1, user_api="proptim"):
...     pass  # every step in here, of every optimizer, runs on one thread

Notes
-----
With ``PROPTIM_PARALLEL=openmp`` threadpoolctl sees the OpenMP runtime by itself, but the limit of OpenMP does not apply
to steps, which set their number of threads themselves.
"""

from __future__ import annotations

from threadpoolctl import LibController, register

from proptim._version import __version__


class PoolController(LibController):  # type: ignore[misc]
    """The pool of threads in the compiled core."""

    user_api = "proptim"
    internal_api = "proptim"
    filename_prefixes = ("_core.",)
    check_symbols = ("proptim_pool_set_limit",)

    def get_num_threads(self) -> int:
        """The largest number of threads that a step may use."""
        return int(self.dynlib.proptim_pool_get_limit())

    def set_num_threads(self, num_threads: int) -> None:
        """Set the largest number of threads that a step may use."""
        self.dynlib.proptim_pool_set_limit(num_threads)

    def get_version(self) -> str:
        """Version of proptim."""
        return __version__


register(PoolController)
