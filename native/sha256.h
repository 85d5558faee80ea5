/* SHA-256 of bytes in memory. Built for x86-64 with GCC or Clang, for processors that have instructions for it. */
#ifndef LATENTMILL_SHA256_H
#define LATENTMILL_SHA256_H

#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__) && defined(__GNUC__)
#define HAS_SHA256

#define SHA256_BYTES 32

typedef struct {
    const uint8_t *bytes;
    size_t length;
    uint8_t digest[SHA256_BYTES];
} Message;

/* The digest of every message, on a processor that `has_sha256`. */
void sha256(Message *messages, size_t count);

#endif
#endif
