# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: freethreading_compatible=True
"""The `c` backend: plans hold buffers and make one C call per step.  It names no rule and uses no NumPy ABI."""

import os
import sys
import warnings
from time import perf_counter  # cpython.time is not in the stable ABI

from cpython.buffer cimport (Py_buffer, PyBUF_FORMAT, PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_Release,
                             PyObject_GetBuffer)
from cpython.object cimport PyObject
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_New
from libc.math cimport fabs, isfinite, sqrt
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from proptim cimport *

from numpy import ascontiguousarray, dtype, float16, float32, float64, int8, int64, ndarray, uint8, uint16

from proptim._arrays import as_array, tell_torch
from proptim._environment import choice, unusable
from proptim._formats import Int8, Mastered, PAIRS, Published, Split, Squares8, Steps, Steps8
from proptim._numpy import busy
from proptim._rows import Rows

cdef extern from "<stdatomic.h>" nogil:
    ctypedef struct atomic_flag:
        pass
    bint atomic_flag_test_and_set(atomic_flag *)
    void atomic_flag_clear(atomic_flag *)

cdef extern from *:
    """
    #ifndef PROPTIM_COMPILER
    #define PROPTIM_COMPILER ""
    #define PROPTIM_FLAGS ""
    #endif
    /* Cython counts references of Py_buffer.obj, which may be NULL. */
    static int holds(const Py_buffer *view) { return view->obj != NULL; }
    static int holds_this(const Py_buffer *view, PyObject *object) { return view->obj == object; }
    """
    const char *PROPTIM_COMPILER
    const char *PROPTIM_FLAGS
    bint holds(const Py_buffer *view) nogil
    bint holds_this(const Py_buffer *view, object obj) nogil

cdef extern from "Python.h" nogil:
    unsigned long PyThread_get_thread_ident()

cdef extern from "proptim.h" nogil:
    proptim_stage PROPTIM_scale

cdef double FOREVER = float("inf")
cdef double LARGEST_FLOAT = (2.0 - 2.0 ** -24) * 2.0 ** 127  # as rule.LARGEST

cdef enum:
    # threads="auto" measures steps of at least this many weights.  A smaller step takes about 10 us, and to wake a
    # thread takes as long as a second thread could save.
    AUTO_WEIGHTS = 65536
    # Steps of one measurement: some serial ones, then parallel ones, each kind in a row as it would run otherwise.  The
    # first step of each kind only warms up.  There are more parallel ones, because a thread that sleeps on an idle core
    # needs about 100 us until it helps.  In the long run measurements take less than one in a hundred steps, so that
    # parallel steps that turn out slower do not affect the 99th percentile.
    SERIAL_TRIALS = 6
    TRIALS = 24
    # Steps from one measurement to the next, because the load of the machine may change.  The second measurement comes
    # soon, because threads that had just been started may have been late for the first; then the distance doubles.
    LOOK_SOON = 125
    LOOK_AGAIN = 2000

cdef object NDARRAY = ndarray  # saves a lookup at every step
cdef object ROWS = Rows
process = os.getpid()  # the process that imported this module
cdef object _here = process

if hasattr(os, "register_at_fork"):
    def _forked():
        global _here
        _here = os.getpid()

    os.register_at_fork(after_in_child=_forked)

cdef const proptim_isa *_isa = NULL
cdef proptim_parallel *_parallel = NULL
cdef bint _looked_for_parallel = False, _told_forked = False
_wants_openmp = choice("PROPTIM_PARALLEL", ("pool", "openmp")) == "openmp" or proptim_get_api().pool is NULL

_C_API = PyCapsule_New(<void *>proptim_get_api(), b"proptim._C_API", NULL)  # for proptim_python.h


AVERAGE = PROPTIM_AVERAGE  # which of the arrays of a segment is the average of the parameter


def available_isas():
    """Names of the instruction sets that run here, best first."""
    names = []
    cdef int i = 0
    while proptim_isa_at(i):
        if proptim_isa_runs(proptim_isa_at(i)):
            names.append(proptim_isa_name(proptim_isa_at(i)).decode())
        i += 1
    return tuple(names)


def isa():
    """Name of the instruction set that new plans use."""
    return proptim_isa_name(_isa).decode()


def use_isa(name):
    """Set the instruction set of new plans; None for the best.  ValueError if it is unknown or does not run here."""
    global _isa
    cdef bytes wanted = b"" if name is None else name.encode()
    cdef const char *pointer = NULL if name is None else <const char *>wanted
    cdef const proptim_isa *found = proptim_isa_find(pointer)
    if found is NULL:
        raise unusable(
            f"PROPTIM_ISA={name} is unknown or does not run on this CPU; expected one of: {', '.join(available_isas())}"
        )
    _isa = found


use_isa(os.environ.get("PROPTIM_ISA") or None)


def rules():
    """Rule -> (names of its arrays, their marks, names of its coefficients), from rules.def."""
    return {
        proptim_rule_name(r).decode(): (
            tuple(proptim_rule_arrays(r).decode().strip("()").replace(" ", "").split(",")),
            proptim_rule_marks(r).decode(),
            tuple(proptim_rule_coefs(r).decode().strip("()").replace(" ", "").split(",")),
        )
        for r in range(PROPTIM_RULES)
    }


def stages():
    """Stage -> its neutral coefficient, from stages.def."""
    return {proptim_stage_name(s).decode(): proptim_stage_neutral(s) for s in range(PROPTIM_STAGES)}


_rules = rules()
_rule_numbers = {name: number for number, name in enumerate(_rules)}
cdef long long[PROPTIM_RULES] _arrays_of, _coefs_of  # how many of each
for _number, (_arrays, _marks, _coefs) in enumerate(_rules.values()):
    _arrays_of[_number], _coefs_of[_number] = len(_arrays), len(_coefs)


def build_info():
    """Compiler and flags of this module."""
    return {"compiler": PROPTIM_COMPILER.decode(), "flags": PROPTIM_FLAGS.decode()}


def parallel_status():
    """What runs steps on several threads, without loading it."""
    if not _wants_openmp:
        return "pool"
    import importlib.util

    if importlib.util.find_spec("proptim._openmp") is None:
        return "none: built without OpenMP"
    return "OpenMP" + (", loaded" if _parallel is not NULL else ", loaded when first used")


