# Included by _core.pyx.  Steps and sums without a plan: for `proptim.functional`, for code that is compiled at run time,
# and the norms of arrays.

cdef extern from "Python.h":
    long long PyLong_AsLongLongAndOverflow(object, int *) except? -1

cdef int ZERO = list(stages()).index("zero")

cdef enum:
    MOST_KEPT = 64  # calls with different hyperparameters; all are dropped when a changing lr has filled the dict


cdef class Numbers:
    """The numbers of a step that was checked and made."""

    cdef proptim_row row
    cdef object hyper   # hyperparameters of a rule whose coefficients depend on the step; else None
    cdef unsigned used  # bit j: array j
    cdef bint zero


cdef class OneShot:
    """Repeats a step of one rule on arrays of the caller, if an earlier call had the same keyword arguments.

    It keeps the numbers that follow from the keywords of a call, and none of its arrays. Buffers are acquired, checked
    and released in each call. It accepts only the simplest arguments: NumPy arrays, each one dense run that overlaps no
    other. All other calls, and every error, are left to `proptim.functional`.
    """

    cdef dict numbers, places
    cdef object advance, clock_at
    cdef int rule, n_coefs
    cdef int n_arrays  # those of the rule; array number n_arrays is the average of the parameter
    cdef unsigned never_zero  # bit j: array j begins with a 0 only if the caller made it, which Python then refuses

    def __cinit__(self, rule):
        self.numbers = {}
        self.places = {name: 2 + i for i, name in enumerate(rule.states)}
        for name in rule.never_zero:
            self.never_zero |= 1u << <int>self.places[name]
        self.advance, self.clock_at = rule.advance, rule.clock_at
        self.rule = _rule_numbers[rule.kernel]
        self.n_coefs, self.n_arrays = len(rule.coef_names), 2 + len(rule.states)
        self.places["average"] = self.n_arrays

    def remember(self, tuple args, dict keywords, tuple row, used, hyper):
        """Keep the numbers of a call that has succeeded: coefficients and stages, and the names of its state arrays.

        `hyper`: the hyperparameters of a rule whose coefficients depend on the step; None if they do not.
        """
        cdef Numbers numbers = Numbers()
        cdef PyObject *arrays[PROPTIM_MAX_ARRAYS]
        cdef long long step
        cdef int j
        cdef tuple key = self._key(args, keywords, arrays, &step)
        if key is None:
            return
        numbers.row.active = True
        for j in range(self.n_coefs):
            numbers.row.coefs[j] = row[j]
        for j in range(PROPTIM_STAGES):
            numbers.row.stages[j] = row[self.n_coefs + j]
        numbers.hyper, numbers.zero = hyper, numbers.row.stages[ZERO] != 0
        numbers.used = 3
        for name in used:
            j = self.places[name]
            numbers.used |= 1u << j
        if len(self.numbers) >= MOST_KEPT:
            self.numbers.clear()
        self.numbers[key] = numbers

    cdef tuple _key(self, tuple args, dict keywords, PyObject **arrays, long long *step):
        """A key for the numbers of a call; also sets its arrays, NULL for none, and its step, 0 for none.

        None for a call that cannot be repeated. Equal values of different types have different keys, as have 0.0, -0.0.
        """
        cdef int j, overflow = 0, given = <int>len(args)
        cdef double number
        cdef list key
        if given < 2 or given > self.n_arrays:
            return None
        for j in range(self.n_arrays + 1):
            arrays[j] = <PyObject *>args[j] if j < given and args[j] is not None else NULL
        param = args[0]
        if type(param) is not NDARRAY:
            return None
        dtype = param.dtype
        if dtype is not FLOAT32 and dtype is not FLOAT64:
            return None
        key = [dtype is FLOAT32]
        step[0] = 0
        for name, value in keywords.items():
            kind = type(value)
            if isinstance(value, float):
                number = value
                if number != number or (number == 0 and 1 / number < 0):
                    return None
                kind, value = float, number
            elif kind is tuple:
                for part in <tuple>value:
                    if type(part) is not float or part == 0:
                        return None
            elif kind is int:
                if name == "step":
                    step[0] = PyLong_AsLongLongAndOverflow(value, &overflow)
                    if overflow or step[0] < 1:
                        return None
                    continue
            elif kind is NDARRAY or value is None:
                place = self.places.get(name)
                if place is not None:
                    j = place
                    if j < given:
                        return None
                    arrays[j] = <PyObject *>value if value is not None else NULL
                    continue
                if value is not None:
                    return None
            elif kind is not bool and kind is not str:
                return None
            key.append(name)
            key.append(kind)
            key.append(value)
        key.append(step[0] == 1)
        return tuple(key)

    def step(self, tuple args, dict keywords):
        """Make the step of this call if it is like an earlier one; else do nothing and return False."""
        cdef PyObject *arrays[PROPTIM_MAX_ARRAYS]
        cdef Py_buffer buffers[PROPTIM_MAX_ARRAYS]
        cdef Py_buffer *view
        cdef proptim_segment segment
        cdef proptim_plane_array *array
        cdef proptim_row row
        cdef ptrdiff_t strides[PROPTIM_MAX_ARRAYS]
        cdef size_t size
        cdef long long step
        cdef int i, j
        cdef double value
        cdef Numbers numbers
        cdef tuple key = self._key(args, keywords, arrays, &step), coefs
        if key is None:
            return False
        numbers = self.numbers.get(key)
        if numbers is None or (numbers.hyper is not None and step == 0):  # such a rule needs the step
            return False
        memset(buffers, 0, sizeof(buffers))
        memset(&segment, 0, sizeof(segment))
        try:
            for j in range(self.n_arrays + 1):
                if (arrays[j] is not NULL) != (numbers.used >> j & 1):
                    return False
                if arrays[j] is NULL:
                    continue
                view = &buffers[j]
                if not plain(<object>arrays[j], view, &buffers[0], j != PROPTIM_GRADS or numbers.zero):
                    return False
                for i in range(j):
                    if meet(view, &buffers[i]):
                        return False
                if self.never_zero >> j & 1 and begins_with_zero(view):
                    return False
                strides[j] = view.itemsize
                array = &segment.arrays[j if j < self.n_arrays else PROPTIM_AVERAGE]
                array.planes[0] = view.buf
                array.strides[0] = &strides[j]
            row = numbers.row
            if numbers.hyper is not None:
                coefs, _ = self.advance(numbers.hyper, self.clock_at(numbers.hyper, step - 1), None)
                for j in range(self.n_coefs):
                    value = coefs[j]
                    if not -LARGEST_FLOAT < value < LARGEST_FLOAT:
                        return False  # it may be infinite in the dtype of the arrays
                    row.coefs[j] = value
            size = buffers[0].len // buffers[0].itemsize
            segment.dtype = PROPTIM_F32 if buffers[0].itemsize == 4 else PROPTIM_F64
            segment.ndim = 1
            segment.shape = &size
            proptim_layout(&segment)
            with nogil:
                proptim_step(_isa, <proptim_rule>self.rule, &segment, 1, &row, 1, NULL)
            return True
        finally:
            for j in range(self.n_arrays + 1):
                if holds(&buffers[j]):
                    PyBuffer_Release(&buffers[j])


