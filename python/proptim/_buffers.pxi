# Included by _core.pyx.  What a buffer is to the C library: its format, and the checks that memory safety depends on.

cdef object FLOAT32 = dtype(float32), FLOAT64 = dtype(float64)  # NumPy has one object of each native dtype
cdef object FLOAT16 = dtype(float16), BITS = dtype(uint16)      # arrays of bfloat16 are viewed as uint16
cdef object _bfloat16 = None    # the dtype of ml_dtypes, once an array of it has been seen
NATIVE = b"@=<" if sys.byteorder == "little" else b"@=>"  # marks of this machine's byte order in a format


cdef int format_of(Py_buffer *view, int dtype) except -1:
    """The proptim_format of an array of one plane, for a rule that computes in `dtype`."""
    cdef bytes code = view.format if view.format is not NULL else b"B"
    code = code.lstrip(NATIVE)
    if code == b"f" and view.itemsize == 4:
        return PROPTIM_PLAIN if dtype == PROPTIM_F32 else PROPTIM_FLOAT32
    if code == b"d" and view.itemsize == 8:
        return PROPTIM_PLAIN if dtype == PROPTIM_F64 else PROPTIM_FLOAT64
    if code == b"e" and view.itemsize == 2:
        return PROPTIM_F16
    if code == b"H" and view.itemsize == 2:
        return PROPTIM_BF16
    raise TypeError(f"buffer has format {code!r}; expected float32, float64, float16 or the bits of bfloat16")


cdef int dtype_of(Py_buffer *view) except -1:
    """The dtype in which a rule computes for a parameter."""
    return PROPTIM_F64 if format_of(view, PROPTIM_F64) == PROPTIM_PLAIN else PROPTIM_F32


COMPACT = {Int8: PROPTIM_INT8, Squares8: PROPTIM_SQUARES8, Steps8: PROPTIM_STEPS8}
"""Class -> format of state in one byte."""


cdef int format_of_pair(object pair, int first, int second, int dtype) except -1:
    """The proptim_format of an array of two planes, from the formats that each plane has by itself."""
    if type(pair) is Steps and first == second == PROPTIM_PLAIN:
        return PROPTIM_STEPS
    if type(pair) is Split and first == second == PROPTIM_BF16 and dtype == PROPTIM_F32:
        return PROPTIM_SPLIT
    if type(pair) is Mastered and second == PROPTIM_PLAIN and dtype == PROPTIM_F32:
        if first == PROPTIM_BF16:
            return PROPTIM_BF16_MASTER
        if first == PROPTIM_F16:
            return PROPTIM_F16_MASTER
    if type(pair) is Published and first == PROPTIM_PLAIN and dtype == PROPTIM_F32:
        if second == PROPTIM_BF16:
            return PROPTIM_BF16_COPY
        if second == PROPTIM_F16:
            return PROPTIM_F16_COPY
    raise TypeError(f"{type(pair).__name__} of two planes whose dtypes do not go together")


cdef bint rounds(proptim_segment *s) noexcept:
    """Whether a step of a segment may round at random, and in another order than C order."""
    cdef int j
    for j in range(PROPTIM_MAX_ARRAYS):
        if j != PROPTIM_GRADS and s.arrays[j].format in (PROPTIM_BF16, PROPTIM_F16, PROPTIM_FLOAT32):
            return True
    return False


cdef int format_of_compact(object pair, Py_buffer *code, Py_buffer *scale, int dtype) except -1:
    """The proptim_format of state in one byte; its arrays are checked as its format needs it."""
    cdef Py_ssize_t stride = 1, size = 1
    cdef int d, form = COMPACT[type(pair)]
    for d in range(code.ndim - 1, -1, -1):
        if form != PROPTIM_STEPS8 and code.shape[d] != 1 and code.strides[d] != stride:
            raise ValueError("codes of blocks have to be in C order")
        stride *= code.shape[d]
        size *= code.shape[d]
    kind = (<bytes>code.format).lstrip(NATIVE) if code.format is not NULL else b"B"
    if dtype != PROPTIM_F32 or kind != (b"b" if form == PROPTIM_INT8 else b"B"):
        raise TypeError(f"{type(pair).__name__} of arrays whose dtypes do not go together")
    if format_of(scale, PROPTIM_F32) != PROPTIM_PLAIN or scale.ndim != 1 or scale.strides[0] != 4:
        raise TypeError("scales have to be a dense array of float32")
    if scale.shape[0] != (2 if form == PROPTIM_STEPS8 else (size + PROPTIM_QUANTA - 1) // PROPTIM_QUANTA):
        raise ValueError("codes and scales differ in size")
    return form


cdef bint is_bfloat16(object kind) except -1:
    """Whether a dtype is the bfloat16 of ml_dtypes, which need not be installed."""
    global _bfloat16
    if kind is _bfloat16:
        return True
    if _bfloat16 is None and kind.itemsize == 2 and kind.name == "bfloat16":
        _bfloat16 = kind
        return True
    return False


cdef void fill_view(proptim_view *view, Py_buffer *buffer, int dtype, int form):
    view.planes[0] = buffer.buf
    view.format = form
    view.dtype = <proptim_dtype>dtype
    view.ndim = buffer.ndim
    view.shape = <const ptrdiff_t *>buffer.shape
    view.strides[0] = <const ptrdiff_t *>buffer.strides


cdef int check_shape(Py_buffer *param, Py_buffer *view) except -1:
    """Check once more what the caller has checked with better messages, because memory safety depends on it."""
    cdef int d
    if view.ndim != param.ndim:
        raise ValueError("arrays of one segment differ in dimensions")
    for d in range(param.ndim):
        if view.shape[d] != param.shape[d]:
            raise ValueError("arrays of one segment differ in shape")
    return 0
