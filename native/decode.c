/* A JPEG that lies in memory, decoded to where its pixels are wanted, without the interpreter's lock. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "decode.h"

#ifdef HAS_JPEG

int can_decode(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2");
}

const char decode_doc[] = "decode_jpeg(data, height, width, channels, out) -> bool: the pixels of a baseline JPEG, "
                          "(height, width, channels) of them, to the first bytes of `out`, as libjpeg-turbo gives them: "
                          "RGB of Y, Cb and Cr, or grey. False where it is not of this size, of another kind, or has "
                          "anything unusual: `out` may then hold a part.";

PyObject *decode(PyObject *self, PyObject *args) {
    Py_buffer data, out;
    int height, width, channels, found = JPEG_OTHER;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*iiiw*", &data, &height, &width, &channels, &out)) return NULL;
    int fits = height > 0 && width > 0 && (channels == 1 || channels == 3) &&
               (unsigned long long)height * (unsigned long long)width * (unsigned long long)channels <= (unsigned long long)out.len;
    if (fits) {
        Py_BEGIN_ALLOW_THREADS
        found = jpeg_decode(data.buf, (size_t)data.len, out.buf, height, width, channels);
        Py_END_ALLOW_THREADS
    } else {
        PyErr_Format(PyExc_ValueError, "what is written must have room for the pixels, of 1 or 3 channels. Found: %zd bytes "
                     "for %d x %d of %d", out.len, height, width, channels);
    }
    PyBuffer_Release(&data);
    PyBuffer_Release(&out);
    if (!fits) return NULL;
    return found == JPEG_NO_MEMORY ? PyErr_NoMemory() : PyBool_FromLong(found == JPEG_DECODED);
}

#endif
