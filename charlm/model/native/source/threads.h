// How a layer's work is divided between threads.
//
// The threads are OpenMP's, which are also PyTorch's: a second pool would fight the first for the cores, because OpenMP's
// threads keep spinning for milliseconds after each parallel operation. Without OpenMP there is one thread.

#pragma once

#include <atomic>
#include <thread>

#include "products.h"

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace charlm {

static inline int thread_number() {
#if defined(_OPENMP)
    return omp_get_thread_num();
#else
    return 0;
#endif
}

static inline int thread_count() {
#if defined(_OPENMP)
    return omp_get_num_threads();
#else
    return 1;
#endif
}

// Where the threads of a region meet. OpenMP's own barrier makes a system call each time, which costs as much as the step of
// a small layer. This one looks at a number until it changes, for a millisecond or two, since another program may have taken
// the other's core for a moment; then, or at once where there are more threads than cores, it sleeps.
class Meeting {
    alignas(64) std::atomic<int> arrived{0};
    alignas(64) std::atomic<int> round{0};

  public:
    void wait(int threads) {
        const int now = round.load(std::memory_order_relaxed);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) == threads - 1) {
            arrived.store(0, std::memory_order_relaxed);
            round.store(now + 1, std::memory_order_release);
            round.notify_all();  // no system call where nobody sleeps
            return;
        }
        static const int patience = 20000, cores = (int)std::thread::hardware_concurrency();
        for (int looks = threads > cores ? patience : 0; round.load(std::memory_order_acquire) == now; looks++) {
            if (looks > patience) round.wait(now, std::memory_order_acquire);
#if defined(__x86_64__)
            _mm_pause();
#endif
        }
    }
};

// Denormal numbers are taken as zero while this exists: the tails of saturated gates make them, and they slow arithmetic.
struct FlushDenormals {
#if defined(__x86_64__)
    unsigned before = _mm_getcsr();
    FlushDenormals() { _mm_setcsr(before | 0x8040); }
    ~FlushDenormals() { _mm_setcsr(before); }
#elif defined(__aarch64__)
    uint64_t before;
    FlushDenormals() {
        asm volatile("mrs %0, fpcr" : "=r"(before));
        asm volatile("msr fpcr, %0" ::"r"(before | (1 << 24)));
    }
    ~FlushDenormals() { asm volatile("msr fpcr, %0" ::"r"(before)); }
#else
    FlushDenormals() {}
    ~FlushDenormals() {}
#endif
};

// What every thread of a parallel region stands in.
struct Worker {
    FlushDenormals flush;
    ~Worker() {
#if defined(__AMX_BF16__) || defined(CHARLM_EMULATE_AMX)
        amx::finish();
#endif
    }
};

// Part `number` of `parts` of `all` things.
struct Range {
    long first, end;
};

static inline Range part(long all, long number, long parts) { return {all * number / parts, all * (number + 1) / parts}; }

// One thread's share of a layer: some streams, some hidden units (counted in panels of 32).
struct Share {
    Range rows, panels;
    Meeting* meeting;  // of those who work on the same streams and must wait for each other after each step; or null
    int threads;

    void meet() const {
        if (meeting) meeting->wait(threads);
    }
};

// Streams that a thread must have for its own, so that it uses a weight often enough between two reads of it.
#if defined(__AMX_BF16__) || defined(CHARLM_EMULATE_AMX)
constexpr long ENOUGH_ROWS = 32;
#else
constexpr long ENOUGH_ROWS = 16;
#endif

// Weights that are read whole by every thread at every step may take so much: four times a core's own cache, measured in
// docs/performance.md. Where they take more, each thread has its own columns of them.
constexpr long SHARED_WEIGHTS = 4 << 20;

// Streams are divided if that leaves each thread enough of them, for then nobody waits; else columns.
// `rows_split`: into how many parts the streams go; 0: decide here.
static inline Share share_of(int number, int threads, long B, long H, long weight_bytes, long rows_split, Meeting* meeting) {
    const long panels = H / PANEL;
    long parts = rows_split;
    if (parts == 0) {
        parts = 1;
        for (long p = threads; p > 1; p--)
            if (threads % p == 0 && B / p >= ENOUGH_ROWS && weight_bytes / (threads / p) <= SHARED_WEIGHTS) {
                parts = p;
                break;
            }
    }
    if (parts > threads) parts = threads;
    if (parts > B) parts = B;
    long columns = threads / parts;
    if (columns > panels) columns = panels;
    if (columns == 1) meeting = nullptr;
    if (number >= parts * columns) return {{0, 0}, {0, 0}, meeting, threads};
    return {part(B, number / columns, parts), part(panels, number % columns, columns), meeting, threads};
}

}  // namespace charlm
