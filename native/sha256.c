/* SHA-256 (FIPS 180-4) by the processor's own instructions, of two messages side by side.
 *
 * Each of a message's rounds waits for the one before it, so that one message alone leaves the processor idle for a
 * third of the time. Two do not wait for each other; as soon as one has ended, the next takes its place. */
#include "sha256.h"

#ifdef HAS_SHA256

#include <immintrin.h>
#include <string.h>

#define BLOCK 64  /* bytes */
#define ROUNDS 64 /* of a block */
#define LENGTH_BYTES 8 /* at the end of a message's last block: its length in bits */
#define LANES 2
#define TARGET __attribute__((target("sha,sse4.1")))

static const uint32_t K[ROUNDS] __attribute__((aligned(16))) = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

/* The eight words of a state as the instructions take them: a, b, e, f and c, d, g, h, the first the highest. */
typedef struct {
    __m128i abef, cdgh;
} State;

/* A message under way. */
typedef struct {
    State state;
    const uint8_t *at;
    size_t blocks, closing;  /* that lie there, and in `last` behind them */
    uint8_t last[2 * BLOCK]; /* what fills no block, a set bit, zeros, and the length */
    Message *message;        /* NULL: none */
} Lane;

/* The next `blocks` of so many lanes, block by block of each in turn. */
TARGET static inline __attribute__((always_inline)) void advance(Lane *const *lanes, const int count, size_t blocks) {
    const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0bLL, 0x0405060700010203LL); /* words are big-endian */
    State state[LANES];
    for (int l = 0; l < count; l++) state[l] = lanes[l]->state;
    for (size_t b = 0; b < blocks; b++) {
        __m128i words[LANES][4]; /* of each, the sixteen that the next rounds need, in turn */
        State before[LANES];
        for (int l = 0; l < count; l++) {
            const __m128i *block = (const __m128i *)(lanes[l]->at + b * BLOCK);
            before[l] = state[l];
            for (int w = 0; w < 4; w++) words[l][w] = _mm_shuffle_epi8(_mm_loadu_si128(block + w), swap);
        }
#pragma GCC unroll 16
        for (int r = 0; r < ROUNDS / 4; r++) { /* four rounds */
            __m128i k = _mm_load_si128((const __m128i *)K + r);
            for (int l = 0; l < count; l++) {
                __m128i *w = words[l], sum = _mm_add_epi32(w[r & 3], k);
                state[l].cdgh = _mm_sha256rnds2_epu32(state[l].cdgh, state[l].abef, sum);
                state[l].abef = _mm_sha256rnds2_epu32(state[l].abef, state[l].cdgh, _mm_shuffle_epi32(sum, 0x0e));
                if (r >= ROUNDS / 4 - 4) continue;
                __m128i next = _mm_sha256msg1_epu32(w[r & 3], w[(r + 1) & 3]);
                next = _mm_add_epi32(next, _mm_alignr_epi8(w[(r + 3) & 3], w[(r + 2) & 3], 4));
                w[r & 3] = _mm_sha256msg2_epu32(next, w[(r + 3) & 3]);
            }
        }
        for (int l = 0; l < count; l++) {
            state[l].abef = _mm_add_epi32(state[l].abef, before[l].abef);
            state[l].cdgh = _mm_add_epi32(state[l].cdgh, before[l].cdgh);
        }
    }
    for (int l = 0; l < count; l++) {
        lanes[l]->state = state[l];
        lanes[l]->at += blocks * BLOCK;
        lanes[l]->blocks -= blocks;
    }
}

TARGET static void advance_one(Lane *const *lanes, size_t blocks) {
    advance(lanes, 1, blocks);
}

TARGET static void advance_two(Lane *const *lanes, size_t blocks) {
    advance(lanes, 2, blocks);
}

static void begin(Lane *lane, Message *message) {
    size_t rest = message->length % BLOCK;
    lane->message = message;
    lane->state.abef = _mm_set_epi32(0x6a09e667, (int)0xbb67ae85, 0x510e527f, (int)0x9b05688c);
    lane->state.cdgh = _mm_set_epi32(0x3c6ef372, (int)0xa54ff53a, 0x1f83d9ab, 0x5be0cd19);
    lane->at = message->bytes;
    lane->blocks = message->length / BLOCK;
    lane->closing = rest + 1 + LENGTH_BYTES <= BLOCK ? 1 : 2;
    memset(lane->last, 0, sizeof lane->last);
    if (rest) memcpy(lane->last, message->bytes + message->length - rest, rest);
    lane->last[rest] = 0x80;
    for (int b = 0; b < LENGTH_BYTES; b++)
        lane->last[lane->closing * BLOCK - 1 - b] = (uint8_t)((uint64_t)message->length * 8 >> 8 * b);
}

static void finish(Lane *lane) {
    uint32_t abef[4], cdgh[4];
    memcpy(abef, &lane->state.abef, sizeof abef);
    memcpy(cdgh, &lane->state.cdgh, sizeof cdgh);
    const uint32_t words[SHA256_BYTES / 4] = {abef[3], abef[2], cdgh[3], cdgh[2], abef[1], abef[0], cdgh[1], cdgh[0]};
    for (int b = 0; b < SHA256_BYTES; b++) lane->message->digest[b] = (uint8_t)(words[b / 4] >> 8 * (3 - b % 4));
    lane->message = NULL;
}

void sha256(Message *messages, size_t count) {
    Lane lanes[LANES], *busy[LANES];
    size_t begun = 0;
    for (int l = 0; l < LANES; l++) lanes[l].message = NULL;
    for (;;) {
        int running = 0;
        size_t blocks = SIZE_MAX;
        for (int l = 0; l < LANES; l++) {
            Lane *lane = &lanes[l];
            if (lane->message && !lane->blocks && !lane->closing) finish(lane);
            if (!lane->message && begun < count) begin(lane, &messages[begun++]);
            if (!lane->message) continue;
            if (!lane->blocks) {
                lane->at = lane->last;
                lane->blocks = lane->closing;
                lane->closing = 0;
            }
            if (lane->blocks < blocks) blocks = lane->blocks;
            busy[running++] = lane;
        }
        if (running == 0) return;
        (running == 1 ? advance_one : advance_two)(busy, blocks);
    }
}

#endif
