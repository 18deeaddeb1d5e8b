// Softmax attention in bfloat16 for processors with AVX-512 BF16, which torch's own kernel leaves two thirds idle.
//
// Plain C functions, called through ctypes: neither Python's nor torch's headers are needed to build them. A processor without the
// instructions, or a compiler without x86, finds `palimpsest_supported` to say no.

#include <cstdint>

#if defined(__x86_64__) && defined(__GNUC__)

#include <algorithm>
#include <vector>

#include "few.h"
#include "many.h"
#include "nearest.h"

extern "C" int palimpsest_supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
}

// See models/native/attention.py. Strides are in elements: batch, head, row. `query`, `out` and `mass` have no gaps; a bias may be null.
extern "C" void palimpsest_attend(const uint16_t* query, const uint16_t* keys, const uint16_t* values, const uint16_t* bias,
                                  int64_t batch, int64_t heads, int64_t rows, int64_t count, int64_t depth, int64_t size,
                                  const int64_t* key_strides, const int64_t* value_strides, const int64_t* bias_strides, float scale,
                                  uint16_t* out, float* mass, int32_t threads) {
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1)
  for (int64_t task = 0; task < batch * heads * threads; ++task) {
    static thread_local Desk desk;
    const int64_t pair = task / threads, b = pair / heads, h = pair % heads;
    const Span part = rows_of_part(rows, task % threads, threads);
    const int64_t tiles = tiles_of(count);
    const auto bias_of = [&](int64_t row) { return bias + b * bias_strides[0] + h * bias_strides[1] + (part.begin + row) * bias_strides[2]; };
    desk.tiles.resize(bias == nullptr ? 0 : part.number() * tiles);
    for (int64_t row = 0; row < part.number() && bias != nullptr; ++row) survey(bias_of(row), count, desk.tiles.data() + row * tiles);
    desk.found.begin(part.number(), size);
    in_blocks(count, [&](int64_t begin, int64_t end) {
      desk.block.resize(depth, size, end - begin);
      const uint16_t* key = keys + b * key_strides[0] + h * key_strides[1] + begin * key_strides[2];
      const uint16_t* value = values + b * value_strides[0] + h * value_strides[1] + begin * value_strides[2];
      pack({key, key_strides[2]}, {value, value_strides[2]}, desk.block);
      attend_block(query + (pair * rows + part.begin) * depth, part.number(), scale, desk, [&](int64_t row) {
        if (bias == nullptr) return Added{};
        return Added{bias_of(row) + begin, desk.tiles.data() + row * tiles + begin / kTile, 0, 0, nullptr, nullptr};
      });
    });
    settle(desk.found, part.number(), size, out + (pair * rows + part.begin) * size, mass + pair * rows + part.begin);
  }
}

extern "C" void palimpsest_attend_many(const Few* given, int32_t threads) {
  std::vector<uint8_t> tiles(given->batch * given->queries * tiles_of(given->count));
  survey(*given, tiles.data());
  Few job = *given;
  job.tiles = tiles.data();
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1)
  for (int64_t task = 0; task < job.batch * job.heads * threads; ++task) {
    static thread_local Desk desk;
    const int64_t pair = task / threads;
    const Span part = rows_of_part(job.queries, task % threads, threads);
    attend_many(job, pair / job.heads, pair % job.heads, part.begin, part.end, desk);
  }
}

// See models/native/nearest.py. `counts`, by session, may be null: then all `count` keys are there.
extern "C" void palimpsest_attend_nearest(const uint16_t* query, const uint16_t* keys, const uint16_t* values, const int64_t* counts,
                                          int64_t batch, int64_t heads, int64_t rows, int64_t count, int64_t depth, int64_t nearest,
                                          const int64_t* key_strides, const int64_t* value_strides, float scale, float* out,
                                          float* mass, int32_t threads) {
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1)
  for (int64_t task = 0; task < batch * heads * threads; ++task) {
    static thread_local Nearest desk;
    const int64_t pair = task / threads, b = pair / heads, h = pair % heads;
    const Span part = rows_of_part(rows, task % threads, threads);
    const Matrix key = {keys + b * key_strides[0] + h * key_strides[1], key_strides[2]};
    const Matrix value = {values + b * value_strides[0] + h * value_strides[1], value_strides[2]};
    const int64_t first = pair * rows + part.begin;
    desk.attend(query + first * depth, part.number(), key, value, counts == nullptr ? count : counts[b], depth, depth, nearest, scale,
                out + first * depth, mass + first);
  }
}

#else

extern "C" int palimpsest_supported() { return 0; }

#endif
