/*
 * proptim_python.h - proptim.h for Python extensions in C, C++ and Cython.  The extension links nothing: it uses the
 * functions and the thread pool of the installed Python package.
 */
#ifndef PROPTIM_PYTHON_H
#define PROPTIM_PYTHON_H

#include <Python.h>

#include "proptim.h"

/*
 * The functions of proptim.h; NULL with an exception set if proptim is not installed, has no compiled core, or is older
 * than this header.  Call it once, when your module is imported.
 */
static inline const proptim_api *proptim_import(void)
{
    const proptim_api *api = (const proptim_api *)PyCapsule_Import("proptim._C_API", 0);
    if (!api) return NULL;
    if (api->abi == PROPTIM_ABI && api->size >= sizeof *api && api->rules >= PROPTIM_RULES &&
        api->stages >= PROPTIM_STAGES && api->formats >= PROPTIM_FORMATS)
        return api;
    PyErr_Format(
        PyExc_ImportError,
        "proptim has C API %u of %u bytes, %u rules, %u stages and %u formats, and this extension was compiled "
        "with %d of %d bytes, %d rules, %d stages and %d formats: %s",
        (unsigned)api->abi, (unsigned)api->size, (unsigned)api->rules, (unsigned)api->stages, (unsigned)api->formats,
        PROPTIM_ABI, (int)sizeof *api, PROPTIM_RULES, PROPTIM_STAGES, PROPTIM_FORMATS,
        api->abi > PROPTIM_ABI ? "compile it again" : "upgrade proptim");
    return NULL;
}

#endif