cdef bint plain(object array, Py_buffer *view, Py_buffer *param, bint written) except -1:
    """Take the buffer of an array that is one dense run of the dtype and shape of `param`, which may be itself."""
    cdef int d
    cdef Py_ssize_t run
    if type(array) is not NDARRAY:
        return False
    dtype = array.dtype
    if dtype is not FLOAT32 and dtype is not FLOAT64:
        return False
    try:
        PyObject_GetBuffer(array, view, PyBUF_STRIDES | PyBUF_WRITABLE if written else PyBUF_STRIDES)
    except (BufferError, ValueError):  # read-only
        return False
    if view.itemsize != param.itemsize or view.ndim != param.ndim:
        return False
    run = view.itemsize
    for d in range(view.ndim - 1, -1, -1):
        if view.shape[d] != param.shape[d] or (view.strides[d] != run and view.shape[d] != 1 and view.len):
            return False
        run *= view.shape[d]
    return True


cdef bint meet(Py_buffer *a, Py_buffer *b) noexcept:
    """Whether two dense runs share memory; an absent or empty one does not."""
    return (a.len > 0 and b.len > 0 and <char *>a.buf < <char *>b.buf + b.len and <char *>b.buf < <char *>a.buf + a.len)


cdef bint begins_with_zero(Py_buffer *view) noexcept:
    """Whether the first number of a dense run is 0; an empty one has none."""
    if not view.len:
        return False
    return (<float *>view.buf)[0] == 0 if view.itemsize == sizeof(float) else (<double *>view.buf)[0] == 0


