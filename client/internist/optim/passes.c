/* Passes of an optimizer step over matrices in a CPU's memory: what takes torch three to six operators, in one.
 *
 * Matrices are float32, rows of contiguous entries one after another. `passes.h` is written for an arithmetic's type T:
 * float, or bfloat16 as the upper half of a float, to which numbers are rounded to the nearest, ties to even; NaN stays
 * NaN.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

typedef uint16_t bfloat16;

#define LANES 16 /* entries of a vector */
#define SUMS 4   /* vectors that are summed apart, so that an addition need not wait for the one before */
#define TALL 64  /* rows of a tile */
#define AHEAD(p) __builtin_prefetch((p) + 512) /* half or four times as far took the same time */
#define INLINE static inline __attribute__((always_inline))

typedef float floats __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

INLINE float wide_bfloat16(bfloat16 x) {
  const uint32_t bits = (uint32_t)x << 16;
  float wide;
  memcpy(&wide, &bits, sizeof wide);
  return wide;
}

INLINE bfloat16 as_bfloat16(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return (bits & 0x7fffffffu) > 0x7f800000u ? (bfloat16)0x7fc0 : (bfloat16)rounded;
}

INLINE float wide_float(float x) { return x; }
INLINE float as_float(float x) { return x; }

INLINE void load_float(const float *p, floats *x) { *x = *(const floats *)p; }
INLINE void store_float(float *p, const floats *x) { *(floats *)p = *x; }

INLINE void load_bfloat16(const bfloat16 *p, floats *x) {
  *x = (floats)(__builtin_convertvector(*(const halves *)p, words) << 16);
}

#ifdef __AVX512BF16__
INLINE void store_bfloat16(bfloat16 *p, const floats *x) {
  const __m256bh rounded = _mm512_cvtneps_pbh((__m512)*x);
  memcpy(p, &rounded, sizeof rounded);
}
#else
INLINE void store_bfloat16(bfloat16 *p, const floats *x) {
  const words bits = (words)*x, rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const words broken = (words)((bits & 0x7fffffffu) > 0x7f800000u);
  *(halves *)p = __builtin_convertvector((rounded & ~broken) | (broken & 0x7fc0u), halves);
}
#endif

INLINE float sum_of(const floats *x, int count) {
  float sum = 0.0f;
  for (int i = 0; i < count; i++)
    for (int k = 0; k < LANES; k++) sum += x[i][k];
  return sum;
}

INLINE float dot(const float *x, const float *y, int64_t entries) {
  const int64_t whole = entries - entries % LANES;
  floats sum = {0.0f};
  for (int64_t j = 0; j < whole; j += LANES) {
    floats a, b;
    load_float(x + j, &a), load_float(y + j, &b);
    sum += a * b;
  }
  float rest = 0.0f;
  for (int64_t j = whole; j < entries; j++) rest += x[j] * y[j];
  return rest + sum_of(&sum, 1);
}

/* m <- m + w (g - m), as the passes below have it. */
void accumulate(const float *restrict g, float *restrict m, int64_t entries, float w) {
  const int64_t whole = entries - entries % LANES;
  for (int64_t j = 0; j < whole; j += LANES) {
    floats entry, moment;
    AHEAD(g + j), AHEAD(m + j);
    load_float(g + j, &entry), load_float(m + j, &moment);
    moment += w * (entry - moment);
    store_float(m + j, &moment);
  }
  for (int64_t j = whole; j < entries; j++) m[j] += w * (g[j] - m[j]);
}

#define JOINED(a, b) a##_##b
#define NAMED(a, b) JOINED(a, b)
#define OF(name) NAMED(name, T)

#define T float
#include "passes.h"
#undef T
#define T bfloat16
#include "passes.h"
