# cython: language_level=3, freethreading_compatible=True
"""The OpenMP threads, as a capsule; a module of its own, so that a process loads OpenMP only if it uses threads."""

from cpython.pycapsule cimport PyCapsule_New

from proptim import _core

from proptim cimport proptim_ran, proptim_task


cdef extern from "parallel_openmp.h" nogil:
    long proptim_openmp_process
    proptim_ran proptim_parallel_openmp(proptim_task *task, void *data, int parts, int threads)

# The process in which the core was imported: libgomp may have been loaded and used before this module, as by torch.
proptim_openmp_process = _core.process
parallel = PyCapsule_New(<void *>proptim_parallel_openmp, b"proptim_parallel", NULL)