cdef proptim_parallel *parallel() except? NULL:
    """The function that runs steps on threads, loaded when first needed; NULL and one warning if it is missing."""
    global _parallel, _looked_for_parallel
    if not _looked_for_parallel:
        _looked_for_parallel = True
        if not _wants_openmp:
            _parallel = proptim_get_api().pool
            return _parallel
        try:
            from proptim import _openmp
            _parallel = <proptim_parallel *>PyCapsule_GetPointer(_openmp.parallel, b"proptim_parallel")
        except ImportError as error:
            warnings.warn(f"proptim steps on one thread: its OpenMP module cannot be loaded ({error})", RuntimeWarning,
                          stacklevel=4)
    return _parallel


include "_buffers.pxi"


cdef class Claim:
    """Holds an optimizer for one call: `with claim:`.  A second call at the same time raises RuntimeError."""

    cdef atomic_flag held
    cdef object by                  # the process of the holder
    cdef unsigned long thread       # and its thread
    cdef public bint averaged       # whether the averages of the weights are in their place: see _averages.py

    cdef int take(self) except -1:
        if atomic_flag_test_and_set(&self.held):
            raise RuntimeError(busy(self.by, self.thread == PyThread_get_thread_ident(), self.averaged))
        self.by = _here
        self.thread = PyThread_get_thread_ident()
        return 0

    def __enter__(self):
        self.take()

    def __exit__(self, *exc):
        atomic_flag_clear(&self.held)


cdef class Room:
    """Memory for sorting indices, kept from one step to the next."""

    cdef size_t *numbers
    cdef size_t size

    def __dealloc__(self):
        free(self.numbers)

    cdef int have(self, size_t size) except -1:
        cdef size_t *numbers
        if size > self.size:
            numbers = <size_t *>malloc(size * sizeof(size_t))
            if not numbers:
                raise MemoryError
            free(self.numbers)
            self.numbers, self.size = numbers, size
        return 0


cdef struct address_range:
    size_t low
    size_t high


cdef class Table:
    """A gradient of rows, with the arrays of the segment that it is of."""

    cdef proptim_table c
    cdef Py_buffer values
    cdef size_t *layout             # room for shape and strides of a row
    cdef object indices
    cdef Room room

    def __dealloc__(self):
        if holds(&self.values):
            PyBuffer_Release(&self.values)
        free(self.layout)

    cdef Py_ssize_t sort(self) except -1:
        """Take the indices as they are now; the place of the first that is no row, or how many there are."""
        cdef Py_buffer view
        cdef size_t good
        self.room.have(proptim_rows_scratch(self.c.count))
        PyObject_GetBuffer(ascontiguousarray(self.indices, int64), &view, PyBUF_STRIDES)  # too large ones are negative
        with nogil:
            good = proptim_rows_sort(&self.c, <const int64_t *>view.buf, self.room.numbers)
        PyBuffer_Release(&view)
        return good


