# Included by _core.pyx.  C code accesses tensors without linking torch: by functions of libtorch that are found by their
# names, or else by the DLPack exchange of their library.  The structs are those of DLPack 1, see
# torch/include/ATen/dlpack.h; the exchange came with DLPack 1.3 and torch 2.10.

from cpython.ref cimport PyObject, Py_DECREF, Py_INCREF
from cpython.dict cimport PyDict_Next
from cpython.exc cimport PyErr_Clear
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport qsort

cdef extern from *:
    """
    #include <stdint.h>
    typedef struct { int32_t device_type, device_id; } exchange_device;
    typedef struct { uint8_t code, bits; uint16_t lanes; } exchange_dtype;
    typedef struct {
        void *data; exchange_device device; int32_t ndim; exchange_dtype dtype; int64_t *shape, *strides;
        uint64_t byte_offset;
    } exchange_tensor;
    typedef struct exchange_header { uint32_t major, minor; struct exchange_header *previous; } exchange_header;
    typedef struct {
        exchange_header header;
        void *allocate, *from_object, *to_object;
        int (*view)(void *, exchange_tensor *);
        void *stream;
    } exchange;
    /*
     * Functions that take an at::Tensor, in the order of `NATIVE` in _torch_tensors.py. Those that return an int32_t are
     * of torch's stable C interface: see torch/include/torch/csrc/inductor/aoti_torch/c/shim.h. They catch every
     * exception, and return 0 if there was none. The others throw none for a tensor that is defined and has a version.
     */
    typedef struct {
        const void *(*grad)(const void *); /* takes what an at::Tensor points to, returns an at::Tensor */
        void *(*object)(const void *);     /* a new reference to its Python object, None if it is undefined */
        _Bool (*is_neg)(const void *);
        void (*bump_version)(const void *);
        int32_t (*layout)(const void *, int32_t *), (*device)(const void *, int32_t *);
        int32_t (*dtype)(const void *, int32_t *), (*ndim)(const void *, int64_t *);
        int32_t (*shape)(const void *, int64_t **), (*strides)(const void *, int64_t **);
        int32_t (*data)(const void *, void **);
    } libtorch;

    enum { LIBTORCH = sizeof(libtorch) / sizeof(void (*)(void)), LIBTORCH_STRIDED = 0, LIBTORCH_CPU = 0 };

    static const exchange_dtype libtorch_dtypes[] = { /* by the numbers of c10::ScalarType */
        [2] = { 0, 16, 1 }, [5] = { 2, 16, 1 }, [6] = { 2, 32, 1 }, [7] = { 2, 64, 1 }, [15] = { 4, 16, 1 },
    };

    /* What the exchange tells of a tensor; 0 if it is none in CPU memory, or its numbers lie there negated. */
    static int libtorch_view(const libtorch *f, const void *tensor, exchange_tensor *t)
    {
        int32_t layout, device, dtype;
        int64_t ndim;
        if (f->is_neg(tensor) || f->layout(tensor, &layout) || layout != LIBTORCH_STRIDED) return 0;
        if (f->device(tensor, &device) || device != LIBTORCH_CPU || f->dtype(tensor, &dtype)) return 0;
        if (dtype < 0 || dtype > 15 || !libtorch_dtypes[dtype].bits) return 0;
        if (f->ndim(tensor, &ndim) || f->shape(tensor, &t->shape) || f->strides(tensor, &t->strides)) return 0;
        t->device.device_type = 1; /* kDLCPU */
        t->ndim = (int32_t)ndim, t->dtype = libtorch_dtypes[dtype], t->byte_offset = 0;
        return !f->data(tensor, &t->data);
    }

    /* Whether a tensor is where one was before, and as that was. So its memory is that of the CPU. */
    static int libtorch_same(const libtorch *f, const void *tensor, const exchange_tensor *before)
    {
        void *data;
        int32_t dtype;
        int64_t ndim, *shape, *strides;
        if (!before->data || f->data(tensor, &data) || data != before->data || f->is_neg(tensor)) return 0;
        if (f->dtype(tensor, &dtype) || dtype < 0 || dtype > 15) return 0;
        if (libtorch_dtypes[dtype].code != before->dtype.code || libtorch_dtypes[dtype].bits != before->dtype.bits) return 0;
        if (f->ndim(tensor, &ndim) || ndim != before->ndim) return 0;
        if (ndim == 0) return 1;
        if (f->shape(tensor, &shape) || f->strides(tensor, &strides)) return 0;
        for (int64_t d = 0; d < ndim; d++)
            if (shape[d] != before->shape[d] || strides[d] != before->strides[d]) return 0;
        return 1;
    }

    static inline int is_one_of(PyObject *object, PyObject *type, PyObject *other)
    {
        return (PyObject *)Py_TYPE(object) == type || (PyObject *)Py_TYPE(object) == other;
    }
    """
    ctypedef struct exchange_device:
        int32_t device_type
    ctypedef struct exchange_dtype:
        uint8_t code, bits
        uint16_t lanes
    ctypedef struct exchange_tensor:
        void *data
        exchange_device device
        int32_t ndim
        exchange_dtype dtype
        int64_t *shape
        int64_t *strides
        uint64_t byte_offset
    ctypedef struct exchange_header:
        uint32_t major
        exchange_header *previous
    ctypedef struct exchange:
        exchange_header header
        int (*view)(void *, exchange_tensor *) noexcept
    ctypedef struct libtorch:
        const void *(*grad)(const void *) noexcept
        void *(*object)(const void *) noexcept
        void (*bump_version)(const void *) noexcept
        int32_t (*data)(const void *, void **) noexcept
    int LIBTORCH
    bint libtorch_view(const libtorch *functions, const void *tensor, exchange_tensor *t) noexcept
    bint libtorch_same(const libtorch *functions, const void *tensor, const exchange_tensor *before) noexcept
    bint is_one_of(PyObject *object, PyObject *type, PyObject *other) noexcept

