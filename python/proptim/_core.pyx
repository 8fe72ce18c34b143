# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: freethreading_compatible=True
"""The `c` backend: plans that hold buffers and make one C call a step.  Knows no rule by name and no NumPy ABI."""

import os
import sys
import warnings
from time import perf_counter  # cpython.time is not in the stable ABI

from cpython.buffer cimport (Py_buffer, PyBUF_FORMAT, PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_Release,
                             PyObject_GetBuffer)
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_New
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from proptim cimport *

from numpy import dtype, float32, float64, ndarray

from proptim._environment import choice
from proptim._numpy import BUSY

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

cdef double FOREVER = float("inf")

cdef enum:
    # threads="auto" measures steps of at least this many weights.  A smaller step takes about 10 us, and waking a
    # thread costs as much as half of it could save.
    AUTO_WEIGHTS = 65536
    # Steps of one look: serial ones first, then parallel ones, as they would follow each other.  The first of each
    # kind warms up; parallel ones are more, for a thread asleep on an idle core needs some 100 us until it helps.
    # In the long run they are less than a hundredth of all steps, so that those of a look that finds no gain are not in
    # their p99.
    SERIAL_TRIALS = 6
    TRIALS = 24
    # Steps from one look to the next: the machine may be busier or idler by then.  Soon at first, for a thread just
    # started may not have come in time; then twice as many each time.
    LOOK_SOON = 125
    LOOK_AGAIN = 2000

cdef object FLOAT32 = dtype(float32), FLOAT64 = dtype(float64)  # NumPy has one object of each native dtype
cdef object NDARRAY = ndarray  # no look-up at every step
process = os.getpid()
NATIVE = b"@=<" if sys.byteorder == "little" else b"@=>"  # marks of this machine's byte order in a format

cdef const proptim_isa *_isa = NULL
cdef proptim_parallel *_parallel = NULL
cdef bint _looked_for_parallel = False, _told_forked = False
_wants_openmp = choice("PROPTIM_PARALLEL", ("pool", "openmp")) == "openmp" or proptim_get_api().pool is NULL

_C_API = PyCapsule_New(<void *>proptim_get_api(), b"proptim._C_API", NULL)  # for proptim_python.h


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
    """Name of the instruction set of plans made from now on."""
    return proptim_isa_name(_isa).decode()


def use_isa(name):
    """Take another instruction set; None for the best.  ValueError if it is unknown or does not run here."""
    global _isa
    cdef bytes wanted = b"" if name is None else name.encode()
    cdef const char *pointer = NULL if name is None else <const char *>wanted
    cdef const proptim_isa *found = proptim_isa_find(pointer)
    if found is NULL:
        raise ValueError(
            f"PROPTIM_ISA={name} is unknown or does not run on this CPU; expected one of: {', '.join(available_isas())}"
        )
    _isa = found


use_isa(os.environ.get("PROPTIM_ISA") or None)


def rules():
    """Rule -> (names of its arrays, names of its coefficients), from rules.def."""
    return {
        proptim_rule_name(r).decode(): (
            tuple(proptim_rule_arrays(r).decode().strip("()").replace(" ", "").split(",")),
            tuple(proptim_rule_coefs(r).decode().strip("()").replace(" ", "").split(",")),
        )
        for r in range(PROPTIM_RULES)
    }


def stages():
    """Stage -> its neutral coefficient, from stages.def."""
    return {proptim_stage_name(s).decode(): proptim_stage_neutral(s) for s in range(PROPTIM_STAGES)}


_rules = rules()
_rule_numbers = {name: number for number, name in enumerate(_rules)}


