// Softmax attention for many queries: keys are packed in blocks that stay in the second cache while all queries pass, and what a block
// adds is joined to what was found before by the greatest score so far (Milakov and Gimelshein, arXiv 1805.02867).
//
// Products are bfloat16 with float32 sums; weights are rounded to bfloat16 before they meet the values. Everything else is float32.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "few.h"
#include "vectors.h"

namespace {

// Six rows by four vectors of sixteen floats leave eight of the 32 registers for operands.
constexpr int kQueries = 6;
constexpr int64_t kTile = 64;
constexpr int64_t kKeys = 704;  // of a block: one ring of the default size with its sinks, or 176 KiB with the values
constexpr float kNothing = -std::numeric_limits<float>::infinity();

// Where one head's tensors begin, and how far apart their rows lie, in elements.
struct Matrix {
  const uint16_t* data;
  int64_t row;
};

// Keys as [depth / 2][width] and values as [width / 2][size] pairs of bfloat16, the operands of the dot product instruction; behind
// `count` they are zero.
struct Block {
  std::vector<uint32_t> keys, values;
  int64_t depth, size, count, width;

  void resize(int64_t new_depth, int64_t new_size, int64_t new_count) {
    depth = new_depth, size = new_size, count = new_count, width = (count + 15) / 16 * 16;
    keys.resize(depth / 2 * width), values.resize(width / 2 * size);
  }
};

// What queries have found so far: (rows, size) sums of weighed values, and for each row the sum of its weights and the greatest score.
struct Found {
  std::vector<float> values, sums, peaks;

  void begin(int64_t rows, int64_t size) {
    values.assign(rows * size, 0), sums.assign(rows, 0), peaks.assign(rows, kNothing);
  }
};

// How much of a tile of keys a query sees.
enum Seen : uint8_t { kHidden, kWhole, kPartly };

// What is added to a query's scaled scores. Any of the pointers may be null.
struct Added {
  const uint16_t* bias;    // (count,)
  const uint8_t* tiles;    // (tiles,): Seen, by the bias
  float constant, slope;
  const float* age;        // (count,)
  const uint8_t* visible;  // (count,)
};

constexpr float kLog2E = 1.44269504f;  // scores are kept to the base of two

NATIVE inline void transpose(__m512i (&x)[16]) {
  __m512i t[16], u[16];
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_epi32(x[2 * i], x[2 * i + 1]), t[2 * i + 1] = _mm512_unpackhi_epi32(x[2 * i], x[2 * i + 1]);
  }
  for (int i = 0; i < 4; ++i) {
    for (int h = 0; h < 2; ++h) {
      u[4 * i + 2 * h] = _mm512_unpacklo_epi64(t[4 * i + h], t[4 * i + 2 + h]);
      u[4 * i + 2 * h + 1] = _mm512_unpackhi_epi64(t[4 * i + h], t[4 * i + 2 + h]);
    }
  }
  for (int j = 0; j < 4; ++j) {
    const __m512i even = _mm512_shuffle_i32x4(u[j], u[4 + j], 0x88), odd = _mm512_shuffle_i32x4(u[j], u[4 + j], 0xdd);
    const __m512i more = _mm512_shuffle_i32x4(u[8 + j], u[12 + j], 0x88), most = _mm512_shuffle_i32x4(u[8 + j], u[12 + j], 0xdd);
    x[j] = _mm512_shuffle_i32x4(even, more, 0x88), x[8 + j] = _mm512_shuffle_i32x4(even, more, 0xdd);
    x[4 + j] = _mm512_shuffle_i32x4(odd, most, 0x88), x[12 + j] = _mm512_shuffle_i32x4(odd, most, 0xdd);
  }
}

// Sixteen keys, of which there are `count`, from column `begin` on.
NATIVE inline void pack_keys(Matrix keys, int64_t count, int64_t begin, Block& to) {
  for (int64_t p = 0; p < to.depth / 2; p += 16) {
    const __mmask16 inside = to.depth / 2 - p >= 16 ? 0xffff : (__mmask16)((1u << (to.depth / 2 - p)) - 1);
    __m512i pairs[16];
    for (int64_t n = 0; n < 16; ++n) {
      pairs[n] = n < count ? _mm512_maskz_loadu_epi32(inside, keys.data + n * keys.row + 2 * p) : _mm512_setzero_si512();
    }
    transpose(pairs);
    for (int64_t i = 0; i < 16 && p + i < to.depth / 2; ++i) _mm512_storeu_si512(to.keys.data() + (p + i) * to.width + begin, pairs[i]);
  }
}

