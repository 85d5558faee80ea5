/* The Python function that tells digests. */
#ifndef LATENTMILL_DIGESTS_H
#define LATENTMILL_DIGESTS_H

#include <Python.h>

#include "sha256.h"

#ifdef HAS_SHA256
extern const char digests_doc[];
PyObject *digests(PyObject *self, PyObject *args);
#endif

#endif