cdef enum:
    EXCHANGE_CPU = 1
    EXCHANGE_INT = 0
    EXCHANGE_FLOAT = 2
    EXCHANGE_BFLOAT = 4

cdef struct watched:  # a tensor that a step writes
    PyObject *tensor
    void *core                  # what its at::Tensor points to
    exchange_tensor seen        # at the last look
    size_t extent               # bytes from its first element to behind its last
    int array, plane
    Py_ssize_t itemsize

cdef struct counted:  # a number in the state
    PyObject *tensor            # NULL for one that is kept here
    exchange_tensor seen        # at the last look
    double own                  # where it is kept here


cdef int by_address(const void *a, const void *b) noexcept nogil:
    cdef size_t x = (<const address_range *>a).low, y = (<const address_range *>b).low
    return (x > y) - (x < y)


cdef int size_of_grad(const proptim_segment *s) noexcept nogil:
    """Bytes of an element of the gradient."""
    cdef int form = s.arrays[PROPTIM_GRADS].format
    if form == PROPTIM_PLAIN:
        return 4 if s.dtype == PROPTIM_F32 else 8
    return 4 if form == PROPTIM_FLOAT32 else 8 if form == PROPTIM_FLOAT64 else 2


cdef exchange *find_exchange(capsule) except? NULL:
    """The table of a capsule in the version that this code knows; NULL if there is none."""
    cdef exchange *table = <exchange *>PyCapsule_GetPointer(capsule, b"dlpack_exchange_api")
    while table is not NULL and table.header.major > 1:
        table = <exchange *>table.header.previous
    return NULL if table is NULL or table.header.major != 1 or table.view is NULL else table


cdef inline void *at_tensor(PyObject *tensor) noexcept:
    """The at::Tensor of an object of torch.Tensor."""
    return <char *>tensor + sizeof(PyObject)


cdef inline void *core_of(PyObject *tensor) noexcept:
    """What it points to."""
    return (<void **>at_tensor(tensor))[0]