NATIVE inline void pack_values(Matrix values, int64_t count, int64_t begin, Block& to) {
  for (int64_t n = 0; n < 16; n += 2) {
    for (int64_t d = 0; d < to.size; d += 16) {
      const __m256i none = _mm256_setzero_si256();
      const __m256i even = n < count ? _mm256_loadu_si256((const __m256i*)(values.data + n * values.row + d)) : none;
      const __m256i odd = n + 1 < count ? _mm256_loadu_si256((const __m256i*)(values.data + (n + 1) * values.row + d)) : none;
      const __m512i pairs = _mm512_or_si512(_mm512_cvtepu16_epi32(even), _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16));
      _mm512_storeu_si512(to.values.data() + (begin + n) / 2 * to.size + d, pairs);
    }
  }
}

inline void pack(Matrix keys, Matrix values, Block& to) {
  for (int64_t n = 0; n < to.width; n += 16) {
    pack_keys({keys.data + n * keys.row, keys.row}, to.count - n, n, to);
    pack_values({values.data + n * values.row, values.row}, to.count - n, n, to);
  }
}

// R rows of pairs, `stride` apart, times `depth` rows of a packed matrix, `width` apart: C vectors of the product are added to.
template <int R, int C>
NATIVE inline void multiply(const uint32_t* rows, int64_t stride, const uint32_t* packed, int64_t width, int64_t depth,
                            __m512 (&sums)[R][C]) {
  for (int64_t p = 0; p < depth; ++p, packed += width) {
    __m512bh column[C];
    for (int c = 0; c < C; ++c) column[c] = (__m512bh)_mm512_loadu_si512(packed + 16 * c);
    for (int r = 0; r < R; ++r) {
      const __m512bh pair = (__m512bh)_mm512_set1_epi32(rows[r * stride + p]);
      for (int c = 0; c < C; ++c) sums[r][c] = _mm512_dpbf16_ps(sums[r][c], pair, column[c]);
    }
  }
}

template <int R, int C>
NATIVE inline void score_tile(const uint16_t* query, const Block& block, int64_t n, float* scores) {
  __m512 sums[R][C];
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < C; ++c) sums[r][c] = _mm512_setzero_ps();
  }
  multiply<R, C>((const uint32_t*)query, block.depth / 2, block.keys.data() + n, block.width, block.depth / 2, sums);
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < C; ++c) _mm512_storeu_ps(scores + r * block.width + n + 16 * c, sums[r][c]);
  }
}

inline __mmask16 inside_of(int64_t count, int64_t n) {
  const int64_t left = count - n;
  return left >= 16 ? 0xffff : left <= 0 ? 0 : (__mmask16)((1u << left) - 1);
}

inline int64_t tiles_of(int64_t count) { return (count + kTile - 1) / kTile; }

// What a bias (count,) of zeros, -infinity and anything between leaves of each tile.
NATIVE inline void survey(const uint16_t* bias, int64_t count, uint8_t* tiles) {
  for (int64_t n = 0; n < count; n += kTile) {
    bool some = false, all = true;
    for (int64_t i = n; i < std::min(count, n + kTile); i += 16) {
      const __mmask16 inside = inside_of(count, i);
      const __m256i part = _mm256_maskz_loadu_epi16(inside, bias + i);
      some |= _mm256_mask_cmpneq_epi16_mask(inside, part, _mm256_set1_epi16((short)0xff80)) != 0;  // -infinity
      all &= _mm256_test_epi16_mask(part, part) == 0;
    }
    tiles[n / kTile] = !some ? kHidden : all ? kWhole : kPartly;
  }
}

