# Included by _core.pyx. Steps and sums without a plan: for `proptim.functional`, for code that is compiled at run time,
# and the norms of arrays.

cdef extern from "Python.h":
    long long PyLong_AsLongLongAndOverflow(object, int *) except? -1

cdef int ZERO = list(stages()).index("zero")

cdef enum:
    MOST_KEPT = 64  # calls with different hyperparameters; all are dropped when a changing lr has filled the dict
    SLOTS = 2 * PROPTIM_MAX_ARRAYS  # of a call: the first planes of its arrays, then the second ones

cdef enum:  # what is in a slot: nothing, or an array of this dtype
    NOTHING, SINGLE, DOUBLE, HALF, BFLOAT, WORD, SIGNED, UNSIGNED
    KIND_BITS = 3  # of each in the key of a call

cdef list NONE_HELD = []
cdef int[8] SIZES = [0, 4, 8, 2, 2, 2, 1, 1]  # bytes of an element
cdef object INT8 = dtype(int8), UINT8 = dtype(uint8)


cdef int kind_of(object kind) except -1:
    """What a slot gets from an array of this dtype; NOTHING if such a call cannot be repeated."""
    if kind is FLOAT32:
        return SINGLE
    if kind is FLOAT64:
        return DOUBLE
    if kind is FLOAT16:
        return HALF
    if kind is BITS:
        return WORD
    if kind is INT8:
        return SIGNED
    if kind is UINT8:
        return UNSIGNED
    return BFLOAT if is_bfloat16(kind) else NOTHING


cdef list look(PyObject **arrays, PyObject **views, int *kinds, list key):
    """Set what NumPy sees of each array, and its kind, and the first item of the key to all of them.

    Returns the views that are not the arrays themselves, which the caller keeps alive; None for a call that cannot be
    repeated.
    """
    cdef unsigned long long packed = 0
    cdef list held = NONE_HELD
    cdef object array
    cdef int j
    for j in range(SLOTS):
        kinds[j] = NOTHING
        if arrays[j] is NULL:
            continue
        array = <object>arrays[j]
        if type(array) is NDARRAY:
            kinds[j] = kind_of(array.dtype)
            views[j] = arrays[j]
        else:
            try:
                array = as_array(array, "")
            except TypeError:
                return None
            kinds[j] = kind_of(array.dtype)
            if kinds[j] == WORD:  # only bfloat16 is accepted without a word on what it means
                kinds[j] = BFLOAT
            held = [*held, array]
            views[j] = <PyObject *>array
        if kinds[j] == BFLOAT:  # of which NumPy exports no buffer
            array = array.view(BITS)
            held = [*held, array]
            views[j] = <PyObject *>array
        if kinds[j] == NOTHING:
            return None
        packed |= <unsigned long long>kinds[j] << KIND_BITS * j
    key[0] = packed
    return held


cdef class Numbers:
    """The numbers of a step that was checked and made."""

    cdef proptim_row row
    cdef object hyper   # hyperparameters of a rule whose coefficients depend on the step; else None
    cdef bint zero
    cdef int slots      # up to the last one that has an array
    cdef int dtype      # in which the rule computes
    cdef unsigned char[PROPTIM_MAX_ARRAYS] formats
    cdef float[2] grid  # of state of PROPTIM_STEPS8


