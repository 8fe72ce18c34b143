/*
 * stepper.c - a Python extension in C that steps arrays by RMSprop, without linking proptim.
 *
 * In a setup.py: Extension("stepper", ["stepper.c"], include_dirs=[proptim.get_include()])
 */
#define PY_SSIZE_T_CLEAN
#include <proptim_python.h>

static const proptim_api *proptim;

/* step(param, grad, square_avg, lr): three writable buffers of float64. */
static PyObject *step(PyObject *self, PyObject *args)
{
    Py_buffer param, grad, square_avg;
    double lr;
    (void)self;
    if (!PyArg_ParseTuple(args, "w*w*w*d", &param, &grad, &square_avg, &lr)) return NULL;
    const int fits = param.len == grad.len && param.len == square_avg.len && param.len % sizeof(double) == 0;
    if (fits) {
        const proptim_rmsprop_arrays arrays = { .param = param.buf, .grad = grad.buf, .square_avg = square_avg.buf };
        const proptim_rmsprop_coefs coefs = {
            .lr = lr, .alpha = 0.9, .one_minus_alpha = 1 - 0.9, .correction = 1, .eps = 1e-8
        };
        const size_t size = (size_t)param.len / sizeof(double);
        Py_BEGIN_ALLOW_THREADS proptim->apply(NULL, PROPTIM_rmsprop, PROPTIM_F64, &arrays.param, &coefs.lr, size);
        Py_END_ALLOW_THREADS
    } else {
        PyErr_SetString(PyExc_ValueError, "expected three buffers of as many float64 each");
    }
    PyBuffer_Release(&param);
    PyBuffer_Release(&grad);
    PyBuffer_Release(&square_avg);
    return fits ? Py_NewRef(Py_None) : NULL;
}

static PyMethodDef methods[] = { { "step", step, METH_VARARGS, NULL }, { NULL, NULL, 0, NULL } };
static struct PyModuleDef module = { PyModuleDef_HEAD_INIT, "stepper", NULL, -1, methods, NULL, NULL, NULL, NULL };

PyMODINIT_FUNC PyInit_stepper(void)
{
    proptim = proptim_import();
    return proptim ? PyModule_Create(&module) : NULL;
}