cdef long long step_arrays(long long abi, long long rule, long long ndim, long long arrays, ptrdiff_t *places,
                           long long coefs, const double *row, long long stages) noexcept nogil:
    """One step of one parameter on this thread, for code compiled at run time; returns 0.

    Such code is cached, and may have been compiled for another version of this module.  If that version had another
    ABI, more rules, stages or formats, or another number of arrays or coefficients for this rule, nothing is done and 1
    is returned.  `places` are rows of 1 + 2 (1 + ndim) numbers.  The first row begins with the size in bytes of the
    numbers that the rule computes in, and has the shape from its third number on.  Each other row has the format of an
    array, then the address and the byte strides of each of its two planes, address 0 for a plane that is absent.
    Strides are rewritten.  `row`: the coefficients of the rule, then those of the stages.
    """
    cdef proptim_segment segment
    cdef proptim_row numbers
    cdef long long j, length = 1 + 2 * (1 + ndim)
    if abi != PROPTIM_ABI or rule >= PROPTIM_RULES or stages > PROPTIM_STAGES:
        return 1
    if arrays != _arrays_of[rule] or coefs != _coefs_of[rule]:
        return 1
    memset(&segment, 0, sizeof(segment))
    segment.dtype = PROPTIM_F32 if places[0] == 4 else PROPTIM_F64
    segment.ndim = <int>ndim
    segment.shape = <size_t *>(places + 2)
    for j in range(arrays):
        places += length
        if places[0] >= PROPTIM_FORMATS:
            return 1
        segment.arrays[j].format = <unsigned char>places[0]
        segment.arrays[j].planes[0] = <void *>places[1]
        segment.arrays[j].strides[0] = places + 2
        segment.arrays[j].planes[1] = <void *>places[2 + ndim]
        segment.arrays[j].strides[1] = places + 3 + ndim
    proptim_row_init(&numbers, <proptim_rule>rule, row)
    memcpy(numbers.stages, row + coefs, stages * sizeof(double))
    proptim_layout(&segment)
    proptim_step(_isa, <proptim_rule>rule, &segment, 1, &numbers, 1, NULL)
    return 0


def step_arrays_for_jit():
    """Address of `step_arrays`, the ABI that it is called with, and the formats by name."""
    formats = {"PLAIN": PROPTIM_PLAIN, "BF16": PROPTIM_BF16, "F16": PROPTIM_F16, "SPLIT": PROPTIM_SPLIT,
               "BF16_MASTER": PROPTIM_BF16_MASTER, "F16_MASTER": PROPTIM_F16_MASTER, "FLOAT32": PROPTIM_FLOAT32,
               "FLOAT64": PROPTIM_FLOAT64}
    return <size_t>&step_arrays, PROPTIM_ABI, formats


def sums_of_blocks(arrays, int threads=1):
    """The sum of squares of each block of real arrays, and whether all elements are finite."""
    cdef Py_ssize_t i, count = len(arrays), held = 0
    cdef Py_buffer *buffers = <Py_buffer *>calloc(max(count, 1), sizeof(Py_buffer))
    cdef proptim_view *views = <proptim_view *>calloc(max(count, 1), sizeof(proptim_view))
    cdef Py_buffer sums
    cdef proptim_parallel *several = NULL
    cdef int finite = 1
    if threads > 1:
        several = parallel()
    try:
        if not buffers or not views:
            raise MemoryError
        for i in range(count):
            PyObject_GetBuffer(arrays[i], &buffers[i], PyBUF_STRIDES | PyBUF_FORMAT)
            held += 1
            fill_view(&views[i], &buffers[i], dtype_of(&buffers[i]), format_of(&buffers[i], dtype_of(&buffers[i])))
        made = ndarray(proptim_reduce_partials(views, count))
        PyObject_GetBuffer(made, &sums, PyBUF_WRITABLE)
        with nogil:
            proptim_reduce_blocks(_isa, views, count, <double *>sums.buf, &finite, threads, several)
        PyBuffer_Release(&sums)
        return made, bool(finite)
    finally:
        for i in range(held):
            PyBuffer_Release(&buffers[i])
        free(buffers)
        free(views)


def sum_of_blocks(sums):
    """Add up the sums of all blocks of all arrays, in order; overwrites them."""
    cdef Py_buffer view
    PyObject_GetBuffer(sums, &view, PyBUF_WRITABLE)
    try:
        return proptim_reduce_tree(<double *>view.buf, view.len // sizeof(double))
    finally:
        PyBuffer_Release(&view)


def sum_of_squares(arrays):
    """Sum of squares of real arrays, and whether all elements are finite."""
    sums, finite = sums_of_blocks(arrays)
    return sum_of_blocks(sums), finite
