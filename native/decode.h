/* The Python function that decodes a JPEG. */
#ifndef LATENTMILL_DECODE_H
#define LATENTMILL_DECODE_H

#include <Python.h>

#include "jpeg.h"

#ifdef HAS_JPEG
int can_decode(void); /* whether this processor has what the decoder is compiled for */
extern const char decode_doc[];
PyObject *decode(PyObject *self, PyObject *args);
#endif

#endif
