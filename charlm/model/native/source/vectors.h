// Float vectors as wide as the target instruction set allows, and the activation functions.
//
// The vector extension of GCC and Clang compiles expressions like `a * b + c` to vector instructions on every processor.
// Intrinsics are used only for instructions that no expression maps to.

#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX2__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif

namespace charlm {

constexpr int LANES = VECTOR_BYTES / 4;
constexpr long PANEL = 32;  // columns of a matrix that are packed together; see products.h

typedef float Vector __attribute__((vector_size(VECTOR_BYTES)));
typedef uint32_t Words __attribute__((vector_size(VECTOR_BYTES)));
typedef uint16_t Halves __attribute__((vector_size(VECTOR_BYTES / 2)));

// The same types without alignment requirements, for loads and stores.
typedef float VectorAnywhere __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));
typedef uint32_t WordsAnywhere __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));
typedef uint16_t HalvesAnywhere __attribute__((vector_size(VECTOR_BYTES / 2), aligned(2), may_alias));

// The upper half of a float: sign, 8 bits of exponent, 7 of mantissa.
struct bf16 {
    uint16_t bits;
};

static inline Vector splat(float x) { return x - Vector{}; }
static inline Vector as_floats(Words bits) { return (Vector)bits; }
static inline Words as_bits(Vector x) { return (Words)x; }

static inline Vector load(const float* from) { return *(const VectorAnywhere*)from; }
static inline void store(float* to, Vector x) { *(VectorAnywhere*)to = x; }

static inline Vector load(const bf16* from) {
    return as_floats(__builtin_convertvector((Halves) * (const HalvesAnywhere*)from, Words) << 16);
}

// Rounds each lane to bf16, in the low half of a word: to nearest, ties to even; NaN stays NaN.
static inline Words rounded(Vector x) {
    Words bits = as_bits(x);
    Words even = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (x == x) ? even : (bits >> 16) | 0x40;
}

// Rounds two neighbours to bf16 and packs them into one word: the first in the low half.
static inline Words pair(Vector first, Vector second) { return rounded(first) | rounded(second) << 16; }

// Stores a vector as bf16, rounded as above.
static inline void store(bf16* to, Vector x) {
#if defined(__AVX512BF16__)
    __m256bh rounded = _mm512_cvtneps_pbh((__m512)x);
    memcpy(to, &rounded, sizeof rounded);
#else
    *(HalvesAnywhere*)to = __builtin_convertvector(rounded(x), Halves);
#endif
}

static inline bf16 to_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if (x != x) return {(uint16_t)((bits >> 16) | 0x40)};
    return {(uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

// 1 / x for finite x ≠ 0, with an error of about one unit in the last place.
static inline Vector reciprocal(Vector x) {
#if defined(__AVX512F__)
    Vector y = (Vector)_mm512_rcp14_ps((__m512)x);
    return y * (splat(2) - x * y);  // one Newton step doubles the 14 correct bits
#else
    return splat(1) / x;
#endif
}

// e^x = 2^n · e^r with |r| ≤ ln 2 / 2. `scale` is 2^n; `rest` is e^r − 1, accurate even when it is tiny.
struct Exponential {
    Vector scale, rest;
};

static inline Exponential exponential(Vector x) {
    const Vector magic = splat(12582912.0f);  // 1.5 · 2^23: adding it rounds to an integer, in the low bits of the sum
    x = x < splat(-87) ? splat(-87) : x;      // comparisons with NaN are false, so NaN propagates
    x = x > splat(87) ? splat(87) : x;        // 1 / e^87 is not yet denormal
    Vector shifted = x * splat(1.44269504f) + magic;
    Vector n = shifted - magic;
    Vector r = (x - n * splat(0.693359375f)) + n * splat(2.12194440e-4f);  // ln 2 in two parts
    Vector p = r * splat(1.0f / 5040) + splat(1.0f / 720);                 // Taylor series; the next term is below 2^-25
    p = p * r + splat(1.0f / 120);
    p = p * r + splat(1.0f / 24);
    p = p * r + splat(1.0f / 6);
    p = p * r + splat(0.5f);
    return {as_floats((as_bits(shifted) << 23) + 0x3f800000u), p * (r * r) + r};
}

// σ(x) = 1 / (1 + e^−x)
static inline Vector sigmoid(Vector x) {
    Exponential e = exponential(-x);
    return reciprocal(e.rest * e.scale + (e.scale + splat(1)));
}

// tanh(x) = (e^2x − 1) / (e^2x + 1)
static inline Vector tanh(Vector x) {
    Exponential e = exponential(x + x);
    Vector minus_one = e.rest * e.scale + (e.scale - splat(1));
    return minus_one * reciprocal(minus_one + splat(2));
}

// max(0, x); NaN stays NaN.
static inline Vector relu(Vector x) { return x < splat(0) ? splat(0) : x; }

}  // namespace charlm