inline void survey(const Few& job, uint8_t* tiles) {
  for (int64_t query = 0; query < job.batch * job.queries; ++query) {
    survey(job.bias + query * job.count, job.count, tiles + query * tiles_of(job.count));
  }
}

// Scaled scores of keys n to `end` with what is added to them, to the base of two; gives back the greatest.
NATIVE inline __m512 adjust(float* scores, int64_t n, int64_t end, int64_t count, float factor, const Added& added, bool biased) {
  const __m512 scale = _mm512_set1_ps(factor * kLog2E), constant = _mm512_set1_ps(added.constant * kLog2E);
  const __m512 down = _mm512_set1_ps(-added.slope * kLog2E), nothing = _mm512_set1_ps(kNothing);
  __m512 greatest = nothing;
  for (; n < end; n += 16) {
    const __mmask16 inside = inside_of(count, n);
    __m512 score = _mm512_fmadd_ps(_mm512_loadu_ps(scores + n), scale, constant);
    if (biased) {
      const __m512i bias = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(inside, added.bias + n)), 16);
      score = _mm512_fmadd_ps(_mm512_castsi512_ps(bias), _mm512_set1_ps(kLog2E), score);
    }
    if (added.age != nullptr) score = _mm512_fmadd_ps(down, _mm512_maskz_loadu_ps(inside, added.age + n), score);
    __mmask16 seen = inside;
    if (added.visible != nullptr) seen &= _mm_test_epi8_mask(_mm_maskz_loadu_epi8(inside, added.visible + n), _mm_set1_epi8(-1));
    if (seen != 0xffff) score = _mm512_mask_mov_ps(nothing, seen, score);
    _mm512_storeu_ps(scores + n, score);
    greatest = _mm512_max_ps(greatest, score);
  }
  return greatest;
}

// 2^x for x <= 0, to about 4e-6: a five-hundredth of what rounding to bfloat16 leaves open. NaN stays NaN; what is hidden becomes next to
// nothing.
NATIVE inline __m512 power_of_two(__m512 x) {
  const __m512 bounded = _mm512_max_ps(_mm512_set1_ps(-126.0f), x);  // in this order NaN is what comes out
  const __m512 whole = _mm512_roundscale_ps(bounded, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 rest = _mm512_sub_ps(bounded, whole);
  __m512 power = _mm512_set1_ps(9.5700985e-03f);  // least greatest relative error in [-0.5, 0.5]
  power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(5.5917861e-02f));
  power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(2.4024745e-01f));
  power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(6.9312181e-01f));
  power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(9.9999926e-01f));
  return _mm512_scalef_ps(power, whole);
}

// 2^(score - greatest) of keys n to `end` in bfloat16, and their sum.
NATIVE inline __m512 weigh(const float* scores, int64_t n, int64_t end, __m512 peak, uint16_t* weights) {
  __m512 sum = _mm512_setzero_ps();
  for (; n < end; n += 16) {
    const __m512 weight = power_of_two(_mm512_sub_ps(_mm512_loadu_ps(scores + n), peak));
    sum = _mm512_add_ps(sum, weight);
    _mm256_storeu_si256((__m256i*)(weights + n), (__m256i)_mm512_cvtneps_pbh(weight));
  }
  return sum;
}

template <int R, int C>
NATIVE inline void gather_tile(const uint16_t* weights, const Block& block, const uint8_t* seen, int64_t d, const float (&kept)[R],
                               float* values) {
  __m512 sums[R][C];
  for (int r = 0; r < R; ++r) {
    const __m512 share = _mm512_set1_ps(kept[r]);
    for (int c = 0; c < C; ++c) sums[r][c] = _mm512_mul_ps(_mm512_loadu_ps(values + r * block.size + d + 16 * c), share);
  }
  for (int64_t n = 0; n < block.width; n += kTile) {
    if (!seen[n / kTile]) continue;
    const int64_t pairs = std::min(kTile, block.width - n) / 2;
    multiply<R, C>((const uint32_t*)(weights + n), block.width / 2, block.values.data() + n / 2 * block.size + d, block.size, pairs, sums);
  }
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < C; ++c) _mm512_storeu_ps(values + r * block.size + d + 16 * c, sums[r][c]);
  }
}

