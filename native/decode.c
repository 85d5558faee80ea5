/* A JPEG that lies in memory, decoded to where its pixels are wanted, without the interpreter's lock. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "decode.h"
#include "processor.h"

#ifdef HAS_JPEG

int can_decode(void) {
    return has_avx2() && __builtin_cpu_supports("bmi2");
}

const char decode_doc[] = "decode_jpeg(data, height, width, channels, halvings, out) -> bool: the pixels of a baseline "
                          "JPEG of this size, of each side divided by two so often, to the first bytes of `out`, as "
                          "libjpeg-turbo gives them: RGB of Y, Cb and Cr, or grey, as which libjpeg-turbo must read its "
                          "header without a complaint. False where it is not of this size, of another kind, or has "
                          "anything unusual: `out` may then hold a part.";

PyObject *decode(PyObject *self, PyObject *args) {
    PyObject *data; /* bytes, which nobody changes meanwhile */
    Py_buffer out;
    int height, width, channels, halvings, found = JPEG_OTHER;
    (void)self;
    if (!PyArg_ParseTuple(args, "Siiiiw*", &data, &height, &width, &channels, &halvings, &out)) return NULL;
    int fits = height > 0 && width > 0 && (channels == 1 || channels == 3) && halvings >= 0 && halvings <= MOST_HALVINGS;
    if (fits) {
        unsigned long long rows = (unsigned)height >> halvings, columns = (unsigned)width >> halvings;
        fits = rows * columns * (unsigned)channels <= (unsigned long long)out.len;
    }
    if (fits) {
        const char *bytes = PyBytes_AsString(data);
        Py_ssize_t length = PyBytes_Size(data);
        Py_BEGIN_ALLOW_THREADS
        found = jpeg_decode((const uint8_t *)bytes, (size_t)length, out.buf, height, width, channels, halvings);
        Py_END_ALLOW_THREADS
    } else {
        PyErr_Format(PyExc_ValueError, "what is written must have room for the pixels, of 1 or 3 channels, halved at most %d "
                     "times. Found: %zd bytes for %d x %d of %d, halved %d times", MOST_HALVINGS, out.len, height, width,
                     channels, halvings);
    }
    PyBuffer_Release(&out);
    if (!fits) return NULL;
    return found == JPEG_NO_MEMORY ? PyErr_NoMemory() : PyBool_FromLong(found == JPEG_DECODED);
}

#endif
