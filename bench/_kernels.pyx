# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, freethreading_compatible=True
"""The benchmark's own kernels over arrays; kernels/texts.h has what they compute."""

from cpython.buffer cimport PyBUF_FORMAT, PyBUF_SIMPLE, PyBUF_WRITABLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

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

cdef extern from *:
    """
    #if defined(__GNUC__)
    #define PREFETCH(address) __builtin_prefetch(address, 1)
    #else
    #define PREFETCH(address) ((void)(address))
    #endif
    """
    void PREFETCH(const char *address) nogil

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


cdef enum:
    ROOM = 4096         # bytes of a block of each array, as in csrc/plan.c
    ROWS_AHEAD = 8      # as in csrc/rows.h
    LINE = 64


cdef struct Tables:
    proptim_kernel *kernel
    double coefs[PROPTIM_MAX_COEFS]
    Py_buffer views[PROPTIM_MAX_ARRAYS]     # the gradients second, as the kernel has them
    Py_ssize_t arrays, itemsize, row        # bytes of an element and of a row
    const int64_t *rows
    const int64_t *places
    size_t count


cdef char *row_at(Tables *t, Py_ssize_t j, size_t i) noexcept nogil:
    return <char *>t.views[j].buf + (t.places[i] if j == 1 else t.rows[i]) * t.row


cdef void run_rows(void *data, int part, int parts) noexcept nogil:
    """Rows begin to end: gathered into blocks, streamed, and scattered."""
    cdef Tables *t = <Tables *>data
    cdef char rooms[PROPTIM_MAX_ARRAYS][ROOM]
    cdef void *arrays[PROPTIM_MAX_ARRAYS]
    cdef size_t i = part_begin(t.count, part, parts), end = part_begin(t.count, part + 1, parts), k, n
    cdef Py_ssize_t j, byte
    for j in range(PROPTIM_MAX_ARRAYS):
        arrays[j] = rooms[j] if j < t.arrays else NULL
    while i < end:
        n = min(end - i, <size_t>(ROOM // t.row))
        for k in range(n):
            for j in range(t.arrays):
                if i + k + ROWS_AHEAD < t.count:
                    byte = -<Py_ssize_t>(<size_t>row_at(t, j, i + k + ROWS_AHEAD) % LINE)
                    while byte < t.row:
                        PREFETCH(row_at(t, j, i + k + ROWS_AHEAD) + byte)
                        byte += LINE
                memcpy(rooms[j] + k * t.row, row_at(t, j, i + k), t.row)
        t.kernel(arrays, t.coefs, n * t.row // t.itemsize)
        for k in range(n):
            for j in range(t.arrays):
                if j != 1:
                    memcpy(row_at(t, j, i + k), rooms[j] + k * t.row, t.row)
        i += n


cdef class RowsKernel:
    """The kernel "stream" over some rows of tables, dense arrays of two axes; places are those of their gradients."""

    cdef Tables tables
    cdef Py_ssize_t held
    cdef Py_buffer rows, places
    cdef object kept

    def __cinit__(self, str isa, coefs, list tables, grads, rows, places):
        cdef Py_ssize_t i, table = 0
        wanted = isa.encode()
        while bench_isas[table] is not NULL and bench_isas[table].name != wanted:
            table += 1
        if bench_isas[table] is NULL:
            raise ValueError(f"no kernels for the instruction set {isa!r}")
        first = tables[0]
        if not len(tables) < PROPTIM_MAX_ARRAYS or first.dtype.kind != "f" or first[0].nbytes > ROOM:
            raise ValueError("expected few tables of numbers with short rows")
        if any(a.shape[1:] != first.shape[1:] or a.dtype != first.dtype for a in (*tables, grads)):
            raise ValueError("expected tables and gradients with rows of one shape and dtype")
        if len(rows) != len(places) or len(rows) and not (
            0 <= rows.min() and rows.max() < min(map(len, tables)) and 0 <= places.min() and places.max() < len(grads)
        ):
            raise ValueError("expected as many places as rows, each in its array")
        self.tables.kernel = bench_isas[table].kernels[0][first.itemsize == 8]
        self.tables.itemsize, self.tables.row = first.itemsize, first[0].nbytes
        for i, coef in enumerate(coefs):
            self.tables.coefs[i] = coef
        for array in (first, grads, *tables[1:]):
            PyObject_GetBuffer(array, &self.tables.views[self.held], PyBUF_SIMPLE | PyBUF_WRITABLE)
            self.held += 1
        self.tables.arrays = self.held
        self.kept = rows.astype("int64"), places.astype("int64")
        PyObject_GetBuffer(self.kept[0], &self.rows, PyBUF_SIMPLE)
        PyObject_GetBuffer(self.kept[1], &self.places, PyBUF_SIMPLE)
        self.tables.rows, self.tables.places = <const int64_t *>self.rows.buf, <const int64_t *>self.places.buf
        self.tables.count = len(rows)

    def __dealloc__(self):
        cdef Py_ssize_t i
        for i in range(self.held):
            PyBuffer_Release(&self.tables.views[i])
        PyBuffer_Release(&self.rows)
        PyBuffer_Release(&self.places)

    def run(self, int threads=1):
        """One pass over all rows, distributed to threads as in a step."""
        cdef size_t elements = self.tables.count * (self.tables.row // self.tables.itemsize)
        with nogil:
            if threads > 1 and api.pool is not NULL:
                api.pool(run_rows, &self.tables, parts_of(elements, 1, threads), threads)
            else:
                run_rows(&self.tables, 0, 1)