// R queries, one behind the other, and what they find in a block, from row `row` of all that was found on.
template <int R>
NATIVE void attend_rows(const uint16_t* query, const Block& block, float scale, const Added (&added)[R], float* scores,
                        uint16_t* weights, Found& found, int64_t row) {
  uint8_t seen[kKeys / kTile];
  __m512 greatest[R];
  for (int r = 0; r < R; ++r) greatest[r] = _mm512_set1_ps(kNothing);
  for (int64_t n = 0; n < block.width; n += kTile) {
    const int64_t end = std::min(block.width, n + kTile), tile = n / kTile;
    bool some = false, biased = false;
    for (int r = 0; r < R; ++r) {
      const uint8_t sees = added[r].tiles == nullptr ? (uint8_t)kWhole : added[r].tiles[tile];
      some |= sees != kHidden, biased |= sees != kWhole;
    }
    seen[tile] = some;
    if (!some) continue;
    switch ((end - n) / 16) {
      case 4: score_tile<R, 4>(query, block, n, scores); break;
      case 3: score_tile<R, 3>(query, block, n, scores); break;
      case 2: score_tile<R, 2>(query, block, n, scores); break;
      case 1: score_tile<R, 1>(query, block, n, scores); break;
    }
    for (int r = 0; r < R; ++r) {
      greatest[r] = _mm512_max_ps(adjust(scores + r * block.width, n, end, block.count, scale, added[r], biased), greatest[r]);
    }
  }
  float kept[R];
  for (int r = 0; r < R; ++r) {
    float &peak = found.peaks[row + r], &sum = found.sums[row + r];
    const float higher = std::max(peak, _mm512_reduce_max_ps(greatest[r]));
    kept[r] = peak == kNothing ? 0 : std::exp2(peak - higher);
    peak = higher;
    // One that has seen nothing yet weighs all of it as next to nothing, and forgets that when it sees something.
    const __m512 top = _mm512_set1_ps(peak == kNothing ? 0 : peak);
    __m512 sums = _mm512_setzero_ps();
    for (int64_t n = 0; n < block.width; n += kTile) {
      if (!seen[n / kTile]) continue;
      const int64_t end = std::min(block.width, n + kTile);
      sums = _mm512_add_ps(sums, weigh(scores + r * block.width, n, end, top, weights + r * block.width));
    }
    sum = sum * kept[r] + _mm512_reduce_add_ps(sums);
    if (sum != sum) peak = sum;  // what is no number hides from the greatest
  }
  float* values = found.values.data() + row * block.size;
  int64_t d = 0;
  for (; d + 64 <= block.size; d += 64) gather_tile<R, 4>(weights, block, seen, d, kept, values);
  if (d < block.size) gather_tile<R, 2>(weights, block, seen, d, kept, values);
}

// One of `parts` parts of the queries, so that none but the last has a rest.
inline Span rows_of_part(int64_t rows, int64_t part, int64_t parts) {
  const auto at = [&](int64_t p) { return p == parts ? rows : rows * p / parts / kQueries * kQueries; };
  return {at(part), at(part + 1)};
}

// Rooms for one thread.
struct Desk {
  Block block;
  Found found;
  std::vector<float> scores, ages, scales;
  std::vector<uint16_t> weights, asked, spread;
  std::vector<uint8_t> tiles;
};

// All of `rows` queries, and what they find in the desk's block; `added` says of a row what is added to its scores.
template <class Add>
void attend_block(const uint16_t* query, int64_t rows, float scale, Desk& desk, const Add& added) {
  const Block& block = desk.block;
  desk.scores.resize(kQueries * block.width), desk.weights.resize(kQueries * block.width);
  const auto some = [&](auto number, int64_t row) {
    constexpr int R = decltype(number)::value;
    Added each[R];
    for (int r = 0; r < R; ++r) each[r] = added(row + r);
    attend_rows<R>(query + row * block.depth, block, scale, each, desk.scores.data(), desk.weights.data(), desk.found, row);
  };
  int64_t row = 0;
  for (; row + kQueries <= rows; row += kQueries) some(std::integral_constant<int, 6>(), row);
  switch (rows - row) {
    case 5: some(std::integral_constant<int, 5>(), row); break;
    case 4: some(std::integral_constant<int, 4>(), row); break;
    case 3: some(std::integral_constant<int, 3>(), row); break;
    case 2: some(std::integral_constant<int, 2>(), row); break;
    case 1: some(std::integral_constant<int, 1>(), row); break;
  }
}

