# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, freethreading_compatible=True
"""The harness's own kernels over arrays; see kernels.h."""

from cpython.buffer cimport PyBUF_FORMAT, PyBUF_SIMPLE, PyBUF_WRITABLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from libc.stdlib cimport calloc, free

from proptim cimport proptim_api

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


cdef extern from "proptim_python.h" nogil:
    const proptim_api *proptim_import() except NULL with gil

cdef extern from "parts.h" nogil:
    int parts_of(size_t elements, size_t arrays, int threads)
    size_t part_begin(size_t units, int part, int parts)

cdef const proptim_api *api = proptim_import()

cdef enum:
    UNIT = 64  # elements: whole cache lines, so that no two threads write to one


cdef struct Segments:
    bench_kernel *kernel
    Py_buffer *views        # `arrays` of them for each segment
    Py_ssize_t count, arrays
    size_t units


cdef size_t size_of(const Py_buffer *view) noexcept nogil:
    return view.len // view.itemsize


cdef void run_part(void *data, int part, int parts) noexcept nogil:
    """Units begin to end, counted through all segments."""
    cdef Segments *s = <Segments *>data
    cdef void *arrays[BENCH_MAX_ARRAYS]
    cdef size_t begin = part_begin(s.units, part, parts), end = part_begin(s.units, part + 1, parts)
    cdef size_t at = 0, size, units, first, last
    cdef Py_ssize_t i, j
    for i in range(s.count):
        size = size_of(&s.views[i * s.arrays])
        units = (size + UNIT - 1) // UNIT
        first = begin - at if begin > at else 0
        last = min(end - at, units) if end > at else 0
        if first < last:
            for j in range(s.arrays):
                arrays[j] = <char *>s.views[i * s.arrays + j].buf + first * UNIT * s.views[i * s.arrays + j].itemsize
            s.kernel(arrays, min(last * UNIT, size) - first * UNIT)
        at += units


cdef class Kernel:
    """A kernel bound to arrays: "stream" over any two to five, or "rprop" over four, for each segment."""

    cdef Segments segments
    cdef Py_ssize_t held

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
        self.segments.count, self.segments.arrays = len(segments), len(segments[0])
        if name == "stream" and BENCH_MIN_ARRAYS <= self.segments.arrays <= BENCH_MAX_ARRAYS:
            self.segments.kernel = bench_tables[table].stream[self.segments.arrays]
        elif name == "rprop" and self.segments.arrays == 4:
            self.segments.kernel = bench_tables[table].rprop
        else:
            raise ValueError(f"no kernel {name!r} over {self.segments.arrays} arrays")
        self.segments.views = <Py_buffer *>calloc(self.segments.count * self.segments.arrays, sizeof(Py_buffer))
        if not self.segments.views:
            raise MemoryError
        for segment in segments:
            for array in segment:
                if array.dtype != segments[0][0].dtype or array.size != segment[0].size:
                    raise ValueError("expected arrays of one dtype, and of one size in each segment")
                PyObject_GetBuffer(array, &self.segments.views[self.held], PyBUF_SIMPLE | PyBUF_WRITABLE)
                self.held += 1
            self.segments.units += (segment[0].size + UNIT - 1) // UNIT

    def __dealloc__(self):
        cdef Py_ssize_t i
        for i in range(self.held):
            PyBuffer_Release(&self.segments.views[i])
        free(self.segments.views)

    def run(self, int threads=1):
        """One pass over all segments, dealt to threads as a step is."""
        with nogil:
            if threads > 1 and api.pool is not NULL:
                api.pool(run_part, &self.segments, parts_of(self.segments.units * UNIT, self.segments.count, threads),
                         threads)
            else:
                run_part(&self.segments, 0, 1)