cdef class Tensors:
    """The tensors of an optimizer of torch.optim, for a plan that holds none of their memory.

    A step is `look`, then `repeat` or `step`.  Between steps the plan has no gradient.
    """

    cdef readonly Plan plan
    cdef exchange *table
    cdef object plain, parameter, is_neg, mark  # types of tensors, and what is asked of torch
    cdef libtorch native            # what is asked instead; NULL where it was not found
    cdef bint versioned             # whether native.bump_version tells autograd, for every parameter has a version
    cdef list owned                 # keeps alive the objects that are compared by address
    cdef list every                 # all parameters
    cdef list members               # those in the plan
    cdef list stepped               # those with a gradient, where `mark` is told of them
    cdef PyObject **grads           # references to all gradients, from `look` to the end of the step
    cdef Py_ssize_t n_grads
    cdef readonly list homes        # group of each member
    cdef list sizes                 # parameters in each group
    cdef PyObject **contents        # of the state: parameter, its state, names and values, and so on
    cdef PyObject **numbers         # of the groups: names and values
    cdef Py_ssize_t n_contents, n_numbers, n_watched, n_counted
    cdef int *place                 # index of each parameter among the members, -1 if it is none
    cdef watched *watches           # `n_watched` a member: parameter, then state
    cdef counted *counts            # `n_counted` a member
    cdef int64_t *layouts           # shape, strides of what is watched, strides of the gradient
    cdef Py_ssize_t *layout_at
    cdef bint *there                # which members have a gradient
    cdef bint *laid                 # which segments have the layout of their tensors
    cdef exchange_tensor *bound     # the last gradient of each segment that it was laid out for
    cdef double *before             # clock of each row, `n_counted` a row
    cdef double *after
    cdef list values                # of each row as `step` gets them, None where there is nothing to repeat
    cdef object rule
    cdef readonly bint used         # whether it has made a step
    cdef readonly long long steps   # steps made

    def __cinit__(self, Plan plan, capsule, plain, parameter, is_neg, mark, tuple native, rule, list every, list place,
                  list tensors, list numbers, list homes, list planes):
        """`native`: addresses of the functions of `libtorch`, or nothing; `place`: index of each parameter of `every`

        among members, None for one that is left out; for each member `tensors`: parameter and state, None for what is
        off, as `planes` says (array, plane) of each; `numbers`: those of its clock, tensors or floats; `homes`: its
        group.
        """
        cdef Py_ssize_t i, j, k, n = len(tensors), room = 0
        self.table = find_exchange(capsule)
        if self.table is NULL or not plan.disjoint:
            raise BufferError("no exchange")
        self.plan, self.plain, self.parameter, self.is_neg, self.mark = plan, plain, parameter, is_neg, mark
        if len(native) == LIBTORCH:
            for i in range(LIBTORCH):
                (<void **>&self.native)[i] = <void *><size_t>native[i]
            try:
                self.versioned = min([own[0]._version for own in tensors]) >= 0
            except RuntimeError:  # an inference tensor has none
                pass
        self.rule, self.every, self.homes = rule, every, homes
        self.members = [own[0] for own in tensors]
        self.owned = [tensors, numbers]
        self.n_watched, self.n_counted = len(planes), len(numbers[0]) if numbers else 0
        self.place = <int *>calloc(len(every) + 1, sizeof(int))
        self.watches = <watched *>calloc(n * self.n_watched + 1, sizeof(watched))
        self.counts = <counted *>calloc(n * self.n_counted + 1, sizeof(counted))
        self.layout_at = <Py_ssize_t *>calloc(n + 1, sizeof(Py_ssize_t))
        self.there = <bint *>calloc(n + 1, sizeof(bint))
        self.laid = <bint *>calloc(n + 1, sizeof(bint))
        self.bound = <exchange_tensor *>calloc(n + 1, sizeof(exchange_tensor))
        self.grads = <PyObject **>calloc(n + 1, sizeof(PyObject *))
        self.before = <double *>calloc(n * self.n_counted + 1, sizeof(double))
        self.after = <double *>calloc(n * self.n_counted + 1, sizeof(double))
        if not (self.place and self.watches and self.counts and self.layout_at and self.there and self.laid
                and self.bound and self.grads and self.before and self.after):
            raise MemoryError
        for i in range(len(every)):
            self.place[i] = -1 if place[i] is None else place[i]
        for i in range(n):
            self.layout_at[i] = room
            room += (self.n_watched + 2) * self.plan.buffers[i * PROPTIM_MAX_ARRAYS].ndim
        self.layouts = <int64_t *>calloc(room + 1, sizeof(int64_t))
        if not self.layouts:
            raise MemoryError
        for i in range(n):
            for j in range(self.n_watched):
                tensor = tensors[i][j]
                self.watches[i * self.n_watched + j].array, self.watches[i * self.n_watched + j].plane = planes[j]
                if tensor is not None:
                    if not self._first_look(i, j, tensor):
                        raise BufferError("not seen")
                    self.watches[i * self.n_watched + j].tensor = <PyObject *>tensor
                    self.watches[i * self.n_watched + j].core = core_of(<PyObject *>tensor)
            for j in range(self.n_counted):
                number = numbers[i][j]
                if isinstance(number, float):
                    self.counts[i * self.n_counted + j].own = number
                    self.counts[i * self.n_counted + j].seen.data = &self.counts[i * self.n_counted + j].own
                    self.counts[i * self.n_counted + j].seen.dtype.bits = 64
                else:
                    self.counts[i * self.n_counted + j].tensor = <PyObject *>number
        if not self._sort():
            raise BufferError("tensors overlap")
        self.plan._let_go()

    def __dealloc__(self):
        self._release()
        free(self.contents)
        free(self.numbers)
        free(self.place)
        free(self.watches)
        free(self.counts)
        free(self.layouts)
        free(self.layout_at)
        free(self.there)
        free(self.laid)
        free(self.bound)
        free(self.grads)
        free(self.before)
        free(self.after)

    # What is where ---------------------------------------------------------------------------------------------------

    cdef bint _see(self, object tensor, exchange_tensor *t) except -1:
        """A plain tensor in CPU memory, which holds its numbers and not their negatives."""
        if not is_one_of(<PyObject *>tensor, <PyObject *>self.plain, <PyObject *>self.parameter):
            return False
        if self.native.data is not NULL:
            return libtorch_view(&self.native, at_tensor(<PyObject *>tensor), t)
        if self.table.view(<void *>tensor, t):
            PyErr_Clear()
            return False
        if t.device.device_type != EXCHANGE_CPU or t.dtype.lanes != 1:
            return False
        if t.byte_offset:
            t.data = <char *>t.data + t.byte_offset
        return not self.is_neg(tensor)

    cdef inline bint _same(self, PyObject *tensor, const exchange_tensor *before) noexcept:
        """Whether it is as it was at an earlier look, by a quick check."""
        return (self.native.data is not NULL and is_one_of(tensor, <PyObject *>self.plain, <PyObject *>self.parameter)
                and libtorch_same(&self.native, at_tensor(tensor), before))

    cdef PyObject *_grad(self, object p) except NULL:
        """A new reference to p.grad."""
        cdef PyObject *grad = NULL
        if self.native.grad is not NULL and is_one_of(<PyObject *>p, <PyObject *>self.parameter,
                                                      <PyObject *>self.plain):
            grad = <PyObject *>self.native.object(self.native.grad(core_of(<PyObject *>p)))
        if grad is NULL:
            given = p.grad
            Py_INCREF(given)
            grad = <PyObject *>given
        return grad

    cdef bint _first_look(self, Py_ssize_t i, Py_ssize_t j, tensor) except -1:
        """Take the layout of a tensor that the caller has checked."""
        cdef exchange_tensor t
        cdef proptim_segment *s = &self.plan.segments[i]
        cdef watched *w = &self.watches[i * self.n_watched + j]
        cdef Py_buffer *param = &self.plan.buffers[i * PROPTIM_MAX_ARRAYS]
        cdef int64_t *shape = self.layouts + self.layout_at[i]
        cdef int64_t *strides = shape + (1 + j) * param.ndim
        cdef size_t itemsize
        cdef int d
        if not self._see(tensor, &t) or t.ndim != param.ndim:
            return False
        if t.dtype.code not in (EXCHANGE_FLOAT, EXCHANGE_BFLOAT, EXCHANGE_INT):  # the last are halves of a master
            return False
        w.itemsize = itemsize = t.dtype.bits // 8
        w.extent = itemsize
        for d in range(t.ndim):
            if t.shape[d] != param.shape[d] or t.strides[d] < 0:
                return False
            shape[d] = t.shape[d]
            strides[d] = t.strides[d]
            w.extent += (t.shape[d] - 1) * t.strides[d] * itemsize
        if s.size == 0:
            w.extent = 0
        elif t.data is NULL:
            return False
        w.seen = t
        w.seen.shape, w.seen.strides = shape, strides
        return True

    cdef bint _sort(self) except -1:
        """Sort the address ranges of all written arrays; False if some overlap."""
        cdef Py_ssize_t i, n = len(self.members) * self.n_watched, count = 0
        cdef bint apart = True
        cdef address_range *ranges = <address_range *>malloc((n + 1) * sizeof(address_range))
        if not ranges:
            raise MemoryError
        for i in range(n):
            if self.watches[i].tensor is not NULL and self.watches[i].extent:
                ranges[count].low = <size_t>self.watches[i].seen.data
                ranges[count].high = ranges[count].low + self.watches[i].extent
                count += 1
        qsort(ranges, count, sizeof(address_range), by_address)
        if count != self.plan.n_written:
            free(ranges)
            return False
        for i in range(count):
            self.plan.written_low[i] = ranges[i].low
            self.plan.written_high[i] = ranges[i].high
            apart = apart and (i == 0 or ranges[i - 1].high <= ranges[i].low)
        free(ranges)
        for i in range(len(self.members)):
            self.bound[i].data = NULL  # so that it is compared with these
        self.plan.gap.high = 0
        return apart

    cdef bint _find(self, Py_ssize_t i, bint *moved) except -1:
        """Find the present addresses of parameter and state of a member."""
        cdef Py_ssize_t j
        cdef int d
        cdef exchange_tensor t
        cdef watched *w = &self.watches[i * self.n_watched]
        cdef counted *c = &self.counts[i * self.n_counted]
        cdef proptim_segment *s = &self.plan.segments[i]
        cdef int ndim = self.plan.dims[i]
        cdef int64_t *shape = self.layouts + self.layout_at[i]
        cdef int64_t *strides = shape
        for j in range(self.n_watched):
            strides += ndim
            if w[j].tensor is NULL:
                continue
            if self.versioned and w[j].core is not core_of(w[j].tensor):  # torch.utils.swap_tensors
                return False
            if self._same(w[j].tensor, &w[j].seen):
                continue
            if not self._see(<object>w[j].tensor, &t) or t.ndim != ndim:
                return False
            if t.dtype.code != w[j].seen.dtype.code or t.dtype.bits != w[j].seen.dtype.bits:
                return False
            for d in range(ndim):
                if t.shape[d] != shape[d] or t.strides[d] != strides[d]:
                    return False
            if t.data is not w[j].seen.data:
                if t.data is NULL and s.size:
                    return False
                w[j].seen.data = t.data
                self.laid[i] = False
                moved[0] = True
        for j in range(self.n_counted):
            if c[j].tensor is NULL or (c[j].seen.ndim == 0 and self._same(c[j].tensor, &c[j].seen)):
                continue
            if not self._see(<object>c[j].tensor, &t) or t.data is NULL:
                return False
            for d in range(t.ndim):
                if t.shape[d] != 1:
                    return False
            if t.dtype.code != EXCHANGE_FLOAT or (t.dtype.bits != 32 and t.dtype.bits != 64):
                return False
            c[j].seen = t
        return True

    cdef bint _take(self, Py_ssize_t i, PyObject *grad) except -1:
        """Bind a gradient if a quick check shows that it fits."""
        cdef exchange_tensor t
        cdef proptim_segment *s = &self.plan.segments[i]
        cdef int ndim = self.plan.dims[i], d
        cdef int64_t *shape = self.layouts + self.layout_at[i]
        cdef int64_t *strides = shape + (1 + self.n_watched) * ndim
        cdef size_t itemsize, low, high
        cdef int form
        if self.laid[i] and self._same(grad, &self.bound[i]):
            s.arrays[PROPTIM_GRADS].planes[0] = self.bound[i].data
            return True
        if not self._see(<object>grad, &t) or t.ndim != ndim:
            return False
        form = self._form(&t, s.dtype)
        if form < 0:
            return False
        if form != s.arrays[PROPTIM_GRADS].format:
            self.laid[i] = False
        itemsize = t.dtype.bits // 8
        low = high = <size_t>t.data
        for d in range(ndim):
            if t.shape[d] != shape[d] or t.strides[d] < 0:
                return False
            if t.strides[d] != strides[d]:
                strides[d] = t.strides[d]
                self.laid[i] = False
            high += (t.shape[d] - 1) * t.strides[d] * itemsize
        if s.size == 0:
            return True
        if t.data is NULL or self.plan._meets(low, high + itemsize):
            return False
        self.bound[i] = t
        self.bound[i].shape, self.bound[i].strides = shape, strides
        s.arrays[PROPTIM_GRADS].planes[0] = t.data
        s.arrays[PROPTIM_GRADS].format = form
        if not self.laid[i] or low % itemsize:
            self._lay(i, low % itemsize != 0)
        return True

    cdef int _form(self, exchange_tensor *t, int dtype) noexcept:
        """The format of a gradient where this is computed in; -1 for one that needs a closer look."""
        if t.dtype.code == EXCHANGE_BFLOAT:
            return PROPTIM_BF16 if t.dtype.bits == 16 else -1
        if t.dtype.code != EXCHANGE_FLOAT:
            return -1
        if t.dtype.bits == 16:
            return PROPTIM_F16
        if t.dtype.bits == 32:
            return PROPTIM_PLAIN if dtype == PROPTIM_F32 else PROPTIM_FLOAT32
        if t.dtype.bits == 64 and dtype == PROPTIM_F64:
            return PROPTIM_PLAIN
        return PROPTIM_FLOAT64 if t.dtype.bits == 64 and self.plan.casts else -1

    cdef void _lay(self, Py_ssize_t i, bint again) noexcept:
        """Set the C view of segment i; `again`: at every step, for something lies at an odd place."""
        cdef proptim_segment *s = &self.plan.segments[i]
        cdef watched *w = &self.watches[i * self.n_watched]
        cdef int ndim = self.plan.dims[i], d
        cdef int64_t *shape = self.layouts + self.layout_at[i]
        cdef int64_t *strides = shape
        cdef Py_ssize_t j
        s.ndim, s.first = ndim, self.plan.firsts[i]
        for d in range(ndim):
            s.shape[d] = shape[d]
        for j in range(self.n_watched):
            strides += ndim
            if w[j].tensor is not NULL:
                again = again or <size_t>w[j].seen.data % w[j].itemsize != 0
                for d in range(ndim):
                    s.arrays[w[j].array].strides[w[j].plane][d] = strides[d] * w[j].itemsize
        strides += ndim
        for d in range(ndim):
            s.arrays[PROPTIM_GRADS].strides[0][d] = strides[d] * size_of_grad(s)
        for j in range(self.n_watched):  # laying out before may have moved them
            if w[j].tensor is not NULL:
                s.arrays[w[j].array].planes[w[j].plane] = w[j].seen.data
        proptim_layout(s)
        self.laid[i] = not again

    # Methods for a step ----------------------------------------------------------------------------------------------

    def own(self, list objects):
        """Keep these alive."""
        self.owned[0] = (self.owned[0], objects)

    def keep(self, list groups, state, bint numbers=True):
        """Remember these groups and this state as those of the plan."""
        kept = []
        for p, own in state.items():
            kept += [p, own]
            for key, value in own.items():
                kept += [key, value]
        free(self.contents)
        self.n_contents = 0
        self.contents = pointers(kept)
        self.n_contents = len(kept)
        self.owned[2:] = [kept, groups.copy()]
        self.sizes = [len(group["params"]) for group in groups]
        self.values = None
        if numbers:
            self.keep_numbers(groups)

    def keep_numbers(self, list groups):
        """Remember the hyperparameters of the groups."""
        kept = [x for group in groups for key, value in group.items() if key != "params" for x in (key, value)]
        free(self.numbers)
        self.n_numbers = 0
        self.numbers = pointers(kept)
        self.n_numbers = len(kept)
        self.owned[4:] = [kept]

    def same_numbers(self, list groups):
        """Whether the groups still hold the same objects."""
        cdef PyObject *key
        cdef PyObject *value
        cdef Py_ssize_t at, n = 0
        for group in groups:
            if not isinstance(group, dict):
                return False
            at = 0
            while PyDict_Next(group, &at, &key, &value):
                if <object>key == "params":
                    continue
                if n + 2 > self.n_numbers or self.numbers[n] != key or self.numbers[n + 1] != value:
                    return False
                n += 2
        return n == self.n_numbers

    cdef bint _same_state(self, state) except -1:
        cdef PyObject *key
        cdef PyObject *value
        cdef PyObject *name
        cdef PyObject *held
        cdef Py_ssize_t at = 0, within, n = 0
        if not isinstance(state, dict):
            return False
        while PyDict_Next(state, &at, &key, &value):
            if n + 2 > self.n_contents or self.contents[n] != key or self.contents[n + 1] != value:
                return False
            n += 2
            if not isinstance(<object>value, dict):
                return False
            within = 0
            while PyDict_Next(<object>value, &within, &name, &held):
                if n + 2 > self.n_contents or self.contents[n] != name or self.contents[n + 1] != held:
                    return False
                n += 2
        return n == self.n_contents

    def look(self, list groups, state):
        """Find every tensor and gradient; False if a new plan would differ, or one of them needs more checks."""
        cdef Py_ssize_t i = 0, k, count = len(self.every)
        cdef list params
        cdef bint moved = False
        cdef object p
        cdef PyObject *grad
        self._release()
        self.stepped = []
        if len(groups) != len(self.sizes) or not self._same_state(state):
            return False
        for k in range(len(groups)):
            if groups[k] is not self.owned[3][k] or type(groups[k]["params"]) is not list:
                return False
            params = groups[k]["params"]
            if len(params) != self.sizes[k]:
                return False
            for p in params:
                if p is not self.every[i]:
                    return False
                i += 1
        for i in range(len(self.members)):
            if not self._find(i, &moved):
                return False
        if moved and not self._sort():
            return False
        self._drop()
        for i in range(count):
            p = self.every[i]
            k = self.place[i]
            grad = self._grad(p)
            if grad is <PyObject *>None or k < 0:
                Py_DECREF(<object>grad)
                if grad is not <PyObject *>None:
                    self._drop()
                    return False
                if k >= 0:
                    self.there[k] = False
                continue
            self.grads[self.n_grads] = grad
            self.n_grads += 1
            if not self._take(k, grad):
                self._drop()
                return False
            self.there[k] = True
            if not self.versioned:
                self.stepped.append(p)
        return True

    def rest(self):
        """Unbind all gradients, and keep none alive."""
        self._drop()
        self._release()
        self.stepped = None

    cdef void _release(self) noexcept:
        """Keep no gradient alive."""
        while self.n_grads:
            self.n_grads -= 1
            Py_DECREF(<object>self.grads[self.n_grads])

    cdef void _drop(self) noexcept:
        """Have no gradient."""
        cdef Py_ssize_t i
        for i in range(self.plan.count):
            self.plan.segments[i].arrays[PROPTIM_GRADS].planes[0] = NULL

    cdef double _number(self, Py_ssize_t k) noexcept:
        cdef counted *c = &self.counts[k]
        return (<double *>c.seen.data)[0] if c.seen.dtype.bits == 64 else (<float *>c.seen.data)[0]

    def clocks(self):
        """The numbers of each member with a gradient, None for one without."""
        cdef Py_ssize_t i, j
        return [tuple([self._number(i * self.n_counted + j) for j in range(self.n_counted)]) if self.there[i] else None
                for i in range(len(self.members))]

    def reduce(self):
        """Sum of squares of the gradients that were found, and whether every element is finite."""
        cdef Py_ssize_t i, room = 0, bound = 0
        cdef int d, ndim, finite
        cdef double squares
        cdef int64_t *shape
        cdef int64_t *strides
        cdef proptim_segment *s
        cdef proptim_view *view
        cdef ptrdiff_t *places
        for i in range(len(self.members)):
            room += 2 * self.plan.dims[i]
        places = <ptrdiff_t *>malloc((room + 1) * sizeof(ptrdiff_t))
        if not places:
            raise MemoryError
        room = 0
        for i in range(len(self.members)):
            s = &self.plan.segments[i]
            if not self.there[i] or s.size == 0:
                continue
            ndim = self.plan.dims[i]
            shape = self.layouts + self.layout_at[i]
            strides = shape + (1 + self.n_watched) * ndim
            view = &self.plan.views[bound]
            memset(view, 0, sizeof(proptim_view))
            view.planes[0] = s.arrays[PROPTIM_GRADS].planes[0]
            view.format, view.dtype, view.ndim = s.arrays[PROPTIM_GRADS].format, s.dtype, ndim
            view.shape, view.strides[0] = places + room, places + room + ndim
            for d in range(ndim):
                places[room + d] = shape[d]
                places[room + ndim + d] = strides[d] * size_of_grad(s)
            room += 2 * ndim
            bound += 1
        try:
            squares = self.plan._reduce(bound, &finite)
            return squares, bool(finite)
        finally:
            free(places)

    def step(self, list row_of, list rows, list clocks, list values):
        """One step of the members with gradients, with these rows; then set their clocks.

        Rows come with the clocks after them and `values`: group, hyperparameters, and whether the next steps have the
        same coefficients. The last one, None in all three, is that of members without a gradient.
        """
        cdef Py_ssize_t i, j
        cdef unsigned row
        self.values = None
        self.plan._take_rows(rows, clocks)
        for i in range(len(self.members)):
            row = row_of[i]
            if row >= len(rows) or (rows[row] is None) == self.there[i]:
                raise ValueError(f"member {i} has row {row}")
            self.plan.segments[i].row = row
        for i in range(len(rows)):
            if rows[i] is not None:
                for j in range(self.n_counted):
                    self.after[i * self.n_counted + j] = clocks[i][j]
        self._run()
        self.values = values

    def repeat(self, loss):
        """Repeat the last step with the coefficients of the next one.

        False, and nothing done, if that will not do.
        """
        cdef Py_ssize_t i, j, row
        cdef double value
        if self.values is None:
            return False
        for row in range(self.plan.n_rows):
            self.plan.rows[row].active = 0
        for i in range(len(self.members)):
            if self.there[i]:
                row = self.plan.segments[i].row
                if self.values[row] is None:  # it had no gradient at the last step
                    return False
                self.plan.rows[row].active = 1
                for j in range(self.n_counted):
                    if self._number(i * self.n_counted + j) != self.before[row * self.n_counted + j]:
                        return False
        for row in range(self.plan.n_rows):
            if not self.plan.rows[row].active:
                continue
            if self.values[row][2]:  # the coefficients of the last step, and only the number of the step is another
                for j in range(self.n_counted):
                    self.after[row * self.n_counted + j] = self.before[row * self.n_counted + j] + (j == 0)
                self.plan.rows[row].step = <uint64_t>self.after[row * self.n_counted]
                continue
            clock = tuple([self.before[row * self.n_counted + j] for j in range(self.n_counted)])
            coefs, clock = self.rule.numbers(self.values[row][1], clock, loss)
            if len(coefs) != self.plan.n_coefs:
                raise ValueError(f"row has {len(coefs)} coefficients; expected {self.plan.n_coefs}")
            for j in range(self.plan.n_coefs):
                value = coefs[j]
                if not -LARGEST_FLOAT < value < LARGEST_FLOAT:
                    return False  # it may be infinite in the dtype of the arrays
                self.plan.rows[row].coefs[j] = value
            self.plan.rows[row].step = int(clock[0])
            for j in range(self.n_counted):
                self.after[row * self.n_counted + j] = clock[j]
        self._run()
        return True

    def settle(self, list settled):
        """Take the hyperparameters of each group, and (values, stages) of them, for the step that is repeated."""
        cdef Py_ssize_t row, j
        if self.values is None:
            return
        for row in range(self.plan.n_rows):
            if self.values[row] is not None:
                h, stages = settled[self.values[row][0]]
                self.values[row] = (self.values[row][0], h, False)
                for j in range(PROPTIM_STAGES):
                    self.plan.rows[row].stages[j] = stages[j]

    cdef int _run(self) except -1:
        """Run the kernels, count, and tell autograd, as one C call: no signal handler runs in between."""
        cdef Py_ssize_t i, j, row
        cdef counted *c
        cdef double value
        cdef int ran
        self.used = True
        if self.n_grads:
            if not self.versioned:
                self.mark(self.stepped)  # can raise, so it comes first
            ran = self.plan._run()
        else:
            ran = 0
        for i in range(len(self.members)):
            if self.there[i]:
                if self.versioned:
                    self.native.bump_version(at_tensor(self.watches[i * self.n_watched].tensor))
                row = self.plan.segments[i].row
                for j in range(self.n_counted):
                    c = &self.counts[i * self.n_counted + j]
                    value = self.after[row * self.n_counted + j]
                    if c.seen.dtype.bits == 64:
                        (<double *>c.seen.data)[0] = value
                    else:
                        (<float *>c.seen.data)[0] = <float>value
                    # What a float32 made of it is what the next step reads.
                    self.before[row * self.n_counted + j] = self._number(i * self.n_counted + j)
        self.steps += 1
        self.rest()
        if ran == PROPTIM_RAN_FORKED:
            tell_forked()
        return 0


cdef PyObject **pointers(list objects) except NULL:
    cdef Py_ssize_t i
    cdef PyObject **found = <PyObject **>malloc((len(objects) + 1) * sizeof(PyObject *))
    if not found:
        raise MemoryError
    for i in range(len(objects)):
        found[i] = <PyObject *>objects[i]
    return found