cdef long long step_arrays(long long abi, long long rule, long long itemsize, long long ndim, long long arrays,
                           ptrdiff_t *places, long long coefs, const double *row, long long stages) noexcept nogil:
    """One step of one parameter on this thread, for code compiled at run time: 0.

    Such code is cached, and may have been compiled for another version of this module.  1, and nothing done, where that
    had another ABI, or more rules or stages.  `places` are rows of 1 + ndim numbers: the first has the shape from its
    second on, each that follows address and byte strides of an array, 0 for one that is off; they are rewritten.
    `row`: coefficients of the rule, then those of the stages.
    """
    cdef proptim_segment segment
    cdef proptim_row numbers
    cdef long long j
    if abi != PROPTIM_ABI or rule >= PROPTIM_RULES or stages > PROPTIM_STAGES:
        return 1
    memset(&segment, 0, sizeof(segment))
    segment.dtype = PROPTIM_F32 if itemsize == 4 else PROPTIM_F64
    segment.ndim = <int>ndim
    segment.shape = <size_t *>(places + 1)
    for j in range(arrays):
        places += 1 + ndim
        segment.arrays[j] = <void *>places[0]
        segment.strides[j] = places + 1
    proptim_row_init(&numbers, <proptim_rule>rule, row)
    memcpy(numbers.stages, row + coefs, stages * sizeof(double))
    proptim_layout(&segment)
    proptim_step(_isa, <proptim_rule>rule, &segment, 1, &numbers, 1, NULL)
    return 0


def step_arrays_for_jit():
    """Address of `step_arrays`, and the ABI that it is called with."""
    return <size_t>&step_arrays, PROPTIM_ABI


def build_info():
    """Compiler and flags of this module."""
    return {"compiler": PROPTIM_COMPILER.decode(), "flags": PROPTIM_FLAGS.decode()}


def parallel_status():
    """How threads are to be had, without loading them."""
    if not _wants_openmp:
        return "pool"
    import importlib.util

    if importlib.util.find_spec("proptim._openmp") is None:
        return "none: built without OpenMP"
    return "OpenMP" + (", loaded" if _parallel is not NULL else ", loaded when first used")


cdef proptim_parallel *parallel() except? NULL:
    """The parallel path, found on the first request; NULL and one warning if there is none."""
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


cdef int dtype_of(Py_buffer *view) except -1:
    cdef bytes code = view.format if view.format is not NULL else b"B"
    code = code.lstrip(NATIVE)
    if code == b"f" and view.itemsize == 4:
        return PROPTIM_F32
    if code == b"d" and view.itemsize == 8:
        return PROPTIM_F64
    raise TypeError(f"buffer has format {code!r}; expected float32 or float64")


cdef class Claim:
    """Holds the plan of an optimizer for one thread: `with claim:`.  A second thread is told so and does not wait."""

    cdef atomic_flag held

    cdef int take(self) except -1:
        if atomic_flag_test_and_set(&self.held):
            raise RuntimeError(BUSY)
        return 0

    def __enter__(self):
        self.take()

    def __exit__(self, *exc):
        atomic_flag_clear(&self.held)