// Blocks of keys of about the same size.
template <class Use>
void in_blocks(int64_t count, const Use& use) {
  const int64_t blocks = (count + kKeys - 1) / kKeys;
  for (int64_t i = 0, begin = 0; i < blocks; ++i) {
    const int64_t end = i + 1 == blocks ? count : (count * (i + 1) / blocks + kTile - 1) / kTile * kTile;
    use(begin, std::min(end, count));
    begin = std::min(end, count);
  }
}

// Queries' answers in bfloat16. One that saw nothing gets zeros.
NATIVE inline void settle(const Found& found, int64_t rows, int64_t size, uint16_t* out, float* mass) {
  for (int64_t row = 0; row < rows; ++row) {
    const float sum = found.sums[row], peak = found.peaks[row];
    const __m512 share = _mm512_set1_ps(peak == kNothing ? 0 : 1 / sum);
    for (int64_t d = 0; d < size; d += 16) {
      const __m512 value = _mm512_mul_ps(_mm512_loadu_ps(found.values.data() + row * size + d), share);
      _mm256_storeu_si256((__m256i*)(out + row * size + d), (__m256i)_mm512_cvtneps_pbh(value));
    }
    if (mass != nullptr) mass[row] = peak == kNothing ? peak : peak / kLog2E + std::log(sum);
  }
}

// Codes times their scales, bfloat16, one row behind the other.
template <int64_t K, int V>
NATIVE void spread_out(const char* codes, const float* scale, int64_t count, uint16_t* out) {
  for (int64_t n = 0; n < count; ++n) {
    __m512 x[V];
    expand<K, V>(codes + n * row_bytes<K>(16 * V), x);
    const __m512 factor = _mm512_set1_ps(scale[n]);
    for (int v = 0; v < V; ++v) {
      _mm256_storeu_si256((__m256i*)(out + n * 16 * V + 16 * v), (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(x[v], factor)));
    }
  }
}

template <int64_t K>
void spread_out(const char* codes, const float* scale, int64_t count, int64_t size, uint16_t* out) {
  switch (size / 16) {
    case 2: spread_out<K, 2>(codes, scale, count, out); break;
    case 4: spread_out<K, 4>(codes, scale, count, out); break;
    case 6: spread_out<K, 6>(codes, scale, count, out); break;
    case 8: spread_out<K, 8>(codes, scale, count, out); break;
    case 16: spread_out<K, 16>(codes, scale, count, out); break;
  }
}

// Rows of what is stored as bfloat16: where they lie, or laid out in `room`.
NATIVE inline Matrix rows_of(const Few& job, const Stored& stored, int64_t session, int64_t far, int64_t begin, int64_t count,
                             float* scales, uint16_t* room) {
  const char* codes = stored.codes.of(session, far);
  if (job.kind == kBfloat16) return {(const uint16_t*)codes + begin * job.size, job.size};
  const float* scale = scales_of(stored, session, far, begin, count, scales);
  if (job.kind == kInt8) spread_out<kInt8>(codes + begin * job.size, scale, count, job.size, room);
  else spread_out<kInt4>(codes + begin * (job.size / 2), scale, count, job.size, room);
  return {room, job.size};
}

