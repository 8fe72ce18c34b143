# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, freethreading_compatible=True
"""The benchmark's own kernels over arrays; kernels/texts.h has what they compute."""

from cpython.buffer cimport PyBUF_FORMAT, PyBUF_SIMPLE, PyBUF_WRITABLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from libc.stdlib cimport calloc, free

from proptim cimport PROPTIM_MAX_ARRAYS, PROPTIM_MAX_COEFS, proptim_api, proptim_kernel

cdef extern from "kernels/table.h" nogil:
    enum:
        BENCH_KERNELS
    struct bench_isa:
        const char *name
        proptim_kernel *kernels[BENCH_KERNELS][2]  # float32, float64

cdef extern from *:
    """
    static const struct bench_isa *const bench_isas[] = {
    #if defined(__x86_64__) || defined(_M_X64)
        &bench_isa_avx512, &bench_isa_avx2,
    #elif defined(__aarch64__) || defined(_M_ARM64)
        &bench_isa_neon,
    #endif
        &bench_isa_scalar, NULL
    };

    struct bench_text { const char *name, *marks, *coefs; };
    #define BENCH_NAMES(...) #__VA_ARGS__
    static const struct bench_text bench_list[] = {
    #define PROPTIM_RULE(name, arrays, marks, coefs) { #name, marks, BENCH_NAMES coefs },
    #include "kernels/list.def"
    #undef PROPTIM_RULE
    };
    """
    const bench_isa *const *bench_isas
    struct bench_text:
        const char *name
        const char *marks
        const char *coefs
    const bench_text *bench_list

cdef extern from "proptim_python.h" nogil:
    const proptim_api *proptim_import() except NULL with gil

cdef extern from "parts.h" nogil:
    int parts_of(size_t elements, size_t arrays, int threads)
    size_t part_begin(size_t units, int part, int parts)

cdef const proptim_api *api = proptim_import()

cdef enum:
    UNIT = 64  # elements: whole cache lines, so that no two threads write to one


cdef struct Segments:
    proptim_kernel *kernel
    double coefs[PROPTIM_MAX_COEFS]
    Py_buffer *views        # `arrays` of them for each segment
    Py_ssize_t count, arrays
    size_t units


cdef size_t size_of(const Py_buffer *view) noexcept nogil:
    return view.len // view.itemsize


cdef void run_part(void *data, int part, int parts) noexcept nogil:
    """Units begin to end, counted through all segments."""
    cdef Segments *s = <Segments *>data
    cdef void *arrays[PROPTIM_MAX_ARRAYS]
    cdef size_t begin = part_begin(s.units, part, parts), end = part_begin(s.units, part + 1, parts)
    cdef size_t at = 0, size, units, first, last
    cdef Py_ssize_t i, j
    for j in range(s.arrays, PROPTIM_MAX_ARRAYS):
        arrays[j] = NULL
    for i in range(s.count):
        size = size_of(&s.views[i * s.arrays])
        units = (size + UNIT - 1) // UNIT
        first = begin - at if begin > at else 0
        last = min(end - at, units) if end > at else 0
        if first < last:
            for j in range(s.arrays):
                arrays[j] = <char *>s.views[i * s.arrays + j].buf + first * UNIT * s.views[i * s.arrays + j].itemsize
            s.kernel(arrays, s.coefs, min(last * UNIT, size) - first * UNIT)
        at += units


cdef class Kernel:
    """A kernel bound to arrays: "stream" over any two to five for each segment, or "rprop" over four."""

    cdef Segments segments
    cdef Py_ssize_t held

    def __cinit__(self, str name, str isa, coefs, list segments):
        cdef Py_ssize_t i, table = 0, number = 0
        cdef bytes marks, names
        wanted = isa.encode()
        while bench_isas[table] is not NULL and bench_isas[table].name != wanted:
            table += 1
        if bench_isas[table] is NULL:
            raise ValueError(f"no kernels for the instruction set {isa!r}")
        wanted = name.encode()
        while number < BENCH_KERNELS and bench_list[number].name != wanted:
            number += 1
        if number == BENCH_KERNELS:
            raise ValueError(f"no kernel {name!r}")
        if not segments or any(len(segment) != len(segments[0]) for segment in segments):
            raise ValueError("expected segments of as many arrays each, and at least one")
        self.segments.count, self.segments.arrays = len(segments), len(segments[0])
        marks, names = bench_list[number].marks, bench_list[number].coefs
        least = len(marks) - marks.count(b"o")  # arrays that are not optional come first
        if not least <= self.segments.arrays <= len(marks) or len(coefs) != names.count(b",") + 1:
            raise ValueError(f"no kernel {name!r} over {self.segments.arrays} arrays with {len(coefs)} coefficients")
        self.segments.kernel = bench_isas[table].kernels[number][segments[0][0].itemsize == 8]
        for i, coef in enumerate(coefs):
            self.segments.coefs[i] = coef
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
        """One pass over all segments, distributed to threads as in a step."""
        with nogil:
            if threads > 1 and api.pool is not NULL:
                api.pool(run_part, &self.segments, parts_of(self.segments.units * UNIT, self.segments.count, threads),
                         threads)
            else:
                run_part(&self.segments, 0, 1)