cdef class Plan:
    """One rule bound to the arrays it steps; the same surface as `_numpy.Plan`."""

    cdef proptim_segment *segments
    cdef Py_buffer *buffers         # PROPTIM_MAX_ARRAYS a segment; obj NULL where there is no array
    cdef Py_buffer *fresh           # gradients on their way in, one a segment
    cdef proptim_view *views        # of the gradients
    cdef size_t *layouts            # room for shape and strides of all segments
    cdef double *partials
    cdef size_t n_partials
    cdef proptim_row *rows
    cdef size_t *written_low        # address ranges of parameters and state, sorted
    cdef size_t *written_high
    cdef Py_ssize_t count, n_rows, n_coefs, n_written
    cdef const proptim_isa *isa
    cdef proptim_parallel *parallel
    cdef int rule, threads
    cdef bint auto
    cdef public bint disjoint       # whether `offer` can tell that a gradient overlaps nothing
    cdef readonly Claim claim
    cdef object loaded              # steps before `taken`: an int of any size, for a loaded one may be
    cdef long long taken            # in C, for adding to an object takes a twentieth of a small step
    cdef long long repeats          # the last of these steps, with which the clocks have not moved
    cdef list _clocks
    cdef size_t weights
    cdef long trial, look_after
    cdef double best[2]

    def __cinit__(self, optimizer, segments, int threads, bint auto, Plan before=None):
        cdef Py_ssize_t i, room = 0
        cdef int j, flags = PyBUF_STRIDES | PyBUF_FORMAT | PyBUF_WRITABLE
        cdef Py_buffer *view
        if _rules.get(optimizer.kernel) != (("param", "grad", *optimizer.states), optimizer.coef_names):
            raise ValueError(f"{optimizer.__qualname__} has no compiled rule of its signature; expected one of "
                             f"{', '.join(_rules)} as in proptim: pass backend='numba' or 'numpy'")
        self.isa = _isa
        self.rule = _rule_numbers[optimizer.kernel]
        self.n_coefs = len(optimizer.coef_names)
        self.threads, self.auto = threads, auto
        self.look_after = LOOK_SOON
        self.claim = Claim() if before is None else before.claim
        self.loaded = 0 if before is None else before.steps
        self._clocks = []
        self.count = len(segments)
        self.segments = <proptim_segment *>calloc(max(self.count, 1), sizeof(proptim_segment))
        self.buffers = <Py_buffer *>calloc(max(self.count, 1) * PROPTIM_MAX_ARRAYS, sizeof(Py_buffer))
        self.fresh = <Py_buffer *>calloc(max(self.count, 1), sizeof(Py_buffer))
        self.views = <proptim_view *>calloc(max(self.count, 1), sizeof(proptim_view))
        if not self.segments or not self.buffers or not self.fresh or not self.views:
            raise MemoryError
        for i, (param, *state) in enumerate(segments):
            for j, array in enumerate((param, None, *state)):
                if array is not None:
                    view = &self.buffers[i * PROPTIM_MAX_ARRAYS + j]
                    PyObject_GetBuffer(array, view, flags)
                    check_like(&self.buffers[i * PROPTIM_MAX_ARRAYS], view)
            room += (1 + PROPTIM_MAX_ARRAYS) * self.buffers[i * PROPTIM_MAX_ARRAYS].ndim
        self.layouts = <size_t *>malloc(max(room, 1) * sizeof(size_t))
        if not self.layouts:
            raise MemoryError
        room = 0
        for i in range(self.count):
            view = &self.buffers[i * PROPTIM_MAX_ARRAYS]
            self.segments[i].dtype = dtype_of(view)
            self.segments[i].shape = self.layouts + room
            for j in range(PROPTIM_MAX_ARRAYS):
                self.segments[i].strides[j] = <ptrdiff_t *>self.layouts + room + (1 + j) * view.ndim
            room += (1 + PROPTIM_MAX_ARRAYS) * view.ndim
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
        if self.fresh:
            self._drop_fresh()
        free(self.segments)
        free(self.buffers)
        free(self.fresh)
        free(self.written_low)
        free(self.written_high)
        free(self.views)
        free(self.layouts)
        free(self.partials)
        free(self.rows)

    cdef int _sort_written(self) except -1:
        cdef Py_ssize_t i
        cdef int d
        cdef Py_buffer *view
        cdef size_t low, high
        ranges = []
        for i in range(self.count * PROPTIM_MAX_ARRAYS):
            view = &self.buffers[i]
            if holds(view) and view.len:
                low = high = <size_t>view.buf
                for d in range(view.ndim):
                    if view.strides[d] < 0:
                        low += (view.shape[d] - 1) * view.strides[d]
                    else:
                        high += (view.shape[d] - 1) * view.strides[d]
                ranges.append((low, high + view.itemsize))
        ranges.sort()
        self.n_written = len(ranges)
        self.written_low = <size_t *>malloc(max(self.n_written, 1) * sizeof(size_t))
        self.written_high = <size_t *>malloc(max(self.n_written, 1) * sizeof(size_t))
        if not self.written_low or not self.written_high:
            raise MemoryError
        self.disjoint = True  # interlaced views are legal, but their ranges cannot be searched by bisection
        for i in range(self.n_written):
            self.written_low[i], self.written_high[i] = ranges[i]
            self.disjoint &= i == 0 or self.written_high[i - 1] <= self.written_low[i]
        return 0

    cdef void _lay_out(self, Py_ssize_t i) noexcept:
        """Set the C view of segment i from its buffers."""
        cdef proptim_segment *s = &self.segments[i]
        cdef Py_buffer *view = &self.buffers[i * PROPTIM_MAX_ARRAYS]
        cdef int d, j
        s.ndim = view.ndim
        for d in range(view.ndim):
            s.shape[d] = view.shape[d]
        for j in range(PROPTIM_MAX_ARRAYS):
            s.arrays[j] = view[j].buf if holds(&view[j]) else NULL
            if holds(&view[j]):
                for d in range(view.ndim):
                    s.strides[j][d] = view[j].strides[d]
        proptim_layout(s)

    cdef bint _evident(self, Py_ssize_t i, object grad, Py_buffer *fresh) except -1:
        """Take the buffer of a plain array that has the dtype and shape of segment i and memory of its own."""
        cdef Py_buffer *param = &self.buffers[i * PROPTIM_MAX_ARRAYS]
        cdef size_t low, high
        cdef int d
        # The dtype by identity: NumPy takes half a microsecond to write the format of a buffer.
        if type(grad) is not NDARRAY or grad.dtype is not (FLOAT32 if param.itemsize == 4 else FLOAT64):
            return False
        PyObject_GetBuffer(grad, fresh, PyBUF_STRIDES)
        if fresh.ndim != param.ndim:
            return False
        low = high = <size_t>fresh.buf
        for d in range(fresh.ndim):
            if fresh.shape[d] != param.shape[d]:
                return False
            if fresh.strides[d] < 0:
                low += (fresh.shape[d] - 1) * fresh.strides[d]
            else:
                high += (fresh.shape[d] - 1) * fresh.strides[d]
        return not self._meets(low, high + fresh.itemsize)

    cdef bint _meets(self, size_t low, size_t high) noexcept:
        """Whether some address in [low, high) lies in the range of a parameter or a state array."""
        cdef Py_ssize_t left = 0, right = self.n_written, middle
        while left < right:  # the first range that ends above low
            middle = (left + right) // 2
            if self.written_high[middle] > low:
                right = middle
            else:
                left = middle + 1
        return left < self.n_written and self.written_low[left] < high

    def offer(self, grads):
        """Bind these gradients if they evidently fit; False, and nothing done, if that needs a closer look."""
        return self._offer(grads)

    cdef bint _offer(self, list grads) except -1:
        cdef Py_ssize_t i
        if len(grads) != self.count or not self.disjoint:
            return False
        try:
            for i in range(self.count):
                if not self._fits(i, grads[i]):
                    return False
            for i in range(self.count):
                if holds(&self.fresh[i]):
                    self._accept(i, &self.fresh[i])
            return True
        finally:
            self._drop_fresh()

    def offer_one(self, Py_ssize_t i, grad):
        """`offer` for one segment."""
        if not 0 <= i < self.count or not self.disjoint:
            return False
        try:
            if not self._fits(i, grad):
                return False
            if holds(&self.fresh[i]):
                self._accept(i, &self.fresh[i])
            return True
        finally:
            if holds(&self.fresh[i]):
                PyBuffer_Release(&self.fresh[i])

    cdef bint _fits(self, Py_ssize_t i, object grad) except -1:
        """Whether it is the gradient already, or can evidently take the place of one; it is then in `fresh`."""
        cdef Py_buffer *view = &self.buffers[i * PROPTIM_MAX_ARRAYS + PROPTIM_GRADS]
        return holds_this(view, grad) or (holds(view) and self._evident(i, grad, &self.fresh[i]))

    cdef void _accept(self, Py_ssize_t i, Py_buffer *fresh):
        """Make the buffer the gradient of segment i."""
        cdef Py_buffer *view = &self.buffers[i * PROPTIM_MAX_ARRAYS + PROPTIM_GRADS]
        if holds(view):
            PyBuffer_Release(view)
        view[0] = fresh[0]
        memset(fresh, 0, sizeof(Py_buffer))
        self._lay_out(i)

    cdef void _drop_fresh(self):
        cdef Py_ssize_t i
        for i in range(self.count):
            if holds(&self.fresh[i]):
                PyBuffer_Release(&self.fresh[i])

    def bind(self, grads):
        """Point every segment at its gradient of this step, or at none; the caller has checked them."""
        cdef Py_ssize_t i
        cdef Py_buffer *view
        if len(grads) != self.count:
            raise ValueError(f"got {len(grads)} gradients; expected {self.count}")
        try:
            for i in range(self.count):  # everything is taken before anything is changed
                view = &self.buffers[i * PROPTIM_MAX_ARRAYS]
                if grads[i] is not None and not holds_this(&view[PROPTIM_GRADS], grads[i]):
                    PyObject_GetBuffer(grads[i], &self.fresh[i], PyBUF_STRIDES | PyBUF_FORMAT)
                    check_like(view, &self.fresh[i])
            for i in range(self.count):
                if grads[i] is None or holds(&self.fresh[i]):
                    self._accept(i, &self.fresh[i])
        finally:
            self._drop_fresh()

    def assign(self, row_of, clocks):
        """Say which row of coefficients each segment uses, and the clock of each row."""
        cdef Py_ssize_t i
        cdef unsigned row
        for i in range(self.count):
            row = row_of[i]
            self.segments[i].row = row
        self._clocks = clocks
        self.repeats = 0

    @property
    def steps(self):
        """Steps made, those of a loaded run among them."""
        return self.loaded + self.taken

    @steps.setter
    def steps(self, count):
        self.loaded = count
        self.taken = 0

    @property
    def clocks(self):
        """The clock of each row, all steps counted."""
        cdef Py_ssize_t i
        if self.repeats:
            self._clocks = [(clock[0] + self.repeats, *clock[1:]) if self.rows[i].active else clock
                            for i, clock in enumerate(self._clocks)]
            self.repeats = 0
        return self._clocks

    cdef int _take_row(self, proptim_row *row, values) except -1:
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
        return 0

    cdef int _take_rows(self, rows) except -1:
        cdef Py_ssize_t i
        if len(rows) != self.n_rows:
            free(self.rows)
            self.n_rows = 0
            self.rows = <proptim_row *>calloc(max(len(rows), 1), sizeof(proptim_row))
            if not self.rows:
                raise MemoryError
            self.n_rows = len(rows)
        for i in range(self.n_rows):
            self._take_row(&self.rows[i], rows[i])
        return 0

    # A step and what it counts are one: no signal handler runs between the kernels and the counting.

    def step(self, rows, list clocks, set begun=None):
        """One step of every segment with the coefficients of its row, after which the clocks are these.

        A row that is None is not stepped. `begun`, what `step_one` has stepped of a round, is then empty.
        """
        cdef Py_ssize_t i
        cdef int ran
        self._take_rows(rows)
        for i in range(self.count):
            if self.segments[i].row >= self.n_rows:
                raise ValueError(f"segment {i} uses row {self.segments[i].row}; expected one of {self.n_rows}")
        ran = self._run()
        self._clocks = clocks
        self.repeats = 0
        self.taken += 1
        if begun is not None:
            begun.clear()
        if ran == PROPTIM_RAN_FORKED:
            tell_forked()

    def repeat(self, optimizer, grads, advance, list values):
        """A step like the last one, after `offer` if there are gradients; claims the plan by itself.

        Nothing has changed since but the clocks, and where `advance` is given the coefficients of the rule: it is
        asked for those of every row with its hyperparameters in `values`, None where a row is not stepped.
        """
        cdef list clocks = None, kept = None
        cdef int ran
        self.claim.take()
        try:
            if advance is not None:
                clocks = self._advance(advance, values)  # Python, which may raise: before anything changes
            if grads is not None:
                kept = list(grads)
                if not self._offer(kept):
                    return False
                optimizer._given = optimizer._grads = kept
            ran = self._run()
            if advance is None:
                self.repeats += 1
            else:
                self._clocks = clocks
            self.taken += 1
            if ran == PROPTIM_RAN_FORKED:
                tell_forked()
            return True
        finally:
            atomic_flag_clear(&self.claim.held)

    cdef list _advance(self, advance, list values):
        """Take the coefficients of the coming step; return the clocks after it."""
        cdef Py_ssize_t i, j
        cdef tuple coefs
        cdef list before = self.clocks, after = []
        for i in range(self.n_rows):
            clock = before[i]
            if values[i] is not None:
                coefs, clock = advance(values[i], clock, None)
                if len(coefs) != self.n_coefs:
                    raise ValueError(f"row has {len(coefs)} coefficients; expected {self.n_coefs}")
                for j in range(self.n_coefs):
                    self.rows[i].coefs[j] = coefs[j]
            after.append(clock)
        return after

    cdef int _run(self) noexcept:
        cdef int threads = self._threads(), ran
        cdef double begin = 0
        cdef bint look = self._looks() and self.trial < TRIALS
        if look:
            begin = perf_counter()
        with nogil:
            ran = proptim_step(self.isa, self.rule, self.segments, self.count, self.rows, threads, self.parallel)
        if look:
            self._learn(ran == PROPTIM_RAN_PARALLEL, perf_counter() - begin)
        if self._looks():
            self.trial += 1
            if self.trial == self.look_after:
                self.trial = 0
                self.look_after = min(2 * self.look_after, LOOK_AGAIN)
        return ran

    def step_one(self, Py_ssize_t index, row, parameter, clock, set begun):
        """One step of one segment, after which this is the clock of its parameter.

        `begun` are the segments that have been stepped of this round; one that is among them begins another.
        """
        cdef proptim_segment one
        cdef proptim_row numbers
        if not 0 <= index < self.count:
            raise IndexError(index)
        self._take_row(&numbers, row)
        one = self.segments[index]
        one.row = 0
        with nogil:
            proptim_step(self.isa, self.rule, &one, 1, &numbers, 1, NULL)
        parameter.clock = clock
        if not begun or index in begun:
            self.taken += 1
            begun.clear()
        begun.add(index)

    def reduce(self, Py_ssize_t only=-1):
        """Sum of squares of all bound gradients (or one), and whether every one of them is finite."""
        cdef Py_ssize_t i, bound = 0
        cdef size_t needed
        cdef Py_buffer *view
        cdef int finite = 1, threads = self._threads()
        cdef double squares
        for i in range(self.count):
            view = &self.buffers[i * PROPTIM_MAX_ARRAYS + PROPTIM_GRADS]
            if holds(view) and (only < 0 or i == only):
                fill_view(&self.views[bound], view)
                bound += 1
        needed = proptim_reduce_partials(self.views, bound)
        if self.partials is NULL or needed > self.n_partials:
            free(self.partials)
            self.partials = <double *>malloc(max(needed, 1) * sizeof(double))
            if not self.partials:
                raise MemoryError
            self.n_partials = needed
        with nogil:
            squares = proptim_reduce(self.isa, self.views, bound, self.partials, &finite, threads,
                                     self.parallel)
        return squares, bool(finite)

    # threads="auto": now and then TRIALS steps run serially and in parallel, and the kind with the faster best step is
    # kept.

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
            self.best[0] = self.best[1] = FOREVER  # also for want of threads, as while others have them
        if self.trial not in (0, SERIAL_TRIALS) and seconds < self.best[in_parallel]:
            self.best[in_parallel] = seconds


