// The bf16 product on Intel's matrix unit (AMX): tiles of 16 rows × 64 bytes, multiplied by one instruction.
// products.h includes this for processors with AMX, and for tests, which emulate the instructions.

#pragma once

#include "vectors.h"

namespace charlm::amx {

struct alignas(64) TileConfig {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
};

#if defined(CHARLM_EMULATE_AMX)
// Emulates the instructions in plain C++, so that tests cover this path on any machine.
#undef _tile_loadconfig  // these are macros in GCC's headers
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
struct Tile {
    uint32_t words[16][16];
};
static thread_local Tile tiles[8];
static thread_local TileConfig current;

static inline void _tile_loadconfig(const TileConfig* config) { current = *config; }
static inline void _tile_release() { current = {}; }
static inline void _tile_zero(int n) { memset(&tiles[n], 0, sizeof(Tile)); }
static inline void _tile_loadd(int n, const void* from, long step) {
    for (int row = 0; row < current.rows[n]; row++) memcpy(tiles[n].words[row], (const char*)from + row * step, 64);
}
static inline void _tile_stored(int n, void* to, long step) {
    for (int row = 0; row < current.rows[n]; row++) memcpy((char*)to + row * step, tiles[n].words[row], 64);
}
static inline float as_float(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
static inline void _tile_dpbf16ps(int sums, int a, int b) {
    for (int row = 0; row < current.rows[sums]; row++)
        for (int column = 0; column < 16; column++) {
            float sum = as_float(tiles[sums].words[row][column]);
            for (int k = 0; k < 16; k++) {
                const uint32_t x = tiles[a].words[row][k], w = tiles[b].words[k][column];
                sum += as_float(x << 16) * as_float(w << 16) + as_float(x & 0xffff0000u) * as_float(w & 0xffff0000u);
            }
            memcpy(&tiles[sums].words[row][column], &sum, 4);
        }
}
#endif

// Tiles 0 1 / 2 3 hold the sums of up to 32 rows × 32 columns. Tiles 4 and 5 hold rows of A, tiles 6 and 7 columns of W.
// `upper` and `lower` are the row counts in the current configuration; -1: the unit is not configured.
static thread_local long upper = -1, lower = -1;

static inline void configure(long rows_above, long rows_below) {
    if (rows_above == upper && rows_below == lower) return;
    upper = rows_above, lower = rows_below;
    TileConfig config = {};
    config.palette = 1;
    const long rows[8] = {upper, upper, lower ? lower : 1, lower ? lower : 1, upper, lower ? lower : 1, 16, 16};
    for (int n = 0; n < 8; n++) config.bytes[n] = 64, config.rows[n] = (uint8_t)rows[n];
    _tile_loadconfig(&config);
}

// Releases the tile state. Every thread calls it at the end of its work.
static inline void release() {
    if (upper >= 0) _tile_release();
    upper = lower = -1;
}

static inline void write_sums(long rows, const float* sums, float* y, long y_step) {
    for (long r = 0; r < rows; r++)
        for (long j = 0; j < PANEL; j += LANES)
            store(y + r * y_step + j, load(y + r * y_step + j) + load(sums + r * PANEL + j));
}

// One panel of `product` in products.h; K is a multiple of 32.
static void product(long rows, const bf16* a, long a_step, const bf16* w, long K, float* y, long y_step, bool add) {
    // GCC 12's headers do not declare that a tile load reads memory. The barrier keeps pending stores ahead of the loads.
    __asm__ volatile("" ::: "memory");
    const long blocks = (rows + 31) / 32;
    for (long block = 0; block < blocks; block++) {
        const long first = rows * block / blocks, count = rows * (block + 1) / blocks - first;
        const long above = count > 16 ? (count + 1) / 2 : count, below = count - above;
        configure(above, below);
        const bf16 *a0 = a + first * a_step, *a1 = a0 + above * a_step;
        alignas(64) float sums[32][PANEL];
        float* to = add ? sums[0] : y + first * y_step;
        const long step = (add ? PANEL : y_step) * 4;
        _tile_zero(0);
        _tile_zero(1);
        if (below) {
            _tile_zero(2);
            _tile_zero(3);
            for (long k = 0; k < K; k += 32) {
                const bf16* columns = w + k * PANEL;
                _tile_loadd(4, a0 + k, a_step * 2);
                _tile_loadd(5, a1 + k, a_step * 2);
                _tile_loadd(6, columns, PANEL * 4);
                _tile_loadd(7, columns + 32, PANEL * 4);
                _tile_dpbf16ps(0, 4, 6);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(1, 4, 7);
                _tile_dpbf16ps(3, 5, 7);
            }
            _tile_stored(2, (char*)to + above * step, step);
            _tile_stored(3, (char*)to + above * step + 64, step);
        } else {
            for (long k = 0; k < K; k += 32) {
                const bf16* columns = w + k * PANEL;
                _tile_loadd(4, a0 + k, a_step * 2);
                _tile_loadd(6, columns, PANEL * 4);
                _tile_loadd(7, columns + 32, PANEL * 4);
                _tile_dpbf16ps(0, 4, 6);
                _tile_dpbf16ps(1, 4, 7);
            }
        }
        _tile_stored(0, to, step);
        _tile_stored(1, (char*)to + 64, step);
        if (add) write_sums(count, sums[0], y + first * y_step, y_step);
    }
}

}  // namespace charlm::amx
