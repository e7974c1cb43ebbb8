// How the work on a layer is divided between threads.
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

// A barrier that spins before it sleeps. OpenMP's barrier makes a system call each time, which costs as much as one step of a
// small layer. This one spins for a millisecond or two, which bridges short interruptions by other programs. Then it sleeps.
// With more threads than cores it sleeps at once.
class Barrier {
    alignas(64) std::atomic<int> arrived{0};
    alignas(64) std::atomic<int> round{0};

  public:
    void wait(int threads) {
        const int now = round.load(std::memory_order_relaxed);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) == threads - 1) {
            arrived.store(0, std::memory_order_relaxed);
            round.store(now + 1, std::memory_order_release);
            round.notify_all();  // makes no system call if no thread sleeps
            return;
        }
        static const int max_spins = 20000, cores = (int)std::thread::hardware_concurrency();
        for (int spins = threads > cores ? max_spins : 0; round.load(std::memory_order_acquire) == now; spins++) {
            if (spins > max_spins) round.wait(now, std::memory_order_acquire);
#if defined(__x86_64__)
            _mm_pause();
#endif
        }
    }
};

// RAII scope in which denormals are treated as zero. Saturated gates produce denormals, and arithmetic with them is slow.
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

// RAII scope of a worker thread: flushes denormals, and releases the AMX tiles at the end.
struct Worker {
    FlushDenormals flush;
    ~Worker() {
#if defined(__AMX_BF16__) || defined(CHARLM_EMULATE_AMX)
        amx::release();
#endif
    }
};

// A half-open range [first, end).
struct Range {
    long first, end;
};

// Part `number` of [0, all) divided into `parts` nearly equal parts.
static inline Range part(long all, long number, long parts) { return {all * number / parts, all * (number + 1) / parts}; }

// The part of a layer that one thread computes: a range of streams and a range of hidden units (in panels of 32).
struct WorkSlice {
    Range rows, panels;
    Barrier* barrier;  // where all threads wait after each step; null: every thread has all units of its streams
    int threads;

    void wait() const {
        if (barrier) barrier->wait(threads);
    }
};

// Streams are divided between threads only if each thread gets at least this many. With fewer, a thread loads weights more
// often than the arithmetic pays for.
#if defined(__AMX_BF16__) || defined(CHARLM_EMULATE_AMX)
constexpr long MIN_ROWS_PER_THREAD = 32;
#else
constexpr long MIN_ROWS_PER_THREAD = 16;
#endif

// Streams are divided between threads only if the weights that each thread reads per step are at most this large: four times
// the private cache of a core, by measurement. Larger weights are divided by columns, one part per thread.
constexpr long MAX_SHARED_WEIGHT_BYTES = 4 << 20;

// Divides a layer by streams if the two limits above allow it, since then no thread waits for another. Otherwise divides it
// by hidden units, or by both.
//
//   rows_split   number of parts that the streams are divided into; 0: choose it here
static inline WorkSlice slice_of(int number, int threads, long B, long H, long weight_bytes, long rows_split,
                                 Barrier* barrier) {
    const long panels = H / PANEL;
    long parts = rows_split;
    if (parts == 0) {
        parts = 1;
        for (long p = threads; p > 1; p--)
            if (threads % p == 0 && B / p >= MIN_ROWS_PER_THREAD && weight_bytes / (threads / p) <= MAX_SHARED_WEIGHT_BYTES) {
                parts = p;
                break;
            }
    }
    if (parts > threads) parts = threads;
    if (parts > B) parts = B;
    long columns = threads / parts;
    if (columns > panels) columns = panels;
    if (columns == 1) barrier = nullptr;
    if (number >= parts * columns) return {{0, 0}, {0, 0}, barrier, threads};
    return {part(B, number / columns, parts), part(panels, number % columns, columns), barrier, threads};
}

}  // namespace charlm