cdef void fill_view(proptim_view *view, Py_buffer *buffer):
    view.data = buffer.buf
    view.dtype = PROPTIM_F32 if buffer.itemsize == 4 else PROPTIM_F64
    view.ndim = buffer.ndim
    view.shape = <const ptrdiff_t *>buffer.shape
    view.strides = <const ptrdiff_t *>buffer.strides


cdef int check_like(Py_buffer *param, Py_buffer *view) except -1:
    """What the caller has checked in words already, again where memory depends on it."""
    cdef int d
    if dtype_of(view) != dtype_of(param) or view.ndim != param.ndim:
        raise TypeError("arrays of one segment differ in dtype or dimensions")
    for d in range(param.ndim):
        if view.shape[d] != param.shape[d]:
            raise ValueError("arrays of one segment differ in shape")
    return 0


def sum_of_squares(arrays):
    """Sum of squares of real arrays, and whether all elements are finite."""
    cdef Py_ssize_t i, count = len(arrays), held = 0
    cdef Py_buffer *buffers = <Py_buffer *>calloc(max(count, 1), sizeof(Py_buffer))
    cdef proptim_view *views = <proptim_view *>calloc(max(count, 1), sizeof(proptim_view))
    cdef double *partials = NULL
    cdef double squares
    cdef int finite = 1
    try:
        if not buffers or not views:
            raise MemoryError
        for i in range(count):
            PyObject_GetBuffer(arrays[i], &buffers[i], PyBUF_STRIDES | PyBUF_FORMAT)
            held += 1
            dtype_of(&buffers[i])
            fill_view(&views[i], &buffers[i])
        partials = <double *>malloc((proptim_reduce_partials(views, count) + 1) * sizeof(double))
        if not partials:
            raise MemoryError
        with nogil:
            squares = proptim_reduce(_isa, views, count, partials, &finite, 1, NULL)
        return squares, bool(finite)
    finally:
        for i in range(held):
            PyBuffer_Release(&buffers[i])
        free(buffers)
        free(views)
        free(partials)


cdef int tell_forked() except -1:
    global _told_forked
    if not _told_forked:
        _told_forked = True
        warnings.warn("proptim steps on one thread in this process, which was forked; start workers with the 'spawn' "
                      "method to have threads in them", RuntimeWarning, stacklevel=3)
    return 0
