# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, freethreading_compatible=True
"""The harness's own kernels over arrays; see kernels.h."""

from cpython.buffer cimport PyBUF_FORMAT, PyBUF_SIMPLE, PyBUF_WRITABLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from libc.stdlib cimport calloc, free

cdef extern from "kernels.h" nogil:
    enum:
        BENCH_MIN_ARRAYS
        BENCH_MAX_ARRAYS
    ctypedef void bench_kernel(void *const *arrays, size_t n)
    struct bench_kernels:
        const char *isa
        bench_kernel *stream[BENCH_MAX_ARRAYS + 1]
        bench_kernel *rprop

cdef extern from *:
    """
    #define DECLARED(isa) extern const struct bench_kernels BENCH_KERNELS(isa, f32), BENCH_KERNELS(isa, f64);
    BENCH_ISAS(DECLARED)
    #define LISTED(isa)   &BENCH_KERNELS(isa, f32), &BENCH_KERNELS(isa, f64),
    static const struct bench_kernels *const bench_tables[] = { BENCH_ISAS(LISTED) NULL };
    """
    const bench_kernels *const *bench_tables  # float32 and float64 of each instruction set in turn


cdef class Kernel:
    """A kernel bound to arrays: "stream" over any two to five, or "rprop" over four, for each segment."""

    cdef bench_kernel *kernel
    cdef Py_buffer *views
    cdef Py_ssize_t segments, arrays, held

    def __cinit__(self, str name, str isa, list segments):
        cdef Py_ssize_t i, j, table = 0
        wanted = isa.encode()
        while bench_tables[table] is not NULL and bench_tables[table].isa != wanted:
            table += 2
        if bench_tables[table] is NULL:
            raise ValueError(f"no kernels for the instruction set {isa!r}")
        if not segments or any(len(segment) != len(segments[0]) for segment in segments):
            raise ValueError("expected segments of as many arrays each, and at least one")
        table += segments[0][0].itemsize == 8
        self.segments, self.arrays = len(segments), len(segments[0])
        if name == "stream" and BENCH_MIN_ARRAYS <= self.arrays <= BENCH_MAX_ARRAYS:
            self.kernel = bench_tables[table].stream[self.arrays]
        elif name == "rprop" and self.arrays == 4:
            self.kernel = bench_tables[table].rprop
        else:
            raise ValueError(f"no kernel {name!r} over {self.arrays} arrays")
        self.views = <Py_buffer *>calloc(self.segments * self.arrays, sizeof(Py_buffer))
        if not self.views:
            raise MemoryError
        for segment in segments:
            for array in segment:
                if array.dtype != segments[0][0].dtype or array.size != segment[0].size:
                    raise ValueError("expected arrays of one dtype, and of one size in each segment")
                PyObject_GetBuffer(array, &self.views[self.held], PyBUF_SIMPLE | PyBUF_WRITABLE)
                self.held += 1

    def __dealloc__(self):
        cdef Py_ssize_t i
        for i in range(self.held):
            PyBuffer_Release(&self.views[i])
        free(self.views)

    def run(self, size_t part=0, size_t parts=1):
        """One pass over all segments, or one part of many of it."""
        cdef void *arrays[BENCH_MAX_ARRAYS]
        cdef Py_ssize_t i, j
        cdef size_t n, first, last, item
        with nogil:
            for i in range(self.segments):
                item = self.views[i * self.arrays].itemsize
                n = self.views[i * self.arrays].len // item
                # whole cache lines, so that no two threads write to one
                first = n * part // parts // 64 * 64
                last = n if part + 1 == parts else n * (part + 1) // parts // 64 * 64
                for j in range(self.arrays):
                    arrays[j] = <char *>self.views[i * self.arrays + j].buf + first * item
                self.kernel(arrays, last - first)