// Queries `first` to `end` of one head of one session, as `search` in few.h does it for few. It wants to be told of tiles.
NATIVE inline void attend_many(const Few& job, int64_t b, int64_t head, int64_t first, int64_t end, Desk& desk) {
  const int64_t rows = end - first, size = job.size, far = job.far_heads == nullptr ? -1 : job.far_heads[head];
  const float scale = 1 / std::sqrt((float)size);
  const int64_t session = job.sessions == nullptr ? b : job.sessions[b], far_session = job.far_counts == nullptr ? b : session;
  const int64_t far_count = job.far_counts == nullptr ? job.far_count : job.far_counts[b];
  desk.found.begin(rows, size);
  if (far >= 0 && far_count > 0) {
    const int64_t pair = b * job.far_number + far, asked = pair * job.queries + first;
    const float *grid = (const float*)job.far_keys.grid.of(far_session, far);
    const float* value_grid = (const float*)job.far_values.grid.of(far_session, far);
    std::vector<float> constants(rows, 0.0f);
    const uint16_t* query = job.far_query + asked * size;
    if (grid != nullptr) {
      desk.asked.resize(rows * size);
      for (int64_t row = 0; row < rows; ++row) {
        __m512 known = _mm512_setzero_ps();
        for (int64_t d = 0; d < size; d += 16) {
          const __m512 x = widen(query + row * size + d);
          known = _mm512_fmadd_ps(x, _mm512_loadu_ps(grid + d), known);
          const __m512 turned = _mm512_mul_ps(x, _mm512_loadu_ps(grid + size + d));
          _mm256_storeu_si256((__m256i*)(desk.asked.data() + row * size + d), (__m256i)_mm512_cvtneps_pbh(turned));
        }
        constants[row] = scale * _mm512_reduce_add_ps(known);
      }
      query = desk.asked.data();
    }
    for (int64_t row = 0; row < rows && job.offset != nullptr; ++row) constants[row] += job.offset[asked + row];
    const bool ordered = job.slope != nullptr && job.far_counts != nullptr;  // by age
    desk.ages.resize(ordered ? far_count : 0), desk.scales.resize(kKeys + 16);
    for (int64_t n = 0; n < (int64_t)desk.ages.size(); ++n) desk.ages[n] = (float)(far_count - 1 - n) / far_count;
    const float* ages = ordered ? desk.ages.data() : job.age == nullptr || job.slope == nullptr ? nullptr : job.age + b * job.far_count;
    in_blocks(far_count, [&](int64_t begin, int64_t stop) {
      desk.spread.resize(2 * (stop - begin) * size);
      uint16_t *room = desk.spread.data(), *more = room + (stop - begin) * size;
      const Matrix keys = rows_of(job, job.far_keys, far_session, far, begin, stop - begin, desk.scales.data(), room);
      const Matrix values = rows_of(job, job.far_values, far_session, far, begin, stop - begin, desk.scales.data(), more);
      desk.block.resize(size, size, stop - begin);
      pack(keys, values, desk.block);
      const float* age = ages == nullptr ? nullptr : ages + begin;
      const uint8_t* visible = job.visible == nullptr ? nullptr : job.visible + pair * job.far_count + begin;
      attend_block(query, rows, scale, desk, [&](int64_t row) {
        return Added{nullptr, nullptr, constants[row], age == nullptr ? 0 : job.slope[asked + row], age, visible};
      });
    });
    for (int64_t row = 0; row < rows && value_grid != nullptr; ++row) {
      const __m512 sum = _mm512_set1_ps(desk.found.sums[row]);
      for (int64_t d = 0; d < size; d += 16) {
        float* value = desk.found.values.data() + row * size + d;
        const __m512 centre = _mm512_mul_ps(sum, _mm512_loadu_ps(value_grid + d));
        _mm512_storeu_ps(value, _mm512_fmadd_ps(_mm512_loadu_ps(value), _mm512_loadu_ps(value_grid + size + d), centre));
      }
    }
  }
  const int64_t where = session * job.batch_stride + head * job.head_stride, row = (b * job.heads + head) * job.queries + first;
  in_blocks(job.count, [&](int64_t begin, int64_t stop) {
    desk.block.resize(size, size, stop - begin);
    pack({(const uint16_t*)(job.keys + where) + begin * size, size}, {(const uint16_t*)(job.values + where) + begin * size, size}, desk.block);
    attend_block(job.query + row * size, rows, scale, desk, [&](int64_t r) {
      const int64_t query = b * job.queries + first + r;
      return Added{job.bias + query * job.count + begin, job.tiles + query * tiles_of(job.count) + begin / kTile, 0, 0, nullptr, nullptr};
    });
  });
  settle(desk.found, rows, size, job.out + row * size, nullptr);
}

}  // namespace