cdef class OneShot:
    """Repeats a step of one rule on arrays of the caller, if an earlier call had the same keyword arguments.

    It keeps the numbers that follow from the keywords of a call and the dtypes of its arrays, and none of the arrays.
    Buffers are acquired, checked and released in each call. It accepts only the simplest arguments: arrays, each one
    dense run that overlaps no other. All other calls, and every error, are left to `proptim.functional`.
    """

    cdef dict numbers
    cdef dict places  # slot of each array that may be given by its name
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
        self.places |= {name + "_scale": PROPTIM_MAX_ARRAYS + j for name, j in self.places.items()}
        self.places["average"] = self.n_arrays
        self.places["master"] = self.places["publish"] = PROPTIM_MAX_ARRAYS

    def remember(self, tuple args, dict keywords, Plan plan, hyper):
        """Keep the numbers of a call whose step a plan of one segment has made.

        `hyper`: the hyperparameters of a rule whose coefficients depend on the step; None if they do not.
        """
        cdef Numbers numbers = Numbers()
        cdef PyObject *arrays[SLOTS]
        cdef PyObject *views[SLOTS]
        cdef int kinds[SLOTS]
        cdef long long step
        cdef int j, at
        cdef list key = self._key(args, keywords, arrays, &step)
        if key is None or look(arrays, views, kinds, key) is None:
            return
        numbers.row, numbers.dtype = plan.rows[0], plan.segments[0].dtype
        numbers.hyper, numbers.zero = hyper, numbers.row.stages[ZERO] != 0
        for j in range(SLOTS):
            if arrays[j] is not NULL:
                numbers.slots = j + 1
        for j in range(self.n_arrays + 1):
            at = j if j < self.n_arrays else PROPTIM_AVERAGE
            if (arrays[j] is not NULL) != holds(&plan.buffers[at]):
                return  # an array that its hyperparameters do not use
            numbers.formats[j] = plan.segments[0].arrays[at].format
            if numbers.formats[j] == PROPTIM_STEPS8:
                memcpy(numbers.grid, plan.seconds[at].buf, sizeof(numbers.grid))
        if len(self.numbers) >= MOST_KEPT:
            self.numbers.clear()
        self.numbers[tuple(key)] = numbers

    cdef list _key(self, tuple args, dict keywords, PyObject **arrays, long long *step):
        """A key for the numbers of a call, but for its first item; also sets its arrays and step, NULL and 0 for none.

        None for a call that cannot be repeated. Equal values of different types have different keys, as have 0.0, -0.0.
        """
        cdef int j, overflow = 0, given = <int>len(args)
        cdef double number
        cdef list key
        if given < 2 or given > self.n_arrays:
            return None
        memset(arrays, 0, SLOTS * sizeof(PyObject *))
        for j in range(given):
            if args[j] is not None:
                arrays[j] = <PyObject *>args[j]
        key = [None]
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
            elif value is None or (kind is not bool and kind is not str):
                place = self.places.get(name)
                if place is not None:
                    j = place
                    if j < given:
                        return None
                    if value is not None:
                        if arrays[j] is not NULL:  # a master and a copy
                            return None
                        arrays[j] = <PyObject *>value
                        if j == PROPTIM_MAX_ARRAYS:  # one or the other
                            key.append(name)
                    continue
                if value is not None:
                    return None
            key.append(name)
            key.append(kind)
            key.append(value)
        key.append(step[0] == 1)
        return key

    def step(self, tuple args, dict keywords):
        """Make the step of this call if it is like an earlier one; else do nothing and return False."""
        cdef PyObject *arrays[SLOTS]
        cdef PyObject *views[SLOTS]
        cdef int kinds[SLOTS]
        cdef Py_buffer buffers[SLOTS]
        cdef Py_buffer *view
        cdef proptim_segment segment
        cdef proptim_plane_array *array
        cdef proptim_row row
        cdef ptrdiff_t strides[SLOTS]
        cdef size_t size
        cdef long long step
        cdef int i, j, first, slots = 0
        cdef bint written
        cdef double value
        cdef Numbers numbers
        cdef tuple coefs
        cdef list held, key = self._key(args, keywords, arrays, &step), told = None
        if key is None:
            return False
        held = look(arrays, views, kinds, key)
        if held is None:
            return False
        numbers = self.numbers.get(tuple(key))
        if numbers is None:
            return False
        if step == 0 and (numbers.hyper is not None or numbers.row.rounding == PROPTIM_STOCHASTIC):
            return False  # such a step needs its number
        memset(&segment, 0, sizeof(segment))
        segment.dtype = <proptim_dtype>numbers.dtype
        try:
            for j in range(numbers.slots):
                view = &buffers[j]
                memset(view, 0, sizeof(Py_buffer))
                slots = j + 1
                if arrays[j] is NULL:
                    continue
                first = j % PROPTIM_MAX_ARRAYS  # which of the arrays it is a plane of
                written = j != PROPTIM_GRADS or numbers.zero
                if not take(<object>views[j], SIZES[kinds[j]], view, written):
                    return False
                if j < PROPTIM_MAX_ARRAYS or numbers.formats[first] < PROPTIM_INT8:
                    if not same_shape(view, &buffers[0]):
                        return False
                elif not are_scales(view, numbers.formats[first], &buffers[first], numbers.grid):
                    return False
                for i in range(j):
                    if meet(view, &buffers[i]):
                        return False
                if self.never_zero >> j & 1 and begins_with_zero(view, kinds[j]):
                    return False
                if written and type(<object>arrays[j]) is not NDARRAY:
                    told = [*(told or ()), <object>arrays[j]]
                strides[j] = view.itemsize
                array = &segment.arrays[first if first < self.n_arrays else PROPTIM_AVERAGE]
                array.planes[j // PROPTIM_MAX_ARRAYS] = view.buf
                array.strides[j // PROPTIM_MAX_ARRAYS] = &strides[j]
                array.format = numbers.formats[first]
            row = numbers.row
            row.step = step
            if numbers.hyper is not None:
                coefs, _ = self.advance(numbers.hyper, self.clock_at(numbers.hyper, step - 1), None)
                for j in range(self.n_coefs):
                    value = coefs[j]
                    if not -LARGEST_FLOAT < value < LARGEST_FLOAT:
                        return False  # it may be infinite in the dtype of the arrays
                    row.coefs[j] = value
            size = buffers[0].len // buffers[0].itemsize
            segment.ndim = 1
            segment.shape = &size
            proptim_layout(&segment)
            with nogil:
                proptim_step(_isa, <proptim_rule>self.rule, &segment, 1, &row, 1, NULL)
            if told is not None:
                tell_torch(told)
            return True
        finally:
            for j in range(slots):
                if holds(&buffers[j]):
                    PyBuffer_Release(&buffers[j])


cdef bint take(object array, int itemsize, Py_buffer *view, bint written) except -1:
    """Take the buffer of an array that is one dense run of such elements."""
    cdef int d
    cdef Py_ssize_t run
    try:
        PyObject_GetBuffer(array, view, PyBUF_STRIDES | PyBUF_WRITABLE if written else PyBUF_STRIDES)
    except (BufferError, ValueError):  # read-only
        return False
    if view.itemsize != itemsize:
        return False
    run = view.itemsize
    for d in range(view.ndim - 1, -1, -1):
        if view.strides[d] != run and view.shape[d] != 1 and view.len:
            return False
        run *= view.shape[d]
    return True


cdef bint same_shape(Py_buffer *view, Py_buffer *param) noexcept:
    """Whether two arrays have the same shape."""
    cdef int d
    if view.ndim != param.ndim:
        return False
    for d in range(view.ndim):
        if view.shape[d] != param.shape[d]:
            return False
    return True


cdef bint are_scales(Py_buffer *view, int form, Py_buffer *codes, const float *grid) noexcept:
    """Whether these are the scales of these codes, or the same grid as at the call that was checked."""
    cdef Py_ssize_t i, count = 2 if form == PROPTIM_STEPS8 else (codes.len + PROPTIM_QUANTA - 1) // PROPTIM_QUANTA
    cdef const float *scale = <const float *>view.buf
    if view.ndim != 1 or view.shape[0] != count or <size_t>view.buf % sizeof(float):
        return False
    for i in range(count):
        if not 0 <= scale[i] <= LARGEST_FLOAT or (form == PROPTIM_STEPS8 and scale[i] != grid[i]):
            return False
    return True


cdef bint meet(Py_buffer *a, Py_buffer *b) noexcept:
    """Whether two dense runs share memory; an absent or empty one does not."""
    return (a.len > 0 and b.len > 0 and <char *>a.buf < <char *>b.buf + b.len and <char *>b.buf < <char *>a.buf + a.len)


cdef bint begins_with_zero(Py_buffer *view, int kind) noexcept:
    """Whether the first number of a dense run is 0; an empty one has none, nor have codes."""
    if not view.len or kind >= SIGNED:
        return False
    if kind == SINGLE:
        return (<float *>view.buf)[0] == 0
    return (<double *>view.buf)[0] == 0 if kind == DOUBLE else not (<uint16_t *>view.buf)[0] & 0x7fff


cdef long long JIT_ABI = PROPTIM_ABI * 256 + 2  # the last number is that of the arguments of step_arrays()


cdef long long step_arrays(long long abi, long long rule, long long ndim, long long arrays, ptrdiff_t *places,
                           long long coefs, const double *row, long long stages, uint64_t stochastic, uint64_t seed,
                           uint64_t step, uint64_t first) noexcept nogil:
    """One step of one parameter on this thread, for code compiled at run time; returns 0.

    Such code is cached, and may have been compiled for another version of this module.  If that version had another
    ABI, more rules, stages or formats, or another number of arrays or coefficients for this rule, nothing is done and 1
    is returned.  `places` are rows of 1 + 2 (1 + ndim) numbers.  The first row begins with the size in bytes of the
    numbers that the rule computes in, and has the shape from its third number on.  Each other row has the format of an
    array, then the address and the byte strides of each of its two planes, address 0 for a plane that is absent; the
    last is the average of the parameter.  All but the formats are rewritten.  `row`: the coefficients of the rule, then
    those of the stages.  If `stochastic` is not 0, numbers are rounded at random by the numbers that follow it, as those
    of a parameter with the number 0.
    """
    cdef proptim_segment segment
    cdef proptim_row numbers
    cdef proptim_plane_array *array
    cdef long long j, length = 1 + 2 * (1 + ndim)
    if abi != JIT_ABI or rule >= PROPTIM_RULES or stages > PROPTIM_STAGES:
        return 1
    if arrays != _arrays_of[rule] or coefs != _coefs_of[rule]:
        return 1
    memset(&segment, 0, sizeof(segment))
    segment.dtype = PROPTIM_F32 if places[0] == 4 else PROPTIM_F64
    segment.ndim = <int>ndim
    segment.shape = <size_t *>(places + 2)
    segment.first = first
    segment.order = places + 3 + ndim if stochastic else NULL
    for j in range(arrays + 1):
        places += length
        if places[0] >= PROPTIM_FORMATS:
            return 1
        array = &segment.arrays[j if j < arrays else PROPTIM_AVERAGE]
        array.format = <unsigned char>places[0]
        array.planes[0] = <void *>places[1]
        array.strides[0] = places + 2
        array.planes[1] = <void *>places[2 + ndim]
        array.strides[1] = places + 3 + ndim
    proptim_row_init(&numbers, <proptim_rule>rule, row)
    numbers.rounding = PROPTIM_STOCHASTIC if stochastic else PROPTIM_NEAREST
    numbers.seed = seed
    numbers.step = step
    memcpy(numbers.stages, row + coefs, stages * sizeof(double))
    proptim_layout(&segment)
    proptim_step(_isa, <proptim_rule>rule, &segment, 1, &numbers, 1, NULL)
    return 0


def step_arrays_for_jit():
    """Address of `step_arrays`, the ABI that it is called with, and the formats by name."""
    formats = {"PLAIN": PROPTIM_PLAIN, "BF16": PROPTIM_BF16, "F16": PROPTIM_F16, "SPLIT": PROPTIM_SPLIT,
               "BF16_MASTER": PROPTIM_BF16_MASTER, "F16_MASTER": PROPTIM_F16_MASTER, "FLOAT32": PROPTIM_FLOAT32,
               "FLOAT64": PROPTIM_FLOAT64, "BF16_COPY": PROPTIM_BF16_COPY, "F16_COPY": PROPTIM_F16_COPY,
               "INT8": PROPTIM_INT8, "SQUARES8": PROPTIM_SQUARES8, "STEPS8": PROPTIM_STEPS8}
    return <size_t>&step_arrays, JIT_ABI, formats


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