cdef class Plan:
    """One rule bound to the arrays it steps; the same surface as `_numpy.Plan`."""

    cdef proptim_segment *segments
    cdef Py_buffer *buffers         # PROPTIM_MAX_ARRAYS for each segment; obj is NULL if there is no array
    cdef Py_buffer *seconds         # as many: the second planes of formats that have two
    cdef Py_buffer *fresh           # new gradients that are not bound yet, one for each segment
    cdef unsigned char *fresh_formats
    cdef proptim_view *views        # of the gradients
    cdef uint64_t *firsts           # index, in the whole parameter, of the first element of each segment
    cdef size_t *layouts            # memory for shape and strides of all segments
    cdef list tables                # of each segment whose gradient is of rows, None for others; None before the first
    cdef list fresh_tables          # new ones that are not bound yet; None if there are none
    cdef list rooms                 # for sorting the indices of each
    cdef proptim_table *sparse      # those that are stepped
    cdef double *partials
    cdef size_t n_partials
    cdef proptim_row *rows
    cdef size_t *written_low        # address ranges of parameters and state, sorted
    cdef size_t *written_high
    cdef address_range gap          # between two of them: where an array lay that met none
    cdef int *dims                  # of each parameter, before axes are merged
    cdef Py_ssize_t count, n_rows, n_coefs, n_written
    cdef const proptim_isa *isa
    cdef proptim_parallel *parallel
    cdef int rule, threads
    cdef bint auto
    cdef public bint casts          # whether `offer` takes float64 gradients for rules that compute in float32
    cdef public bint disjoint       # whether `offer` can tell that a gradient overlaps no parameter or state array
    cdef readonly Claim claim
    cdef object changes             # its `now` changes with every change of a hyperparameter or option
    cdef object stamp               # `changes.now` at `remember`; None if there is no step to repeat
    cdef object advancing           # its `advance` computes the coefficients of the next step; None if they stay
    cdef list values                # hyperparameters of each row, None for a row that is not stepped
    cdef list homes                 # tensors, and the address and strides of each
    cdef bint takes                 # whether `repeat` may take gradients
    cdef bint measures              # whether a step has to look whether its gradients are finite
    cdef double scale, max_norm     # of a step that clips: `grad_scale` and `clip_norm`
    cdef list signs                 # of the factor of the gradient in each row; None if steps do not clip
    cdef readonly list given, grads # the gradients as the user passed them, and as arrays
    cdef readonly object cohorts    # the cohorts that the rows belong to; None if the caller keeps the clocks
    cdef object counted             # `tally` as the last step that was not repeated has set it
    cdef double norm                # that of the last repeated step; negative if `counted` is as new
    cdef public object seed         # of stochastic rounding; None to round to nearest
    cdef public object told         # called after each step of tensors, to inform autograd; or None
    cdef public set begun           # the segments that `step_one` has stepped in this round
    cdef object loaded              # steps before `taken`; a Python int, because a loaded count may have any size
    cdef long long taken            # a C integer, because adding to an object takes a twentieth of a small step
    cdef long long repeats          # how many of these steps `_clocks` does not include yet
    cdef list _clocks
    cdef size_t weights
    cdef long trial, look_after
    cdef double best[2]

    def __cinit__(self, rule, segments, int threads, bint auto, Claim claim=None, changes=None):
        cdef Py_ssize_t i, room = 0
        cdef int j, form, flags = PyBUF_STRIDES | PyBUF_FORMAT | PyBUF_WRITABLE
        cdef Py_buffer *view
        cdef Py_buffer *second
        cdef proptim_segment *s
        marks = "wr" + "".join("o" if name in rule.optional else "w" for name in rule.states)
        if _rules.get(rule.kernel) != (("param", "grad", *rule.states), marks, rule.coef_names):
            raise ValueError(f"{rule.__qualname__} has no compiled rule of its signature; expected one of "
                             f"{', '.join(_rules)} as in proptim: pass backend='numba' or 'numpy'")
        self.isa = _isa
        self.rule = _rule_numbers[rule.kernel]
        self.n_coefs = len(rule.coef_names)
        self.threads, self.auto = threads, auto
        self.look_after = LOOK_SOON
        self.claim, self.changes = claim or Claim(), changes
        self.loaded = 0
        self.norm = -1
        self._clocks = []
        self.begun = set()
        self.count = len(segments)
        self.given = [None] * self.count
        self.grads = [None] * self.count
        self.segments = <proptim_segment *>calloc(max(self.count, 1), sizeof(proptim_segment))
        self.buffers = <Py_buffer *>calloc(max(self.count, 1) * PROPTIM_MAX_ARRAYS, sizeof(Py_buffer))
        self.seconds = <Py_buffer *>calloc(max(self.count, 1) * PROPTIM_MAX_ARRAYS, sizeof(Py_buffer))
        self.fresh = <Py_buffer *>calloc(max(self.count, 1), sizeof(Py_buffer))
        self.views = <proptim_view *>calloc(max(self.count, 1), sizeof(proptim_view))
        self.dims = <int *>calloc(max(self.count, 1), sizeof(int))
        self.fresh_formats = <unsigned char *>calloc(max(self.count, 1), 1)
        self.firsts = <uint64_t *>calloc(max(self.count, 1), sizeof(uint64_t))
        if not (self.segments and self.buffers and self.fresh and self.views and self.dims and self.seconds
                and self.fresh_formats and self.firsts):
            raise MemoryError
        for i, (param, *state) in enumerate(segments):
            s = &self.segments[i]
            for j, array in enumerate((param, None, *state)):
                if array is None:
                    continue
                if j == _arrays_of[self.rule]:  # what follows those of the rule
                    j = PROPTIM_AVERAGE
                view = &self.buffers[i * PROPTIM_MAX_ARRAYS + j]
                PyObject_GetBuffer(array[0] if isinstance(array, PAIRS) else array, view, flags)
                if j == PROPTIM_PARAMS:
                    s.dtype = dtype_of(view)
                check_shape(&self.buffers[i * PROPTIM_MAX_ARRAYS], view)
                if type(array) in COMPACT:
                    second = &self.seconds[i * PROPTIM_MAX_ARRAYS + j]
                    PyObject_GetBuffer(array[1], second, flags)
                    s.arrays[j].format = format_of_compact(array, view, second, s.dtype)
                    continue
                form = format_of(view, s.dtype)
                if isinstance(array, PAIRS):
                    second = &self.seconds[i * PROPTIM_MAX_ARRAYS + j]
                    PyObject_GetBuffer(array[1], second, flags)
                    check_shape(view, second)
                    form = format_of_pair(array, form, format_of(second, s.dtype), s.dtype)
                if j == PROPTIM_AVERAGE and form != PROPTIM_PLAIN:
                    raise TypeError("an average has another dtype than the rule computes in")
                s.arrays[j].format = form
            room += (2 + 2 * PROPTIM_MAX_ARRAYS) * self.buffers[i * PROPTIM_MAX_ARRAYS].ndim
            s.parameter = i
        self.layouts = <size_t *>malloc(max(room, 1) * sizeof(size_t))
        if not self.layouts:
            raise MemoryError
        room = 0
        for i in range(self.count):
            view = &self.buffers[i * PROPTIM_MAX_ARRAYS]
            self.dims[i] = view.ndim
            self.segments[i].shape = self.layouts + room
            for j in range(2 * PROPTIM_MAX_ARRAYS):
                self.segments[i].arrays[j // 2].strides[j % 2] = <ptrdiff_t *>self.layouts + room + (1 + j) * view.ndim
            room += (1 + 2 * PROPTIM_MAX_ARRAYS) * view.ndim
            if rounds(&self.segments[i]):
                self.segments[i].order = <ptrdiff_t *>self.layouts + room
                room += view.ndim
            self._lay_out(i)
            self.weights += self.segments[i].size
        self._sort_written()
        if self.threads > 1 and (not auto or self.weights >= AUTO_WEIGHTS):
            self.parallel = parallel()

    def __dealloc__(self):
        cdef Py_ssize_t i
        if self.buffers:
            for i in range(self.count * PROPTIM_MAX_ARRAYS):
                if holds(&self.buffers[i]):
                    PyBuffer_Release(&self.buffers[i])
                if self.seconds and holds(&self.seconds[i]):
                    PyBuffer_Release(&self.seconds[i])
        if self.fresh:
            self._drop_fresh()
        free(self.segments)
        free(self.buffers)
        free(self.seconds)
        free(self.fresh)
        free(self.fresh_formats)
        free(self.written_low)
        free(self.written_high)
        free(self.views)
        free(self.dims)
        free(self.layouts)
        free(self.firsts)
        free(self.sparse)
        free(self.partials)
        free(self.rows)

    cdef void _let_go(self):
        """Release all buffers: the caller sets all addresses before each step."""
        cdef Py_ssize_t i
        for i in range(self.count * PROPTIM_MAX_ARRAYS):
            if holds(&self.buffers[i]):
                PyBuffer_Release(&self.buffers[i])
            if holds(&self.seconds[i]):
                PyBuffer_Release(&self.seconds[i])
            memset(&self.buffers[i], 0, sizeof(Py_buffer))
            memset(&self.seconds[i], 0, sizeof(Py_buffer))
        for i in range(self.count):
            self.segments[i].arrays[PROPTIM_GRADS].planes[0] = NULL
        self.tables = None
        self.given = [None] * self.count
        self.grads = [None] * self.count

    cdef int _sort_written(self) except -1:
        cdef Py_ssize_t i
        cdef int d
        cdef Py_buffer *view
        cdef size_t low, high
        ranges = []
        for i in range(2 * self.count * PROPTIM_MAX_ARRAYS):
            view = &self.buffers[i // 2] if i % 2 == 0 else &self.seconds[i // 2]
            if holds(view) and view.len:
                low = high = <size_t>view.buf
                for d in range(view.ndim):
                    if view.strides[d] < 0:
                        low += (view.shape[d] - 1) * view.strides[d]
                    else:
                        high += (view.shape[d] - 1) * view.strides[d]
                ranges.append((low, high + view.itemsize))
        ranges.sort()
        self.written_low = <size_t *>malloc(max(len(ranges), 1) * sizeof(size_t))
        self.written_high = <size_t *>malloc(max(len(ranges), 1) * sizeof(size_t))
        if not self.written_low or not self.written_high:
            raise MemoryError
        self.disjoint = True
        for low, high in ranges:
            if self.n_written and low < self.written_high[self.n_written - 1]:  # interlaced views: one range
                self.written_high[self.n_written - 1] = max(self.written_high[self.n_written - 1], high)
            else:
                self.written_low[self.n_written], self.written_high[self.n_written] = low, high
                self.n_written += 1
        return 0

    cdef void _lay_out(self, Py_ssize_t i) noexcept:
        """Set the C view of segment i from its buffers."""
        cdef proptim_segment *s = &self.segments[i]
        cdef Py_buffer *view = &self.buffers[i * PROPTIM_MAX_ARRAYS]
        cdef Py_buffer *second = &self.seconds[i * PROPTIM_MAX_ARRAYS]
        cdef int d, j
        s.ndim, s.first = view.ndim, self.firsts[i]
        for d in range(view.ndim):
            s.shape[d] = view.shape[d]
        for j in range(PROPTIM_MAX_ARRAYS):
            s.arrays[j].planes[0] = view[j].buf if holds(&view[j]) else NULL
            if holds(&view[j]):
                for d in range(view.ndim):
                    s.arrays[j].strides[0][d] = view[j].strides[d]
            if holds(&second[j]):
                s.arrays[j].planes[1] = second[j].buf
            if holds(&second[j]) and s.arrays[j].format < PROPTIM_INT8:
                for d in range(view.ndim):
                    s.arrays[j].strides[1][d] = second[j].strides[d]
        proptim_layout(s)

    cdef int _form_of(self, Py_ssize_t i, object kind) except -2:
        """The format of a gradient of this dtype of segment i, bfloat16 as its bits; -1 if it needs a closer look."""
        cdef bint single = self.segments[i].dtype == PROPTIM_F32
        # Compare dtypes by identity: NumPy takes half a microsecond to make the format string of a buffer.
        if kind is (FLOAT32 if single else FLOAT64):
            return PROPTIM_PLAIN
        if kind is FLOAT16:
            return PROPTIM_F16
        if kind is FLOAT32:
            return PROPTIM_FLOAT32
        if kind is FLOAT64 and self.casts:
            return PROPTIM_FLOAT64
        return PROPTIM_BF16 if kind is BITS else -1

    cdef object _evident_rows(self, Py_ssize_t i, object rows):
        """Put a table of rows that fit segment i and overlap no written array into `fresh_tables`.

        Returns them as views of their own, or None if they need a closer look.
        """
        cdef Table table
        cdef object indices = rows.indices, values = rows.values
        cdef size_t low, high
        cdef int d
        if type(indices) is not NDARRAY or type(values) is not NDARRAY or indices.ndim != 1:
            return None
        if self.segments[i].arrays[PROPTIM_AVERAGE].planes[0]:  # which a gradient of rows may not move
            return None
        if indices.dtype.kind not in "iu" or self._form_of(i, values.dtype) < 0:
            return None
        rows = Rows.of(indices[...], values[...])
        try:
            table = self._table(i, rows)
        except ValueError:
            return None
        low = high = <size_t>table.values.buf
        for d in range(table.values.ndim):
            if table.values.strides[d] < 0:
                low += (table.values.shape[d] - 1) * table.values.strides[d]
            else:
                high += (table.values.shape[d] - 1) * table.values.strides[d]
        if table.values.len and self._meets(low, high + table.values.itemsize):
            return None
        if self.fresh_tables is None:
            self.fresh_tables = [None] * self.count
        self.fresh_tables[i] = table
        return rows

    cdef object _evident(self, Py_ssize_t i, object grad, bint handed):
        """Take the buffer of a NumPy array whose dtype and shape fit segment i and that overlaps no written array.

        Returns the array, or None if it is not of that kind. `handed`: it is as the user passed it, and an array of
        bfloat16 is then returned as a view of its bits; else bfloat16 has been replaced by such a view already.
        """
        cdef Py_buffer *param = &self.buffers[i * PROPTIM_MAX_ARRAYS]
        cdef Py_buffer *fresh = &self.fresh[i]
        cdef size_t low, high
        cdef int d, form
        if type(grad) is not NDARRAY:
            return None
        kind = grad.dtype
        form = self._form_of(i, kind)
        if form < 0 and handed and is_bfloat16(kind):
            grad, form = grad.view(BITS), PROPTIM_BF16
        elif form < 0 or (handed and kind is BITS):
            return None
        self.fresh_formats[i] = form
        PyObject_GetBuffer(grad, fresh, PyBUF_STRIDES)
        if fresh.ndim != param.ndim:
            return None
        low = high = <size_t>fresh.buf
        for d in range(fresh.ndim):
            if fresh.shape[d] != param.shape[d]:
                return None
            if fresh.strides[d] < 0:
                low += (fresh.shape[d] - 1) * fresh.strides[d]
            else:
                high += (fresh.shape[d] - 1) * fresh.strides[d]
        return None if self._meets(low, high + fresh.itemsize) else grad

    def meets(self, size_t low, size_t high):
        """Whether some address in [low, high) may belong to a parameter or a state array."""
        return not self.disjoint or self._meets(low, high)

    cdef bint _meets(self, size_t low, size_t high) noexcept:
        """Whether some address in [low, high) lies in the range of a parameter or a state array."""
        cdef Py_ssize_t left = 0, right = self.n_written, middle
        if self.gap.low <= low and high <= self.gap.high:
            return False
        while left < right:  # the first range that ends above low
            middle = (left + right) // 2
            if self.written_high[middle] > low:
                right = middle
            else:
                left = middle + 1
        if left < self.n_written and self.written_low[left] < high:
            return True
        self.gap.low = self.written_high[left - 1] if left > 0 else 0
        self.gap.high = self.written_low[left] if left < self.n_written else <size_t>-1
        return False

    def offer(self, list grads, list given=None):
        """Bind these gradients if a quick check shows that they fit; else do nothing and return False.

        A gradient can replace only a gradient, and None only None. `given`: the gradients as the user passed them.
        """
        return self._offer(grads.copy(), given, False)

    cdef bint _offer(self, list grads, list given, bint repeats) except -1:
        """`offer`, where `grads` is kept; with `repeats` for a repeated step, which may have to look at them."""
        cdef Py_ssize_t i
        cdef list handed = given
        if len(grads) != self.count or not self.disjoint:
            return False
        try:
            for i in range(self.count):
                grad = grads[i]
                if not self._fits(i, grads, given is None):
                    return False
                if given is None and grads[i] is not grad:
                    if handed is None:
                        handed = grads.copy()
                    handed[i] = grad
            if repeats and not self._look_at_fresh():
                return False
            for i in range(self.count):
                self._accept_fresh(i)
            self.grads = grads
            self.given = grads if handed is None else handed
            return True
        finally:
            self.fresh_tables = None
            self._drop_fresh()

    def offer_one(self, Py_ssize_t i, grad, given=None):
        """`offer` for one segment, which need not have had a gradient."""
        cdef list seen = [grad]
        if not 0 <= i < self.count or not self.disjoint or grad is None:
            return False
        try:
            if self._has_gradient(i):
                if not self._fits(i, seen, given is None, 0):
                    return False
            else:
                seen[0] = self._evident_rows(i, grad) if type(grad) is ROWS else self._evident(i, grad, given is None)
                if seen[0] is None:
                    return False
            self._accept_fresh(i)
            self._note_one(i, grad if given is None else given, seen[0])
            return True
        finally:
            self.fresh_tables = None
            if holds(&self.fresh[i]):
                PyBuffer_Release(&self.fresh[i])

    cdef bint _has_gradient(self, Py_ssize_t i):
        """Whether a gradient is bound to segment i, an array or rows."""
        if holds(&self.buffers[i * PROPTIM_MAX_ARRAYS + PROPTIM_GRADS]):
            return True
        return self.tables is not None and self.tables[i] is not None

    cdef bint _look_at_fresh(self) except -1:
        """Look at all gradients as a repeated step needs it, at new ones where there are some; whether they are good.

        It takes the indices of all rows. A step that has to look whether they are finite is not repeated with rows.
        """
        cdef Py_ssize_t i
        cdef Table table
        if self.tables is not None:
            for i in range(self.count):
                table = None if self.fresh_tables is None else self.fresh_tables[i]
                if table is None and not holds(&self.fresh[i]):
                    table = self.tables[i]
                if table is not None and (self.measures or table.sort() < <Py_ssize_t>table.c.count):
                    return False
        return not self.measures or self._measure_fresh()

    cdef bint _measure_fresh(self) except -1:
        """Measure the norm of all gradients and set the factors that `clip_norm` makes of it.

        False, and nothing is set, if a gradient or the norm is not finite.
        """
        cdef Py_ssize_t i, seen = 0
        cdef int finite
        cdef double squares, norm, factor, sign
        for i in range(self.count):
            seen += self._see(i, seen)
        squares = self._reduce(seen, &finite)
        if not finite or self.signs is None:
            return finite
        # As `Stepper._factor` and `clip_factor` have it, operation by operation.
        norm = sqrt(squares) * fabs(self.scale)
        if not isfinite(norm):
            return False
        factor = self.max_norm / (norm + 1e-6)
        factor = self.scale * (1.0 if factor > 1.0 else factor)
        for i in range(self.n_rows):
            sign = self.signs[i]
            self.rows[i].stages[PROPTIM_scale] = sign * factor
        self.norm = norm
        return True

    cdef int _note_one(self, Py_ssize_t i, given, grad) except -1:
        if self.given is self.grads and given is not grad:
            self.given = self.given.copy()
        self.given[i] = given
        self.grads[i] = grad
        return 0

    cdef bint _fits(self, Py_ssize_t i, list grads, bint handed, Py_ssize_t at=-1) except -1:
        """Whether `grads[i]`, or `grads[at]`, is the gradient of segment i already, or can replace it.

        In the second case its buffer is then in `fresh`. In `grads`, bfloat16 is replaced by its bits. See `_evident`
        for `handed`.
        """
        cdef Py_buffer *view = &self.buffers[i * PROPTIM_MAX_ARRAYS + PROPTIM_GRADS]
        if at < 0:
            at = i
        grad = grads[at]
        if grad is None:
            return not self._has_gradient(i)
        if holds_this(view, grad):
            return True
        if not self._has_gradient(i):
            return False
        if handed and (type(grad) is NDARRAY or type(grad) is ROWS) and grad is self.given[i]:
            grads[at] = self.grads[i]
            return True
        seen = self._evident_rows(i, grad) if type(grad) is ROWS else self._evident(i, grad, handed)
        if seen is None:
            return False
        grads[at] = seen
        return True

    cdef void _accept_fresh(self, Py_ssize_t i):
        """Make what `_fits` has found the gradient of segment i."""
        cdef object table = None if self.fresh_tables is None else self.fresh_tables[i]
        if table is not None or holds(&self.fresh[i]):
            self._accept(i, &self.fresh[i])
        if table is not None:
            self.tables[i] = table

    cdef void _accept(self, Py_ssize_t i, Py_buffer *fresh):
        """Make the buffer the gradient of segment i."""
        cdef Py_buffer *view = &self.buffers[i * PROPTIM_MAX_ARRAYS + PROPTIM_GRADS]
        if holds(view):
            PyBuffer_Release(view)
        view[0] = fresh[0]
        self.segments[i].arrays[PROPTIM_GRADS].format = self.fresh_formats[i] if holds(fresh) else PROPTIM_PLAIN
        if self.tables is not None:
            self.tables[i] = None
        memset(fresh, 0, sizeof(Py_buffer))
        self._lay_out(i)

    cdef void _drop_fresh(self):
        cdef Py_ssize_t i
        for i in range(self.count):
            if holds(&self.fresh[i]):
                PyBuffer_Release(&self.fresh[i])

    def bind(self, grads, list given=None, list arrays=None):
        """Set the gradient of every segment, None for none; the caller has checked them.

        `given` and `arrays` are kept for the caller: the gradients as the user passed them, and as arrays.
        """
        cdef Py_ssize_t i
        cdef Py_buffer *view
        cdef list tables
        if len(grads) != self.count:
            raise ValueError(f"got {len(grads)} gradients; expected {self.count}")
        tables = [self._table(i, grad) if type(grad) is ROWS else None for i, grad in enumerate(grads)]
        try:
            for i in range(self.count):  # acquire all buffers, which may fail, before anything changes
                view = &self.buffers[i * PROPTIM_MAX_ARRAYS]
                if tables[i] is None and grads[i] is not None and not holds_this(&view[PROPTIM_GRADS], grads[i]):
                    PyObject_GetBuffer(grads[i], &self.fresh[i], PyBUF_STRIDES | PyBUF_FORMAT)
                    check_shape(view, &self.fresh[i])
                    self.fresh_formats[i] = format_of(&self.fresh[i], self.segments[i].dtype)
            for i in range(self.count):
                if grads[i] is None or tables[i] is not None or holds(&self.fresh[i]):
                    self._accept(i, &self.fresh[i])
            if self.sparse:
                self.tables = tables
            if given is not None:
                self.given, self.grads = given, arrays
        finally:
            self._drop_fresh()

    def bind_one(self, Py_ssize_t i, grad, given, array):
        """`bind` for one segment."""
        cdef Table table = None
        if not 0 <= i < self.count:
            raise IndexError(i)
        try:
            if type(grad) is ROWS:
                table = self._table(i, grad)
            elif grad is not None:
                PyObject_GetBuffer(grad, &self.fresh[i], PyBUF_STRIDES | PyBUF_FORMAT)
                check_shape(&self.buffers[i * PROPTIM_MAX_ARRAYS], &self.fresh[i])
                self.fresh_formats[i] = format_of(&self.fresh[i], self.segments[i].dtype)
            self._accept(i, &self.fresh[i])
            if table is not None:
                self.tables[i] = table
            self._note_one(i, given, array)
        finally:
            if holds(&self.fresh[i]):
                PyBuffer_Release(&self.fresh[i])

    cdef Table _table(self, Py_ssize_t i, rows):
        """A gradient of rows of segment i."""
        cdef Table table = Table()
        cdef proptim_segment *s = &self.segments[i]
        cdef proptim_segment *first = &table.c.first
        cdef Py_buffer *views[2]
        cdef int d, j, p, ndim = self.dims[i]
        cdef Py_buffer *param = &self.buffers[i * PROPTIM_MAX_ARRAYS]
        if self.tables is None:
            self.rooms = [Room() for _ in range(self.count)]
            self.sparse = <proptim_table *>calloc(max(self.count, 1), sizeof(proptim_table))
            if not self.sparse:
                raise MemoryError
            self.tables = [None] * self.count
        PyObject_GetBuffer(rows.values, &table.values, PyBUF_STRIDES | PyBUF_FORMAT)
        if ndim < 1 or table.values.ndim != ndim or table.values.shape[0] != len(rows.indices):
            raise ValueError("the rows of a gradient are not those of its segment")
        for d in range(1, ndim):
            if table.values.shape[d] != param.shape[d]:
                raise ValueError("the rows of a gradient differ in shape from those of its segment")
        table.layout = <size_t *>calloc(ndim * (1 + 2 * PROPTIM_MAX_ARRAYS), sizeof(size_t))
        if not table.layout:
            raise MemoryError
        table.indices, table.room = rows.indices, self.rooms[i]
        table.c.count = table.values.shape[0]
        first.dtype, first.ndim, first.shape = s.dtype, ndim, table.layout
        first.parameter, first.first = s.parameter, self.firsts[i]
        for d in range(ndim):
            first.shape[d] = param.shape[d]
        for j in range(PROPTIM_MAX_ARRAYS):
            views[0] = &table.values if j == PROPTIM_GRADS else &self.buffers[i * PROPTIM_MAX_ARRAYS + j]
            views[1] = &self.seconds[i * PROPTIM_MAX_ARRAYS + j]
            first.arrays[j].format = s.arrays[j].format
            if s.arrays[j].format in (PROPTIM_INT8, PROPTIM_SQUARES8):
                raise ValueError("rows of state in blocks cannot be stepped")
            for p in range(2):
                first.arrays[j].strides[p] = <ptrdiff_t *>table.layout + (1 + 2 * j + p) * ndim
                if holds(views[p]):
                    first.arrays[j].planes[p] = views[p].buf
                if holds(views[p]) and (p == 0 or s.arrays[j].format < PROPTIM_INT8):
                    for d in range(ndim):
                        first.arrays[j].strides[p][d] = views[p].strides[d]
        first.arrays[PROPTIM_GRADS].format = format_of(&table.values, s.dtype)
        proptim_rows_layout(&table.c)
        return table

    def locate(self, list places):
        """Set what each segment is, for stochastic rounding: the number of the parameter, and where it begins in it."""
        cdef Py_ssize_t i
        for i in range(self.count):
            self.segments[i].parameter, self.firsts[i] = places[i]
            self._lay_out(i)

    def sort_rows(self, Py_ssize_t only=-1):
        """Take the indices of all gradients of rows (or one): a segment and which of its indices is no row, if any.

        The next step is by these indices, whatever is written to them meanwhile.
        """
        cdef Py_ssize_t i
        cdef Py_ssize_t good
        cdef Table table
        if self.tables is None:
            return None
        for i in range(max(only, 0), self.count if only < 0 else only + 1):
            table = self.tables[i]
            if table is not None:
                good = table.sort()
                if good < <Py_ssize_t>table.c.count:
                    return i, good
        return None

    def assign(self, list row_of, list clocks, cohorts=None):
        """Set the row of coefficients that each segment uses, the clock of each row, and the cohorts of the rows."""
        cdef Py_ssize_t i
        cdef unsigned row
        for i in range(len(row_of)):
            row = row_of[i]
            self.segments[i].row = row
        self._clocks = clocks
        self.repeats = 0
        self.cohorts = cohorts
        self.stamp = None  # the last step had other rows and cannot be repeated

    @property
    def steps(self):
        """Steps made, including those of a loaded run."""
        return self.loaded + self.taken

    @steps.setter
    def steps(self, count):
        self.loaded = count
        self.taken = 0

    @property
    def clocks(self):
        """The clock of each row, after all steps."""
        cdef Py_ssize_t i
        if self.repeats:
            self._clocks = [(clock[0] + self.repeats, *clock[1:]) if self.rows[i].active else clock
                            for i, clock in enumerate(self._clocks)]
            self.repeats = 0
        return self._clocks

    @property
    def tally(self):
        """What the caller counts, after all steps; set together with the step."""
        cdef double norm = self.norm
        return self.counted if norm < 0 else self.counted._replace(norm=norm)

    @tally.setter
    def tally(self, tally):
        self.counted, self.norm = tally, -1

    cdef int _take_row(self, proptim_row *row, values, clock) except -1:
        cdef Py_ssize_t j
        memset(row, 0, sizeof(proptim_row))
        row.active = values is not None
        if row.active:
            if len(values) != self.n_coefs + PROPTIM_STAGES:
                raise ValueError(f"row has {len(values)} numbers; expected {self.n_coefs + PROPTIM_STAGES}")
            for j in range(self.n_coefs):
                row.coefs[j] = values[j]
            for j in range(PROPTIM_STAGES):
                row.stages[j] = values[self.n_coefs + j]
            if self.seed is not None:
                row.rounding, row.seed, row.step = PROPTIM_STOCHASTIC, self.seed, int(clock[0])
        return 0

    cdef int _take_rows(self, rows, list clocks) except -1:
        cdef Py_ssize_t i
        if len(rows) != self.n_rows:
            free(self.rows)
            self.n_rows = 0
            self.rows = <proptim_row *>calloc(max(len(rows), 1), sizeof(proptim_row))
            if not self.rows:
                raise MemoryError
            self.n_rows = len(rows)
        for i in range(self.n_rows):
            self._take_row(&self.rows[i], rows[i], clocks[i] if clocks else None)
        return 0

    # Running the kernels and counting the step are one C call, so that no signal handler can run in between.

    def step(self, rows, list clocks, tally=None):
        """One step of every segment with the coefficients of its row; then set the clocks and the tally.

        Segments of a row that is None are left out. A round of `step_one` ends: `begun` is emptied.
        """
        cdef Py_ssize_t i
        cdef int ran
        self._take_rows(rows, clocks)
        for i in range(self.count):
            if self.segments[i].row >= self.n_rows:
                raise ValueError(f"segment {i} uses row {self.segments[i].row}; expected one of {self.n_rows}")
        ran = self._run()
        self._clocks = clocks
        self.repeats = 0
        self.taken += 1
        self.tally = tally
        self.begun.clear()
        if self.told is not None:
            self.told()
        if ran == PROPTIM_RAN_FORKED:
            tell_forked()

    def remember(self, stamp, advancing, list values, bint takes, list homes, bint measures, tuple clip):
        """Allow the last step to be repeated as long as `changes.now` is this stamp; see `repeat`.

        `advancing.advance` computes the coefficients of each row from its hyperparameters in `values`, which are None
        for a row that is not stepped; `advancing` is None if the coefficients stay the same. `takes`: `repeat` may be
        given gradients. `homes`: tensors and their addresses. `measures`: whether a step has to look whether its
        gradients are finite. `clip`, for a step that clips too: `grad_scale`, `clip_norm`, and the sign that the factor
        of the gradient has in each row; or None.
        """
        self.advancing, self.values, self.takes, self.homes = advancing, values, takes, homes or None
        self.measures, self.signs = measures, None
        if clip is not None:
            self.scale, self.max_norm, self.signs = clip
        self.stamp = stamp

    def forget(self):
        """Do not allow the last step to be repeated."""
        self.stamp = None

    def repeat(self, grads=None):
        """Repeat the last step, after `offer` if there are gradients; takes the claim by itself.

        Does nothing and returns False if more than gradients, their norm, clocks and the coefficients of the rule may
        have changed, or if gradients are not finite in a step that has to look.
        """
        cdef list clocks = None
        cdef int ran
        cdef Py_ssize_t i
        if self.stamp is None or self.changes.now is not self.stamp:
            return False
        if grads is not None and not (self.takes and type(grads) is list):
            return False
        self.claim.take()
        try:
            if self.stamp is None or (self.homes is not None and not self._at_home()):
                return False
            if self.advancing is not None:
                clocks = self._advance()  # runs Python code that may raise, so it comes before any change
                if clocks is None or self.changes.now is not self.stamp:
                    return False
            if not (self._look_at_fresh() if grads is None else self._offer((<list>grads).copy(), None, True)):
                return False
            for i in range(self.n_rows):
                self.rows[i].step += 1
            ran = self._run()
            if self.advancing is None:
                self.repeats += 1
            else:
                self._clocks = clocks
            self.taken += 1
            if self.told is not None:
                self.told()
            if ran == PROPTIM_RAN_FORKED:
                tell_forked()
            return True
        finally:
            atomic_flag_clear(&self.claim.held)

    cdef list _advance(self):
        """Set the coefficients of the next step; return the clocks after it, or None if they need checks."""
        cdef Py_ssize_t i, j
        cdef tuple coefs
        cdef double value
        cdef list before = self.clocks, after = []
        advance = self.advancing.advance
        for i in range(self.n_rows):
            clock = before[i]
            if self.values[i] is not None:
                coefs, clock = advance(self.values[i], clock, None)
                if len(coefs) != self.n_coefs:
                    raise ValueError(f"row has {len(coefs)} coefficients; expected {self.n_coefs}")
                for j in range(self.n_coefs):
                    value = coefs[j]
                    if not -LARGEST_FLOAT < value < LARGEST_FLOAT:
                        return None  # it may be infinite in the dtype of the arrays
                    self.rows[i].coefs[j] = value
            after.append(clock)
        return after

    cdef bint _at_home(self) except -1:
        for tensor, home in self.homes:
            if (tensor.data_ptr(), tensor.stride()) != home:
                return False
        return True

    cdef int _run(self) noexcept:
        cdef int threads = self._threads(), ran
        cdef Py_ssize_t sparse = self._choose_tables()
        cdef double begin = 0
        cdef bint look = self._looks() and self.trial < TRIALS
        if look:
            begin = perf_counter()
        with nogil:
            if sparse < self.count:
                ran = proptim_step(self.isa, self.rule, self.segments, self.count, self.rows, threads, self.parallel)
            if sparse:
                ran = proptim_step_rows(self.isa, self.rule, self.sparse, sparse, self.rows, threads, self.parallel)
        if look:
            self._learn(ran == PROPTIM_RAN_PARALLEL, perf_counter() - begin)
        if self._looks():
            self.trial += 1
            if self.trial == self.look_after:
                self.trial = 0
                self.look_after = min(2 * self.look_after, LOOK_AGAIN)
        return ran

    cdef Py_ssize_t _choose_tables(self) noexcept:
        """Have the tables that are stepped one after the other; how many there are."""
        cdef Py_ssize_t i, found = 0
        cdef Table table
        if self.tables is None:
            return 0
        for i in range(self.count):
            table = self.tables[i]
            if table is not None:
                self.sparse[found] = table.c
                self.sparse[found].first.row = self.segments[i].row
                found += 1
        return found

    def step_one(self, Py_ssize_t index, row, parameter, clock, tally=None):
        """One step of one segment; then set the clock of its parameter.

        A segment that is already in `begun` begins a new round.
        """
        cdef proptim_segment one
        cdef proptim_table rows
        cdef proptim_row numbers
        cdef Table table = None
        if not 0 <= index < self.count:
            raise IndexError(index)
        self._take_row(&numbers, row, clock)
        if self.tables is not None:
            table = self.tables[index]
        if table is not None:
            rows = table.c
            rows.first.row = 0
            with nogil:
                proptim_step_rows(self.isa, self.rule, &rows, 1, &numbers, 1, NULL)
        else:
            one = self.segments[index]
            one.row = 0
            with nogil:
                proptim_step(self.isa, self.rule, &one, 1, &numbers, 1, NULL)
        parameter.clock = clock
        self.tally = tally
        if not self.begun or index in self.begun:
            self.taken += 1
            self.begun.clear()
        self.begun.add(index)
        if self.told is not None:
            self.told()

    def reduce(self, among=None):
        """Sum of squares of all bound gradients, or of those of some segments, and whether every one is finite."""
        cdef Py_ssize_t i, seen = 0
        cdef int finite
        cdef double squares
        if among is None:
            among = range(self.count)
        for i in among:
            if not 0 <= i < self.count:
                raise IndexError(i)
            seen += self._see(i, seen)
        if self.tables is not None:
            return self._reduce_with_tables(among, seen)
        squares = self._reduce(seen, &finite)
        return squares, bool(finite)

    cdef bint _see(self, Py_ssize_t i, Py_ssize_t at) noexcept:
        """Make views[at] that of the gradient of segment i, the new one if there is one; whether it is an array."""
        cdef Py_buffer *view = &self.fresh[i]
        cdef int form = self.fresh_formats[i]
        if not holds(view):
            view = &self.buffers[i * PROPTIM_MAX_ARRAYS + PROPTIM_GRADS]
            form = self.segments[i].arrays[PROPTIM_GRADS].format
        if holds(view):
            fill_view(&self.views[at], view, self.segments[i].dtype, form)
        return holds(view)

    cdef double _reduce(self, Py_ssize_t seen, int *finite) except -1:
        """Sum of squares of the first views, and whether every element is finite."""
        cdef int threads = self._threads()
        cdef double squares
        self._have_partials(proptim_reduce_partials(self.views, seen))
        with nogil:
            squares = proptim_reduce(self.isa, self.views, seen, self.partials, finite, threads, self.parallel)
        return squares

    cdef tuple _reduce_with_tables(self, indices, Py_ssize_t seen):
        """The same of the gradients of these segments, those of rows among them; each by itself."""
        cdef size_t needed = proptim_reduce_partials(self.views, seen), at = 0
        cdef int finite = 1, here = 1, threads = self._threads()
        cdef proptim_view *view = self.views
        cdef Table table
        cdef Py_ssize_t i
        for i in indices:
            table = self.tables[i]
            if table is not None:
                needed += proptim_reduce_rows_partials(&table.c)
        self._have_partials(needed)
        for i in indices:
            table = self.tables[i]
            if table is not None:
                with nogil:
                    proptim_reduce_rows(self.isa, &table.c, self.partials + at, &here, threads, self.parallel)
                at += proptim_reduce_rows_partials(&table.c)
                finite &= here
            elif holds(&self.buffers[i * PROPTIM_MAX_ARRAYS + PROPTIM_GRADS]):
                with nogil:
                    proptim_reduce_blocks(self.isa, view, 1, self.partials + at, &here, threads, self.parallel)
                at += proptim_reduce_partials(view, 1)
                view += 1
                finite &= here
        return proptim_reduce_tree(self.partials, at), bool(finite)

    cdef int _have_partials(self, size_t needed) except -1:
        if self.partials is NULL or needed > self.n_partials:
            free(self.partials)
            self.partials = <double *>malloc(max(needed, 1) * sizeof(double))
            if not self.partials:
                raise MemoryError
            self.n_partials = needed
        return 0

    # threads="auto": from time to time TRIALS steps run serially or in parallel, and the kind whose best step is faster
    # is used until the next measurement.

    cdef bint _looks(self) noexcept:
        return self.auto and self.threads > 1 and self.weights >= AUTO_WEIGHTS

    cdef int _threads(self) noexcept:
        if not self.auto:
            return self.threads
        if not self._looks():
            return 1
        if self.trial < TRIALS:
            return 1 if self.trial < SERIAL_TRIALS else self.threads
        return self.threads if self.best[1] < self.best[0] else 1

    cdef void _learn(self, bint in_parallel, double seconds) noexcept:
        if self.trial == 0:
            self.best[0] = self.best[1] = FOREVER  # best[1] stays so if no threads help, or another step has them
        if self.trial not in (0, SERIAL_TRIALS) and seconds < self.best[in_parallel]:
            self.best[in_parallel] = seconds


cdef int tell_forked() except -1:
    global _told_forked
    if not _told_forked:
        _told_forked = True
        warnings.warn("proptim steps on one thread in this process, which was forked; start workers with the 'spawn' "
                      "method to use several threads in them", RuntimeWarning, stacklevel=3)
    return 0


include "_dlpack.pxi"
include "_one_shot.pxi"
